/*
 * The stalls of stalls.h where loops come and go: loop_many MODE DIR COUNT [STALLS [ROUNDS [SEED]]]
 *
 *   threads   COUNT threads, each with its own epoll loop
 *   prefork   COUNT children, each with its own loop; the parent only waits
 *   relay     the loop forks in a callback, the child goes on with it, COUNT times (as daemons do)
 *   longjmp   every callback leaves by longjmp (COUNT is not used)
 *
 * The truth of loop i goes to DIR/i/truth (DIR/i must exist).
 */
#include "stalls.h"

#include <setjmp.h>
#include <sys/timerfd.h>

static bool leave_by_longjmp;
static int relays_left;
static __thread jmp_buf top_of_loop;

static NOINLINE bool on_tick(struct stalls *s)
{
    bool done = stalls_tick(s);

    if (leave_by_longjmp)
        longjmp(top_of_loop, done ? 2 : 1);
    return done;
}

/* The parent is over, the child is the loop now: what a daemon does as it starts. */
static NOINLINE void on_relay(void)
{
    pid_t pid = fork();

    if (pid < 0)
        die("fork");
    if (pid > 0)
        _exit(0);
}

static NOINLINE void run_loop(struct stalls *s)
{
    struct itimerspec every = {.it_interval.tv_nsec = STALLS_TICK_NS, .it_value.tv_nsec = STALLS_TICK_NS};
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK), ep = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event ev = {.events = EPOLLIN};
    volatile unsigned ticks = 0;
    uint64_t count;

    timerfd_settime(timer, 0, &every, NULL);
    epoll_ctl(ep, EPOLL_CTL_ADD, timer, &ev);
    if (setjmp(top_of_loop) == 2)
        return;
    for (;;) {
        if (epoll_wait(ep, &ev, 1, -1) <= 0 || read(timer, &count, sizeof(count)) < 0)
            continue;
        if (relays_left > 0 && ++ticks % 20 == 0) {
            relays_left--;
            on_relay();
        } else if (on_tick(s)) {
            return;
        }
    }
}

/* Waits for all of them, however deep: they come to us when their parents end. */
static int run_relay(struct stalls *s)
{
    int status, failed = 0;

    prctl(PR_SET_CHILD_SUBREAPER, 1);
    if (fork() == 0) {
        run_loop(s);
        exit(0);
    }
    while (wait(&status) > 0)
        failed |= status != 0;
    return failed;
}

static void *loop_thread(void *s)
{
    run_loop(s);
    return NULL;
}

static struct stalls *stalls_in(int argc, char **argv, int i)
{
    char path[480], *args[8] = {argv[0], path};
    int n = 2;

    snprintf(path, sizeof(path), "%s/%d/truth", argv[2], i);
    while (n < 6 && argc > n + 2) {
        args[n] = argv[n + 2];
        n++;
    }
    return stalls_new(n, args);
}

int main(int argc, char **argv)
{
    const char *mode = argc > 3 ? argv[1] : "";
    int count = argc > 3 ? atoi(argv[3]) : 0, failed = 0, status;
    struct stalls *s[64];
    pthread_t thread[64];
    pid_t pid[64];

    if (count < 1 || count > 64) {
        fprintf(stderr, "usage: %s threads|prefork|relay|longjmp DIR COUNT [STALLS [ROUNDS [SEED]]]\n", argv[0]);
        return 99;
    }
    if (!strcmp(mode, "threads")) {
        for (int i = 0; i < count; i++)
            s[i] = stalls_in(argc, argv, i);
        for (int i = 0; i < count; i++)
            pthread_create(&thread[i], NULL, loop_thread, s[i]);
        for (int i = 0; i < count; i++)
            pthread_join(thread[i], NULL);
    } else if (!strcmp(mode, "prefork")) {
        for (int i = 0; i < count; i++) {
            pid[i] = fork();
            if (pid[i] == 0) {
                run_loop(stalls_in(argc, argv, i));
                exit(0);
            }
        }
        for (int i = 0; i < count; i++)
            failed |= waitpid(pid[i], &status, 0) != pid[i] || status != 0;
    } else if (!strcmp(mode, "relay")) {
        relays_left = count;
        failed = run_relay(stalls_in(argc, argv, 0));
    } else {
        leave_by_longjmp = !strcmp(mode, "longjmp");
        run_loop(stalls_in(argc, argv, 0));
    }
    return failed;
}
