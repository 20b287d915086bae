/*
 * The helper process of stalls.h: what must happen elsewhere for a stall to
 * happen in the loop. Each function prepares, says that it is ready, waits for
 * the stall to begin (help_wait), and after the agreed time lets the loop go.
 */
#ifndef STALLS_HELPER_H
#define STALLS_HELPER_H

#include "stalls.h"

static void help_wait(struct stalls *s, uint64_t ns)
{
    char c;

    s->shared->ready = 1;
    while (read(s->go[0], &c, 1) < 0 && errno == EINTR)
        ;
    if (ns)
        sleep_ns(ns);
}

/* Only the loop counts what went wrong; here it would show as a stall that does not end. */
static void help_ignore(ssize_t n)
{
    (void)n;
}

#define HELP(name) static void help_##name(struct stalls *s, const struct stalls_command *command)

HELP(pipe_read)
{
    help_wait(s, command->ns);
    help_ignore(write(s->data_in[1], "x", 1));
}

HELP(pipe_write)
{
    static char block[65536];

    fcntl(s->data_out[1], F_SETFL, O_NONBLOCK);
    while (write(s->data_out[1], block, 4096) > 0)
        ;
    fcntl(s->data_out[1], F_SETFL, 0);
    help_wait(s, command->ns);
    fcntl(s->data_out[0], F_SETFL, O_NONBLOCK);
    /* Until the writer is through, and then until the pipe is empty. */
    for (int idle = 0; idle < 20;) {
        idle = read(s->data_out[0], block, sizeof(block)) > 0 ? 0 : idle + 1;
        if (idle)
            sleep_ns(50000);
    }
}

HELP(fifo_open)
{
    char path[520];

    help_wait(s, command->ns);
    snprintf(path, sizeof(path), "%s/fifo", s->dir);
    close(open(path, O_WRONLY | O_CLOEXEC));
}

/* Enough unwritten data that the disk is busy for a while. */
HELP(fsync)
{
    static char block[1 << 20];
    uint64_t bytes = command->bytes;
    char path[520];
    int fd;

    memset(block, 'd', sizeof(block));
    snprintf(path, sizeof(path), "%s/dirty", s->dir);
    fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    while (fd >= 0 && bytes >= sizeof(block) && write(fd, block, sizeof(block)) > 0)
        bytes -= sizeof(block);
    close(fd);
    s->shared->ready = 1;
}

#define help_fdatasync help_fsync

static int help_lock_file(struct stalls *s)
{
    char path[520];

    snprintf(path, sizeof(path), "%s/lock", s->dir);
    return open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
}

HELP(flock)
{
    int fd = help_lock_file(s);

    flock(fd, LOCK_EX);
    help_wait(s, command->ns);
    close(fd);
}

HELP(fcntl_lock)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    int fd = help_lock_file(s);

    fcntl(fd, F_SETLKW, &lock);
    help_wait(s, command->ns);
    close(fd);
}

HELP(tcp_recv)
{
    help_wait(s, command->ns);
    help_ignore(send(s->tcp[1], "x", 1, MSG_NOSIGNAL));
}

HELP(tcp_accept)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    help_wait(s, command->ns);
    help_ignore(connect(fd, (struct sockaddr *)&s->listener_address, sizeof(s->listener_address)));
    close(fd);
}

/* Fills the backlog, so that the next connect waits for an accept. */
HELP(unix_connect)
{
    int fill[8], fills = 0;

    while (fills < 7) {
        fill[fills] = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (connect(fill[fills], (struct sockaddr *)&s->unix_address, sizeof(s->unix_address)))
            break;
        fills++;
    }
    close(fill[fills]);
    help_wait(s, command->ns);
    for (int i = 0; i <= fills; i++)
        close(accept(s->unix_listener, NULL, NULL));
    while (fills > 0)
        close(fill[--fills]);
}

/* The slow resolver: a name server that answers late, and only that there is no such name. */
HELP(getaddrinfo)
{
    struct sockaddr_in from;
    socklen_t from_len = sizeof(from);
    char packet[512];
    ssize_t n;

    help_wait(s, 0);
    n = recvfrom(s->dns, packet, sizeof(packet), 0, (struct sockaddr *)&from, &from_len);
    sleep_ns(command->ns);
    if (n > 12) {
        packet[2] = (char)0x81; /* a response */
        packet[3] = (char)0x83; /* no such name */
        help_ignore(sendto(s->dns, packet, (size_t)n, 0, (struct sockaddr *)&from, from_len));
    }
}

HELP(sem_wait)
{
    help_wait(s, command->ns);
    sem_post(&s->shared->sem);
}

HELP(mutex)
{
    pthread_mutex_lock(&s->shared->mutex);
    help_wait(s, command->ns);
    pthread_mutex_unlock(&s->shared->mutex);
}

HELP(cond_wait)
{
    help_wait(s, command->ns);
    pthread_mutex_lock(&s->shared->cond_mutex);
    s->shared->cond_flag = 1;
    pthread_cond_signal(&s->shared->cond);
    pthread_mutex_unlock(&s->shared->cond_mutex);
}

HELP(rwlock)
{
    pthread_rwlock_wrlock(&s->shared->rwlock);
    help_wait(s, command->ns);
    pthread_rwlock_unlock(&s->shared->rwlock);
}

HELP(pagefault)
{
    struct uffdio_zeropage zero = {0};
    struct uffd_msg message;

    if (s->uffd < 0) {
        s->shared->ready = 1;
        return;
    }
    help_wait(s, command->ns);
    if (read(s->uffd, &message, sizeof(message)) == sizeof(message)) {
        zero.range.start = message.arg.pagefault.address & ~4095ull;
        zero.range.len = 4096;
        ioctl(s->uffd, UFFDIO_ZEROPAGE, &zero);
    }
}

/* A neighbour of far higher weight on the loop's only CPU. */
HELP(runqueue)
{
    cpu_set_t all, one;

    sched_getaffinity(0, sizeof(all), &all);
    CPU_ZERO(&one);
    CPU_SET(0, &one);
    sched_setaffinity(0, sizeof(one), &one);
    help_wait(s, 0);
    spin_until(now_ns() + command->ns);
    sched_setaffinity(0, sizeof(all), &all);
}

HELP(stopped)
{
    pid_t loop = getppid();

    help_wait(s, 0);
    kill(loop, SIGSTOP);
    sleep_ns(command->ns);
    s->shared->done = 1;
    kill(loop, SIGCONT);
}

#endif
