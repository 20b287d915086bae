/*
 * Stopping a thread in a wait call of its event loop. There it holds no lock of
 * libc's or the loader's, so what we have it do next cannot wait for itself.
 * (Anywhere else: 10 of 30 dlopens hung on malloc's lock in a trial. A futex is
 * not such a place either.)
 *
 * A sleeping thread is interrupted; one that is too busy to be met asleep is
 * followed from system call to system call for some milliseconds.
 *
 * A few lines longer than most files: each way of stopping a thread stands beside the one of letting it go.
 */
#include "inject_impl.h"

#include "capture.h"
#include "pidns.h"
#include "procfile.h"
#include "sleeptime.h"

#include "../common/clock.h"

#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define STOP_LONG_NS 1000000000u /* in a page fault on a slow disk, for instance */
#define STOP_LOOK_NS 1000000     /* the signal may have gone to another thread of ours */
#define FOLLOW_NS    8000000u    /* the longest that a loop is to be kept is 10 ms */
#define FOLLOW_STOPS 1000u

/* The kernel's, for its own use (include/linux/errno.h); seen by tracers only. */
#define RESTARTSYS           512
#define RESTARTNOINTR        513
#define RESTARTNOHAND        514
#define RESTART_RESTARTBLOCK 516

/* ---- which thread ---------------------------------------------------------------- */

static bool is_wait(int64_t nr, uint64_t first, uint64_t second, bool single)
{
    switch (nr) {
    case SYS_epoll_wait:
    case SYS_epoll_pwait:
    case SYS_epoll_pwait2:
    case SYS_io_uring_enter:
        return true;
    case SYS_poll:
    case SYS_ppoll:
        return second > 1 || (single && second == 1); /* with one it is a synchronous call's timeout, most likely */
    case SYS_select:
    case SYS_pselect6:
        return first > 1;
    default:
        return false;
    }
}

/* Better ones first: 0 is none. */
static int rank(const struct ub_hold *h, pid_t tid, const struct ub_capture *c)
{
    bool epoll = c->nr == SYS_epoll_wait || c->nr == SYS_epoll_pwait || c->nr == SYS_epoll_pwait2;

    if (c->state != UB_THREAD_BLOCKED || !is_wait(c->nr, c->arg[0], c->arg[1], h->single))
        return 0;
    return 1 + 2 * epoll + (tid == h->pid) + 4 * (tid == h->last);
}

int ub_hold_find(struct ub_hold *h, bool busy)
{
    struct ub_capture *c = malloc(sizeof(*c));
    const struct dirent *entry;
    int best = 0, running = 0;
    pid_t runs = 0;
    char path[64];
    DIR *dir;

    snprintf(path, sizeof(path), "/proc/%d/task", (int)h->pid);
    dir = opendir(path);
    if (!dir || !c) {
        free(c);
        if (dir)
            closedir(dir);
        return dir ? -ENOMEM : -ESRCH;
    }
    while ((entry = readdir(dir))) {
        pid_t tid = atoi(entry->d_name);
        int r;

        if (tid <= 0 || ub_capture_peek(h->pid, tid, c) < 0)
            continue;
        r = rank(h, tid, c);
        if (r > best) {
            best = r;
            h->tid = tid;
        }
        if (c->state == UB_THREAD_RUNNING && (running++ == 0 || tid == h->pid))
            runs = tid;
    }
    closedir(dir);
    free(c);
    if (best == 0 && busy && runs) {
        h->tid = runs;
        return 0;
    }
    return best ? 0 : -EAGAIN;
}

/* ---- stopping it ----------------------------------------------------------------- */

static void release(const struct ub_hold *h, int sig)
{
    ptrace(PTRACE_DETACH, h->tid, 0, (void *)(intptr_t)sig);
}

/*
 * 0 with a status: it has stopped; -ESRCH: it has ended; -ETIMEDOUT. The thread that waits is one with SIGCHLD blocked:
 * it sleeps until it is told, since who polls takes the CPU that the other needs to stop on.
 */
