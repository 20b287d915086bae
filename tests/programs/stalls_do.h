/*
 * The stalls, one function each: set up what is quick, stalls_begin, the call
 * that takes long, stalls_end. And the table: what the recording must say.
 */
#ifndef STALLS_DO_H
#define STALLS_DO_H

#include "stalls_helper.h"

static inline void stalls_begin(struct stalls *s)
{
    s->delay_start = runqueue_ns(&s->schedstat);
    s->start_ns = now_ns();
}

static inline void stalls_end(struct stalls *s)
{
    s->end_ns = now_ns();
    s->delay_end = runqueue_ns(&s->schedstat);
}

/* Tells the helper that the stall begins. */
static inline void stalls_go(struct stalls *s)
{
    if (write(s->go[1], "g", 1) != 1)
        s->short_counts++;
}

/* A call that should have ended by itself. */
static inline void stalls_expect(struct stalls *s, bool good)
{
    if (good)
        return;
    if (errno == EINTR)
        s->interrupted++;
    else
        s->short_counts++;
}

#define STALL(name) static NOINLINE void stall_##name(struct stalls *s)

#define STALL(name) static NOINLINE void stall_##name(struct stalls *s)

STALL(nanosleep)
{
    struct timespec ts = {.tv_nsec = (long)(s->ns % 1000000000u), .tv_sec = (time_t)(s->ns / 1000000000u)};

    stalls_begin(s);
    stalls_expect(s, nanosleep(&ts, NULL) == 0);
    stalls_end(s);
}

STALL(usleep)
{
    stalls_begin(s);
    stalls_expect(s, usleep((useconds_t)(s->ns / 1000)) == 0);
    stalls_end(s);
}

STALL(poll)
{
    struct pollfd p = {.fd = s->data_in[0], .events = POLLIN};

    stalls_begin(s);
    stalls_expect(s, poll(&p, 1, (int)(s->ns / 1000000)) == 0);
    stalls_end(s);
}

STALL(select)
{
    struct timeval tv = {.tv_usec = (suseconds_t)(s->ns / 1000)};

    stalls_begin(s);
    stalls_expect(s, select(0, NULL, NULL, NULL, &tv) == 0);
    stalls_end(s);
}

STALL(epoll_wait)
{
    struct epoll_event ev = {.events = EPOLLIN};
    int fd = epoll_create1(EPOLL_CLOEXEC);

    epoll_ctl(fd, EPOLL_CTL_ADD, s->data_in[0], &ev);
    stalls_begin(s);
    stalls_expect(s, epoll_wait(fd, &ev, 1, (int)(s->ns / 1000000)) == 0);
    stalls_end(s);
    close(fd);
}

STALL(pipe_read)
{
    char c;

    stalls_begin(s);
    stalls_go(s);
    stalls_expect(s, read(s->data_in[0], &c, 1) == 1);
    stalls_end(s);
}

STALL(pipe_write)
{
    static char buffer[4096];

    stalls_begin(s);
    stalls_go(s);
    stalls_expect(s, write(s->data_out[1], buffer, sizeof(buffer)) == sizeof(buffer));
    stalls_end(s);
}

STALL(fifo_open)
{
    char path[520];
    int fd;

    snprintf(path, sizeof(path), "%s/fifo", s->dir);
    stalls_begin(s);
    stalls_go(s);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    stalls_expect(s, fd >= 0);
    stalls_end(s);
    close(fd);
}

STALL(fsync)
{
    char path[520];
    int fd;

    snprintf(path, sizeof(path), "%s/dirty", s->dir);
    fd = open(path, O_WRONLY | O_CLOEXEC);
    stalls_begin(s);
    stalls_expect(s, fsync(fd) == 0);
    stalls_end(s);
    close(fd);
}

STALL(fdatasync)
{
    char path[520];
    int fd;

    snprintf(path, sizeof(path), "%s/dirty", s->dir);
    fd = open(path, O_WRONLY | O_CLOEXEC);
    stalls_begin(s);
    stalls_expect(s, fdatasync(fd) == 0);
    stalls_end(s);
    close(fd);
}

STALL(flock)
{
    char path[520];
    int fd;

    snprintf(path, sizeof(path), "%s/lock", s->dir);
    fd = open(path, O_WRONLY | O_CLOEXEC);
    stalls_begin(s);
    stalls_go(s);
    stalls_expect(s, flock(fd, LOCK_EX) == 0);
    stalls_end(s);
    close(fd);
}

