/*
 * Loops and their figures. A `stats` line carries totals since the loop was
 * first seen, so the last one of each thread counts.
 */
#include "model_private.h"
#include "../common/histogram.h"

#include <stdio.h>

static struct ub_loop_entry *new_loop(struct ub_model *m, const struct ub_loop_key *key)
{
    struct ub_loop_entry *entry;
    const char *program;

    if (HASH_COUNT(m->loop) >= UB_MODEL_LOOPS_MAX)
        return NULL;
    entry = calloc(1, sizeof(*entry));
    if (!entry)
        return NULL;
    entry->key = *key;
    entry->loop.run = (uint32_t)key->run;
    entry->loop.pid = key->pid;
    entry->loop.tid = key->tid;
    HASH_ADD(hh, m->loop, key, sizeof(*key), entry);
    if (!UB_HASHED(entry)) {
        free(entry);
        return NULL;
    }
    program = ub_model_program(m, key->pid);
    entry->loop.program = program ? strdup(program) : NULL;
    return entry;
}

static void settle(struct ub_model *m, struct ub_loop_entry *entry);

static struct ub_loop_entry *get_loop(struct ub_model *m, const json_t *record)
{
    struct ub_loop_key key = {.run = m->current};
    struct ub_loop_entry *entry;
    const char *kind = ub_json_string(record, "loop"), *thread = ub_json_string(record, "thread");

    if (!ub_model_this_run(m) || !ub_json_u64(record, "pid", &key.pid) || !ub_json_u64(record, "tid", &key.tid)) {
        m->dropped.malformed++;
        return NULL;
    }
    key.run = m->current;                             /* the run may have begun just now */
    HASH_FIND(hh, m->loop, &key, sizeof(key), entry); /* NOLINT(clang-analyzer-core.UndefinedBinaryOperatorResult) */
    if (!entry)
        entry = new_loop(m, &key);
    if (!entry) {
        m->dropped.loops++;
        return NULL;
    }
    settle(m, entry);
    if (kind)
        snprintf(entry->loop.kind, sizeof(entry->loop.kind), "%s", kind);
    if (thread)
        snprintf(entry->loop.thread, sizeof(entry->loop.thread), "%s", thread);
    return entry;
}

void ub_model_loop_line(struct ub_model *m, const json_t *record)
{
    struct ub_loop_entry *entry = get_loop(m, record);

    if (entry)
        m->run[m->current].run.loops++;
}

/* [[upper_ns, count], ...]: the upper edge stands for the whole bucket, which errs by its width (3 %) on the safe side.
 */
void ub_model_histogram(struct ub_distribution *d, const json_t *histogram)
{
    const json_t *pair;
    size_t i;

    json_array_foreach (histogram, i, pair) {
        const json_t *upper = json_array_get(pair, 0), *count = json_array_get(pair, 1);
        uint64_t sum;

        if (!json_is_integer(upper) || !json_is_integer(count) || json_integer_value(upper) < 0 ||
            json_integer_value(count) <= 0)
            continue;
        if (__builtin_mul_overflow((uint64_t)json_integer_value(upper), (uint64_t)json_integer_value(count), &sum))
            continue;
        ub_distribution_add(d, (uint64_t)json_integer_value(count), sum);
    }
}

struct ub_loop_lag ub_model_lag(const json_t *lag)
{
    struct ub_loop_lag ret = {0};

    ret.known = ub_json_u64(lag, "p99_ns", &ret.p99_ns) && ub_json_u64(lag, "longest_ns", &ret.longest_ns);
    return ret;
}

const struct ub_loop *ub_model_slowest_loop(const struct ub_model *m)
{
    const struct ub_loop *worst = NULL;
    const struct ub_loop_entry *entry;

    for (entry = m->loop; entry; entry = entry->hh.next) {
        const struct ub_loop *loop = &entry->loop;

        if (entry->key.run != m->current || !loop->lag.known)
            continue;
        if (!worst || loop->lag.p99_ns > worst->lag.p99_ns ||
            (loop->lag.p99_ns == worst->lag.p99_ns && loop->lag.longest_ns > worst->lag.longest_ns))
            worst = loop;
    }
    return worst;
}

