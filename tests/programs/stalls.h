/*
 * Stalls of every cause at known moments, and the truth about them: the oracle
 * of tests/e2e. Each loop_*.c is one kind of event loop whose callback on_tick()
 * calls stalls_tick(); this file decides when to stall and how.
 *
 * Independent of the agent: the program itself measures each stall and writes
 * one JSON line for it:
 *
 *   {"stall": "flock", "cause": "call", "call": "flock", "function": "stall_flock", "callback": "on_tick",
 *    "pid": 1, "tid": 1, "start_ns": 1, "duration_ns": 1, "noise_ns": 1, "threshold_ns": 0}
 *
 * `call` lists every acceptable name (libc's or the kernel's) between bars.
 * noise_ns is how long this thread waited for a CPU around the stall, outside
 * it, by its own schedstat: the turn may rightly be that much longer.
 * A last line {"summary": ...} holds counts of calls that were interrupted or
 * came back short: 0 unless somebody disturbs the program.
 *
 * Whatever must happen elsewhere (somebody else holds the lock, the peer keeps
 * silent) happens in a helper process, so that the loop stays single-threaded.
 * A stall is prepared in earlier turns, and only carried out in its own.
 */
#ifndef STALLS_H
#define STALLS_H

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <resolv.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define NOINLINE       __attribute__((noinline, noclone))
#define STALLS_WARM_UP 40 /* quiet turns before the first stall: the loop must have qualified as one */
#define STALLS_GAP     4  /* quiet turns between two stalls */
#define STALLS_TICK_NS 2000000

/* Shared with the helper process. */
struct stalls_shared {
    pthread_mutex_t mutex;
    pthread_mutex_t cond_mutex;
    pthread_cond_t cond;
    pthread_rwlock_t rwlock;
    sem_t sem;
    volatile int cond_flag;
    volatile int ready; /* the helper has prepared what was asked */
    volatile int done;  /* "stopped": the helper has continued us */
};

struct stalls_command {
    int what; /* index into stalls_table, -1: end */
    int cpu;
    uint64_t ns;
    uint64_t bytes;
};

struct stalls {
    FILE *truth;
    char dir[400];
    struct stalls_shared *shared;
    pid_t helper;
    int command[2];  /* commands to the helper */
    int go[2];       /* one byte: the stall begins now */
    int data_in[2];  /* pipe_read */
    int data_out[2]; /* pipe_write */
    int tcp[2];
    int listener;
    int unix_listener;
    struct sockaddr_in listener_address, dns_address;
    struct sockaddr_un unix_address;
    int dns;
    int uffd;
    char *fault_area;
    int fault_page;
    int wait_pipe[2];
    pid_t wait_pid;
    int schedstat;

    int queue[1024]; /* what to inject, in order */
    uint64_t queue_ns[1024];
    int queue_len, queue_at;
    enum { STALLS_QUIET, STALLS_PREPARING } state;
    int countdown;
    uint64_t ticks;
    uint64_t dirty_bytes;
    int fsync_tries;
    uint64_t interrupted, short_counts;
    unsigned seed;
    uint64_t base_ns; /* shortest stall */

    /* the stall whose line is still to be written */
    bool pending;
    int what;
    uint64_t ns; /* how long it is meant to be */
    uint64_t start_ns, end_ns, delay_before, delay_start, delay_end;
};

static inline uint64_t stalls_now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* How long this thread has waited for a CPU, ever. */
static uint64_t stalls_delay(struct stalls *s)
{
    char text[96];
    unsigned long long run = 0, wait = 0;
    ssize_t n;

    if (s->schedstat < 0)
        s->schedstat = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
    n = pread(s->schedstat, text, sizeof(text) - 1, 0);
    if (n <= 0)
        return 0;
    text[n] = 0;
    sscanf(text, "%llu %llu", &run, &wait);
    return wait;
}

static void stalls_sleep(uint64_t ns)
{
    struct timespec ts = {.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};

    while (nanosleep(&ts, &ts) && errno == EINTR)
        ;
}

static void stalls_spin_until(uint64_t end_ns)
{
    volatile unsigned x = 0;

    while (stalls_now() < end_ns)
        for (int i = 0; i < 200; i++)
            x += (unsigned)i;
}