STALL(fcntl_lock)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    char path[520];
    int fd;

    snprintf(path, sizeof(path), "%s/lock", s->dir);
    fd = open(path, O_WRONLY | O_CLOEXEC);
    stalls_begin(s);
    stalls_go(s);
    stalls_expect(s, fcntl(fd, F_SETLKW, &lock) == 0);
    stalls_end(s);
    close(fd);
}

STALL(tcp_recv)
{
    char c;

    stalls_begin(s);
    stalls_go(s);
    stalls_expect(s, recv(s->tcp[0], &c, 1, 0) == 1);
    stalls_end(s);
}

STALL(tcp_accept)
{
    int fd;

    stalls_begin(s);
    stalls_go(s);
    fd = accept(s->listener, NULL, NULL);
    stalls_expect(s, fd >= 0);
    stalls_end(s);
    close(fd);
}

STALL(unix_connect)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    stalls_begin(s);
    stalls_go(s);
    stalls_expect(s, connect(fd, (struct sockaddr *)&s->unix_address, sizeof(s->unix_address)) == 0);
    stalls_end(s);
    close(fd);
}

STALL(getaddrinfo)
{
    struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM}, *result = NULL;

    res_init();
    _res.nscount = 1;
    _res.nsaddr_list[0] = s->dns_address;
    _res.retrans = 30;
    stalls_begin(s);
    stalls_go(s);
    stalls_expect(s, getaddrinfo("slow.invalid.", "80", &hints, &result) != 0);
    stalls_end(s);
    if (result)
        freeaddrinfo(result);
}

STALL(waitpid)
{
    int status;

    stalls_begin(s);
    if (write(s->wait_pipe[1], "g", 1) != 1)
        s->short_counts++;
    stalls_expect(s, waitpid(s->wait_pid, &status, 0) == s->wait_pid);
    stalls_end(s);
    close(s->wait_pipe[0]);
    close(s->wait_pipe[1]);
}

STALL(sigtimedwait)
{
    struct timespec ts = {.tv_nsec = (long)(s->ns % 1000000000u), .tv_sec = (time_t)(s->ns / 1000000000u)};
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    stalls_begin(s);
    stalls_expect(s, sigtimedwait(&set, NULL, &ts) == -1 && errno == EAGAIN);
    stalls_end(s);
}

STALL(sem_wait)
{
    stalls_begin(s);
    stalls_go(s);
    stalls_expect(s, sem_wait(&s->shared->sem) == 0);
    stalls_end(s);
}

STALL(mutex)
{
    stalls_begin(s);
    stalls_go(s);
    pthread_mutex_lock(&s->shared->mutex);
    stalls_end(s);
    pthread_mutex_unlock(&s->shared->mutex);
}

STALL(cond_wait)
{
    s->shared->cond_flag = 0;
    pthread_mutex_lock(&s->shared->cond_mutex);
    stalls_begin(s);
    stalls_go(s);
    while (!s->shared->cond_flag)
        pthread_cond_wait(&s->shared->cond, &s->shared->cond_mutex);
    stalls_end(s);
    pthread_mutex_unlock(&s->shared->cond_mutex);
}

STALL(rwlock)
{
    stalls_begin(s);
    stalls_go(s);
    pthread_rwlock_rdlock(&s->shared->rwlock);
    stalls_end(s);
    pthread_rwlock_unlock(&s->shared->rwlock);
}

STALL(cpu)
{
    volatile uint64_t x = 1;

    stalls_begin(s);
    while (now_ns() < s->start_ns + s->ns)
        for (int i = 0; i < 500; i++)
            x = x * 6364136223846793005u + 1442695040888963407u;
    stalls_end(s);
}

/* The time goes into libc: the innermost frame is not the user's. */
STALL(cpu_in_libc)
{
    static char block[1 << 20];
    char *volatile p = block;

    memset(p, 'x', sizeof(block) - 1);
    stalls_begin(s);
    while (now_ns() < s->start_ns + s->ns)
        if (memchr(p, 'y', sizeof(block)))
            s->short_counts++;
    stalls_end(s);
}