static int wait_for_stop_until(struct ub_hold *h, uint64_t until_ns, int *ret_status)
{
    sigset_t stops;

    sigemptyset(&stops);
    sigaddset(&stops, SIGCHLD);

    for (;;) {
        pid_t r = waitpid(h->tid, ret_status, __WALL | WNOHANG);

        if (r == h->tid)
            return WIFSTOPPED(*ret_status) ? 0 : -ESRCH;
        if (r < 0 && errno != EINTR)
            return -ESRCH;
        if (ub_clock_monotonic_ns() > until_ns)
            return -ETIMEDOUT;
        ub_piece_sleep(h);
        sigtimedwait(&stops, NULL, &(struct timespec){0, STOP_LOOK_NS});
    }
}

/*
 * However long it takes: nobody would let go of a thread that stops when it is not waited for any more. -ECANCELED: the
 * caller is about to end, and then the kernel does.
 */
static int wait_for_stop(struct ub_hold *h, int *ret_status)
{
    for (;;) {
        int r = wait_for_stop_until(h, ub_clock_monotonic_ns() + STOP_LONG_NS, ret_status);

        if (r != -ETIMEDOUT)
            return r;
        if (h->cancelled && h->cancelled(h->self))
            return -ECANCELED;
    }
}

/* Signals that the program handles, and whether it filters its calls. Read before the thread is stopped: /proc is slow.
 */
static void look_at_status(struct ub_hold *h)
{
    static const char caught[] = "\nSigCgt:\t", filter[] = "\nSeccomp:\t";
    char status[UB_STATUS_MAX], *p;

    ub_procfile_status(h->pid, h->tid, status);
    p = strstr(status, caught);
    h->caught = p ? strtoull(p + sizeof(caught) - 1, NULL, 16) : UINT64_MAX;
    p = strstr(status, filter);
    h->filtered = p && p[sizeof(filter) - 1] != '0';
}

/* Signals that wait for the stopped thread (0) or for its process (PTRACE_PEEKSIGINFO_SHARED). */
static uint64_t pending(const struct ub_hold *h, uint32_t queue)
{
    struct __ptrace_peeksiginfo_args args = {.flags = queue, .nr = 16};
    uint64_t mask = 0;
    siginfo_t info[16];
    long n;

    while ((n = ptrace(PTRACE_PEEKSIGINFO, h->tid, &args, info)) > 0) {
        for (long i = 0; i < n; i++) {
            if (info[i].si_signo > 0 && info[i].si_signo <= 64)
                mask |= 1ull << (info[i].si_signo - 1);
        }
        args.off += (uint64_t)n;
    }
    return n < 0 ? UINT64_MAX : mask;
}

/* Whether a signal is about to be delivered that the program handles: then an interrupted call ends for its sake. */
static bool signal_is_due(const struct ub_hold *h)
{
    uint64_t due = (pending(h, 0) | pending(h, PTRACE_PEEKSIGINFO_SHARED)) & h->caught, blocked;

    if (due == 0)
        return false;
    return ptrace(PTRACE_GETSIGMASK, h->tid, (void *)sizeof(blocked), &blocked) < 0 || (due & ~blocked) != 0;
}

static bool was_interrupted(int64_t ax)
{
    return ax == -EINTR || ax == -RESTARTSYS || ax == -RESTARTNOINTR || ax == -RESTARTNOHAND ||
           ax == -RESTART_RESTARTBLOCK;
}

static bool follows_syscall_instruction(const struct ub_hold *h)
{
    uint8_t code[2];

    return ub_capture_memory(h->pid, h->regs.rip - 2, code, 2) == 2 && code[0] == 0x0f && code[1] == 0x05;
}

/*
 * A call that answers EINTR although no signal has come is made again. The other
 * interrupted ones the kernel restarts by itself, if they are left as they are.
 */
