#include "waits.h"

#include "drive.h"
#include "locks.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <time.h>

#define STEP_NS 5000000ull
#define SIGNALS 256u

/*
 * How often conditions were signalled, by their addresses. A wait that is cut into pieces would miss what comes in
 * between: by the rules of conditions it might then say that it was woken for nothing, but a program that waits
 * without a loop would go wrong. So it says so only if there was a signal.
 */
static uint32_t signals[SIGNALS];

static uint32_t *signals_of(const void *cond)
{
    return &signals[((uintptr_t)cond * 0x9e3779b97f4a7c15ull) >> 56];
}

static void signalled(const void *cond)
{
    __atomic_fetch_add(signals_of(cond), 1, __ATOMIC_SEQ_CST);
}

static uint32_t signals_so_far(const void *cond)
{
    return __atomic_load_n(signals_of(cond), __ATOMIC_SEQ_CST);
}

static struct timespec at(uint64_t ns)
{
    return (struct timespec){(time_t)(ns / 1000000000), (long)(ns % 1000000000)};
}

/* CLOCK_MONOTONIC, of a time on another clock; 0: not a time. */
static uint64_t deadline_of(int clock, const struct timespec *until)
{
    struct timespec now;
    int64_t left;

    if (!until || until->tv_nsec < 0 || until->tv_nsec > 999999999 || clock_gettime(clock, &now) != 0)
        return 0;
    left = ((int64_t)until->tv_sec - now.tv_sec) * 1000000000 + until->tv_nsec - now.tv_nsec;
    return ub_clock_monotonic_ns() + (uint64_t)(left > 0 ? left : 0);
}

/* A condition and its mutex, of one kind or the other. */
struct condition {
    void *cond, *mutex;
    bool (*wait)(const struct condition *c, uint64_t until_ns); /* with the mutex; false: the time is over */
    void (*lock)(void *mutex);
    void (*unlock)(void *mutex);
};

/* 0: woken; ETIMEDOUT; -1: nobody is there who could do it, to be waited for as ever. `deadline_ns` 0: none. */
static int wait_in_pieces(const struct condition *c, uint64_t deadline_ns)
{
    uint32_t before = signals_so_far(c->cond);
    struct ub_drive d = {0};
    enum ub_drove drove;

    do {
        uint64_t until = ub_clock_monotonic_ns() + STEP_NS;

        if (c->wait(c, deadline_ns && deadline_ns < until ? deadline_ns : until) || signals_so_far(c->cond) != before)
            return 0;
        if (deadline_ns && ub_clock_monotonic_ns() >= deadline_ns)
            return ETIMEDOUT;
        c->unlock(c->mutex);
        drove = ub_drive(&d, -1, 0, 0);
        c->lock(c->mutex);
        if (signals_so_far(c->cond) != before)
            return 0;
    } while (drove != UB_DROVE_NOTHING);
    return -1;
}

/* ---- libc's ------------------------------------------------------------------------------------- */

/* clang-format off */
#define NAMES(X) \
    X(pthread_cond_wait) X(pthread_cond_timedwait) X(pthread_cond_clockwait) X(pthread_cond_signal) \
    X(pthread_cond_broadcast) X(cnd_wait) X(cnd_signal) X(cnd_broadcast) X(pthread_join) X(pthread_tryjoin_np) \
    X(thrd_join) X(pthread_barrier_wait)
#define ID(name) ID_##name,
enum { NAMES(ID) IDS };
/* clang-format on */
static void *original[IDS][UB_LOOP_COPIES];

static bool piece(const struct condition *c, uint64_t until_ns)
{
    struct timespec until = at(until_ns);

    return ((int (*)(void *, void *, int, const struct timespec *))original[ID_pthread_cond_clockwait][0])(
               c->cond, c->mutex, CLOCK_MONOTONIC, &until) != ETIMEDOUT;
}

static void lock(void *mutex)
{
    ub_locks_lock(mutex);
}

static void unlock(void *mutex)
{
    ub_locks_unlock(mutex);
}

static bool concerned(void)
{
    return ub_unlikely(ub_drive_concerned()) && original[ID_pthread_cond_clockwait][0];
}

static int pieces(void *cond, void *mutex, uint64_t deadline_ns)
{
    const struct condition c = {cond, mutex, piece, lock, unlock};

    return wait_in_pieces(&c, deadline_ns);
}

