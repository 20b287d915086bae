/*
 * The lag of a loop: how long what comes at a random moment waits until the loop looks at it again. Within a turn of
 * d that is anything up to d, between turns nothing; so of the time that was watched the share in which one would wait
 * for more than x is the sum of max(d - x, 0) over all turns. The histogram of turns has all of them.
 *
 * In a dry run also what it would be if what may leave the loop had: the same turns, each shorter by what its calls
 * would have saved. Which stall was in which turn nobody wrote down. A turn has to be at least as long as the stall;
 * the shortest such one is taken, so several stalls of one long turn come off that turn one after the other.
 */
#include "explain_impl.h"

#include "watch_impl.h"

#include <stdlib.h>

#define STALLS_MAX 1024u /* kinds of stalls, by bucket: a run with more is not predicted */

struct turns {
    struct {
        uint64_t ns, count;
        uint32_t bucket; /* UB_HISTOGRAM_BUCKETS: shorter than it was */
    } * turn;
    uint32_t count, size;
};

static void keep(struct ub_lag *lag, uint64_t duration, uint64_t saved, bool function)
{
    struct ub_lag_stall *all;

    saved = saved < duration ? saved : duration;
    if (saved == 0)
        return;
    for (uint32_t i = 0; i < lag->count; i++) {
        struct ub_lag_stall *s = &lag->stall[i];

        if (s->function == function && ub_histogram_index(s->duration_ns) == ub_histogram_index(duration) &&
            ub_histogram_index(s->duration_ns - s->saved_ns) == ub_histogram_index(duration - saved)) {
            s->count++;
            return;
        }
    }
    all = lag->count < STALLS_MAX ? realloc(lag->stall, (lag->count + 1) * sizeof(*all)) : NULL;
    lag->incomplete |= !all;
    if (!all)
        return;
    lag->stall = all;
    all[lag->count++] = (struct ub_lag_stall){duration, saved, 1, function};
}

static uint64_t number(const json_t *o, const char *key)
{
    return (uint64_t)json_integer_value(json_object_get(o, key));
}

void ub_lag_keep(struct ub_thread_record *t, const json_t *slow)
{
    uint64_t duration = number(slow, "duration_ns"), calls;

    if (json_object_get(slow, "ongoing") || json_object_get(slow, "unclear"))
        return;
    calls = number(json_object_get(slow, "offload"), "saved_ns");
    calls = calls < duration ? calls : duration;
    keep(&t->lag, duration, calls, false);
    keep(&t->lag, duration - calls, number(json_object_get(slow, "elsewhere"), "saved_ns"), true); /* off the rest */
}

void ub_lag_clear(struct ub_lag *lag)
{
    free(lag->stall);
    *lag = (struct ub_lag){0};
}

/* ---- the turns ------------------------------------------------------------------------------- */

static bool put(struct turns *t, uint64_t ns, uint64_t count, uint32_t bucket)
{
    if (t->count == t->size) {
        void *all = realloc(t->turn, (t->size + 512) * sizeof(*t->turn));

        if (!all)
            return false;
        t->turn = all;
        t->size += 512;
    }
    t->turn[t->count].ns = ns;
    t->turn[t->count].count = count;
    t->turn[t->count++].bucket = bucket;
    return true;
}

/* The upper edge stands for a bucket, but no turn was longer than the longest. */
static bool read_turns(const struct ub_stats *s, struct turns *ret)
{
    *ret = (struct turns){0};
    for (uint32_t i = 0; i < UB_HISTOGRAM_BUCKETS; i++) {
        uint64_t ticks = ub_histogram_upper(i);

        if (s->histogram.count[i] &&
            !put(ret, ub_ticks_span_to_ns(ticks < s->max_ticks ? ticks : s->max_ticks), s->histogram.count[i], i))
            return false;
    }
    return true;
}

