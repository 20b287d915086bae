/*
 * How long a piece of work waited for a thread is not seen: what a thread takes
 * up next it does not tell. But what is handed in is seen (the hooks of uv.c),
 * and what has ended (libuv's own call of uv_async_send), and the pool is a queue
 * with N servers: piece number k, counted from 0, begins at once if fewer than N
 * are in the pool, else when the (k - N + 1)th ends.
 *
 * Where that does not hold, nothing is told rather than too much:
 *  - Names (getaddrinfo) are taken up by half of the threads only. While one of
 *    those is about, what is handed in is counted but its waiting is not told.
 *  - Pieces handed in by code that is not hooked end without having been counted:
 *    waits then seem shorter. So they do after uv_cancel.
 *  - Where work does not go through the pool at all (io_uring in some versions of
 *    libuv) callbacks come without an end: after a few the pool is not told of.
 */
#include "uv_pool.h"

#include "../process.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define REMEMBERED   4096u /* pieces in the pool whose beginnings are known */
#define WITHOUT_END  64u   /* callbacks: so many may be of pieces handed in before we counted */
#define THREADS      4u    /* libuv's default, */
#define THREADS_MOST 1024u /* and its limit */

static struct {
    uint32_t generation; /* of the process to which all this belongs: a forked child begins anew, as libuv does */
    uint32_t beginning;  /* a thread is at it */
    uint32_t copy;
    uint32_t slow; /* names asked for, ever, less those whose callback was called */
    struct ub_uv_pool *shared;
    struct {
        uint32_t number; /* one more than the piece's; written last */
        uint64_t at;     /* ticks when it was handed in; 0: its waiting is not told */
    } piece[REMEMBERED];
} pool;

/* As libuv reads it, at the same moment. */
static uint32_t threads_wanted(void)
{
    static const char name[] = "UV_THREADPOOL_SIZE=";
    const char *value = NULL;
    long n;

    for (char **e = environ; e && *e && !value; e++) {
        if (strncmp(*e, name, sizeof(name) - 1) == 0)
            value = *e + sizeof(name) - 1;
    }
    if (!value)
        return THREADS;
    n = atoi(value);
    return n == 0 ? 1 : n < 0 || n > (long)THREADS_MOST ? THREADS_MOST : (uint32_t)n;
}

