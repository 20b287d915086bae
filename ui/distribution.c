#include "distribution.h"
#include "json_get.h"
#include "../common/histogram.h"

#include <errno.h>
#include <stdlib.h>

/* Position of the bucket with `index`, or where it belongs. */
static uint32_t find(const struct ub_distribution *d, uint32_t index)
{
    uint32_t low = 0, high = d->used;

    while (low < high) {
        uint32_t middle = low + (high - low) / 2;

        if (d->bucket[middle].index < index)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static struct ub_distribution_bucket *take(struct ub_distribution *d, uint32_t index)
{
    uint32_t at = find(d, index);

    if (at < d->used && d->bucket[at].index == index)
        return &d->bucket[at];
    if (d->used == d->size) {
        uint32_t size = d->size ? d->size * 2 : 4;
        struct ub_distribution_bucket *bucket = realloc(d->bucket, size * sizeof(*bucket));

        if (!bucket)
            return NULL;
        d->bucket = bucket;
        d->size = size;
    }
    memmove(&d->bucket[at + 1], &d->bucket[at], (d->used - at) * sizeof(*d->bucket));
    d->used++;
    d->bucket[at] = (struct ub_distribution_bucket){.index = index};
    return &d->bucket[at];
}

static int add_to_bucket(struct ub_distribution *d, uint32_t index, uint64_t count, uint64_t sum_ns)
{
    struct ub_distribution_bucket *bucket = take(d, index);

    if (!bucket)
        return -ENOMEM;
    bucket->count = ub_add_saturated(bucket->count, count);
    bucket->sum_ns = ub_add_saturated(bucket->sum_ns, sum_ns);
    return 0;
}

int ub_distribution_add(struct ub_distribution *d, uint64_t count, uint64_t sum_ns)
{
    uint64_t each;

    if (count == 0)
        return 0;
    each = sum_ns / count;
    d->count = ub_add_saturated(d->count, count);
    d->total_ns = ub_add_saturated(d->total_ns, sum_ns);
    if (each > d->max_ns)
        d->max_ns = each;
    return add_to_bucket(d, ub_histogram_index(each), count, sum_ns);
}

static uint64_t subtract(uint64_t a, uint64_t b)
{
    return a > b ? a - b : 0;
}

void ub_distribution_remove(struct ub_distribution *d, uint64_t count, uint64_t sum_ns)
{
    uint32_t index, at;

    if (count == 0)
        return;
    index = ub_histogram_index(sum_ns / count);
    at = find(d, index);
    d->count = subtract(d->count, count);
    d->total_ns = subtract(d->total_ns, sum_ns);
    if (at < d->used && d->bucket[at].index == index) {
        d->bucket[at].count = subtract(d->bucket[at].count, count);
        d->bucket[at].sum_ns = subtract(d->bucket[at].sum_ns, sum_ns);
    }
}

int ub_distribution_merge(struct ub_distribution *d, const struct ub_distribution *other)
{
    uint32_t i;
    int r = 0;

    d->count = ub_add_saturated(d->count, other->count);
    d->total_ns = ub_add_saturated(d->total_ns, other->total_ns);
    if (other->max_ns > d->max_ns)
        d->max_ns = other->max_ns;
    for (i = 0; i < other->used && r == 0; i++)
        r = add_to_bucket(d, other->bucket[i].index, other->bucket[i].count, other->bucket[i].sum_ns);
    return r;
}

uint64_t ub_distribution_percentile(const struct ub_distribution *d, uint32_t permille)
{
    uint64_t below = 0, mean = 0;
    uint32_t i;

    for (i = 0; i < d->used; i++) {
        const struct ub_distribution_bucket *bucket = &d->bucket[i];

        if (bucket->count == 0)
            continue;
        mean = bucket->sum_ns / bucket->count;
        below = ub_add_saturated(below, bucket->count);
        if ((double)below >= (double)d->count * permille / 1000.0)
            break;
    }
    return mean < d->max_ns ? mean : d->max_ns;
}

void ub_distribution_clear(struct ub_distribution *d)
{
    free(d->bucket);
    *d = (struct ub_distribution){0};
}
