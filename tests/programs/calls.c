/*
 * Blocking calls inside the callbacks of an epoll loop: calls MODE [COUNT]
 *
 *   many       COUNT turns with one usleep of 3 ms each
 *   sum        COUNT turns of ten usleeps of 3 ms
 *   short      COUNT turns of 200 usleeps of 0.2 ms
 *   mixed      COUNT turns with six different calls, 2 to 12 ms each
 *   waits      COUNT turns with one wait for descriptors each that is not the loop's own, 9 ms, every kind in turn
 *   nested     COUNT turns: fread from a stream whose own reading sleeps 10 ms
 *   failing    COUNT turns: a recv that times out after 10 ms; ends with 1 unless errno is EAGAIN
 *   signals    COUNT turns of 10 ms sleep, interrupted by a handler that sleeps itself
 *   longjmp    COUNT turns: a handler jumps out of every sleep
 *   fork       COUNT turns: a forked child sleeps 10 ms, while the parent waits for it
 *   vfork      COUNT turns: the same with vfork
 *   cancel     a thread runs the loop and is cancelled in its sleep
 *   filter     COUNT turns of one usleep of 3 ms, after a seccomp filter that kills for all but a few calls
 *
 * Prints "done" at the end.
 */
#include "measure.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stddef.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>

static int ep, pair[2];
static sigjmp_buf back;

static NOINLINE void do_sleep(void)
{
    usleep(3000);
    __asm__ volatile("" ::: "memory");
}

static NOINLINE void do_sum(void)
{
    for (int i = 0; i < 10; i++)
        usleep(3000);
}

static NOINLINE void do_short(void)
{
    for (int i = 0; i < 200; i++)
        usleep(200);
}

static NOINLINE void do_mixed(void)
{
    struct timespec ts = {0, 4000000};
    struct timeval tv = {0, 8000};
    sigset_t none;
    char c;

    sigemptyset(&none);
    usleep(2000);
    nanosleep(&ts, NULL);
    ts.tv_nsec = 6000000;
    clock_nanosleep(CLOCK_MONOTONIC, 0, &ts, NULL);
    setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
    if (recv(pair[0], &c, 1, 0) >= 0)
        exit(1);
    ts.tv_nsec = 10000000;
    sigtimedwait(&none, NULL, &ts);
    tv.tv_usec = 12000;
    setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
    if (read(pair[0], &c, 1) >= 0)
        exit(1);
}

/* poll with an array whose size the compiler knows, as _FORTIFY_SOURCE makes it. */
int __poll_chk(struct pollfd *fds, nfds_t count, int timeout, size_t size);

static NOINLINE void do_waits(void)
{
    static int turn, other = -1;
    struct pollfd fds[2] = {{.fd = pair[0], .events = POLLIN}, {.fd = pair[1], .events = POLLIN}};
    struct timespec ts = {0, 9000000};
    struct timeval tv = {0, 9000};
    struct epoll_event ev;
    fd_set set;
    int n = -1;

    if (other < 0)
        other = epoll_create1(EPOLL_CLOEXEC);
    FD_ZERO(&set);
    FD_SET(pair[0], &set);
    switch (turn++ % 10) {
    case 0:
        n = poll(fds, 1, 9);
        break;
    case 1:
        n = poll(fds, 2, 9);
        break;
    case 2:
        n = poll(NULL, 0, 9);
        break;
    case 3:
        n = __poll_chk(fds, 1, 9, sizeof(fds));
        break;
    case 4:
        n = ppoll(fds, 1, &ts, NULL);
        break;
    case 5:
        n = select(pair[0] + 1, &set, NULL, NULL, &tv);
        break;
    case 6:
        n = pselect(pair[0] + 1, &set, NULL, NULL, &ts, NULL);
        break;
    case 7:
        n = epoll_wait(other, &ev, 1, 9);
        break;
    case 8:
        n = epoll_pwait(other, &ev, 1, 9, NULL);
        break;
    case 9:
        n = epoll_pwait2(other, &ev, 1, &ts, NULL);
        break;
    }
    if (n != 0)
        exit(1);
}

static ssize_t sleepy_read(void *cookie, char *buf, size_t n)
{
    (void)cookie;
    usleep(10000);
    memset(buf, 'x', n < 16 ? n : 16);
    return (ssize_t)(n < 16 ? n : 16);
}

static NOINLINE void do_nested(void)
{
    FILE *f = fopencookie(NULL, "r", (cookie_io_functions_t){.read = sleepy_read});
    char buf[4];

    if (!f || fread(buf, 1, sizeof(buf), f) != sizeof(buf))
        exit(1);
    fclose(f);
}

