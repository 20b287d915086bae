/*
 * Log-linear histogram of durations in ticks: every power of two is cut into
 * 64 equal buckets, so that a bucket is at most 1/64 (1.6 %) of its value wide.
 * One writer; readers may see a count that is one behind.
 *
 * Signal-safe.
 */
#ifndef UB_HISTOGRAM_H
#define UB_HISTOGRAM_H

#include "base.h"

#define UB_HISTOGRAM_SUB_BITS 6
#define UB_HISTOGRAM_SUB      (1u << UB_HISTOGRAM_SUB_BITS)
#define UB_HISTOGRAM_MAX_BITS 46 /* 2^46 ticks: more than six hours at 3 GHz; longer ones share the last bucket */
#define UB_HISTOGRAM_BUCKETS  ((UB_HISTOGRAM_MAX_BITS - UB_HISTOGRAM_SUB_BITS + 1) * UB_HISTOGRAM_SUB)

struct ub_histogram {
    uint64_t count[UB_HISTOGRAM_BUCKETS];
};

static inline uint32_t ub_histogram_index(uint64_t ticks)
{
    uint32_t top;

    if (ticks < UB_HISTOGRAM_SUB)
        return (uint32_t)ticks;
    if (ub_unlikely(ticks >> UB_HISTOGRAM_MAX_BITS))
        return UB_HISTOGRAM_BUCKETS - 1;
    top = 63u - (uint32_t)__builtin_clzll(ticks);
    return (top - UB_HISTOGRAM_SUB_BITS) * UB_HISTOGRAM_SUB + (uint32_t)(ticks >> (top - UB_HISTOGRAM_SUB_BITS));
}

/* The first value that does NOT fall into bucket `index` (the last bucket is open-ended). */
static inline uint64_t ub_histogram_upper(uint32_t index)
{
    uint32_t group = index >> UB_HISTOGRAM_SUB_BITS;
    uint64_t sub = index & (UB_HISTOGRAM_SUB - 1);

    if (group == 0)
        return sub + 1;
    return (UB_HISTOGRAM_SUB + sub + 1) << (group - 1);
}

static inline void ub_histogram_add(struct ub_histogram *h, uint64_t ticks)
{
    uint64_t *bucket = &h->count[ub_histogram_index(ticks)];

    ub_store_relaxed(bucket, *bucket + 1);
}

/* The same with four neighbouring buckets in one (at most 7 % wide) and small counts: for what there is little of. */
#define UB_COARSE_SHIFT 2
struct ub_coarse_histogram {
    uint32_t count[UB_HISTOGRAM_BUCKETS >> UB_COARSE_SHIFT];
};

static inline uint64_t ub_coarse_upper(uint32_t index)
{
    return ub_histogram_upper((index << UB_COARSE_SHIFT) + (1u << UB_COARSE_SHIFT) - 1);
}

static inline void ub_coarse_add(struct ub_coarse_histogram *h, uint64_t ticks)
{
    uint32_t *bucket = &h->count[ub_histogram_index(ticks) >> UB_COARSE_SHIFT];

    ub_store_relaxed(bucket, *bucket + 1);
}

#endif
