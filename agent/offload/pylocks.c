#include "pylocks.h"

#include "../calls/timing.h"
#include "../module.h"
#include "../raw.h"
#include "block.h"
#include "pysteps.h"
#include "suspend.h"

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <string.h>
#include <time.h>

static struct ub_lock_wait *waits, **waits_end = &waits;
static struct ub_holder *away;
static uint32_t parked, aways; /* how many: read without the lock */
static uint32_t forks;         /* behind this process: lists of its parents are not its own */

/* ---- the lock of this file ------------------------------------------------------------------ */

/*
 * Held for a few stores. A signal handler that posts a semaphore may find that its own thread has it: it then
 * only posts, and who waits looks for itself before long.
 */
static uintptr_t lock_word;

static bool lock(void)
{
    uintptr_t me = (uintptr_t)&ub_thread, found = 0;

    for (uint32_t i = 1;
         !__atomic_compare_exchange_n(&lock_word, &found, me, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED); i++) {
        if (found == me)
            return false;
        found = 0;
        if (i % 64 == 0)
            ub_raw0(SYS_sched_yield);
    }
    return true;
}

static void unlock(void)
{
    ub_store_release(&lock_word, 0);
}

/* The threads that waited are the parent's. What its suspended steps held stays held, as what other threads hold. */
static void in_child(void)
{
    lock_word = 0;
    waits = NULL;
    waits_end = &waits;
    away = NULL;
    forks++;
    parked = aways = 0;
}

void ub_pylocks_start(void)
{
    pthread_atfork(NULL, NULL, in_child);
}

/* ---- holders --------------------------------------------------------------------------------- */

static void remove_at(struct ub_holder *h, uint32_t i)
{
    h->count--;
    h->foreign -= h->held[i].foreign;
    for (; i < h->count; i++)
        h->held[i] = h->held[i + 1];
}

static void put(struct ub_holder *h, const void *what, bool foreign)
{
    if (h->count == UB_HELD_MAX && !h->rolls) {
        h->beyond = true;
        return;
    }
    if (h->count == UB_HELD_MAX)
        remove_at(h, 0);
    h->foreign += foreign;
    h->held[h->count].foreign = foreign;
    h->held[h->count].lock = what;
    h->held[h->count].owner = NULL;
    h->held[h->count].ident = 0;
    h->count++;
}

static int find(const struct ub_holder *h, const void *what)
{
    for (uint32_t i = h->count; i > 0; i--) {
        if (h->held[i - 1].lock == what)
            return (int)i - 1;
    }
    return -1;
}

static bool drop(struct ub_holder *h, const void *what)
{
    int i = find(h, what);

    if (i >= 0)
        remove_at(h, (uint32_t)i);
    return i >= 0;
}

void ub_holder_takes(struct ub_holder *h, const void *what, bool foreign)
{
    put(h, what, foreign);
}

void ub_holder_gives(struct ub_holder *h, const void *what)
{
    if (drop(h, what))
        sem_post((sem_t *)what);
}

void ub_holder_owner(struct ub_holder *h, const void *what, uint64_t *owner)
{
    int i = find(h, what);

    if (i < 0)
        return;
    h->held[i].owner = owner;
    h->foreign -= h->held[i].foreign;
    h->held[i].foreign = false;
}

void ub_holder_forgets(struct ub_holder *h, const void *what)
{
    drop(h, what);
}

/*
 * A lock that another thread has given back while this one was not away is in the list still, and its memory may be
 * anything by now.
 */
static bool is_taken(const void *what)
{
    sem_t copy;
    int value;

    return ub_timing_copy(&copy, (uintptr_t)what, sizeof(copy)) == sizeof(copy) && sem_getvalue(&copy, &value) == 0 &&
           value <= 0;
}

void ub_holder_leaves(struct ub_holder *h)
{
    uint64_t ident = (uint64_t)pthread_self(), owner;
    bool locked;

    for (uint32_t i = h->count; i > 0; i--) {
        if (!is_taken(h->held[i - 1].lock))
            remove_at(h, i - 1);
    }
    locked = lock();
    for (uint32_t i = 0; i < h->count; i++) {
        uint64_t *at = h->held[i].owner;

        if (at && ub_timing_copy(&owner, (uintptr_t)at, sizeof(owner)) == sizeof(owner) && owner == ident) {
            h->held[i].ident = ident;
            *at = 0;
        }
    }
    h->away = true;
    h->next = away;
    h->previous = NULL;
    h->forks = forks;
    if (away)
        away->previous = h;
    away = h;
    __atomic_fetch_add(&aways, 1, __ATOMIC_SEQ_CST);
    if (locked)
        unlock();
}

void ub_holder_returns(struct ub_holder *h)
{
    bool locked = lock();

    if (h->forks == forks) {
        if (h->previous)
            h->previous->next = h->next;
        else
            away = h->next;
        if (h->next)
            h->next->previous = h->previous;
        __atomic_fetch_sub(&aways, 1, __ATOMIC_SEQ_CST);
    }
    for (uint32_t i = 0; i < h->count; i++) {
        if (h->held[i].ident) {
            *h->held[i].owner = h->held[i].ident;
            h->held[i].ident = 0;
        }
    }
    h->away = false;
    if (locked)
        unlock();
}

