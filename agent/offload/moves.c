#include "moves.h"

#include "../calls/timing.h"
#include "../raw.h"
#include "../real.h"
#include "block.h"
#include "children.h"
#include "drive.h"
#include "fdkind.h"
#include "fds.h"
#include "pysteps.h"
#include "suspend.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/msg.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static struct ub_real direct;

static bool call(uint32_t id, void *function, const uint64_t *word, const uint64_t *value, int64_t *ret)
{
    if (ub_pysteps_concerned())
        return ub_pysteps_call(id, function, word, ret);
    return ub_suspend_call(id, function, word, value, ret);
}

/* An argument as a word: all are integers, pointers, or unions of pointers. */
#define WORD(x)                                                                                                        \
    __extension__({                                                                                                    \
        __typeof__(x) value_ = (x);                                                                                    \
        uint64_t word_ = 0;                                                                                            \
                                                                                                                       \
        memcpy(&word_, &value_, sizeof(value_)); /* NOLINT(bugprone-sizeof-expression): of the pointer itself */       \
        word_;                                                                                                         \
    })
#define PUT(x)                                         word[n_++] = WORD(x);
#define WORDS_(_1, _2, _3, _4, _5, _6, _7, _8, N, ...) N
#define WORDS1(a)                                      PUT(a)
#define WORDS2(a, ...)                                 PUT(a) WORDS1(__VA_ARGS__)
#define WORDS3(a, ...)                                 PUT(a) WORDS2(__VA_ARGS__)
#define WORDS4(a, ...)                                 PUT(a) WORDS3(__VA_ARGS__)
#define WORDS5(a, ...)                                 PUT(a) WORDS4(__VA_ARGS__)
#define WORDS6(a, ...)                                 PUT(a) WORDS5(__VA_ARGS__)
#define WORDS7(a, ...)                                 PUT(a) WORDS6(__VA_ARGS__)
#define WORDS8(a, ...)                                 PUT(a) WORDS7(__VA_ARGS__)
#define WORDS(...)                                     WORDS_(__VA_ARGS__, WORDS8, WORDS7, WORDS6, WORDS5, WORDS4, WORDS3, WORDS2, WORDS1)(__VA_ARGS__)