static void undo_eintr(struct ub_hold *h)
{
    struct user_regs_struct regs = h->regs;

    if ((int64_t)regs.orig_rax < 0 || (int64_t)regs.rax != -EINTR || signal_is_due(h) ||
        !follows_syscall_instruction(h))
        return;
    regs.rip -= 2;
    regs.rax = regs.orig_rax;
    regs.orig_rax = (unsigned long long)-1;
    ptrace(PTRACE_SETREGS, h->tid, 0, &regs);
}

/* ---- timeouts -------------------------------------------------------------------- */

/* The register that holds the timeout in milliseconds; NULL: none, or the kernel itself keeps what is left of it. */
static unsigned long long *timeout_register(struct user_regs_struct *regs, int64_t nr)
{
    if (nr == SYS_epoll_wait || nr == SYS_epoll_pwait)
        return &regs->r10;
    return nr == SYS_poll ? &regs->rdx : NULL;
}

/* As nearly all loops wait when nothing is due. */
static bool has_no_timeout(const struct ub_capture *c)
{
    bool epoll = c->nr == SYS_epoll_wait || c->nr == SYS_epoll_pwait;

    return (epoll && (int32_t)c->arg[3] < 0) || (c->nr == SYS_poll && (int32_t)c->arg[2] < 0);
}

static void look_how_long(const struct ub_hold *h, struct ub_waited *w)
{
    w->known = ub_capture_schedstat(h->pid, h->tid, &w->sched) == 0 && ub_sleep_time(h->pid, h->tid, &w->slept_ns) == 0;
    w->at_ns = ub_clock_monotonic_ns(); /* not before: looking may take long, and would then count twice */
}

/*
 * The call is made again with what is left of its timeout: in full it would end
 * late, and a timeout reported early is a lie. The register is dead after the
 * call, as the ABI has it.
 */
static void shorten_timeout(struct ub_hold *h, int64_t nr, const struct ub_waited *w)
{
    unsigned long long *timeout = timeout_register(&h->regs, nr);
    struct ub_schedstat now;
    int64_t left_ms;

    if (!timeout || (int32_t)*timeout <= 0 || !w->known || ub_capture_schedstat(h->pid, h->tid, &now) < 0 ||
        now.slices > w->sched.slices + 1) /* it has run since: this wait is a new one */
        return;
    left_ms = (int32_t)*timeout - (int64_t)((w->slept_ns + ub_clock_monotonic_ns() - w->at_ns) / 1000000);
    *timeout = left_ms > 0 ? (unsigned long long)left_ms : 0;
}

/* ---- the two ways to a wait -------------------------------------------------------- */

/* It was interrupted: in a wait? */
static bool in_wait(struct ub_hold *h, const struct ub_waited *w)
{
    int64_t nr = (int64_t)h->regs.orig_rax, ax = (int64_t)h->regs.rax;

    if (!is_wait(nr, h->regs.rdi, h->regs.rsi, h->single) || !follows_syscall_instruction(h))
        return false;
    h->waiting = was_interrupted(ax);
    h->resume_ip = h->waiting ? h->regs.rip - 2 : h->regs.rip;
    h->resume_ax = h->waiting ? (uint64_t)nr : (uint64_t)ax;
    h->eintr_ip = h->waiting ? h->regs.rip : 0;
    if (h->waiting)
        shorten_timeout(h, nr, w);
    return true;
}