bool ub_holder_is_away_with(const void *what, const struct ub_holder *own)
{
    bool found = false, locked;

    if (!ub_load_relaxed(&aways))
        return false;
    locked = lock();
    for (const struct ub_holder *h = away; h && !found; h = h->next)
        found = h != own && h->thread == own->thread && h->waits != what && find(h, what) >= 0;
    if (locked)
        unlock();
    return found;
}

/* ---- the queue ---------------------------------------------------------------------------------- */

static bool take_out(struct ub_lock_wait *w)
{
    for (struct ub_lock_wait **at = &waits; *at; at = &(*at)->next) {
        if (*at != w)
            continue;
        *at = w->next;
        if (!w->next)
            waits_end = at;
        __atomic_fetch_sub(&parked, 1, __ATOMIC_SEQ_CST);
        return true;
    }
    return false;
}

/* Its turn has come. The wait is its thread's own as soon as the job is delivered. */
static void end(struct ub_lock_wait *w, enum ub_lock_state state)
{
    take_out(w);
    if (state == UB_LOCK_HAD)
        put(w->holder, w->lock, w->foreign);
    w->state = state;
    ub_pool_deliver(w->job);
}

static struct ub_lock_wait *first_for(const void *what)
{
    struct ub_lock_wait *w = waits;

    while (w && w->lock != what)
        w = w->next;
    return w;
}

bool ub_lock_park(struct ub_lock_wait *w)
{
    bool locked = lock(), free;

    __atomic_fetch_add(&parked, 1, __ATOMIC_SEQ_CST); /* seen by who posts, or we see what was posted */
    free = !first_for(w->lock) && sem_trywait((sem_t *)w->lock) == 0;
    w->state = free ? UB_LOCK_HAD : UB_LOCK_WAITS;
    w->next = NULL;
    if (free) {
        __atomic_fetch_sub(&parked, 1, __ATOMIC_SEQ_CST);
        put(w->holder, w->lock, w->foreign);
    } else {
        *waits_end = w;
        waits_end = &w->next;
    }
    if (locked)
        unlock();
    return !free;
}

bool ub_lock_withdraw(struct ub_lock_wait *w)
{
    bool locked = lock(), still = take_out(w);

    if (locked)
        unlock();
    return still;
}

bool ub_lock_look(struct ub_lock_wait *w)
{
    bool locked = lock(), had = false;

    if (w->state == UB_LOCK_WAITS && first_for(w->lock) == w && sem_trywait((sem_t *)w->lock) == 0) {
        had = take_out(w);
        put(w->holder, w->lock, w->foreign);
        w->state = UB_LOCK_HAD;
    }
    if (locked)
        unlock();
    return had;
}

void ub_holder_end(struct ub_holder *h)
{
    bool locked;

    if ((h->count || h->beyond) && ub_load_relaxed(&parked)) {
        locked = lock();
        for (struct ub_lock_wait *w = waits, *next; w; w = next) {
            next = w->next;
            if (w->tries && (h->beyond || find(h, w->lock) >= 0))
                end(w, UB_LOCK_OVER);
        }
        if (locked)
            unlock();
    }
    h->count = h->foreign = 0;
    h->beyond = false;
    h->acquiring = UB_ACQUIRING_NOT;
    h->importing = 0;
}

/* ---- the hooks -------------------------------------------------------------------------------------- */

/* Given back, by whomever. */
static void given(const void *what)
{
    struct ub_holder *own = ub_pysteps_holder();

    if ((own && drop(own, what)) || !ub_load_relaxed(&aways) || !lock())
        return;
    for (struct ub_holder *h = away; h; h = h->next) {
        if (drop(h, what))
            break;
    }
    unlock();
}

/* To the first of those who wait for it, if there is one. */
static bool hand_over(const void *what, bool posted)
{
    struct ub_lock_wait *w;

    if (!lock())
        return false;
    w = first_for(what);
    if (w && posted && sem_trywait((sem_t *)what) != 0)
        w = NULL; /* somebody else has it */
    if (w)
        end(w, UB_LOCK_HAD);
    unlock();
    return w != NULL;
}

typedef int post_function(void *);

static int post(post_function *original, void *what)
{
    int r;

    given(what);
    if (ub_unlikely(__atomic_load_n(&parked, __ATOMIC_SEQ_CST)) && hand_over(what, false))
        return 0;
    r = original(what);
    if (ub_unlikely(__atomic_load_n(&parked, __ATOMIC_SEQ_CST))) /* came between the look and the posting */
        hand_over(what, true);
    return r;
}

static int destroy(post_function *original, void *what)
{
    given(what);
    return original(what);
}