#define MOVED(type, name, params, args, ...)                                                                           \
    static type moved_##name params                                                                                    \
    {                                                                                                                  \
        uint64_t word[UB_POOL_WORDS] = {0};                                                                            \
        uint32_t n_ = 0;                                                                                               \
        const uint64_t value[UB_CALLS_VALUES] = {__VA_ARGS__};                                                         \
        int64_t ret;                                                                                                   \
                                                                                                                       \
        WORDS args if (ub_unlikely(ub_thread.start != 0) &&                                                            \
                       call(UB_CALL_ID_##name, (void *)direct.name, word, value, &ret)) return (type)ret;              \
        return direct.name args;                                                                                       \
    }

/* clang-format off */
#define CALLS(X) \
    X(int, close, (int fd), (fd), (uint64_t)fd) \
    X(int, __close, (int fd), (fd), (uint64_t)fd) \
    X(ssize_t, read, (int fd, void *buf, size_t n), (fd, buf, n), (uint64_t)fd) \
    X(ssize_t, __read, (int fd, void *buf, size_t n), (fd, buf, n), (uint64_t)fd) \
    X(ssize_t, __read_chk, (int fd, void *buf, size_t n, size_t size), (fd, buf, n, size), (uint64_t)fd) \
    X(ssize_t, readv, (int fd, const struct iovec *v, int count), (fd, v, count), (uint64_t)fd) \
    X(ssize_t, write, (int fd, const void *buf, size_t n), (fd, buf, n), (uint64_t)fd) \
    X(ssize_t, __write, (int fd, const void *buf, size_t n), (fd, buf, n), (uint64_t)fd) \
    X(ssize_t, writev, (int fd, const struct iovec *v, int count), (fd, v, count), (uint64_t)fd) \
    X(ssize_t, recv, (int fd, void *buf, size_t n, int flags), (fd, buf, n, flags), (uint64_t)fd) \
    X(ssize_t, __recv_chk, (int fd, void *buf, size_t n, size_t size, int flags), (fd, buf, n, size, flags), (uint64_t)fd) \
    X(ssize_t, recvfrom, (int fd, void *buf, size_t n, int flags, UB_ADDRESS_RET address, socklen_t *len), (fd, buf, n, flags, address, len), (uint64_t)fd) \
    X(ssize_t, recvmsg, (int fd, struct msghdr *message, int flags), (fd, message, flags), (uint64_t)fd) \
    X(int, accept, (int fd, UB_ADDRESS_RET address, socklen_t *len), (fd, address, len), (uint64_t)fd) \
    X(int, accept4, (int fd, UB_ADDRESS_RET address, socklen_t *len, int flags), (fd, address, len, flags), (uint64_t)fd) \
    X(ssize_t, send, (int fd, const void *buf, size_t n, int flags), (fd, buf, n, flags), (uint64_t)fd) \
    X(int, flock, (int fd, int operation), (fd, operation), (uint64_t)fd) \
    X(int, fcntl, (int fd, int command, void *arg), (fd, command, arg), (uint64_t)fd, (uint64_t)command) \
    X(int, fcntl64, (int fd, int command, void *arg), (fd, command, arg), (uint64_t)fd, (uint64_t)command) \
    X(unsigned int, sleep, (unsigned int seconds), (seconds), 0) \
    X(int, usleep, (useconds_t us), (us), 0) \
    X(int, nanosleep, (const struct timespec *time, struct timespec *rest), (time, rest), 0) \
    X(int, __nanosleep, (const struct timespec *time, struct timespec *rest), (time, rest), 0) \
    X(int, clock_nanosleep, (clockid_t clock, int flags, const struct timespec *time, struct timespec *rest), (clock, flags, time, rest), 0) \
    X(pid_t, waitpid, (pid_t pid, int *status, int flags), (pid, status, flags), 0) \
    X(pid_t, __waitpid, (pid_t pid, int *status, int flags), (pid, status, flags), 0) \
    X(int, connect, (int fd, UB_ADDRESS_ARG address, socklen_t len), (fd, address, len), (uint64_t)fd) \
    X(int, __connect, (int fd, UB_ADDRESS_ARG address, socklen_t len), (fd, address, len), (uint64_t)fd) \
    X(int, getaddrinfo, (const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **ret_), (node, service, hints, ret_), 0) \
    X(int, fsync, (int fd), (fd), (uint64_t)fd) \
    X(int, fdatasync, (int fd), (fd), (uint64_t)fd) \
    X(int, syncfs, (int fd), (fd), (uint64_t)fd) \
    X(ssize_t, pread, (int fd, void *buf, size_t n, off_t at), (fd, buf, n, at), (uint64_t)fd) \
    X(ssize_t, pread64, (int fd, void *buf, size_t n, off64_t at), (fd, buf, n, at), (uint64_t)fd) \
    X(ssize_t, __pread64, (int fd, void *buf, size_t n, off64_t at), (fd, buf, n, at), (uint64_t)fd) \
    X(ssize_t, pwrite, (int fd, const void *buf, size_t n, off_t at), (fd, buf, n, at), (uint64_t)fd) \
    X(ssize_t, pwrite64, (int fd, const void *buf, size_t n, off64_t at), (fd, buf, n, at), (uint64_t)fd) \
    X(ssize_t, __pwrite64, (int fd, const void *buf, size_t n, off64_t at), (fd, buf, n, at), (uint64_t)fd) \
    X(int, ftruncate, (int fd, off_t n), (fd, n), (uint64_t)fd) \
    X(int, ftruncate64, (int fd, off64_t n), (fd, n), (uint64_t)fd) \
    X(int, fallocate, (int fd, int mode, off_t at, off_t n), (fd, mode, at, n), (uint64_t)fd) \
    X(int, fallocate64, (int fd, int mode, off64_t at, off64_t n), (fd, mode, at, n), (uint64_t)fd) \
    X(int, posix_fallocate, (int fd, off_t at, off_t n), (fd, at, n), (uint64_t)fd) \
    X(int, posix_fallocate64, (int fd, off64_t at, off64_t n), (fd, at, n), (uint64_t)fd) \
    X(int, open, (const char *path, int flags, mode_t mode), (path, flags, mode), 0) \
    X(int, open64, (const char *path, int flags, mode_t mode), (path, flags, mode), 0) \
    X(int, openat, (int dirfd, const char *path, int flags, mode_t mode), (dirfd, path, flags, mode), 0) \
    X(int, openat64, (int dirfd, const char *path, int flags, mode_t mode), (dirfd, path, flags, mode), 0) \
    X(int, stat, (const char *path, struct stat *st), (path, st), 0) \
    X(int, stat64, (const char *path, struct stat64 *st), (path, st), 0) \
    X(int, lstat, (const char *path, struct stat *st), (path, st), 0) \
    X(int, lstat64, (const char *path, struct stat64 *st), (path, st), 0) \
    X(int, unlink, (const char *path), (path), 0) \
    X(int, rename, (const char *from, const char *to), (from, to), 0) \
    X(int, poll, (struct pollfd *fds, nfds_t count, int timeout), (fds, count, timeout), 0) \
    X(int, __poll_chk, (struct pollfd *fds, nfds_t count, int timeout, size_t size), (fds, count, timeout, size), 0)
/* clang-format on */
CALLS(MOVED)

/* By any thread. A child of vfork runs on its parent's memory, but what it closes is its own. */
static bool is_kept(int fd)
{
    return (ub_fds_is_own(fd) || ub_inbox_owns(fd)) && ub_raw0(SYS_getpid) == ub_process->pid;
}

/* Ours are not there: what the program would find without us. */
#define KEPT(name)                                                                                                     \
    static int kept_##name(int fd)                                                                                     \
    {                                                                                                                  \
        ub_fdkind_forget(fd);                                                                                          \
        if (ub_likely(!is_kept(fd)))                                                                                   \
            return moved_##name(fd);                                                                                   \
        errno = EBADF;                                                                                                 \
        return -1;                                                                                                     \
    }
KEPT(close)
KEPT(__close)

static bool is_anybody_suspended(void)
{
    return ub_drive_concerned() || ub_pysteps_concerned();
}

static void drive_all(void)
{
    if (ub_pysteps_concerned())
        ub_pysteps_drive_ready();
    else
        ub_drive_all();
}

/*
 * Calls that stay and wait for somebody, in ways that cannot be asked about beforehand: what is suspended, and may be
 * that somebody, comes first. The last column: whether it waits at all.
 */
#define STAYED(type, name, params, args, waits)                                                                        \
    static type stayed_##name params                                                                                   \
    {                                                                                                                  \
        if (ub_unlikely(ub_thread.start != 0) && is_anybody_suspended() && (waits))                                    \
            drive_all();                                                                                               \
        return direct.name args;                                                                                       \
    }

/* Likewise, but in a task of asyncio's such a call can be asked about; `select` may be left there. */
#define ASKED(type, name, params, args, waits)                                                                         \
    static type asked_##name params                                                                                    \
    {                                                                                                                  \
        uint64_t word[UB_POOL_WORDS] = {0};                                                                            \
        uint32_t n_ = 0;                                                                                               \
        int64_t ret;                                                                                                   \
                                                                                                                       \
        if (ub_likely(ub_thread.start == 0))                                                                           \
            return direct.name args;                                                                                   \
        WORDS args if (!ub_pysteps_concerned()) return stayed_##name args;                                             \
        return ub_pysteps_call(UB_CALL_ID_##name, (void *)direct.name, word, &ret) ? (type)ret : direct.name args;     \
    }

static bool is_some(const struct timespec *time)
{
    return !time || time->tv_sec || time->tv_nsec;
}

static bool is_some_time(const struct timeval *time)
{
    return !time || time->tv_sec || time->tv_usec;
}

/* What a stream reads from: not a file. What it has in its buffer is not known. */
static bool is_awaited(FILE *stream)
{
    struct stat st = {0};
    int fd = stream ? fileno_unlocked(stream) : -1;

    return fd >= 0 && ub_raw2(SYS_fstat, fd, &st) == 0 && (S_ISFIFO(st.st_mode) || S_ISSOCK(st.st_mode));
}

/* clang-format off */
#define STAYS(X) \
    X(pid_t, wait, (int *status), (status), true) \
    X(pid_t, __wait, (int *status), (status), true) \
    X(pid_t, wait3, (int *status, int flags, struct rusage *usage), (status, flags, usage), !(flags & WNOHANG)) \
    X(pid_t, wait4, (pid_t pid, int *status, int flags, struct rusage *usage), (pid, status, flags, usage), !(flags & WNOHANG)) \
    X(int, waitid, (idtype_t what, id_t id, siginfo_t *info, int flags), (what, id, info, flags), !(flags & WNOHANG)) \
    X(int, system, (const char *command), (command), command != NULL) \
    X(int, pclose, (FILE *stream), (stream), true) \
    X(ssize_t, msgrcv, (int id, void *buf, size_t n, long what, int flags), (id, buf, n, what, flags), !(flags & IPC_NOWAIT)) \
    X(int, msgsnd, (int id, const void *buf, size_t n, int flags), (id, buf, n, flags), !(flags & IPC_NOWAIT)) \
    X(int, semop, (int id, struct sembuf *v, size_t n), (id, v, n), true) \
    X(ssize_t, mq_receive, (mqd_t queue, char *buf, size_t n, unsigned int *priority), (queue, buf, n, priority), true) \
    X(int, mq_send, (mqd_t queue, const char *buf, size_t n, unsigned int priority), (queue, buf, n, priority), true) \
    X(int, lockf, (int fd, int command, off_t n), (fd, command, n), command == F_LOCK) \
    X(int, lockf64, (int fd, int command, off64_t n), (fd, command, n), command == F_LOCK) \
    X(int, pselect, (int count, fd_set *r, fd_set *w, fd_set *e, const struct timespec *timeout, const sigset_t *mask), (count, r, w, e, timeout, mask), is_some(timeout)) \
    X(int, ppoll, (struct pollfd *fds, nfds_t count, const struct timespec *timeout, const sigset_t *mask), (fds, count, timeout, mask), is_some(timeout)) \
    X(int, epoll_pwait, (int epfd, struct epoll_event *events, int max, int timeout, const sigset_t *mask), (epfd, events, max, timeout, mask), timeout != 0) \
    X(ssize_t, sendmsg, (int fd, const struct msghdr *message, int flags), (fd, message, flags), !(flags & MSG_DONTWAIT) && ub_block_would(fd, POLLOUT)) \
    X(ssize_t, sendto, (int fd, const void *buf, size_t n, int flags, UB_ADDRESS_ARG address, socklen_t len), (fd, buf, n, flags, address, len), !(flags & MSG_DONTWAIT) && ub_block_would(fd, POLLOUT)) \
    X(char *, fgets, (char *buf, int n, FILE *stream), (buf, n, stream), is_awaited(stream)) \
    X(char *, __fgets_chk, (char *buf, size_t size, int n, FILE *stream), (buf, size, n, stream), is_awaited(stream)) \
    X(size_t, fread, (void *buf, size_t size, size_t n, FILE *stream), (buf, size, n, stream), is_awaited(stream)) \
    X(ssize_t, getline, (char **line, size_t *n, FILE *stream), (line, n, stream), is_awaited(stream)) \
    X(ssize_t, getdelim, (char **line, size_t *n, int end, FILE *stream), (line, n, end, stream), is_awaited(stream)) \
    X(ssize_t, __getdelim, (char **line, size_t *n, int end, FILE *stream), (line, n, end, stream), is_awaited(stream))
#define ASKS(X) \
    X(int, select, (int count, fd_set *r, fd_set *w, fd_set *e, struct timeval *timeout), (count, r, w, e, timeout), is_some_time(timeout)) \
    X(int, __select, (int count, fd_set *r, fd_set *w, fd_set *e, struct timeval *timeout), (count, r, w, e, timeout), is_some_time(timeout)) \
    X(int, epoll_wait, (int epfd, struct epoll_event *events, int max, int timeout), (epfd, events, max, timeout), timeout != 0)
/* clang-format on */
STAYS(STAYED)
ASKS(STAYED)
ASKS(ASKED)

/* Those that ask for any child. */
#define REAPED(name, made, params, args)                                                                               \
    static pid_t reaped_##name params                                                                                  \
    {                                                                                                                  \
        return ub_thread.start != 0 && ub_children_none(&pid, flags) ? 0 : made##_##name args;                         \
    }
REAPED(waitpid, moved, (pid_t pid, int *status, int flags), (pid, status, flags))
REAPED(__waitpid, moved, (pid_t pid, int *status, int flags), (pid, status, flags))
REAPED(wait4, stayed, (pid_t pid, int *status, int flags, struct rusage *usage), (pid, status, flags, usage))

static pid_t reaped_wait3(int *status, int flags, struct rusage *usage)
{
    return reaped_wait4(-1, status, flags, usage);
}

static int reaped_waitid(idtype_t what, id_t id, siginfo_t *info, int flags)
{
    pid_t pid = -1;

    if (what == P_ALL && ub_thread.start != 0 && !ub_children_none(&pid, flags) && pid > 0)
        return stayed_waitid(P_PID, (id_t)pid, info, flags);
    return stayed_waitid(what, id, info, flags);
}

/* Streams close their descriptors unseen. */
static FILE *forget(FILE *stream)
{
    if (stream)
        ub_fdkind_forget(fileno_unlocked(stream));
    return stream;
}

static int forgotten_fclose(FILE *stream)
{
    return direct.fclose(forget(stream));
}

static int forgotten_pclose(FILE *stream)
{
    return stayed_pclose(forget(stream));
}

void ub_moves_start(void)
{
    direct = ub_real;
#define TAKE_OVER(type, name, ...) ub_real.name = moved_##name;
    CALLS(TAKE_OVER)
    ub_real.close = kept_close;
    ub_real.__close = kept___close;
#define LEAVE_THERE(type, name, ...) ub_real.name = stayed_##name;
    STAYS(LEAVE_THERE)
#define ASK(type, name, ...) ub_real.name = asked_##name;
    ASKS(ASK)
#define REAP(name) ub_real.name = reaped_##name;
    REAP(waitpid) REAP(__waitpid) REAP(wait3) REAP(wait4) REAP(waitid) ub_real.fclose = forgotten_fclose;
    ub_real.pclose = forgotten_pclose;
}