static int hook_pthread_cond_wait(void *cond, void *mutex)
{
    int r = concerned() ? pieces(cond, mutex, 0) : -1;

    return r >= 0 ? r : ((int (*)(void *, void *))original[ID_pthread_cond_wait][0])(cond, mutex);
}

/* The clock of a condition, as glibc keeps it since 2.25. */
static int clock_of(const void *cond)
{
    const pthread_cond_t *c = cond;

    return c->__data.__wrefs & 2 ? CLOCK_MONOTONIC : CLOCK_REALTIME;
}

static int hook_pthread_cond_timedwait(void *cond, void *mutex, const struct timespec *until)
{
    uint64_t deadline = concerned() ? deadline_of(clock_of(cond), until) : 0;
    int r = deadline ? pieces(cond, mutex, deadline) : -1;

    return r >= 0 ? r
                  : ((int (*)(void *, void *, const struct timespec *))original[ID_pthread_cond_timedwait][0])(
                        cond, mutex, until);
}

static int hook_pthread_cond_clockwait(void *cond, void *mutex, int clock, const struct timespec *until)
{
    uint64_t deadline = concerned() ? deadline_of(clock, until) : 0;
    int r = deadline ? pieces(cond, mutex, deadline) : -1;

    if (r >= 0)
        return r;
    /* NOLINTNEXTLINE(clang-analyzer-core.CallAndMessage): known since the hook was put there */
    return ((int (*)(void *, void *, int, const struct timespec *))original[ID_pthread_cond_clockwait][0])(
        cond, mutex, clock, until);
}

/* C11's are pthread's by other names. */
static int hook_cnd_wait(void *cond, void *mutex)
{
    int r = concerned() ? pieces(cond, mutex, 0) : -1;

    return r >= 0 ? r : ((int (*)(void *, void *))original[ID_cnd_wait][0])(cond, mutex);
}