/* From system call to system call, until it is about to wait. 0, -EAGAIN, -ESRCH. */
static int follow(struct ub_hold *h)
{
    uint64_t until = ub_clock_monotonic_ns() + FOLLOW_NS;
    int sig = 0, status, r;

    for (uint32_t i = 0; i < FOLLOW_STOPS; i++) {
        struct __ptrace_syscall_info info;

        if (ptrace(PTRACE_SYSCALL, h->tid, 0, (void *)(intptr_t)sig) < 0)
            return -ESRCH;
        r = wait_for_stop(h, &status);
        if (r < 0)
            return r;
        sig = 0;
        h->stops++;
        if (status >> 16 == PTRACE_EVENT_STOP)
            return -EAGAIN; /* it is being stopped */
        if (WSTOPSIG(status) != (SIGTRAP | 0x80)) {
            sig = WSTOPSIG(status);
            continue;
        }
        if (ptrace(PTRACE_GET_SYSCALL_INFO, h->tid, (void *)sizeof(info), &info) < 0)
            return -EAGAIN;
        if (info.op == PTRACE_SYSCALL_INFO_ENTRY &&
            is_wait((int64_t)info.entry.nr, info.entry.args[0], info.entry.args[1], h->single)) {
            if (ptrace(PTRACE_GETREGS, h->tid, 0, &h->regs) < 0 || !follows_syscall_instruction(h))
                return -EAGAIN;
            h->waiting = true;
            h->resume_ip = h->regs.rip - 2;
            h->resume_ax = info.entry.nr;
            h->eintr_ip = h->regs.rip;
            return 0;
        }
        if (ub_clock_monotonic_ns() > until)
            return -EAGAIN;
    }
    return -EAGAIN;
}

/* It has stopped because we asked. */
static int settle(struct ub_hold *h, const struct ub_waited *w, bool ran)
{
    int r;

    if (ptrace(PTRACE_GETREGS, h->tid, 0, &h->regs) < 0)
        return -ESRCH;
    if (in_wait(h, w)) {
        if (!signal_is_due(h))
            return 0;
        release(h, 0);
        return -EAGAIN;
    }
    undo_eintr(h);
    r = ran ? follow(h) : -EAGAIN;
    if (ran)
        ub_piece_part(h, UB_PART_FOLLOWED);
    if (r == -EAGAIN)
        release(h, 0);
    if (r == 0 && signal_is_due(h)) {
        release(h, 0);
        return -EAGAIN;
    }
    return r;
}

/* What takes time before it is stopped. */
struct before {
    struct ub_waited waited;
    bool ran;        /* it was busy */
    uint64_t slices; /* how often it had come onto a CPU when its status was read */
};

static int look_before(struct ub_hold *h, struct before *ret)
{
    struct ub_capture *c = malloc(sizeof(*c));
    struct ub_schedstat books = {0};
    bool timed = true;
    int r = c ? ub_capture_peek(h->pid, h->tid, c) : -ENOMEM;

    if (r == 0) {
        ret->ran = c->state == UB_THREAD_RUNNING;
        timed = !has_no_timeout(c);
        if (!ret->ran && (c->state != UB_THREAD_BLOCKED || !is_wait(c->nr, c->arg[0], c->arg[1], h->single)))
            r = -EAGAIN; /* asleep elsewhere: not every call there is takes an interruption well */
    }
    free(c);
    if (r < 0)
        return r;
    if (!ret->ran && timed)
        look_how_long(h, &ret->waited);
    ub_capture_schedstat(h->pid, h->tid, &books);
    ret->slices = books.slices;
    look_at_status(h);
    h->inner = ub_pidns_inner(h->pid, h->tid);
    return h->filtered ? -EACCES : 0;
}

/* Stopped for us; or else, by a signal that was quicker, or by SIGSTOP and its like: then it goes on with that. */
static int check_stop(const struct ub_hold *h, int status)
{
    bool event = status >> 16 == PTRACE_EVENT_STOP;

    if (event && WSTOPSIG(status) == SIGTRAP)
        return 0;
    release(h, event || WSTOPSIG(status) == (SIGTRAP | 0x80) ? 0 : WSTOPSIG(status));
    return -EAGAIN;
}

/* 0: it is stopped at a wait. */
static int stop(struct ub_hold *h, const struct before *before)
{
    int status, r;

    if (ptrace(PTRACE_SEIZE, h->tid, 0, (void *)PTRACE_O_TRACESYSGOOD) < 0)
        return errno == ESRCH ? -ESRCH : -EPERM;
    if (ptrace(PTRACE_INTERRUPT, h->tid, 0, 0) < 0)
        return -ESRCH;
    r = wait_for_stop(h, &status);
    if (r < 0)
        return r;
    ub_piece_part(h, UB_PART_STOPPING);
    r = check_stop(h, status);
    return r == 0 ? settle(h, &before->waited, before->ran) : r;
}