/* multiprocessing's: an RLock of its own, which lets its thread in again. Few places take locks. */
static bool is_foreign(uintptr_t ra)
{
    static uintptr_t own, others; /* the last place of each kind */
    const char *name;
    bool foreign;

    if (ra == ub_load_relaxed(&own))
        return false;
    if (ra == ub_load_relaxed(&others))
        return true;
    name = ub_module_name((const void *)ra);
    foreign = name && strstr(name, "/_multiprocessing.") != NULL;
    ub_store_relaxed(foreign ? &others : &own, ra);
    return foreign;
}

static int try(int (*original)(void *), void *what, uintptr_t ra)
{
    struct ub_holder *own;
    int r = original(what);

    if (!ub_process->generation || !(own = ub_pysteps_holder()))
        return r;
    if (r == 0)
        put(own, what, is_foreign(ra));
    else if (own->acquiring)
        own->acquiring = UB_ACQUIRING_TRIED;
    else if (ub_unlikely(ub_load_relaxed(&aways)) && errno == EAGAIN)
        r = ub_pysteps_try(what);
    return r;
}

/* CLOCK_MONOTONIC, of a time on another clock. */
static uint64_t deadline_of(int clock, const struct timespec *until)
{
    struct timespec now;
    int64_t left;

    if (!until || until->tv_nsec < 0 || until->tv_nsec > 999999999)
        return 0;
    clock_gettime(clock, &now);
    left = ((int64_t)until->tv_sec - now.tv_sec) * 1000000000 + until->tv_nsec - now.tv_nsec;
    return ub_clock_monotonic_ns() + (uint64_t)(left > 0 ? left : 0);
}

/* True: *ret and errno are those of the wait. */
static bool waited(void *what, int clock, const struct timespec *until, uintptr_t ra, int *ret)
{
    struct ub_holder *own = ub_process->generation ? ub_pysteps_holder() : NULL;
    uint64_t deadline = own && until ? deadline_of(clock, until) : 0;

    if (!own || (until && !deadline))
        return false;
    if (own->acquiring)
        own->acquiring = UB_ACQUIRING_WAITED;
    return ub_pysteps_wait(what, deadline, is_foreign(ra), ret);
}

static int taken(int r, void *what, uintptr_t ra)
{
    struct ub_holder *own = r == 0 ? ub_pysteps_holder() : NULL;

    if (own)
        put(own, what, is_foreign(ra));
    return r;
}

/* Not the interpreter's affair: left like any other call, or made. */
static int call_wait(int (*original)(void *), void *what, uintptr_t ra)
{
    const uint64_t word[UB_POOL_WORDS] = {(uintptr_t)what}, value[UB_CALLS_VALUES] = {(uintptr_t)what};
    int64_t ret;

    if (ub_unlikely(ub_thread.start != 0)) {
        ub_timing_place(&ub_thread, ra);
        if (ub_suspend_call(UB_BLOCK_SEM_WAIT, (void *)original, word, value, &ret))
            return (int)ret;
    }
    return taken(original(what), what, ra);
}

#define RA ((uintptr_t)__builtin_return_address(0))

/* clang-format off */
#define NAMES(X) X(sem_wait) X(sem_trywait) X(sem_timedwait) X(sem_clockwait) X(sem_post) X(sem_destroy)
#define ID(name) ID_##name,
enum { NAMES(ID) IDS };
static void *original[IDS][UB_LOOP_COPIES];

/* Of each, one for either copy of the library that a process may have. */
#define HOOKS(copy) \
    static int hook##copy##_sem_wait(void *what) \
    { \
        int r; \
        return waited(what, 0, NULL, RA, &r) ? r : call_wait((int (*)(void *))original[ID_sem_wait][copy], what, RA); \
    } \
    static int hook##copy##_sem_timedwait(void *what, const struct timespec *until) \
    { \
        int r; \
        return waited(what, CLOCK_REALTIME, until, RA, &r) ? r : \
            taken(((int (*)(void *, const struct timespec *))original[ID_sem_timedwait][copy])(what, until), what, RA); \
    } \
    static int hook##copy##_sem_clockwait(void *what, int clock, const struct timespec *until) \
    { \
        int r; \
        return waited(what, clock, until, RA, &r) ? r : \
            taken(((int (*)(void *, int, const struct timespec *))original[ID_sem_clockwait][copy])(what, clock, until), what, RA); \
    } \
    static int hook##copy##_sem_trywait(void *what) { return try((int (*)(void *))original[ID_sem_trywait][copy], what, RA); } \
    static int hook##copy##_sem_post(void *what) { return post((post_function *)original[ID_sem_post][copy], what); } \
    static int hook##copy##_sem_destroy(void *what) { return destroy((post_function *)original[ID_sem_destroy][copy], what); }
HOOKS(0)
HOOKS(1)

#define ROW(name) {#name, {(void *)hook0_##name, (void *)hook1_##name}, UB_HOOK_OTHERS},
static const struct ub_loop_hook hooks[] = {NAMES(ROW)};
/* clang-format on */

static const char *const files[] = {"libc.so.", NULL};
const struct ub_loop_ops ub_pysteps_locks = {
    .files = files, .prefix = "sem_", .hooks = hooks, .count = IDS, .originals = original};