/* The shortest turn that can have held the stall, UINT32_MAX: none. */
static uint32_t turn_of(const struct turns *t, uint64_t duration_ns)
{
    uint32_t bucket = ub_histogram_index(ub_ticks_from_span_ns(duration_ns)), best = UINT32_MAX;

    for (uint32_t i = 0; i < t->count; i++) {
        bool holds = t->turn[i].bucket < UB_HISTOGRAM_BUCKETS ? t->turn[i].bucket >= bucket
                                                              : t->turn[i].ns >= duration_ns - duration_ns / 64;

        if (t->turn[i].count && holds && (best == UINT32_MAX || t->turn[i].ns < t->turn[best].ns))
            best = i;
    }
    return best;
}

/* As many of these stalls as there are turns for take what they would have saved off them. */
static bool shorten(struct turns *t, const struct ub_lag_stall *s)
{
    uint32_t bucket = ub_histogram_index(ub_ticks_from_span_ns(s->duration_ns)), at;

    for (uint64_t left = s->count, n; left > 0; left -= n) {
        uint64_t ns;

        at = turn_of(t, s->duration_ns);
        if (at == UINT32_MAX)
            return true;
        ns = t->turn[at].bucket == bucket ? s->duration_ns : t->turn[at].ns;
        n = left < t->turn[at].count ? left : t->turn[at].count;
        t->turn[at].count -= n;
        if (!put(t, ns > s->saved_ns ? ns - s->saved_ns : 0, n, UB_HISTOGRAM_BUCKETS))
            return false;
    }
    return true;
}

/* By what calls, or functions elsewhere, would have saved. False: there were none. */
static bool shorten_by(struct turns *t, const struct ub_lag *lag, bool function, bool *fits)
{
    bool any = false;

    for (uint32_t i = 0; *fits && i < lag->count; i++) {
        if (lag->stall[i].function != function)
            continue;
        any = true;
        *fits = shorten(t, &lag->stall[i]);
    }
    return any && *fits;
}

/* ---- the lag --------------------------------------------------------------------------------- */

static uint64_t longest(const struct turns *t)
{
    uint64_t ns = 0;

    for (uint32_t i = 0; i < t->count; i++)
        ns = t->turn[i].count && t->turn[i].ns > ns ? t->turn[i].ns : ns;
    return ns;
}

/* What all but `permille` of the time that was watched stay within. */
static uint64_t within(const struct turns *t, uint64_t observed_ns, uint32_t permille)
{
    double allowed = (double)observed_ns * permille / 1000;
    uint64_t low = 0, high = longest(t);

    while (low < high) {
        uint64_t x = low + (high - low) / 2;
        double waited = 0;

        for (uint32_t i = 0; i < t->count; i++)
            waited += t->turn[i].ns > x ? (double)t->turn[i].count * (double)(t->turn[i].ns - x) : 0;
        if (waited > allowed)
            low = x + 1;
        else
            high = x;
    }
    return low;
}

static json_t *figures(const struct turns *t, uint64_t observed_ns)
{
    return json_pack("{s:I, s:I}", "p99_ns", (json_int_t)within(t, observed_ns, 10), "longest_ns",
                     (json_int_t)longest(t));
}

json_t *ub_lag_json(const struct ub_explain *x, const struct ub_thread_record *t, const struct ub_stats *s)
{
    uint64_t now = ub_clock_monotonic_ns();
    struct turns turns;
    json_t *o = NULL;
    bool fits;

    if (x->w->offload == UB_OFFLOAD_OFF || now <= t->since_ns)
        return NULL;
    fits = read_turns(s, &turns);
    if (fits)
        o = figures(&turns, now - t->since_ns);
    fits = fits && x->w->offload == UB_OFFLOAD_DRY_RUN && !t->lag.incomplete;
    if (fits && shorten_by(&turns, &t->lag, false, &fits))
        json_object_set_new(o, "predicted", figures(&turns, now - t->since_ns));
    if (fits && shorten_by(&turns, &t->lag, true, &fits))
        json_object_set_new(o, "predicted_policy", figures(&turns, now - t->since_ns));
    free(turns.turn);
    return o;
}
