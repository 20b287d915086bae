/*
 * When is a site worse? Two recordings are never of the same length and load,
 * and a site that stalls three times today stalls five times tomorrow. So
 * counts are held against the time watched: were the site as it was, each of
 * the a + b stalls would fall into the second recording with probability
 * p = its share of the time, and b would be binomial. Below 1 % that is no
 * chance. Lengths are compared by how many of the new stalls are longer than
 * the median of the old, which is binomial too.
 *
 * A new site counts as one whatever the odds: it is a place to look at.
 */
#include "diff.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define CHANCE       0.01
#define LENGTHS_MIN  5   /* stalls on either side before lengths are compared */
#define LENGTH_RATIO 1.2 /* and this much between the medians: a millisecond is not news */

/* log of n over k, times p^k (1-p)^(n-k) */
static double log_binomial(double n, double k, double p)
{
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1) + k * log(p) + (n - k) * log1p(-p);
}

/* P(X >= k), X binomial of n and p. The tail is summed until it adds nothing. */
static double tail(double n, double k, double p)
{
    double sum = 0, term, last = -INFINITY;
    uint64_t i;

    if (k <= 0)
        return 1;
    if (p <= 0 || k > n)
        return 0;
    if (p >= 1)
        return 1;
    if (k < n * p) /* the other tail is the shorter one */
        return 1 - tail(n, n - k + 1, 1 - p);
    for (i = (uint64_t)k; i <= (uint64_t)n; i++) {
        term = log_binomial(n, (double)i, p);
        sum += exp(term);
        if (term < last && term < log(sum) - 40)
            break;
        last = term;
    }
    return sum < 1 ? sum : 1;
}

double ub_diff_chance_of_more(uint64_t a, uint64_t b, double base_ns, double now_ns)
{
    if (base_ns <= 0 || now_ns <= 0)
        base_ns = now_ns = 1;
    return tail((double)a + (double)b, (double)b, now_ns / (base_ns + now_ns));
}

/* How many of the distribution are above `ns`. */
static uint64_t count_above(const struct ub_distribution *d, uint64_t ns)
{
    uint64_t n = 0;
    uint32_t i;

    for (i = 0; i < d->used; i++)
        if (d->bucket[i].count > 0 && d->bucket[i].sum_ns / d->bucket[i].count > ns)
            n += d->bucket[i].count;
    return n;
}

static bool are_longer(const struct ub_distribution *base, const struct ub_distribution *now)
{
    uint64_t median = ub_distribution_percentile(base, 500);

    if (base->count < LENGTHS_MIN || now->count < LENGTHS_MIN)
        return false;
    if ((double)ub_distribution_percentile(now, 500) < LENGTH_RATIO * (double)median)
        return false;
    return tail((double)now->count, (double)count_above(now, median), 0.5) < CHANCE;
}

static enum ub_change judge(struct ub_site_change *c, const struct ub_diff *diff)
{
    const double base_ns = (double)diff->base_ns, now_ns = (double)diff->now_ns;
    uint64_t a = c->base ? c->base->durations.count : 0, b = c->now ? c->now->durations.count : 0;
    bool fewer = ub_diff_chance_of_more(b, a, now_ns, base_ns) < CHANCE;

    if (!c->base)
        return UB_CHANGE_NEW;
    if (!c->now)
        return fewer ? UB_CHANGE_GONE : UB_CHANGE_UNSURE;
    c->longer = are_longer(&c->base->durations, &c->now->durations);
    c->shorter = are_longer(&c->now->durations, &c->base->durations);
    if (c->longer || ub_diff_chance_of_more(a, b, base_ns, now_ns) < CHANCE)
        return UB_CHANGE_WORSE;
    if (fewer || c->shorter)
        return UB_CHANGE_BETTER;
    return UB_CHANGE_SAME;
}

/* ---- sites ------------------------------------------------------------ */

static uint64_t watched_ns(const struct ub_model *m)
{
    uint64_t sum = 0, begin;
    uint32_t i;

    for (i = 0; i < ub_model_runs(m); i++) {
        const struct ub_run *run = ub_model_run(m, i);
        const json_t *at = json_object_get(run->header, "monotonic_ns");

        begin = json_is_integer(at) && json_integer_value(at) > 0 ? (uint64_t)json_integer_value(at) : 0;
        if (begin > 0 && run->last_ns > begin)
            sum += run->last_ns - begin;
    }
    return sum;
}

static int by_id(const void *a, const void *b)
{
    return strcmp((*(const struct ub_site *const *)a)->id, (*(const struct ub_site *const *)b)->id);
}

static uint64_t lost(const struct ub_site_change *c)
{
    uint64_t a = c->base ? c->base->durations.total_ns : 0, b = c->now ? c->now->durations.total_ns : 0;

    return a > b ? a : b;
}

static int by_change(const void *a, const void *b)
{
    const struct ub_site_change *x = a, *y = b;

    if (x->change != y->change)
        return x->change < y->change ? -1 : 1;
    if (lost(x) != lost(y))
        return lost(x) < lost(y) ? 1 : -1;
    return strcmp((x->now ? x->now : x->base)->id, (y->now ? y->now : y->base)->id);
}

/* Both lists are sorted by id. */
static void pair(struct ub_diff *diff, const struct ub_site **base, size_t bases, const struct ub_site **now,
                 size_t nows)
{
    size_t i = 0, k = 0;

    while (i < bases || k < nows) {
        struct ub_site_change *c = &diff->site[diff->sites++];
        int order = i == bases ? 1 : k == nows ? -1 : strcmp(base[i]->id, now[k]->id);

        c->base = order <= 0 ? base[i++] : NULL;
        c->now = order >= 0 ? now[k++] : NULL;
        c->change = judge(c, diff);
        diff->count[c->change]++;
    }
}

int ub_diff_make(const struct ub_model *base, const struct ub_model *now, struct ub_diff *ret)
{
    size_t bases, nows;
    const struct ub_site **a = ub_model_sites(base, UB_STALL_COUNTED, UB_SORT_TOTAL, &bases);
    const struct ub_site **b = ub_model_sites(now, UB_STALL_COUNTED, UB_SORT_TOTAL, &nows);

    *ret = (struct ub_diff){.base_ns = watched_ns(base), .now_ns = watched_ns(now)};
    ret->site = calloc(bases + nows + 1, sizeof(*ret->site));
    if (ret->site) {
        if (bases > 0)
            qsort(a, bases, sizeof(*a), by_id); /* NOLINT(bugprone-sizeof-expression) */
        if (nows > 0)
            qsort(b, nows, sizeof(*b), by_id); /* NOLINT(bugprone-sizeof-expression) */
        pair(ret, a, bases, b, nows);
        qsort(ret->site, ret->sites, sizeof(*ret->site), by_change);
    }
    free(a);
    free(b);
    return ret->site ? 0 : -ENOMEM;
}

void ub_diff_clear(struct ub_diff *diff)
{
    free(diff->site);
    *diff = (struct ub_diff){0};
}
