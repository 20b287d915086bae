/*
 * A distribution of durations in little memory: the buckets of
 * common/histogram.h (1.6 % wide), only those that are used, each with its sum,
 * so that a percentile is the mean of its bucket: exact as long as the bucket
 * holds one value.
 */
#ifndef UB_UI_DISTRIBUTION_H
#define UB_UI_DISTRIBUTION_H

#include "../common/base.h"

struct ub_distribution_bucket {
    uint32_t index; /* ub_histogram_index() */
    uint64_t count;
    uint64_t sum_ns;
};

/* All zero is an empty one. */
struct ub_distribution {
    struct ub_distribution_bucket *bucket; /* sorted by index */
    uint32_t used, size;
    uint64_t count;
    uint64_t total_ns; /* sticks at the top */
    uint64_t max_ns;
};

/* `count` durations that sum up to `sum_ns`. They count in `total_ns` even when -ENOMEM keeps them out of the buckets.
 */
int ub_distribution_add(struct ub_distribution *d, uint64_t count, uint64_t sum_ns);

/* Takes back what ub_distribution_add was told. `max_ns` stays: only for values that a longer one replaces. */
void ub_distribution_remove(struct ub_distribution *d, uint64_t count, uint64_t sum_ns);

/* Adds all of `other`. 0 or -ENOMEM. */
int ub_distribution_merge(struct ub_distribution *d, const struct ub_distribution *other);

/* The duration that `permille` of 1000 do not exceed; 0 when empty. */
uint64_t ub_distribution_percentile(const struct ub_distribution *d, uint32_t permille);

void ub_distribution_clear(struct ub_distribution *d);

#endif
