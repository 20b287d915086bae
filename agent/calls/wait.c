/*
 * The wait calls. Each hook is the same four lines: where was I called from,
 * end the turn, the original, begin the next. The originals' errno and
 * cancellation stay as they are; a cancelled wait just leaves no turn running.
 * A wait that is not the loop's own, inside a turn, is a blocking call like any
 * other: its time is taken (timing.h).
 */
#include "../loops/turn.h"
#include "../offload/fdkind.h"
#include "../patch.h"
#include "../raw.h"
#include "../real.h"
#include "timing.h"

#include <errno.h>
#include <linux/io_uring.h>
#include <stdarg.h>
#include <sys/prctl.h>

#define WAIT(call, timed, ...)                                                                                         \
    do {                                                                                                               \
        uintptr_t ra_ = (uintptr_t)__builtin_return_address(0), sp_ = (uintptr_t)__builtin_frame_address(0);           \
        struct ub_thread *t_ = &ub_thread;                                                                             \
        uint64_t spent_ = 0;                                                                                           \
        __typeof__(call) n_;                                                                                           \
                                                                                                                       \
        if (ub_turn_settled(t_, ub_process, ra_, sp_)) {                                                               \
            spent_ = ub_turn_close(t_, ub_process);                                                                    \
        } else {                                                                                                       \
            bool own_;                                                                                                 \
            {                                                                                                          \
                struct ub_wait wait_ = {__VA_ARGS__, .ra = ra_, .sp = sp_};                                            \
                own_ = ub_turn_settle(t_, &wait_);                                                                     \
            }                                                                                                          \
            if (!own_) /* by a tail call: its return address must be ours */                                           \
                return t_->start ? (timed) : (call);                                                                   \
        }                                                                                                              \
        ub_patch_check();                                                                                              \
        n_ = (call);                                                                                                   \
        ub_turn_begin(n_, spent_);                                                                                     \
        return n_;                                                                                                     \
    } while (0)

/*
 * The same for the polls, most of which are a synchronous wait: those are told
 * apart before anything is stored. Not at the loop's own call, which may have a
 * single descriptor left, or be shared with another thread's synchronous wait.
 */
#define WAIT_POLL(call, timed, nfds)                                                                                   \
    do {                                                                                                               \
        uintptr_t from_ = (uintptr_t)__builtin_return_address(0);                                                      \
                                                                                                                       \
        if (ub_thread.ra != from_ && ub_turn_never((nfds), from_))                                                     \
            return ub_unlikely(ub_thread.start != 0) ? (timed) : (call);                                               \
        WAIT(call, timed, .kind = UB_WAIT_POLL, .count = (int)(nfds));                                                 \
    } while (0)

