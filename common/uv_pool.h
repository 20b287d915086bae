/*
 * A program's own pool of threads: libuv's. One entry a process. The agent
 * counts what is handed in and what a thread has finished; from the two follow
 * how many threads are busy, what waits for one, and for how long it waited:
 * the pool takes the oldest first, so with N threads piece number k begins when
 * k - N + 1 have ended (agent/loops/uv_pool.c).
 *
 * Written by any thread of the process, atomically; the tracer reads, and trusts
 * nothing. Signal-safe.
 */
#ifndef UB_UV_POOL_H
#define UB_UV_POOL_H

#include "base.h"

#define UB_UV_POOL_MAX     64u  /* processes of a run; further ones are not told of */
#define UB_UV_POOL_BUCKETS 184u /* four a power of two */

enum ub_uv_pool_state {
    UB_UV_POOL_FREE = 0,
    UB_UV_POOL_TAKING = 1,
    UB_UV_POOL_LIVE = 2,
    UB_UV_POOL_RELEASED = 3, /* the image that owned it is gone (exec); the tracer tells of it and frees it */
};

struct ub_uv_pool {
    uint32_t state;      /* enum ub_uv_pool_state */
    int32_t pid;         /* as the process itself sees it */
    uint32_t threads;    /* it has; 0: what was measured makes no sense, nothing is known */
    uint32_t done;       /* pieces whose callback was called */
    uint64_t word;       /* low half: pieces handed in, ever; high half: ended. Both wrap around */
    uint64_t waited;     /* pieces that had to wait for a thread, */
    uint64_t total, max; /* for so many ticks; those whose waiting could not be told are left out */
    uint64_t since;      /* ticks when the first piece was handed in */
    uint32_t peak;       /* most that ever waited at once */
    uint32_t begun;      /* a thread was seen to end a piece: the counts mean something */
    uint32_t reserved0[2];
    uint32_t histogram[UB_UV_POOL_BUCKETS]; /* of the waits */
    uint32_t reserved[54];
};
_Static_assert(sizeof(struct ub_uv_pool) == 1024, "pool: agent and tracer agree on it");

static inline uint32_t ub_uv_pool_bucket(uint64_t ticks)
{
    uint32_t top = 63u - (uint32_t)__builtin_clzll(ticks | 4);
    uint32_t at = ticks < 4 ? (uint32_t)ticks : (top - 1) * 4 + (uint32_t)(ticks >> (top - 2) & 3);

    return at < UB_UV_POOL_BUCKETS ? at : UB_UV_POOL_BUCKETS - 1;
}

/* The first value that does not fall into the bucket (the last one is open-ended). */
static inline uint64_t ub_uv_pool_upper(uint32_t bucket)
{
    return bucket < 4 ? bucket + 1 : (5ull + (bucket & 3)) << (bucket / 4 - 1);
}

/* Pieces that are in the pool or whose end the loop has not been told yet, whichever is known to be less. */
static inline uint32_t ub_uv_pool_inside(uint64_t word, uint32_t done)
{
    uint32_t in = (uint32_t)word, ended = (uint32_t)(word >> 32);
    int32_t by_end = (int32_t)(in - ended), by_done = (int32_t)(in - done), least = by_end < by_done ? by_end : by_done;

    return least > 0 ? (uint32_t)least : 0;
}

#endif
