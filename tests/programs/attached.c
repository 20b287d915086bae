/*
 * A program to be entered while it runs, which notices whatever should not be:
 *
 *   attached [STALL_MS] [WORD ...]
 *
 * An epoll loop with a timer of 5 ms; each 40th tick blocks for STALL_MS. Words:
 *   raw      waits by a system call instruction of its own, with all registers filled
 *   timeout  waits without descriptors for 200 ms, measured
 *   poll     like timeout, with poll and two descriptors
 *   malloc dlopen fork signals threads   hammer beside the loop
 *   child    a forked child runs the same loop
 *   two      another thread runs a loop of the same kind
 *   load=FILE  a thread loads and unloads that library again and again, once FILE.go is there
 *   stuck    sleeps for 1.5 s before its first wait, and each 10th tick for 1.5 s
 *
 * SIGTERM ends it. One line of JSON: ticks, what it saw: eintr (EINTR without a
 * signal), odd (answers that cannot be), changed (registers), early and late_ms.
 */
// libs: -ldl
#include <dlfcn.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline))

static volatile sig_atomic_t over, alarms;
static unsigned ticks, eintr, odd, changed, early;
static double late_ms;
static int stall_ms, stuck;

static void on_term(int sig)
{
    (void)sig;
    over = 1;
}

static void on_alarm(int sig)
{
    (void)sig;
    alarms++;
}

static double now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

static void sleep_ms(int ms)
{
    nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000l}, NULL);
}

static NOINLINE void on_tick(void)
{
    if (++ticks % 40 == 0 && stall_ms)
        sleep_ms(stall_ms);
    if (stuck && ticks % 10 == 1)
        sleep_ms(1500);
}

/* epoll_wait with a value of its own in each register that a system call leaves alone. */
static long raw_wait(int epoll_fd, struct epoll_event *event, unsigned *ret_changed)
{
    static const uint64_t pattern[4]
        __attribute__((aligned(32))) = {0x1122334455667788, 0x99aabbccddeeff00, 0x0123456789abcdef, 0xfedcba9876543210};
    uint64_t seen[10] __attribute__((aligned(32))) = {0};
    unsigned mxcsr = 0;
    long ret;

    __asm__ volatile("vmovdqa %[pattern], %%ymm13\n\t"
                     "vmovdqa %%ymm13, %%ymm2\n\t"
                     "mov $0x5151, %%rbx\n\t"
                     "mov $0x5252, %%r12\n\t"
                     "mov $0x5353, %%r13\n\t"
                     "mov $0x5454, %%r14\n\t"
                     "mov $0x5555, %%r15\n\t"
                     "mov $0x5656, %%r8\n\t"
                     "mov $0x5757, %%r9\n\t"
                     "mov $-1, %%r10\n\t"
                     "mov $232, %%eax\n\t"
                     "syscall\n\t"
                     "sub $0x5656, %%r8\n\t"
                     "sub $0x5757, %%r9\n\t"
                     "or %%r9, %%r8\n\t"
                     "sub $0x5151, %%rbx\n\t"
                     "or %%rbx, %%r8\n\t"
                     "sub $0x5252, %%r12\n\t"
                     "or %%r12, %%r8\n\t"
                     "sub $0x5353, %%r13\n\t"
                     "or %%r13, %%r8\n\t"
                     "sub $0x5454, %%r14\n\t"
                     "or %%r14, %%r8\n\t"
                     "sub $0x5555, %%r15\n\t"
                     "or %%r15, %%r8\n\t"
                     "mov %%r8, 64+%[seen]\n\t"
                     "vmovdqu %%ymm13, %[seen]\n\t"
                     "vmovdqu %%ymm2, 32+%[seen]\n\t"
                     "stmxcsr %[mxcsr]\n\t"
                     : "=&a"(ret), [seen] "+o"(seen), [mxcsr] "=m"(mxcsr)
                     : [pattern] "m"(pattern), "D"(epoll_fd), "S"(event), "d"(1)
                     : "rbx", "rcx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "xmm2", "xmm13", "memory",
                       "cc");
    *ret_changed += memcmp(seen, pattern, 32) != 0 || memcmp(seen + 4, pattern, 32) != 0 || seen[8] != 0 ||
                    (mxcsr & 0xffc0) != 0x1f80;
    if (ret < 0) {
        errno = (int)-ret;
        ret = -1;
    }
    return ret;
}

static void loop(int raw, int epoll_fd, int timer_fd)
{
    struct epoll_event event;
    uint64_t count;

    while (!over) {
        sig_atomic_t before = alarms;
        long n;

        errno = 77;
        n = raw ? raw_wait(epoll_fd, &event, &changed) : epoll_wait(epoll_fd, &event, 1, -1);
        if (n == 1) {
            odd += event.data.u64 != 42 || (!raw && errno != 77);
            if (read(timer_fd, &count, sizeof(count)) == (ssize_t)sizeof(count))
                on_tick();
        } else if (n == -1 && errno == EINTR) {
            eintr += before == alarms && !over;
        } else {
            odd++;
        }
    }
}

