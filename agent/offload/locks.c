#include "locks.h"

#include "../raw.h"
#include "drive.h"
#include "pysteps.h"

#include <errno.h>
#include <pthread.h>
#include <sys/mman.h>
#include <threads.h>
#include <time.h>

#define HELD_MAX  60u
#define STEP_NS   5000000
#define STEP_G_NS 200000 /* where it has to be asked for again and again */

/* What one thread holds, the last one last. Written by it alone. */
struct held {
    int32_t tid; /* a slot may have gone to another thread */
    uint32_t
        generation; /* of the process: what was taken while another watch lasted may have been let go since, unseen */
    uint32_t count;
    uint64_t beyond; /* locks that found no room; as long as there are any, some lock is held */
    struct {
        const void *lock;
        const void *holder; /* the callback on a stack of its own that took it; NULL: what runs on the thread's */
        uintptr_t ra;
    } entry[HELD_MAX];
};

static struct held *held_by[UB_SLOT_MAX];

/* Of a thread that runs a loop; NULL: any other. Signal-safe. */
static struct held *mine(bool make)
{
    const struct ub_thread *t = &ub_thread;
    const struct ub_process *process = ub_process;
    struct held *h;
    uint32_t index;
    long at;

    if (ub_likely(!t->slot) || t->generation != process->generation)
        return NULL;
    index = (uint32_t)(t->slot - process->arena->slot);
    h = held_by[index];
    if (!h) {
        if (!make)
            return NULL;
        at = ub_raw6(SYS_mmap, 0, sizeof(*h), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (at < 0 && at > -4096)
            return NULL;
        h = held_by[index] = (struct held *)at;
    }
    if (h->tid != t->slot->tid || h->generation != process->generation) {
        h->count = 0;
        h->beyond = 0;
        h->tid = t->slot->tid;
        h->generation = process->generation;
    }
    return h;
}

void ub_locks_forget(void)
{
    for (uint32_t i = 0; i < UB_SLOT_MAX; i++) {
        if (held_by[i])
            ub_raw2(SYS_munmap, held_by[i], sizeof(*held_by[i]));
        held_by[i] = NULL;
    }
}

bool ub_locks_held(uint64_t *ret_ra)
{
    const struct held *h = mine(false);
    const void *holder;

    *ret_ra = 0;
    if (!h || (!h->count && !h->beyond))
        return false;
    holder = ub_drive_holder();
    for (uint32_t i = h->count; i > 0; i--) {
        if (h->entry[i - 1].holder == holder) {
            *ret_ra = h->entry[i - 1].ra;
            return true;
        }
    }
    return h->beyond > 0;
}

const void *ub_locks_only_one(uint64_t *ret_ra)
{
    const struct held *h = mine(false);
    const void *holder = ub_drive_holder(), *lock = NULL;

    for (uint32_t i = 0; h && i < h->count; i++) {
        if (h->entry[i].holder != holder)
            continue;
        if (lock && lock != h->entry[i].lock)
            return NULL;
        lock = h->entry[i].lock;
        *ret_ra = h->entry[i].ra;
    }
    return h && !h->beyond ? lock : NULL;
}

uint32_t ub_locks_away;

void ub_locks_put_away(const void *lock, const void *holder, bool away)
{
    struct held *h = mine(false);
    const void *own = ub_drive_holder();

    for (uint32_t i = 0; h && i < h->count; i++) {
        if (h->entry[i].lock == lock)
            h->entry[i].holder = away ? holder : own;
    }
    __atomic_fetch_add(&ub_locks_away, away ? 1u : -1u, __ATOMIC_RELAXED);
}

/* By another callback of this thread, which is suspended, or runs beneath: a recursive mutex would let us in. */
static bool held_elsewhere(const void *lock)
{
    const struct held *h = mine(false);

    for (uint32_t i = 0; h && i < h->count; i++) {
        if (h->entry[i].lock == lock)
            return h->entry[i].holder != ub_drive_holder();
    }
    return false;
}

static void taken(const void *lock, uintptr_t ra)
{
    struct held *h = mine(true);

    if (!h)
        return;
    if (h->count == HELD_MAX) {
        h->beyond++;
        return;
    }
    h->entry[h->count].lock = lock;
    h->entry[h->count].holder = ub_drive_holder();
    h->entry[h->count].ra = ra;
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    h->count++;
}

static void released(const void *lock)
{
    struct held *h = mine(false);
    uint32_t i;

    if (!h || (!h->count && !h->beyond))
        return;
    for (i = h->count; i > 0 && h->entry[i - 1].lock != lock; i--)
        ;
    if (i == 0) { /* not one that was seen being taken; or one of those beyond */
        h->beyond -= h->beyond > 0;
        return;
    }
    for (; i < h->count; i++)
        h->entry[i - 1] = h->entry[i];
    h->count--;
}

void ub_locks_enter(const void *what, uintptr_t ra)
{
    taken(what, ra);
}

void ub_locks_leave(const void *what)
{
    released(what);
}

/* ---- while callbacks are suspended ------------------------------------------------------------- */

typedef int slice_function(void *lock, int clock, const struct timespec *until);

/* One of them may have it, who without us would have been over. */
static void wait_for_others(const void *lock)
{
    struct ub_drive d = {0};

    while (held_elsewhere(lock) && ub_drive(&d, -1, 0, STEP_NS) != UB_DROVE_NOTHING)
        ;
}

static struct timespec soon(void)
{
    uint64_t at = ub_clock_monotonic_ns() + STEP_NS;