static void stalls_die(const char *what)
{
    perror(what);
    exit(99);
}

static inline void stalls_begin(struct stalls *s)
{
    s->delay_start = stalls_delay(s);
    s->start_ns = stalls_now();
}

static inline void stalls_end(struct stalls *s)
{
    s->end_ns = stalls_now();
    s->delay_end = stalls_delay(s);
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

/* The stalls ------------------------------------------------------------- */

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
    char path[512];
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
    char path[512];
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
    char path[512];
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
    char path[512];
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
    char path[512];
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
    while (stalls_now() < s->start_ns + s->ns)
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
    while (stalls_now() < s->start_ns + s->ns)
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
    while (stalls_now() < s->start_ns + s->ns)
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

static uint64_t stalls_cpu_time(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* Needs 2 ms of CPU, on a CPU that the helper keeps busy at a far higher weight. */
STALL(runqueue)
{
    struct sched_param idle = {0};
    cpu_set_t all, one;
    uint64_t cpu;

    sched_getaffinity(0, sizeof(all), &all);
    stalls_begin(s);
    CPU_ZERO(&one);
    CPU_SET(0, &one);
    sched_setaffinity(0, sizeof(one), &one);
    sched_setscheduler(0, SCHED_IDLE, &idle);
    stalls_go(s);
    cpu = stalls_cpu_time();
    while (stalls_cpu_time() < cpu + 2000000)
        ;
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

/* What the table says is what the recording must say. */
static const struct stalls_row {
    const char *name, *cause, *call;
    void (*run)(struct stalls *s);
} stalls_table[] = {
#define ROW(name, cause, call)                                                                                         \
    {                                                                                                                  \
#name, cause, call, stall_##name                                                                               \
    }
    ROW(nanosleep, "call", "nanosleep|clock_nanosleep"),
    ROW(usleep, "call", "usleep|nanosleep|clock_nanosleep"),
    ROW(poll, "call", "poll|ppoll"),
    ROW(select, "call", "select|pselect6"),
    ROW(epoll_wait, "call", "epoll_wait|epoll_pwait"),
    ROW(pipe_read, "call", "read"),
    ROW(pipe_write, "call", "write"),
    ROW(fifo_open, "call", "open|openat"),
    ROW(fsync, "call", "fsync"),
    ROW(fdatasync, "call", "fdatasync"),
    ROW(flock, "call", "flock"),
    ROW(fcntl_lock, "call", "fcntl"),
    ROW(tcp_recv, "call", "recv|recvfrom"),
    ROW(tcp_accept, "call", "accept|accept4"),
    ROW(unix_connect, "call", "connect"),
    ROW(getaddrinfo, "call", "getaddrinfo|poll|recvfrom"),
    ROW(waitpid, "call", "waitpid|wait4"),
    ROW(sigtimedwait, "call", "sigtimedwait|rt_sigtimedwait"),
    ROW(sem_wait, "lock", "sem_wait|futex"),
    ROW(mutex, "lock", "pthread_mutex_lock|futex"),
    ROW(cond_wait, "lock", "pthread_cond_wait|futex"),
    ROW(rwlock, "lock", "pthread_rwlock_rdlock|futex"),
    ROW(cpu, "cpu", ""),
    ROW(cpu_in_libc, "cpu", ""),
    ROW(syscall_storm, "cpu", ""),
    ROW(pagefault, "pagefault", ""),
    ROW(runqueue, "runqueue", ""),
    ROW(stopped, "stopped", ""),
#undef ROW
};
#define STALLS_ROWS (sizeof(stalls_table) / sizeof(stalls_table[0]))

static inline bool stalls_is(int what, const char *name)
{
    return what >= 0 && !strcmp(stalls_table[what].name, name);
}

/* The helper process ------------------------------------------------------ */

static void helper_dirty(struct stalls *s, uint64_t bytes)
{
    static char block[1 << 20];
    char path[512];
    int fd;

    memset(block, 'd', sizeof(block));
    snprintf(path, sizeof(path), "%s/dirty", s->dir);
    fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    while (fd >= 0 && bytes >= sizeof(block) && write(fd, block, sizeof(block)) > 0)
        bytes -= sizeof(block);
    close(fd);
}

static void helper_wait_go(struct stalls *s, uint64_t ns)
{
    char c;

    s->shared->ready = 1;
    while (read(s->go[0], &c, 1) < 0 && errno == EINTR)
        ;
    if (ns)
        stalls_sleep(ns);
}

static void helper_serve(struct stalls *s, const struct stalls_command *command)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    char path[512], packet[512];
    static char block[65536];
    struct sockaddr_in from;
    socklen_t from_len = sizeof(from);
    int what = command->what, fd = -1, fill[8], fills = 0;
    pid_t loop = getppid();
    ssize_t n;

    snprintf(path, sizeof(path), "%s/lock", s->dir);
    if (stalls_is(what, "pipe_read")) {
        helper_wait_go(s, command->ns);
        n = write(s->data_in[1], "x", 1);
    } else if (stalls_is(what, "pipe_write")) {
        fcntl(s->data_out[1], F_SETFL, O_NONBLOCK);
        while (write(s->data_out[1], block, 4096) > 0)
            ;
        fcntl(s->data_out[1], F_SETFL, 0);
        helper_wait_go(s, command->ns);
        fcntl(s->data_out[0], F_SETFL, O_NONBLOCK);
        /* Until the writer is through, and then until the pipe is empty. */
        for (int idle = 0; idle < 20;) {
            idle = read(s->data_out[0], block, sizeof(block)) > 0 ? 0 : idle + 1;
            if (idle)
                stalls_sleep(50000);
        }
    } else if (stalls_is(what, "fifo_open")) {
        helper_wait_go(s, command->ns);
        snprintf(path, sizeof(path), "%s/fifo", s->dir);
        close(open(path, O_WRONLY | O_CLOEXEC));
    } else if (stalls_is(what, "fsync") || stalls_is(what, "fdatasync")) {
        helper_dirty(s, command->bytes);
        s->shared->ready = 1;
    } else if (stalls_is(what, "flock")) {
        fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        flock(fd, LOCK_EX);
        helper_wait_go(s, command->ns);
        close(fd);
    } else if (stalls_is(what, "fcntl_lock")) {
        fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        fcntl(fd, F_SETLKW, &lock);
        helper_wait_go(s, command->ns);
        close(fd);
    } else if (stalls_is(what, "tcp_recv")) {
        helper_wait_go(s, command->ns);
        n = send(s->tcp[1], "x", 1, MSG_NOSIGNAL);
    } else if (stalls_is(what, "tcp_accept")) {
        fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        helper_wait_go(s, command->ns);
        connect(fd, (struct sockaddr *)&s->listener_address, sizeof(s->listener_address));
        close(fd);
    } else if (stalls_is(what, "unix_connect")) {
        /* Fill the backlog, so that the next connect waits for an accept. */
        while (fills < 8) {
            fill[fills] = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
            if (connect(fill[fills], (struct sockaddr *)&s->unix_address, sizeof(s->unix_address)))
                break;
            fills++;
        }
        close(fill[fills]);
        helper_wait_go(s, command->ns);
        for (int i = 0; i <= fills; i++)
            close(accept(s->unix_listener, NULL, NULL));
        while (fills > 0)
            close(fill[--fills]);
    } else if (stalls_is(what, "getaddrinfo")) {
        helper_wait_go(s, 0);
        n = recvfrom(s->dns, packet, sizeof(packet), 0, (struct sockaddr *)&from, &from_len);
        stalls_sleep(command->ns);
        if (n > 12) {
            packet[2] = (char)0x81; /* a response */
            packet[3] = (char)0x83; /* no such name */
            sendto(s->dns, packet, (size_t)n, 0, (struct sockaddr *)&from, from_len);
        }
    } else if (stalls_is(what, "sem_wait")) {
        helper_wait_go(s, command->ns);
        sem_post(&s->shared->sem);
    } else if (stalls_is(what, "mutex")) {
        pthread_mutex_lock(&s->shared->mutex);
        helper_wait_go(s, command->ns);
        pthread_mutex_unlock(&s->shared->mutex);
    } else if (stalls_is(what, "cond_wait")) {
        helper_wait_go(s, command->ns);
        pthread_mutex_lock(&s->shared->cond_mutex);
        s->shared->cond_flag = 1;
        pthread_cond_signal(&s->shared->cond);
        pthread_mutex_unlock(&s->shared->cond_mutex);
    } else if (stalls_is(what, "rwlock")) {
        pthread_rwlock_wrlock(&s->shared->rwlock);
        helper_wait_go(s, command->ns);
        pthread_rwlock_unlock(&s->shared->rwlock);
    } else if (stalls_is(what, "pagefault")) {
        struct uffd_msg message;
        struct uffdio_zeropage zero = {0};

        helper_wait_go(s, command->ns);
        if (read(s->uffd, &message, sizeof(message)) == sizeof(message)) {
            zero.range.start = message.arg.pagefault.address & ~4095ull;
            zero.range.len = 4096;
            ioctl(s->uffd, UFFDIO_ZEROPAGE, &zero);
        }
    } else if (stalls_is(what, "runqueue")) {
        cpu_set_t all, one;

        sched_getaffinity(0, sizeof(all), &all);
        CPU_ZERO(&one);
        CPU_SET(0, &one);
        sched_setaffinity(0, sizeof(one), &one);
        helper_wait_go(s, 0);
        stalls_spin_until(stalls_now() + command->ns);
        sched_setaffinity(0, sizeof(all), &all);
    } else if (stalls_is(what, "stopped")) {
        helper_wait_go(s, 0);
        kill(loop, SIGSTOP);
        stalls_sleep(command->ns);
        s->shared->done = 1;
        kill(loop, SIGCONT);
    } else {
        s->shared->ready = 1;
    }
    (void)n;
}

static void helper_main(struct stalls *s)
{
    struct stalls_command command;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    while (read(s->command[0], &command, sizeof(command)) == sizeof(command) && command.what >= 0)
        helper_serve(s, &command);
    _exit(0);
}

/* The loop's side --------------------------------------------------------- */

static void stalls_truth(struct stalls *s)
{
    const struct stalls_row *row = &stalls_table[s->what];
    uint64_t all = stalls_delay(s) - s->delay_before;
    uint64_t inside = s->delay_end - s->delay_start;

    fprintf(s->truth,
            "{\"stall\": \"%s\", \"cause\": \"%s\", \"call\": \"%s\", \"function\": \"stall_%s\", \"callback\": "
            "\"on_tick\", "
            "\"pid\": %d, \"tid\": %d, \"start_ns\": %llu, \"duration_ns\": %llu, \"noise_ns\": %llu}\n",
            row->name, row->cause, row->call, row->name, (int)getpid(), (int)gettid(), (unsigned long long)s->start_ns,
            (unsigned long long)(s->end_ns - s->start_ns), (unsigned long long)(all > inside ? all - inside : 0));
    fflush(s->truth);
    s->pending = false;
}

static void stalls_skip(struct stalls *s, int what, const char *reason)
{
    fprintf(s->truth, "{\"skipped\": \"%s\", \"reason\": \"%s\"}\n", stalls_table[what].name, reason);
    fflush(s->truth);
}

/* Sends the command for queue[queue_at]; what needs no helper is ready at once. */
static void stalls_prepare(struct stalls *s)
{
    int what = s->queue[s->queue_at];
    struct stalls_command command = {.what = what, .ns = s->queue_ns[s->queue_at], .bytes = s->dirty_bytes};

    s->shared->ready = 0;
    if (stalls_is(what, "waitpid")) {
        if (pipe2(s->wait_pipe, O_CLOEXEC))
            stalls_die("pipe2");
        s->wait_pid = fork();
        if (s->wait_pid == 0) {
            char c;

            prctl(PR_SET_PDEATHSIG, SIGKILL);
            if (read(s->wait_pipe[0], &c, 1) == 1)
                stalls_sleep(command.ns);
            _exit(0);
        }
    }
    if (write(s->command[1], &command, sizeof(command)) != sizeof(command))
        stalls_die("helper");
    s->state = STALLS_PREPARING;
}

static void stalls_summary(struct stalls *s)
{
    struct stalls_command end = {.what = -1};

    fprintf(s->truth, "{\"summary\": \"%d stalls\", \"ticks\": %llu, \"interrupted\": %llu, \"short_counts\": %llu}\n",
            s->queue_len, (unsigned long long)s->ticks, (unsigned long long)s->interrupted,
            (unsigned long long)s->short_counts);
    fflush(s->truth);
    if (write(s->command[1], &end, sizeof(end)) != sizeof(end))
        kill(s->helper, SIGKILL);
    waitpid(s->helper, NULL, 0);
}

/* One turn of the loop. True: everything has been injected, end the loop. */
static NOINLINE bool stalls_tick(struct stalls *s)
{
    int what;

    s->ticks++;
    if (s->pending)
        stalls_truth(s);
    s->delay_before = stalls_delay(s);
    if (s->countdown > 0) {
        s->countdown--;
        return false;
    }
    if (s->queue_at == s->queue_len) {
        stalls_summary(s);
        return true;
    }
    if (s->state == STALLS_QUIET) {
        stalls_prepare(s);
        return false;
    }
    if (!s->shared->ready)
        return false;

    what = s->queue[s->queue_at];
    s->state = STALLS_QUIET;
    s->countdown = STALLS_GAP;
    s->what = what;
    s->ns = s->queue_ns[s->queue_at];
    if (stalls_is(what, "pagefault") && s->uffd < 0) {
        stalls_skip(s, what, "userfaultfd is not permitted here");
        s->queue_at++;
        return false;
    }
    stalls_table[what].run(s);
    s->pending = true;
    s->queue_at++;
    if ((stalls_is(what, "fsync") || stalls_is(what, "fdatasync")) && s->end_ns - s->start_ns < s->base_ns) {
        /* This disk is faster than the data was large: more data, once more. */
        s->pending = false;
        if (s->fsync_tries++ < 6) {
            s->dirty_bytes += s->dirty_bytes / 2;
            s->queue_at--;
        } else {
            stalls_skip(s, what, "the disk took everything at once");
        }
    }
    return false;
}

static uint64_t stalls_random_ns(struct stalls *s)
{
    return s->base_ns + (uint64_t)(rand_r(&s->seed) % 1000) * s->base_ns / 1000;
}

static void stalls_queue(struct stalls *s, int what, uint64_t ns)
{
    if (s->queue_len < (int)(sizeof(s->queue) / sizeof(s->queue[0]))) {
        s->queue[s->queue_len] = what;
        s->queue_ns[s->queue_len++] = ns ? ns : stalls_random_ns(s);
    }
}

/* "all", or names with an optional duration: "cpu,nanosleep@2000,flock". */
static void stalls_parse(struct stalls *s, const char *list)
{
    char copy[4096], *save = NULL;

    snprintf(copy, sizeof(copy), "%s", list);
    for (char *name = strtok_r(copy, ",", &save); name; name = strtok_r(NULL, ",", &save)) {
        char *at = strchr(name, '@');
        uint64_t ns = at ? strtoull(at + 1, NULL, 10) * 1000000u : 0;
        bool known = false;

        if (at)
            *at = 0;
        for (size_t i = 0; i < STALLS_ROWS; i++) {
            if (strcmp(name, "all") && strcmp(name, stalls_table[i].name))
                continue;
            stalls_queue(s, (int)i, ns);
            known = true;
        }
        if (!known) {
            fprintf(stderr, "no such stall: %s\n", name);
            exit(99);
        }
    }
}

static void stalls_shared_init(struct stalls_shared *shared)
{
    pthread_mutexattr_t mutex;
    pthread_condattr_t cond;
    pthread_rwlockattr_t rwlock;

    pthread_mutexattr_init(&mutex);
    pthread_mutexattr_setpshared(&mutex, PTHREAD_PROCESS_SHARED);
    pthread_mutex_init(&shared->mutex, &mutex);
    pthread_mutex_init(&shared->cond_mutex, &mutex);
    pthread_condattr_init(&cond);
    pthread_condattr_setpshared(&cond, PTHREAD_PROCESS_SHARED);
    pthread_cond_init(&shared->cond, &cond);
    pthread_rwlockattr_init(&rwlock);
    pthread_rwlockattr_setpshared(&rwlock, PTHREAD_PROCESS_SHARED);
    pthread_rwlock_init(&shared->rwlock, &rwlock);
    sem_init(&shared->sem, 1, 0);
}

static int stalls_listen(int type, struct sockaddr_in *address)
{
    socklen_t len = sizeof(*address);
    int fd = socket(AF_INET, type | SOCK_CLOEXEC, 0);

    memset(address, 0, sizeof(*address));
    address->sin_family = AF_INET;
    address->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(fd, (struct sockaddr *)address, len) || getsockname(fd, (struct sockaddr *)address, &len))
        stalls_die("bind");
    if (type == SOCK_STREAM && listen(fd, 4))
        stalls_die("listen");
    return fd;
}

static void stalls_userfault(struct stalls *s)
{
    struct uffdio_api api = {.api = UFFD_API};
    struct uffdio_register area = {.mode = UFFDIO_REGISTER_MODE_MISSING};
    size_t len = 4096 * 1024;

    s->fault_area = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    s->uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
    area.range.start = (uintptr_t)s->fault_area;
    area.range.len = len;
    if (s->uffd >= 0 && (ioctl(s->uffd, UFFDIO_API, &api) || ioctl(s->uffd, UFFDIO_REGISTER, &area))) {
        close(s->uffd);
        s->uffd = -1;
    }
}

/*
 * argv: TRUTH [STALLS [ROUNDS [SEED]]]; files go beside TRUTH. To be called
 * before the loop and any thread exists. Environment: STALLS_MS, the shortest
 * stall (25); stalls last between that and twice that.
 */
static struct stalls *stalls_new(int argc, char **argv)
{
    struct stalls *s = calloc(1, sizeof(*s));
    const char *ms = getenv("STALLS_MS");
    char path[512], *slash;
    sigset_t set;
    int rounds = argc > 3 ? atoi(argv[3]) : 1;

    if (argc < 2) {
        fprintf(stderr, "usage: %s TRUTH [STALL,STALL@MS...|all [ROUNDS [SEED]]]\n", argv[0]);
        exit(99);
    }
    s->truth = fopen(argv[1], "ae");
    if (!s->truth)
        stalls_die(argv[1]);
    snprintf(s->dir, sizeof(s->dir), "%s", argv[1]);
    slash = strrchr(s->dir, '/');
    snprintf(slash ? slash : s->dir, 2, slash ? "" : ".");
    s->seed = argc > 4 ? (unsigned)atoi(argv[4]) : 1;
    s->base_ns = (ms ? strtoull(ms, NULL, 10) : 25) * 1000000u;
    s->dirty_bytes = 96u << 20;
    s->schedstat = -1;
    s->countdown = STALLS_WARM_UP;
    for (int i = 0; i < rounds; i++)
        stalls_parse(s, argc > 2 ? argv[2] : "all");

    s->shared = mmap(NULL, sizeof(*s->shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    stalls_shared_init(s->shared);
    if (pipe2(s->command, O_CLOEXEC) || pipe2(s->go, O_CLOEXEC) || pipe2(s->data_in, O_CLOEXEC) ||
        pipe2(s->data_out, O_CLOEXEC))
        stalls_die("pipe2");
    s->listener = stalls_listen(SOCK_STREAM, &s->listener_address);
    s->dns = stalls_listen(SOCK_DGRAM, &s->dns_address);
    s->tcp[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(s->tcp[0], (struct sockaddr *)&s->listener_address, sizeof(s->listener_address)))
        stalls_die("connect");
    s->tcp[1] = accept(s->listener, NULL, NULL);

    s->unix_listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    s->unix_address.sun_family = AF_UNIX; /* an abstract name of our own */
    snprintf(s->unix_address.sun_path + 1, sizeof(s->unix_address.sun_path) - 1, "stalls-%d", (int)getpid());
    if (bind(s->unix_listener, (struct sockaddr *)&s->unix_address, sizeof(s->unix_address)) ||
        listen(s->unix_listener, 0))
        stalls_die("unix listener");

    snprintf(path, sizeof(path), "%s/fifo", s->dir);
    if (mkfifo(path, 0600) && errno != EEXIST)
        stalls_die(path);
    snprintf(path, sizeof(path), "%s/lock", s->dir);
    close(open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600));

    sigemptyset(&set);
    sigaddset(&set, SIGUSR2); /* sigtimedwait waits for it, it never comes */
    sigprocmask(SIG_BLOCK, &set, NULL);
    stalls_userfault(s);

    s->helper = fork();
    if (s->helper == 0)
        helper_main(s);
    return s;
}

#endif