/* Never blocked, always in the kernel: thousands of short calls. */
STALL(syscall_storm)
{
    char c[64];
    int fd = open("/dev/zero", O_RDONLY | O_CLOEXEC);

    stalls_begin(s);
    while (now_ns() < s->start_ns + s->ns)
        for (int i = 0; i < 50; i++)
            stalls_expect(s, read(fd, c, sizeof(c)) == sizeof(c));
    stalls_end(s);
    close(fd);
}

STALL(pagefault)
{
    volatile char *page = s->fault_area + 4096 * s->fault_page++;

    stalls_begin(s);
    stalls_go(s);
    if (*page != 0)
        s->short_counts++;
    stalls_end(s);
}

/* Needs 2 ms of CPU, on a CPU that the helper keeps busy at a far higher weight. */
STALL(runqueue)
{
    struct sched_param idle = {0};
    struct timespec cpu, begun;
    cpu_set_t all, one;

    sched_getaffinity(0, sizeof(all), &all);
    stalls_begin(s);
    CPU_ZERO(&one);
    CPU_SET(0, &one);
    sched_setaffinity(0, sizeof(one), &one);
    sched_setscheduler(0, SCHED_IDLE, &idle);
    stalls_go(s);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &begun);
    do
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &cpu);
    while ((cpu.tv_sec - begun.tv_sec) * 1000000000 + cpu.tv_nsec - begun.tv_nsec < 2000000);
    sched_setscheduler(0, SCHED_OTHER, &idle);
    sched_setaffinity(0, sizeof(all), &all);
    stalls_end(s);
}

STALL(stopped)
{
    s->shared->done = 0;
    stalls_begin(s);
    stalls_go(s);
    while (!s->shared->done)
        ;
    stalls_end(s);
}

#define ROW(name, cause, call, help)                                                                                   \
    {                                                                                                                  \
#name, cause, call, stall_##name, help                                                                         \
    }
static const struct stalls_row {
    /* Acceptable ones between bars. call: "" is none. (A write-back may rather cost the kernel CPU than wait.) */
    const char *name, *cause, *call;
    void (*run)(struct stalls *s);
    void (*help)(struct stalls *s, const struct stalls_command *command); /* NULL: needs nobody */
} stalls_table[] = {
    ROW(nanosleep, "call", "nanosleep|clock_nanosleep", NULL),
    ROW(usleep, "call", "usleep|nanosleep|clock_nanosleep", NULL),
    ROW(poll, "call", "poll|ppoll", NULL),
    ROW(select, "call", "select|pselect6", NULL),
    ROW(epoll_wait, "call", "epoll_wait|epoll_pwait", NULL),
    ROW(pipe_read, "call", "read", help_pipe_read),
    ROW(pipe_write, "call", "write", help_pipe_write),
    ROW(fifo_open, "call", "open|openat", help_fifo_open),
    ROW(fsync, "call|cpu", "fsync", help_fsync),
    ROW(fdatasync, "call|cpu", "fdatasync", help_fdatasync),
    ROW(flock, "call", "flock", help_flock),
    ROW(fcntl_lock, "call", "fcntl", help_fcntl_lock),
    ROW(tcp_recv, "call", "recv|recvfrom", help_tcp_recv),
    ROW(tcp_accept, "call", "accept|accept4", help_tcp_accept),
    ROW(unix_connect, "call", "connect", help_unix_connect),
    ROW(getaddrinfo, "call", "getaddrinfo|poll|recvfrom", help_getaddrinfo),
    ROW(waitpid, "call", "waitpid|wait4", NULL),
    ROW(sigtimedwait, "call", "sigtimedwait|rt_sigtimedwait", NULL),
    ROW(sem_wait, "lock", "sem_wait|futex", help_sem_wait),
    ROW(mutex, "lock", "pthread_mutex_lock|futex", help_mutex),
    ROW(cond_wait, "lock", "pthread_cond_wait|futex", help_cond_wait),
    ROW(rwlock, "lock", "pthread_rwlock_rdlock|futex", help_rwlock),
    ROW(cpu, "cpu", "", NULL),
    ROW(cpu_in_libc, "cpu", "", NULL),
    ROW(syscall_storm, "cpu", "", NULL),
    ROW(pagefault, "pagefault", "", help_pagefault),
    ROW(runqueue, "runqueue", "", help_runqueue),
    ROW(stopped, "stopped", "", help_stopped),
};
#undef ROW
#define STALLS_ROWS (sizeof(stalls_table) / sizeof(stalls_table[0]))

#endif