static NOINLINE void do_failing(void)
{
    struct timeval tv = {0, 10000};
    char c;

    setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
    errno = 0;
    if (recv(pair[0], &c, 1, 0) != -1 || errno != EAGAIN) {
        fprintf(stderr, "errno %d\n", errno);
        exit(1);
    }
}

static void arm(int us)
{
    struct itimerval in = {.it_value = {0, us}};

    setitimer(ITIMER_REAL, &in, NULL);
}

static void on_alarm(int sig)
{
    int saved = errno;

    (void)sig;
    usleep(2000);
    errno = saved;
}

static NOINLINE void do_signals(void)
{
    int tries = 0;

    do { /* on a busy machine the signal may come before the sleep has begun */
        arm(1000);
        errno = 0;
    } while (usleep(10000) == 0 && ++tries < 50);
    if (errno != EINTR)
        exit(1);
    usleep(4000);
}

static void on_jump(int sig)
{
    (void)sig;
    usleep(2000);
    siglongjmp(back, 1);
}

static NOINLINE void do_longjmp(void)
{
    if (sigsetjmp(back, 1) == 0) {
        arm(5000);
        usleep(1000000);
        exit(1);
    }
    do_sleep();
}

static NOINLINE void do_fork(void)
{
    pid_t pid = fork();

    if (pid == 0) {
        usleep(10000);
        _exit(0);
    }
    if (waitpid(pid, NULL, 0) != pid)
        exit(1);
}

static NOINLINE void do_vfork(void)
{
    pid_t pid = vfork();

    if (pid == 0) {
        usleep(10000);
        _exit(0);
    }
    if (waitpid(pid, NULL, 0) != pid)
        exit(1);
}

static void filter(void);

static NOINLINE void do_filtered(void)
{
    static int filtered;

    if (!filtered++)
        filter();
    usleep(3000);
}

static NOINLINE void loop(int count, void (*callback)(void))
{
    struct epoll_event ev;

    for (int i = 0; i <= count + 30; i++) { /* 30: until it counts as a loop; the last one ends the last turn */
        if (epoll_wait(ep, &ev, 1, -1) == 1 && i >= 30 && i < count + 30)
            callback();
    }
}

static void do_cancel(void)
{
    usleep(10000000);
}

static void *cancelled(void *arg)
{
    (void)arg;
    loop(1, do_cancel);
    return NULL;
}

static void cancel(void)
{
    pthread_t thread;
    void *result;

    pthread_create(&thread, NULL, cancelled, NULL);
    usleep(100000);
    pthread_cancel(thread);
    pthread_join(thread, &result);
    if (result != PTHREAD_CANCELED)
        exit(1);
}

#define ALLOW(nr) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)

static void filter(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        ALLOW(SYS_epoll_wait),
        ALLOW(SYS_clock_nanosleep),
        ALLOW(SYS_write),
        ALLOW(SYS_exit_group),
        ALLOW(SYS_rt_sigreturn),
        ALLOW(SYS_newfstatat),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
    };
    struct sock_fprog program = {sizeof(code) / sizeof(code[0]), code};

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
        exit(77);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*callback)(void);
    } modes[] = {{"many", do_sleep},    {"sum", do_sum},         {"mixed", do_mixed},     {"waits", do_waits},
                 {"nested", do_nested}, {"failing", do_failing}, {"signals", do_signals}, {"fork", do_fork},
                 {"vfork", do_vfork},   {"longjmp", do_longjmp}, {"filter", do_filtered}, {"short", do_short}};
    const char *mode = argc > 1 ? argv[1] : "";
    int count = argc > 2 ? atoi(argv[2]) : 1, ready = eventfd(1, EFD_CLOEXEC);
    struct epoll_event ev = {.events = EPOLLIN};

    ep = epoll_create1(EPOLL_CLOEXEC);
    epoll_ctl(ep, EPOLL_CTL_ADD, ready, &ev);
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
        die("socketpair");
    signal(SIGALRM, strcmp(mode, "longjmp") ? on_alarm : on_jump);
    if (!strcmp(mode, "cancel"))
        cancel();
    for (size_t i = 0; i < sizeof(modes) / sizeof(modes[0]); i++) {
        if (!strcmp(mode, modes[i].name))
            loop(count, modes[i].callback);
    }
    if (write(1, "done\n", 5) != 5)
        return 1;
    _exit(0);
}