/* The thread ended and its ids were used again (or the process started another program): both count. */
static void close_incarnation(struct ub_model *m, struct ub_loop_entry *entry)
{
    struct ub_loop *loop = &entry->loop;

    entry->base_callbacks = loop->callbacks;
    entry->base_turns = loop->turns;
    entry->base_busy_ns = loop->busy_ns;
    ub_distribution_clear(&entry->base);
    ub_distribution_merge(&entry->base, &loop->duration);
    ub_model_kinds_clear(m, &entry->base_kinds);
    ub_model_kinds_merge(m, &entry->base_kinds, &loop->kinds);
}

static void read_figures(struct ub_model *m, struct ub_loop_entry *entry, const json_t *record)
{
    struct ub_loop *loop = &entry->loop;
    uint64_t max_ns = ub_json_u64_or(record, "max_ns", 0);

    ub_distribution_clear(&loop->duration);
    ub_model_histogram(&loop->duration, json_object_get(record, "histogram"));
    if (max_ns > 0) /* exact, where the histogram is not */
        loop->duration.max_ns = max_ns;
    ub_distribution_merge(&loop->duration, &entry->base);
    ub_model_kinds_clear(m, &loop->kinds);
    ub_model_kinds_read(m, &loop->kinds, record);
    ub_model_kinds_merge(m, &loop->kinds, &entry->base_kinds);
    loop->max_ns = max_ns > loop->max_ns ? max_ns : loop->max_ns;
    loop->callbacks = ub_add_saturated(entry->base_callbacks, entry->last_callbacks);
    loop->turns = ub_add_saturated(entry->base_turns, ub_json_u64_or(record, "turns", 0));
    loop->busy_ns =
        ub_add_saturated(entry->base_busy_ns, ub_json_u64_or(record, "busy_ns", ub_json_u64_or(record, "total_ns", 0)));
    loop->lag = ub_model_lag(json_object_get(record, "lag"));
    loop->predicted = ub_model_lag(json_object_get(json_object_get(record, "lag"), "predicted"));
    loop->predicted_policy = ub_model_lag(json_object_get(json_object_get(record, "lag"), "predicted_policy"));
    loop->has_stats = true;
}

/*
 * How long the loop was watched: `observed_ns`, else from the start of the
 * recording to the moment the line was written (`at_ns`).
 */
static void read_observed(struct ub_loop *loop, const json_t *header, const json_t *record)
{
    uint64_t begin, at;

    if (ub_json_u64(record, "observed_ns", &loop->observed_ns))
        return;
    if (ub_json_u64(record, "at_ns", &at) && ub_json_u64(header, "monotonic_ns", &begin) && at > begin)
        loop->observed_ns = at - begin;
}

static void read_line(struct ub_model *m, struct ub_loop_entry *entry, const json_t *record)
{
    read_figures(m, entry, record);
    read_observed(&entry->loop, m->run[entry->key.run].run.header, record);
}

/* Looks at the figures that were put off. */
static void settle(struct ub_model *m, struct ub_loop_entry *entry)
{
    json_t *record;

    if (entry->pending_len == 0)
        return;
    record = json_loadb(entry->pending, entry->pending_len, 0, NULL);
    entry->pending_len = 0;
    read_line(m, entry, record);
    json_decref(record);
}

void ub_model_loops_settle(struct ub_model *m)
{
    struct ub_loop_entry *entry;

    for (entry = m->loop; entry; entry = entry->hh.next)
        settle(m, entry);
}

/* A line says so many callbacks. False: it is to be passed over (parts of a recording given in the wrong order). */
static bool is_next(struct ub_model *m, struct ub_loop_entry *entry, uint64_t callbacks)
{
    if (callbacks < entry->last_callbacks) {
        if (m->parts != entry->last_part)
            return false;
        settle(m, entry);
        close_incarnation(m, entry);
    }
    entry->last_callbacks = callbacks;
    entry->last_part = m->parts;
    return true;
}