/* Nothing ever comes: each wait is over after 200 ms, not before. */
static void wait_for_nothing(int by_poll)
{
    int empty = epoll_create1(0);
    struct pollfd p[2] = {{.fd = empty, .events = POLLIN}, {.fd = empty, .events = POLLIN}};
    struct epoll_event event;

    while (!over) {
        double begun = now_ms(), took;
        int n = by_poll ? poll(p, 2, 200) : epoll_wait(empty, &event, 1, 200);

        took = now_ms() - begun;
        if (over)
            break;
        odd += n != 0 && !(n == -1 && errno == EINTR);
        eintr += n == -1 && errno == EINTR;
        early += n == 0 && took < 195;
        if (n == 0 && took - 200 > late_ms)
            late_ms = took - 200;
        ticks++;
    }
}

/* ---- what runs beside it ------------------------------------------------------------ */

static void *hammer_malloc(void *arg)
{
    void *block[64] = {NULL};

    (void)arg;
    for (unsigned i = 0;; i++) {
        free(block[i % 64]);
        block[i % 64] = malloc(16 + i * 7919 % 100000);
    }
    return NULL;
}

static void *hammer_dlopen(void *arg)
{
    (void)arg;
    for (;;) {
        void *handle = dlopen("libanl.so.1", RTLD_NOW);

        if (handle)
            dlclose(handle);
        sched_yield();
    }
    return NULL;
}

/* A constructor that takes long keeps everybody else's dlopen waiting. */
static void *load_slowly(void *arg)
{
    const char *file = arg;
    char go[4096];

    snprintf(go, sizeof(go), "%s.go", file);
    for (;;) {
        void *handle = access(go, F_OK) == 0 ? dlopen(file, RTLD_NOW) : NULL;

        if (handle)
            dlclose(handle);
        sleep_ms(1);
    }
    return NULL;
}

static void *hammer_fork(void *arg)
{
    (void)arg;
    for (;;) {
        pid_t pid = fork();

        if (pid == 0)
            _exit(0);
        if (pid > 0)
            waitpid(pid, NULL, 0);
    }
    return NULL;
}

static void *hammer_threads(void *arg)
{
    (void)arg;
    for (;;) {
        pthread_t t;

        if (pthread_create(&t, NULL, (void *(*)(void *))(void (*)(void))now_ms, NULL) == 0)
            pthread_join(t, NULL);
    }
    return NULL;
}

static void start_thread(void *(*run)(void *), void *arg)
{
    sigset_t all, old;
    pthread_t t;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    pthread_create(&t, NULL, run, arg);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
}

static void start_alarms(void)
{
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGALRM};
    struct itimerspec every = {{0, 3000000}, {0, 3000000}};
    timer_t timer;

    signal(SIGALRM, on_alarm);
    if (timer_create(CLOCK_MONOTONIC, &event, &timer) == 0)
        timer_settime(timer, 0, &every, NULL);
}

static void make_loop(int *ret_epoll_fd, int *ret_timer_fd)
{
    struct itimerspec every = {{0, 5000000}, {0, 5000000}};
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 42};

    *ret_epoll_fd = epoll_create1(0);
    *ret_timer_fd = timerfd_create(CLOCK_MONOTONIC, 0);
    timerfd_settime(*ret_timer_fd, 0, &every, NULL);
    epoll_ctl(*ret_epoll_fd, EPOLL_CTL_ADD, *ret_timer_fd, &event);
}

/* By a wait call at another place, without a return address in common: whoever goes on as the other one crashes. */
static void *second_loop(void *arg)
{
    int epoll_fd, timer_fd;

    (void)arg;
    make_loop(&epoll_fd, &timer_fd);
    loop(1, epoll_fd, timer_fd);
    return NULL;
}

int main(int argc, char **argv)
{
    int epoll_fd, timer_fd;
    int raw = 0, timeout = 0, by_poll = 0, two = 0;

    signal(SIGTERM, on_term);
    for (int i = 1; i < argc; i++) {
        if (i == 1 && atoi(argv[1]) > 0)
            stall_ms = atoi(argv[1]);
        raw |= !strcmp(argv[i], "raw");
        timeout |= !strcmp(argv[i], "timeout");
        by_poll |= !strcmp(argv[i], "poll");
        two |= !strcmp(argv[i], "two");
        stuck |= !strcmp(argv[i], "stuck");
        if (!strcmp(argv[i], "malloc"))
            start_thread(hammer_malloc, NULL);
        if (!strcmp(argv[i], "dlopen"))
            start_thread(hammer_dlopen, NULL);
        if (!strcmp(argv[i], "fork"))
            start_thread(hammer_fork, NULL);
        if (!strcmp(argv[i], "threads"))
            start_thread(hammer_threads, NULL);
        if (!strncmp(argv[i], "load=", 5))
            start_thread(load_slowly, argv[i] + 5);
        if (!strcmp(argv[i], "signals"))
            start_alarms();
        if (!strcmp(argv[i], "child") && fork() == 0)
            signal(SIGTERM, SIG_DFL);
    }
    if (stuck)
        sleep_ms(1500);
    make_loop(&epoll_fd, &timer_fd);
    if (two)
        start_thread(second_loop, NULL);
    puts("ready");
    fflush(stdout);
    if (timeout || by_poll)
        wait_for_nothing(by_poll);
    else
        loop(raw, epoll_fd, timer_fd);
    printf("{\"ticks\": %u, \"eintr\": %u, \"odd\": %u, \"changed\": %u, \"early\": %u, \"late_ms\": %.1f}\n", ticks,
           eintr, odd, changed, early, late_ms);
    fflush(stdout);
    _exit(0);
}