#define SIGNAL(name)                                                                                                   \
    static int hook_##name(void *cond)                                                                                 \
    {                                                                                                                  \
        signalled(cond);                                                                                               \
        return ((int (*)(void *))original[ID_##name][0])(cond);                                                        \
    }
SIGNAL(pthread_cond_signal)
SIGNAL(pthread_cond_broadcast)
SIGNAL(cnd_signal)
SIGNAL(cnd_broadcast)

/* Joined, or -1: not yet, and nobody is there who could change that. */
static int join_in_pieces(uint64_t thread, void **result)
{
    struct ub_drive d = {0};
    int r;

    do {
        r = ((int (*)(uint64_t, void **))original[ID_pthread_tryjoin_np][0])(thread, result);
        if (r != EBUSY)
            return r;
    } while (ub_drive(&d, -1, 0, STEP_NS) != UB_DROVE_NOTHING);
    return -1;
}

static int hook_pthread_join(uint64_t thread, void **result)
{
    int r = ub_unlikely(ub_drive_concerned()) ? join_in_pieces(thread, result) : -1;

    return r >= 0 ? r : ((int (*)(uint64_t, void **))original[ID_pthread_join][0])(thread, result);
}

/* Its result is an int in the place of a pointer: not worth two ways. */
static int hook_thrd_join(uint64_t thread, int *result)
{
    if (ub_unlikely(ub_drive_concerned()))
        ub_drive_all();
    return ((int (*)(uint64_t, int *))original[ID_thrd_join][0])(thread, result);
}

static int hook_pthread_barrier_wait(void *barrier)
{
    if (ub_unlikely(ub_drive_concerned()))
        ub_drive_all();
    return ((int (*)(void *))original[ID_pthread_barrier_wait][0])(barrier);
}

/* clang-format off */
static const struct ub_loop_hook hooks[] = {
    {"pthread_cond_wait", {(void *)hook_pthread_cond_wait, NULL}, UB_HOOK_OTHERS},
    {"pthread_cond_timedwait", {(void *)hook_pthread_cond_timedwait, NULL}, UB_HOOK_OTHERS},
    {"pthread_cond_clockwait", {(void *)hook_pthread_cond_clockwait, NULL}, UB_HOOK_OTHERS},
    {"pthread_cond_signal", {(void *)hook_pthread_cond_signal, NULL}, UB_HOOK_OTHERS},
    {"pthread_cond_broadcast", {(void *)hook_pthread_cond_broadcast, NULL}, UB_HOOK_OTHERS},
    {"cnd_wait", {(void *)hook_cnd_wait, NULL}, UB_HOOK_OTHERS},
    {"cnd_signal", {(void *)hook_cnd_signal, NULL}, UB_HOOK_OTHERS},
    {"cnd_broadcast", {(void *)hook_cnd_broadcast, NULL}, UB_HOOK_OTHERS},
    {"pthread_join", {(void *)hook_pthread_join, NULL}, UB_HOOK_OTHERS},
    {"pthread_tryjoin_np", {NULL}, UB_HOOK_OTHERS},
    {"thrd_join", {(void *)hook_thrd_join, NULL}, UB_HOOK_OTHERS},
    {"pthread_barrier_wait", {(void *)hook_pthread_barrier_wait, NULL}, UB_HOOK_OTHERS},
};
_Static_assert(UB_ARRAY_LEN(hooks) == IDS, "one original a hook");
/* clang-format on */

/* Functions of these names there are two of each, for programs of before 2003: it is the newer one that is called. */
static void *newer[IDS];

void ub_waits_start(void)
{
    for (uint32_t i = ID_pthread_cond_wait; i <= ID_pthread_cond_broadcast; i++) {
        if (i != ID_pthread_cond_clockwait)
            newer[i] = dlvsym(RTLD_NEXT, hooks[i].name, "GLIBC_2.3.2");
    }
}

static void found(uint32_t copy, void *const *data)
{
    for (uint32_t i = 0; i < IDS; i++) {
        if (newer[i])
            original[i][copy] = newer[i];
    }
}

static const char *const files[] = {"libc.so.", NULL};

const struct ub_loop_ops ub_waits_libc = {
    .files = files, .prefix = "", .hooks = hooks, .count = IDS, .originals = original, .found = found};

/* ---- GLib's -------------------------------------------------------------------------------------- */

enum { ID_g_cond_wait, ID_g_cond_wait_until, ID_g_cond_signal, ID_g_cond_broadcast, IDS_G };
static void *original_g[IDS_G][UB_LOOP_COPIES];

static bool piece_g(const struct condition *c, uint64_t until_ns)
{
    return ((int (*)(void *, void *, int64_t))original_g[ID_g_cond_wait_until][0])(c->cond, c->mutex,
                                                                                   (int64_t)(until_ns / 1000)) != 0;
}

static int pieces_g(void *cond, void *mutex, uint64_t deadline_ns)
{
    const struct condition c = {cond, mutex, piece_g, ub_locks_g_lock, ub_locks_g_unlock};

    return wait_in_pieces(&c, deadline_ns);
}

static void hook_g_cond_wait(void *cond, void *mutex)
{
    if (ub_likely(!ub_drive_concerned()) || pieces_g(cond, mutex, 0) < 0)
        ((void (*)(void *, void *))original_g[ID_g_cond_wait][0])(cond, mutex);
}

static int hook_g_cond_wait_until(void *cond, void *mutex, int64_t until_us)
{
    int r = ub_unlikely(ub_drive_concerned()) && until_us > 0 ? pieces_g(cond, mutex, (uint64_t)until_us * 1000) : -1;

    return r >= 0 ? r == 0
                  : ((int (*)(void *, void *, int64_t))original_g[ID_g_cond_wait_until][0])(cond, mutex, until_us);
}

static void hook_g_cond_signal(void *cond)
{
    signalled(cond);
    ((void (*)(void *))original_g[ID_g_cond_signal][0])(cond);
}

static void hook_g_cond_broadcast(void *cond)
{
    signalled(cond);
    ((void (*)(void *))original_g[ID_g_cond_broadcast][0])(cond);
}

static const struct ub_loop_hook hooks_g[] = {
    {"g_cond_wait", {(void *)hook_g_cond_wait, NULL}, UB_HOOK_OTHERS},
    {"g_cond_wait_until", {(void *)hook_g_cond_wait_until, NULL}, UB_HOOK_OTHERS},
    {"g_cond_signal", {(void *)hook_g_cond_signal, NULL}, UB_HOOK_OTHERS},
    {"g_cond_broadcast", {(void *)hook_g_cond_broadcast, NULL}, UB_HOOK_OTHERS},
};
_Static_assert(UB_ARRAY_LEN(hooks_g) == IDS_G, "one original a hook");

static const char *const files_g[] = {"libglib-2.0.", NULL};

const struct ub_loop_ops ub_waits_glib = {
    .files = files_g, .prefix = "g_cond_", .hooks = hooks_g, .count = IDS_G, .originals = original_g};
