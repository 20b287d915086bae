/*
 * While the program runs: signals to it, stops of it, its end. See child.h.
 */
#include "child.h"

#include "../common/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define WAKER_POLL_NS  10000000 /* 10 ms */
#define CONTINUE_POLLS 20       /* of 1 ms */

static void sleep_ns(long ns)
{
    nanosleep(&(struct timespec){0, ns}, NULL);
}

/* The process is stopped by a signal ('T'; a debugger's stop is 't'). Signal-safe: the waker calls it after a fork. */
static bool is_stopped(const char *stat_path)
{
    char text[512], *p;
    ssize_t n;
    int fd = open(stat_path, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return false;
    n = read(fd, text, sizeof(text) - 1);
    close(fd);
    if (n <= 0)
        return false;
    text[n] = '\0';
    p = strrchr(text, ')');
    return p != NULL && p[1] == ' ' && p[2] == 'T';
}

/*
 * We stop with the child, so that the shell sees a stopped job; but who
 * continues (or kills) the child alone does not know of us. So a helper looks
 * after the child while we are stopped, in a session of its own, out of reach of what
 * is sent to the job. It ends with us, or when we kill it. -1: it could not be started.
 */
static pid_t start_waker(const char *stat_path)
{
    pid_t parent = getpid(), pid = fork();

    if (pid != 0)
        return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    setsid();
    while (getppid() == parent) {
        sleep_ns(WAKER_POLL_NS);
        /* Again and again: the first SIGCONT may come before we have stopped. */
        if (!is_stopped(stat_path))
            kill(parent, SIGCONT);
    }
    _exit(0);
}

/* Stops this process as `sig` stopped the child. Returns when continued, or at once where stopping is impossible. */
static void stop_self(int sig)
{
    sigset_t set, old;

    if (sig != SIGTSTP && sig != SIGTTIN && sig != SIGTTOU) {
        kill(getpid(), SIGSTOP);
        return;
    }
    sigaction(sig, &(struct sigaction){.sa_handler = SIG_DFL}, NULL);
    kill(getpid(), sig);
    sigemptyset(&set);
    sigaddset(&set, sig);
    pthread_sigmask(SIG_UNBLOCK, &set, &old);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
}

/* Takes a pending SIGCONT away; true when there was one. */
static bool was_continued(void)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGCONT);
    return sigtimedwait(&set, NULL, &(struct timespec){0}) > 0;
}

/* The child has stopped once more since we last asked: a stop of its own, to be answered by the next round. */
static bool stopped_anew(pid_t pid)
{
    siginfo_t info = {0};

    return waitid(P_PID, (id_t)pid, &info, WSTOPPED | WNOHANG | WNOWAIT) == 0 && info.si_pid == pid;
}

/* We were continued: the child is to be continued as well, unless it was (`fg` continues the whole group). */
static void continue_child(pid_t pid, const char *stat_path)
{
    /* It may be continued a moment after us, and a second SIGCONT would run its handler twice: so not at once. */
    for (int i = 0; i < CONTINUE_POLLS; i++) {
        if (!is_stopped(stat_path) || stopped_anew(pid))
            return;
        sleep_ns(1000000);
    }
    kill(pid, SIGCONT);
}

static void stop_with_child(const struct ub_child *c, int sig)
{
    char stat_path[64];
    pid_t waker;

    snprintf(stat_path, sizeof(stat_path), "/proc/%d/stat", (int)c->pid);
    was_continued();
    waker = start_waker(stat_path);
    if (c->on_stop)
        c->on_stop(c->on_stop_self, true);
    stop_self(sig);
    if (c->on_stop)
        c->on_stop(c->on_stop_self, false);
    if (waker > 0) {
        kill(waker, SIGKILL);
        waitpid(waker, NULL, 0);
    }
    /* In an orphaned group, and as pid 1, we do not stop: no SIGCONT is pending then, and the child is left as it is.
     */
    if (was_continued())
        continue_child(c->pid, stat_path);
}

/* What the child said before it ended without having executed. */
static void read_exec_error(struct ub_child *c)
{
    int error;

    if (recv(c->control, &error, sizeof(error), MSG_DONTWAIT) == (ssize_t)sizeof(error))
        c->exec_error = error;
    close(c->control);
    c->control = -1;
}

/* Children that ended or stopped. True when the child itself has ended. Others are orphans that we adopted as pid 1. */
static bool collect(struct ub_child *c, int *ret_status)
{
    int status;
    pid_t pid;

    while ((pid = waitpid(-1, &status, WNOHANG | WUNTRACED)) > 0) {
        if (pid != c->pid)
            continue;
        if (!WIFSTOPPED(status)) {
            c->pid = -1;
            *ret_status = status;
            read_exec_error(c);
            return true;
        }
        stop_with_child(c, WSTOPSIG(status));
    }
    return false;
}

static bool is_for_child(const struct ub_child *c, int sig, const siginfo_t *info)
{
    if (info->si_code <= 0) /* by a process; the writes of our own threads to a closed pipe among them */
        return info->si_pid != getpid() && info->si_pid != c->pid;
    return sig == SIGALRM || (sig == SIGHUP && getsid(0) == getpid());
}

static void forward(const struct ub_child *c, int sig, const siginfo_t *info)
{
    if (sig == SIGCHLD || !is_for_child(c, sig, info))
        return;
    if (info->si_code == SI_QUEUE)
        sigqueue(c->pid, sig, info->si_value);
    else
        kill(c->pid, sig);
}

int ub_child_wait(struct ub_child *c, uint64_t deadline_ns, int *ret_status)
{
    sigset_t all;

    sigfillset(&all);
    while (!collect(c, ret_status)) {
        uint64_t now = ub_clock_monotonic_ns();
        struct timespec left = {0};
        siginfo_t info;
        int sig;

        if (deadline_ns != 0 && now >= deadline_ns)
            return -ETIME;
        if (deadline_ns != 0)
            left =
                (struct timespec){(time_t)((deadline_ns - now) / 1000000000), (long)((deadline_ns - now) % 1000000000)};
        sig = sigtimedwait(&all, &info, deadline_ns != 0 ? &left : NULL);
        if (sig > 0)
            forward(c, sig, &info);
    }
    return 0;
}
