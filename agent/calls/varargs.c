/*
 * The blocking calls with a variable argument list, and one without a result. libc itself reads the
 * argument whether it was given or not; the kernel knows when it matters.
 */
#include "../real.h"
#include "timing.h"

#include <errno.h>
#include <stdarg.h>

#define LAST(type, before)                                                                                             \
    __extension__({                                                                                                    \
        va_list ap_;                                                                                                   \
        type last_;                                                                                                    \
                                                                                                                       \
        va_start(ap_, before);                                                                                         \
        last_ = va_arg(ap_, type);                                                                                     \
        va_end(ap_);                                                                                                   \
        last_;                                                                                                         \
    })

/* Each: the function that takes the time, and the hook. */
#define UNPACK(...) __VA_ARGS__
#define RA          ((uintptr_t)__builtin_return_address(0))
#define TIMED(name, params, args, ...)                                                                                 \
    UB_HOOK_TEXT_OFTEN static __attribute__((noinline)) int timed_##name(uintptr_t ra, UNPACK params)                  \
    {                                                                                                                  \
        UB_HOOK_TIMED_AT(ra, int, UB_CALL_ID_##name, ub_real.name args, __VA_ARGS__);                                  \
    }

UB_HOOK_TEXT static __attribute__((noinline)) int timed_sync(uintptr_t ra)
{
    UB_HOOK_TIMED_AT(ra, int, UB_CALL_ID_sync, (ub_real.sync(), 0), 0);
}

/* From here on: what the program calls. Everything else in the agent is hidden (-fvisibility=hidden). */
#pragma GCC visibility push(default)

#define OPEN(name)                                                                                                     \
    TIMED(name, (const char *path, int flags, mode_t mode), (path, flags, mode), (uintptr_t)path, (uint64_t)flags)     \
    int name(const char *path, int flags, ...);                                                                        \
    UB_HOOK_TEXT_OFTEN int name(const char *path, int flags, ...)                                                      \
    {                                                                                                                  \
        mode_t mode = LAST(mode_t, flags);                                                                             \
                                                                                                                       \
        UB_HOOK_FAST(ub_real.name(path, flags, mode), timed_##name(RA, path, flags, mode));                            \
    }
OPEN(open)
OPEN(open64)
OPEN(__open)
OPEN(__open64)

#define OPENAT(name)                                                                                                   \
    TIMED(name, (int dirfd, const char *path, int flags, mode_t mode), (dirfd, path, flags, mode), (uint64_t)dirfd,    \
          (uintptr_t)path, (uint64_t)flags)                                                                            \
    UB_HOOK_TEXT_OFTEN int name(int dirfd, const char *path, int flags, ...)                                           \
    {                                                                                                                  \
        mode_t mode = LAST(mode_t, flags);                                                                             \
                                                                                                                       \
        UB_HOOK_FAST(ub_real.name(dirfd, path, flags, mode), timed_##name(RA, dirfd, path, flags, mode));              \
    }
OPENAT(openat)
OPENAT(openat64)

#define FCNTL(name)                                                                                                    \
    TIMED(name, (int fd, int command, void *arg), (fd, command, arg), (uint64_t)fd, (uint64_t)command)                 \
    int name(int fd, int command, ...);                                                                                \
    UB_HOOK_TEXT_OFTEN int name(int fd, int command, ...)                                                              \
    {                                                                                                                  \
        void *arg = LAST(void *, command);                                                                             \
                                                                                                                       \
        UB_HOOK_FAST(ub_real.name(fd, command, arg), timed_##name(RA, fd, command, arg));                              \
    }
UB_HOOK_TEXT void sync(void)
{
    if (ub_likely(!ub_thread.start))
        ub_real.sync();
    else
        timed_sync(RA);
}

FCNTL(fcntl)
FCNTL(fcntl64)
FCNTL(__fcntl)

#pragma GCC visibility pop