static void keep_most(uint32_t *most, uint32_t value)
{
    uint32_t old = ub_load_relaxed(most);

    while (old < value && !__atomic_compare_exchange_n(most, &old, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        ;
}

static struct ub_uv_pool *take_entry(struct ub_arena *arena)
{
    for (uint32_t i = 0; i < UB_UV_POOL_MAX; i++) {
        struct ub_uv_pool *p = &arena->uv_pool[i];
        uint32_t expected = UB_UV_POOL_FREE;

        if (!__atomic_compare_exchange_n(&p->state, &expected, UB_UV_POOL_TAKING, false, __ATOMIC_ACQUIRE,
                                         __ATOMIC_RELAXED))
            continue;
        memset(&p->pid, 0, sizeof(*p) - offsetof(struct ub_uv_pool, pid));
        p->pid = ub_process->pid;
        p->threads = threads_wanted();
        p->since = ub_clock_ticks(ub_process->clock);
        ub_store_release(&p->state, UB_UV_POOL_LIVE);
        keep_most(&arena->h.uv_pools_high, i + 1);
        return p;
    }
    return NULL;
}

/* Slow path only. */
static __attribute__((noinline)) void begin(uint32_t copy)
{
    uint32_t idle = 0;

    if (!ub_load_acquire(&ub_process->arena) || ub_process->arena->h.mode == UB_ARENA_ALONE ||
        !__atomic_compare_exchange_n(&pool.beginning, &idle, 1, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
        return;
    if (ub_load_relaxed(&pool.generation) != ub_process->generation) {
        memset(pool.piece, 0, sizeof(pool.piece));
        pool.copy = copy;
        pool.slow = 0;
        pool.shared = take_entry(ub_process->arena);
        ub_store_release(&pool.generation, ub_process->generation);
    }
    ub_store_release(&pool.beginning, 0);
}

/* NULL: nothing is measured (yet). */
static struct ub_uv_pool *measured(uint32_t copy)
{
    uint32_t generation = ub_load_relaxed(&ub_process->generation);

    return generation && ub_load_acquire(&pool.generation) == generation && pool.copy == copy ? pool.shared : NULL;
}

bool ub_uv_pool_submit(uint32_t copy, bool slow)
{
    struct ub_uv_pool *p;
    uint64_t old, new;
    uint32_t number, inside;
    bool told;

    if (ub_unlikely(ub_load_relaxed(&pool.generation) != ub_load_relaxed(&ub_process->generation)))
        begin(copy);
    p = measured(copy);
    if (!p)
        return false;
    told = !slow && ub_load_relaxed(&pool.slow) == 0;
    if (slow)
        __atomic_fetch_add(&pool.slow, 1, __ATOMIC_RELAXED);
    old = ub_load_relaxed(&p->word);
    do
        new = (old & ~(uint64_t)UINT32_MAX) | (uint32_t)((uint32_t)old + 1);
    while (!__atomic_compare_exchange_n(&p->word, &old, new, true, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED));
    number = (uint32_t)old;
    pool.piece[number % REMEMBERED].at = told ? ub_clock_ticks(ub_process->clock) : 0;
    ub_store_release(&pool.piece[number % REMEMBERED].number, number + 1);
    inside = ub_uv_pool_inside(new, ub_load_relaxed(&p->done));
    if (inside > p->threads)
        keep_most(&p->peak, inside - p->threads);
    return true;
}

static void account(struct ub_uv_pool *p, uint64_t waited)
{
    uint64_t most = ub_load_relaxed(&p->max);

    __atomic_fetch_add(&p->waited, 1, __ATOMIC_RELAXED);
    __atomic_fetch_add(&p->total, waited, __ATOMIC_RELAXED);
    __atomic_fetch_add(&p->histogram[ub_uv_pool_bucket(waited)], 1, __ATOMIC_RELAXED);
    while (most < waited &&
           !__atomic_compare_exchange_n(&p->max, &most, waited, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        ;
}

/* One more has ended: the piece that begins therefore, if it is there yet. False: none was in the pool. */
static bool count_end(struct ub_uv_pool *p, uint32_t *ret_number)
{
    uint64_t old = ub_load_relaxed(&p->word), new;

    do {
        if ((uint32_t)old == (uint32_t)(old >> 32))
            return false; /* one that was handed in by code that is not hooked */
        new = old + (1ull << 32);
    } while (!__atomic_compare_exchange_n(&p->word, &old, new, true, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED));
    *ret_number = (uint32_t)(old >> 32) + p->threads;
    return (int32_t)((uint32_t)old - *ret_number) > 0;
}

void ub_uv_pool_end(uint32_t copy)
{
    struct ub_uv_pool *p = measured(copy);
    uint32_t number;
    uint64_t at;

    if (!p)
        return;
    if (!ub_load_relaxed(&p->begun))
        ub_store_relaxed(&p->begun, 1);
    if (!count_end(p, &number) || ub_load_acquire(&pool.piece[number % REMEMBERED].number) != number + 1)
        return;
    at = pool.piece[number % REMEMBERED].at;
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    if (at && ub_load_relaxed(&pool.piece[number % REMEMBERED].number) == number + 1)
        account(p, ub_clock_ticks(ub_process->clock) - at);
}

void ub_uv_pool_refused(uint32_t copy, bool slow)
{
    struct ub_uv_pool *p = measured(copy);
    uint32_t number;

    if (!p)
        return;
    count_end(p, &number);
    if (slow)
        __atomic_fetch_sub(&pool.slow, 1, __ATOMIC_RELAXED);
}

void ub_uv_pool_done(void)
{
    struct ub_uv_pool *p = measured(pool.copy);
    uint32_t done;

    if (!p)
        return;
    done = __atomic_add_fetch(&p->done, 1, __ATOMIC_RELAXED);
    if (ub_unlikely((int32_t)(done - (uint32_t)(ub_load_relaxed(&p->word) >> 32)) > (int32_t)WITHOUT_END))
        ub_store_relaxed(&p->threads, 0);
}

void ub_uv_pool_slow_done(void)
{
    if (measured(pool.copy) && ub_load_relaxed(&pool.slow) > 0)
        __atomic_fetch_sub(&pool.slow, 1, __ATOMIC_RELAXED);
    ub_uv_pool_done();
}