/* A wait that is not the loop's own. The values are those that calls.def names. */
#define TIMED(name, params, args, ...)                                                                                 \
    static __attribute__((noinline)) int timed_##name params                                                           \
    {                                                                                                                  \
        UB_HOOK_TIMED(int, UB_CALL_ID_##name, ub_real.name args, __VA_ARGS__);                                         \
    }
TIMED(epoll_wait, (int epfd, struct epoll_event *events, int max, int timeout), (epfd, events, max, timeout),
      (uint64_t)epfd, (uint64_t)max, (uint64_t)timeout)
TIMED(epoll_pwait, (int epfd, struct epoll_event *events, int max, int timeout, const sigset_t *mask),
      (epfd, events, max, timeout, mask), (uint64_t)epfd, (uint64_t)max, (uint64_t)timeout)
TIMED(epoll_pwait2,
      (int epfd, struct epoll_event *events, int max, const struct timespec *timeout, const sigset_t *mask),
      (epfd, events, max, timeout, mask), (uint64_t)epfd, (uint64_t)max, (uintptr_t)timeout)
TIMED(poll, (struct pollfd * fds, nfds_t count, int timeout), (fds, count, timeout), (uintptr_t)fds, count,
      (uint64_t)timeout)
TIMED(__poll, (struct pollfd * fds, nfds_t count, int timeout), (fds, count, timeout), (uintptr_t)fds, count,
      (uint64_t)timeout)
TIMED(__poll_chk, (struct pollfd * fds, nfds_t count, int timeout, size_t size), (fds, count, timeout, size),
      (uintptr_t)fds, count, (uint64_t)timeout)
TIMED(ppoll, (struct pollfd * fds, nfds_t count, const struct timespec *timeout, const sigset_t *mask),
      (fds, count, timeout, mask), (uintptr_t)fds, count, (uintptr_t)timeout)
TIMED(__ppoll_chk,
      (struct pollfd * fds, nfds_t count, const struct timespec *timeout, const sigset_t *mask, size_t size),
      (fds, count, timeout, mask, size), (uintptr_t)fds, count, (uintptr_t)timeout)
TIMED(select, (int count, fd_set *r, fd_set *w, fd_set *e, struct timeval *timeout), (count, r, w, e, timeout),
      (uint64_t)count)
TIMED(__select, (int count, fd_set *r, fd_set *w, fd_set *e, struct timeval *timeout), (count, r, w, e, timeout),
      (uint64_t)count)
TIMED(pselect, (int count, fd_set *r, fd_set *w, fd_set *e, const struct timespec *timeout, const sigset_t *mask),
      (count, r, w, e, timeout, mask), (uint64_t)count, (uintptr_t)timeout)

/* From calls/syscall.S, for the numbers it names. Returns as libc's syscall() does. */
long ub_hook_syscall(long nr, long a, long b, long c, long d, long e, long f);
long ub_hook_syscall(long nr, long a, long b, long c, long d, long e, long f)
{
    long (*go)(long, ...) = ub_real_syscall_pointer;

    switch (nr) {
    case SYS_io_uring_enter:
        if (!((unsigned long)d & IORING_ENTER_GETEVENTS) || c == 0)
            break; /* submits only: does not wait */
        WAIT(go(nr, a, b, c, d, e, f), go(nr, a, b, c, d, e, f), .kind = UB_WAIT_URING, .count = (int)a);
    case SYS_epoll_wait:
    case SYS_epoll_pwait:
    case SYS_epoll_pwait2:
        WAIT(go(nr, a, b, c, d, e, f), go(nr, a, b, c, d, e, f), .kind = UB_WAIT_EPOLL, .count = (int)a);
    case SYS_poll:
    case SYS_ppoll:
        WAIT(go(nr, a, b, c, d, e, f), go(nr, a, b, c, d, e, f), .kind = UB_WAIT_POLL, .count = (int)b);
    case SYS_seccomp:
        ub_process_hush();
        break;
    case SYS_prctl:
        if (a == PR_SET_SECCOMP)
            ub_process_hush();
        break;
    }
    return go(nr, a, b, c, d, e, f);
}

/* Likewise, for those that close descriptors. By itself: the frame of the one above is that of a wait. */
long ub_hook_syscall_closes(long nr, long a, long b, long c, long d, long e, long f);
long ub_hook_syscall_closes(long nr, long a, long b, long c, long d, long e, long f)
{
    long (*go)(long, ...) = ub_real_syscall_pointer;

    if (nr == SYS_close_range)
        ub_fdkind_forget_range((unsigned)a, (unsigned)b);
    else
        ub_fdkind_forget((int)(nr == SYS_close ? a : b));
    return go(nr, a, b, c, d, e, f);
}

/* From here on: what the program calls. Everything else in the agent is hidden (-fvisibility=hidden). */
#pragma GCC visibility push(default)

int epoll_create(int size)
{
    ub_patch_check();
    return ub_real.epoll_create(size);
}

int epoll_create1(int flags)
{
    ub_patch_check();
    return ub_real.epoll_create1(flags);
}

UB_HOOK_TEXT_OFTEN int epoll_wait(int epfd, struct epoll_event *events, int max, int timeout)
{
    WAIT(ub_real.epoll_wait(epfd, events, max, timeout), timed_epoll_wait(epfd, events, max, timeout),
         .kind = UB_WAIT_EPOLL, .count = epfd);
}

UB_HOOK_TEXT_OFTEN int epoll_pwait(int epfd, struct epoll_event *events, int max, int timeout, const sigset_t *mask)
{
    WAIT(ub_real.epoll_pwait(epfd, events, max, timeout, mask), timed_epoll_pwait(epfd, events, max, timeout, mask),
         .kind = UB_WAIT_EPOLL, .count = epfd);
}

int epoll_pwait2(int epfd, struct epoll_event *events, int max, const struct timespec *timeout, const sigset_t *mask)
{
    WAIT(ub_real.epoll_pwait2(epfd, events, max, timeout, mask), timed_epoll_pwait2(epfd, events, max, timeout, mask),
         .kind = UB_WAIT_EPOLL, .count = epfd);
}

UB_HOOK_TEXT_OFTEN int poll(struct pollfd *fds, nfds_t count, int timeout)
{
    WAIT_POLL(ub_real.poll(fds, count, timeout), timed_poll(fds, count, timeout), count);
}

int __poll(struct pollfd *fds, nfds_t count, int timeout);
int __poll(struct pollfd *fds, nfds_t count, int timeout)
{
    WAIT_POLL(ub_real.__poll(fds, count, timeout), timed___poll(fds, count, timeout), count);
}

int __poll_chk(struct pollfd *fds, nfds_t count, int timeout, size_t size);
int __poll_chk(struct pollfd *fds, nfds_t count, int timeout, size_t size)
{
    WAIT_POLL(ub_real.__poll_chk(fds, count, timeout, size), timed___poll_chk(fds, count, timeout, size), count);
}

int ppoll(struct pollfd *fds, nfds_t count, const struct timespec *timeout, const sigset_t *mask)
{
    WAIT_POLL(ub_real.ppoll(fds, count, timeout, mask), timed_ppoll(fds, count, timeout, mask), count);
}

int __ppoll_chk(struct pollfd *fds, nfds_t count, const struct timespec *timeout, const sigset_t *mask, size_t size);
int __ppoll_chk(struct pollfd *fds, nfds_t count, const struct timespec *timeout, const sigset_t *mask, size_t size)
{
    WAIT_POLL(ub_real.__ppoll_chk(fds, count, timeout, mask, size), timed___ppoll_chk(fds, count, timeout, mask, size),
              count);
}

int select(int count, fd_set *r, fd_set *w, fd_set *e, struct timeval *timeout)
{
    WAIT(ub_real.select(count, r, w, e, timeout), timed_select(count, r, w, e, timeout), .kind = UB_WAIT_SELECT,
         .count = count, .set = {r, w, e});
}

int __select(int count, fd_set *r, fd_set *w, fd_set *e, struct timeval *timeout);
int __select(int count, fd_set *r, fd_set *w, fd_set *e, struct timeval *timeout)
{
    WAIT(ub_real.__select(count, r, w, e, timeout), timed___select(count, r, w, e, timeout), .kind = UB_WAIT_SELECT,
         .count = count, .set = {r, w, e});
}

int pselect(int count, fd_set *r, fd_set *w, fd_set *e, const struct timespec *timeout, const sigset_t *mask)
{
    WAIT(ub_real.pselect(count, r, w, e, timeout, mask), timed_pselect(count, r, w, e, timeout, mask),
         .kind = UB_WAIT_SELECT, .count = count, .set = {r, w, e});
}

int prctl(int option, ...)
{
    unsigned long a, b, c, d;
    va_list ap;

    va_start(ap, option);
    a = va_arg(ap, unsigned long);
    b = va_arg(ap, unsigned long);
    c = va_arg(ap, unsigned long);
    d = va_arg(ap, unsigned long);
    va_end(ap);
    if (option == PR_SET_SECCOMP)
        ub_process_hush();
    return ub_real.prctl(option, a, b, c, d);
}

#pragma GCC visibility pop