int ub_hold_take(struct ub_hold *h)
{
    struct before before = {0};
    int r = look_before(h, &before);

    if (r < 0)
        return r;
    h->stops = 0;
    ub_piece_begin(h);
    r = stop(h, &before);
    if (r == 0) { /* meanwhile it, or another thread for it, may have set a filter */
        look_at_status(h);
        if (h->filtered) {
            ub_hold_drop(h);
            r = -EACCES;
        }
    }
    if (r == -EAGAIN)
        ub_piece_part(h, UB_PART_STOPPED);
    return r;
}

int ub_hold_go(struct ub_hold *h, uint64_t ip, uint32_t request)
{
    h->regs.rip = ip;
    h->regs.rcx = h->resume_ip;
    h->regs.r11 = request ? request : h->regs.eflags;
    h->regs.rax = h->resume_ax;
    h->regs.orig_rax = (unsigned long long)-1; /* the kernel restarts nothing; before a call: it is left out */
    if (ptrace(PTRACE_SETREGS, h->tid, 0, &h->regs) < 0)
        return -errno;
    ub_piece_part(h, UB_PART_STOPPED); /* what follows gives it the CPU, ours as often as not */
    release(h, 0);
    return 0;
}

void ub_hold_drop(struct ub_hold *h)
{
    undo_eintr(h);
    release(h, 0);
}

/* ---- all threads, to be looked at ------------------------------------------------ */

/* Calls that the kernel takes up again by itself, or that can be made again: at no other place is a sleeper stopped. */
static bool is_patient(int64_t nr)
{
    static const int patient[] = {
        SYS_futex, SYS_nanosleep, SYS_clock_nanosleep, SYS_restart_syscall, SYS_pause,        SYS_rt_sigsuspend,
        SYS_wait4, SYS_waitid,    SYS_epoll_wait,      SYS_epoll_pwait,     SYS_epoll_pwait2, SYS_poll,
        SYS_ppoll, SYS_select,    SYS_pselect6,        SYS_io_uring_enter,
    };

    for (size_t i = 0; i < UB_ARRAY_LEN(patient); i++) {
        if (nr == patient[i])
            return true;
    }
    return false;
}

int ub_hold_look(struct ub_hold *h)
{
    struct ub_capture *c = malloc(sizeof(*c));
    int r = c ? ub_capture_peek(h->pid, h->tid, c) : -ENOMEM;

    if (r == 0 && c->state == UB_THREAD_BLOCKED && !is_patient(c->nr)) {
        h->regs.orig_rax = (unsigned long long)c->nr;
        r = -EINTR;
    }
    if (r == 0 && c->state == UB_THREAD_BLOCKED && is_wait(c->nr, c->arg[0], 2, false) && !has_no_timeout(c))
        look_how_long(h, &h->waited);
    free(c);
    look_at_status(h);
    return r;
}

int ub_hold_stop(struct ub_hold *h)
{
    if (ptrace(PTRACE_SEIZE, h->tid, 0, 0) < 0)
        return errno == ESRCH ? -ESRCH : -EPERM;
    return ptrace(PTRACE_INTERRUPT, h->tid, 0, 0) < 0 ? -ESRCH : 0;
}

int ub_hold_stopped(struct ub_hold *h, uint64_t until_ns)
{
    int status, r = until_ns ? wait_for_stop_until(h, until_ns, &status) : wait_for_stop(h, &status);

    if (r < 0)
        return r;
    r = check_stop(h, status);
    if (r < 0)
        return r;
    if (ptrace(PTRACE_GETREGS, h->tid, 0, &h->regs) < 0)
        return -ESRCH;
    if ((int64_t)h->regs.orig_rax >= 0 && (int64_t)h->regs.rax == -EINTR)
        shorten_timeout(h, (int64_t)h->regs.orig_rax, &h->waited);
    return 0;
}