void ub_model_stats_line(struct ub_model *m, const json_t *record)
{
    struct ub_loop_entry *entry = get_loop(m, record);
    uint64_t at;

    if (!entry || !is_next(m, entry, ub_json_u64_or(record, "callbacks", 0)))
        return;
    if (ub_json_u64(record, "at_ns", &at))
        ub_model_touch(m, at);
    read_line(m, entry, record);
}

static bool put_off(struct ub_loop_entry *entry, const struct ub_stats_line *stats)
{
    if (entry->pending_size < stats->text.len) {
        char *text = realloc(entry->pending, stats->text.len * 2);

        if (!text)
            return false;
        entry->pending = text;
        entry->pending_size = stats->text.len * 2;
    }
    memcpy(entry->pending, stats->text.text, stats->text.len);
    entry->pending_len = stats->text.len;
    entry->pending_shape = stats->shape;
    return true;
}

/*
 * Of a loop's lines the last counts, so a line is only kept as text until then:
 * a long recording of a program that stalls seldom is nearly all histograms.
 * What earlier lines leave behind in ub_model_stats_line is taken here as well:
 * the longest turn, the latest moment, and fields that later lines lack (shape).
 */
bool ub_model_take_stats(struct ub_model *m, const struct ub_stats_line *stats)
{
    struct ub_loop_key key = {.run = m->current, .pid = stats->pid, .tid = stats->tid};
    struct ub_loop_entry *entry = NULL;

    if (m->runs == 0 || stats->text.len > UB_MODEL_PENDING_MAX)
        return false;
    HASH_FIND(hh, m->loop, &key, sizeof(key), entry); /* NOLINT(clang-analyzer-core.UndefinedBinaryOperatorResult) */
    if (!entry || !ub_slice_is(stats->loop, entry->loop.kind))
        return false;
    if (!is_next(m, entry, stats->callbacks))
        return true;
    if (entry->pending_len > 0 && entry->pending_shape != stats->shape)
        settle(m, entry);
    if (!put_off(entry, stats))
        return false;
    ub_model_touch(m, stats->at_ns);
    if (stats->max_ns > entry->loop.max_ns)
        entry->loop.max_ns = stats->max_ns;
    return true;
}

static int compare(const void *a, const void *b)
{
    const struct ub_loop *x = *(const struct ub_loop *const *)a, *y = *(const struct ub_loop *const *)b;

    if (x->busy_ns != y->busy_ns)
        return x->busy_ns < y->busy_ns ? 1 : -1;
    if (x->pid != y->pid)
        return x->pid < y->pid ? -1 : 1;
    if (x->tid != y->tid)
        return x->tid < y->tid ? -1 : 1;
    return x->run < y->run ? -1 : x->run > y->run;
}

const struct ub_loop **ub_model_loops(const struct ub_model *m, size_t *ret_count)
{
    const struct ub_loop **loops =
        calloc(HASH_COUNT(m->loop) + 1, sizeof(*loops)); /* NOLINT(bugprone-sizeof-expression) */
    struct ub_loop_entry *entry;
    size_t n = 0;

    *ret_count = 0;
    if (!loops)
        return NULL;
    for (entry = m->loop; entry; entry = entry->hh.next)
        loops[n++] = &entry->loop;
    if (n == 0) {
        free(loops);
        return NULL;
    }
    qsort(loops, n, sizeof(*loops), compare); /* NOLINT(bugprone-sizeof-expression) */
    *ret_count = n;
    return loops;
}

static void loop_free(struct ub_loop_entry *entry)
{
    ub_distribution_clear(&entry->base);
    ub_distribution_clear(&entry->loop.duration);
    free(entry->loop.program);
    free(entry->pending);
    free(entry);
}

void ub_model_loops_free(struct ub_model *m)
{
    struct ub_loop_entry *entry;

    for (entry = m->loop; entry; entry = entry->hh.next) {
        ub_model_kinds_clear(m, &entry->base_kinds);
        ub_model_kinds_clear(m, &entry->loop.kinds);
    }
    UB_HASH_DESTROY(struct ub_loop_entry, m->loop, loop_free);
}