    return (struct timespec){(time_t)(at / 1000000000), (long)(at % 1000000000)};
}

/* `attempt` says `busy`; `slice` waits for a time, NULL: there is none. False: to be waited for as ever. */
static bool acquire(void *lock, int (*attempt)(void *), int busy, slice_function *slice, int *ret)
{
    struct ub_drive d = {0};

    for (;;) {
        bool elsewhere = held_elsewhere(lock);
        struct timespec until;

        *ret = elsewhere ? busy : attempt(lock);
        if (*ret != busy)
            return true;
        if (!elsewhere && slice) {
            until = soon();
            *ret = slice(lock, CLOCK_MONOTONIC, &until);
            if (*ret != ETIMEDOUT)
                return true;
        }
        if (ub_drive(&d, -1, 0, elsewhere || !slice ? STEP_NS : 0) == UB_DROVE_NOTHING)
            return false;
    }
}

/* GLib's say whether they have it. */
static bool acquire_g(void *lock, int (*attempt)(void *))
{
    struct ub_drive d = {0};

    while (held_elsewhere(lock) || !attempt(lock)) {
        if (ub_drive(&d, -1, 0, STEP_G_NS) == UB_DROVE_NOTHING)
            return false;
    }
    return true;
}

#define RA ((uintptr_t)__builtin_return_address(0))

/* clang-format off */

/* Those that return 0 when they have it; EOWNERDEAD is success, too. X(name, (parameters), (arguments)) */
#define TAKES(X) \
    X(pthread_mutex_trylock, (void *lock), (lock)) \
    X(pthread_mutex_timedlock, (void *lock, void *until), (lock, until)) \
    X(pthread_mutex_clocklock, (void *lock, int clock, void *until), (lock, clock, until)) \
    X(pthread_rwlock_tryrdlock, (void *lock), (lock)) \
    X(pthread_rwlock_trywrlock, (void *lock), (lock)) \
    X(pthread_rwlock_timedrdlock, (void *lock, void *until), (lock, until)) \
    X(pthread_rwlock_timedwrlock, (void *lock, void *until), (lock, until)) \
    X(pthread_rwlock_clockrdlock, (void *lock, int clock, void *until), (lock, clock, until)) \
    X(pthread_rwlock_clockwrlock, (void *lock, int clock, void *until), (lock, clock, until)) \
    X(pthread_spin_trylock, (void *lock), (lock)) \
    X(mtx_trylock, (void *lock), (lock)) \
    X(mtx_timedlock, (void *lock, void *until), (lock, until))
/* Those that wait as long as it takes. X(name, what only tries, what that says of one that is taken, what waits for a time) */
#define LOCKS(X) \
    X(pthread_mutex_lock, pthread_mutex_trylock, EBUSY, pthread_mutex_clocklock) \
    X(pthread_rwlock_rdlock, pthread_rwlock_tryrdlock, EBUSY, pthread_rwlock_clockrdlock) \
    X(pthread_rwlock_wrlock, pthread_rwlock_trywrlock, EBUSY, pthread_rwlock_clockwrlock) \
    X(pthread_spin_lock, pthread_spin_trylock, EBUSY, NONE) \
    X(mtx_lock, mtx_trylock, thrd_busy, NONE)
#define RELEASES(X) \
    X(pthread_mutex_unlock, (void *lock), (lock)) \
    X(pthread_rwlock_unlock, (void *lock), (lock)) \
    X(pthread_spin_unlock, (void *lock), (lock)) \
    X(mtx_unlock, (void *lock), (lock))

/* GLib's: no result, or true when they have it. */
#define TAKES_G(X) \
    X(g_mutex_lock, g_mutex_trylock) X(g_rec_mutex_lock, g_rec_mutex_trylock) \
    X(g_rw_lock_writer_lock, g_rw_lock_writer_trylock) X(g_rw_lock_reader_lock, g_rw_lock_reader_trylock)
#define TRIES_G(X) \
    X(g_mutex_trylock) X(g_rec_mutex_trylock) X(g_rw_lock_writer_trylock) X(g_rw_lock_reader_trylock)
#define RELEASES_G(X) \
    X(g_mutex_unlock) X(g_rec_mutex_unlock) X(g_rw_lock_writer_unlock) X(g_rw_lock_reader_unlock)

#define ID(name, ...) ID_##name,
enum { TAKES(ID) LOCKS(ID) RELEASES(ID) IDS, ID_NONE = 0 };
enum { TAKES_G(ID) TRIES_G(ID) RELEASES_G(ID) IDS_G };
static void *original[IDS][UB_LOOP_COPIES];
static void *original_g[IDS_G][UB_LOOP_COPIES];

#define TAKE(copy, name, params, args) \
    static int hook##copy##_##name params \
    { \
        int r; \
        if (ub_unlikely(ub_load_relaxed(&ub_locks_away))) \
            ub_pysteps_wait_for_mutex(lock); \
        if (ub_unlikely(ub_drive_concerned())) \
            wait_for_others(lock); \
        r = ((int (*) params)original[ID_##name][copy])args; \
        if (r == 0 || r == EOWNERDEAD) \
            taken(lock, RA); \
        return r; \
    }
#define LOCK(copy, name, attempt, busy, slice) \
    static int hook##copy##_##name(void *lock) \
    { \
        int r; \
        if (ub_unlikely(ub_load_relaxed(&ub_locks_away))) \
            ub_pysteps_wait_for_mutex(lock); \
        if (ub_likely(!ub_drive_concerned()) || \
            !acquire(lock, (int (*)(void *))original[ID_##attempt][copy], busy, \
                     ID_##slice ? (slice_function *)original[ID_##slice][copy] : NULL, &r)) \
            r = ((int (*)(void *))original[ID_##name][copy])(lock); \
        if (r == 0 || r == EOWNERDEAD) \
            taken(lock, RA); \
        return r; \
    }
#define RELEASE(copy, name, params, args) \
    static int hook##copy##_##name params \
    { \
        released(lock); \
        return ((int (*) params)original[ID_##name][copy])args; \
    }
#define TAKE_G(copy, name, attempt) \
    static void hook##copy##_##name(void *lock) \
    { \
        if (ub_likely(!ub_drive_concerned()) || !acquire_g(lock, (int (*)(void *))original_g[ID_##attempt][copy])) \
            ((void (*)(void *))original_g[ID_##name][copy])(lock); \
        taken(lock, RA); \
    }
#define TRY_G(copy, name) \
    static int hook##copy##_##name(void *lock) \
    { \
        int r; \
        if (ub_unlikely(ub_drive_concerned())) \
            wait_for_others(lock); \
        r = ((int (*)(void *))original_g[ID_##name][copy])(lock); \
        if (r) \
            taken(lock, RA); \
        return r; \
    }
#define RELEASE_G(copy, name) \
    static void hook##copy##_##name(void *lock) \
    { \
        released(lock); \
        ((void (*)(void *))original_g[ID_##name][copy])(lock); \
    }

/* Of each, one for either copy of the library that a process may have. */
#define TAKE_0(...) TAKE(0, __VA_ARGS__)
#define TAKE_1(...) TAKE(1, __VA_ARGS__)
#define LOCK_0(...) LOCK(0, __VA_ARGS__)
#define LOCK_1(...) LOCK(1, __VA_ARGS__)
#define RELEASE_0(...) RELEASE(0, __VA_ARGS__)
#define RELEASE_1(...) RELEASE(1, __VA_ARGS__)
#define TAKE_G_0(...) TAKE_G(0, __VA_ARGS__)
#define TAKE_G_1(...) TAKE_G(1, __VA_ARGS__)
#define TRY_G_0(name) TRY_G(0, name)
#define TRY_G_1(name) TRY_G(1, name)
#define RELEASE_G_0(name) RELEASE_G(0, name)
#define RELEASE_G_1(name) RELEASE_G(1, name)
TAKES(TAKE_0) TAKES(TAKE_1) LOCKS(LOCK_0) LOCKS(LOCK_1) RELEASES(RELEASE_0) RELEASES(RELEASE_1)
TAKES_G(TAKE_G_0) TAKES_G(TAKE_G_1) TRIES_G(TRY_G_0) TRIES_G(TRY_G_1) RELEASES_G(RELEASE_G_0) RELEASES_G(RELEASE_G_1)

#define ROW(name, ...) {#name, {(void *)hook0_##name, (void *)hook1_##name}, false},
static const struct ub_loop_hook hooks[] = {TAKES(ROW) LOCKS(ROW) RELEASES(ROW)};
static const struct ub_loop_hook hooks_g[] = {TAKES_G(ROW) TRIES_G(ROW) RELEASES_G(ROW)};
_Static_assert(UB_ARRAY_LEN(hooks) == IDS && UB_ARRAY_LEN(hooks_g) == IDS_G, "one original a hook");
/* clang-format on */

int ub_locks_lock(void *mutex)
{
    return hook0_pthread_mutex_lock(mutex);
}

int ub_locks_unlock(void *mutex)
{
    return hook0_pthread_mutex_unlock(mutex);
}

void ub_locks_g_lock(void *mutex)
{
    hook0_g_mutex_lock(mutex);
}

void ub_locks_g_unlock(void *mutex)
{
    hook0_g_mutex_unlock(mutex);
}

static const char *const files[] = {"libc.so.", NULL};
static const char *const files_g[] = {"libglib-2.0.", NULL};

const struct ub_loop_ops ub_locks_libc = {
    .files = files, .prefix = "", .hooks = hooks, .count = IDS, .originals = original};
const struct ub_loop_ops ub_locks_glib = {
    .files = files_g, .prefix = "g_", .hooks = hooks_g, .count = IDS_G, .originals = original_g};
