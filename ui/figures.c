#include "figures.h"
#include "text_frames.h"
#include "text_private.h"

const char *const ub_figures_class[UB_STALL_CLASSES] = {
    [UB_STALL_COUNTED] = "counted",       [UB_STALL_STARTUP] = "startup", [UB_STALL_STOPPED] = "stopped",
    [UB_STALL_SUPPRESSED] = "suppressed", [UB_STALL_UNCLEAR] = "unclear",
};

const struct ub_figures_edge ub_figures_edge[] = {
    {100000, "0.0001"},  {1000000, "0.001"},  {5000000, "0.005"},    {10000000, "0.01"}, {25000000, "0.025"},
    {50000000, "0.05"},  {100000000, "0.1"},  {250000000, "0.25"},   {500000000, "0.5"}, {1000000000, "1.0"},
    {2500000000, "2.5"}, {5000000000, "5.0"}, {10000000000, "10.0"}, {0, NULL},
};

uint64_t ub_figures_count_up_to(const struct ub_distribution *d, uint64_t ns)
{
    uint64_t n = 0;
    uint32_t i;

    for (i = 0; i < d->used; i++)
        if (d->bucket[i].count > 0 && d->bucket[i].sum_ns / d->bucket[i].count <= ns)
            n += d->bucket[i].count;
    return n;
}

const char *const ub_figures_loss[] = {"ring", "rate_limited", "queue", "torn", NULL};

uint64_t ub_figures_lost(const struct ub_model *m, const char *loss)
{
    uint64_t lost = 0;
    uint32_t i;

    for (i = 0; i < ub_model_runs(m); i++)
        lost = ub_add_saturated(lost, ub_json_u64_or(json_object_get(ub_model_run(m, i)->end, "lost"), loss, 0));
    return lost;
}

static void raise_to(uint64_t *most, uint64_t n)
{
    *most = n > *most ? n : *most;
}

/* What is known of it so far, or was at its end. */
static const json_t *offload_of(const struct ub_run *run)
{
    const json_t *end = json_object_get(run->end, "offload");

    return end ? end : run->executor;
}

bool ub_figures_offload(const struct ub_model *m, struct ub_figures_offload *ret)
{
    bool any = false;

    *ret = (struct ub_figures_offload){0};
    for (uint32_t i = 0; i < ub_model_runs(m); i++) {
        const struct ub_run *run = ub_model_run(m, i);
        const json_t *o = offload_of(run);

        any |= o != NULL;
        ret->moved = ub_add_saturated(ret->moved, ub_json_u64_or(o, "moved", 0));
        ret->saved_ns = ub_add_saturated(ret->saved_ns, ub_json_u64_or(o, "saved_ns", 0));
        ret->wait_ns = ub_add_saturated(ret->wait_ns, ub_json_u64_or(o, "wait_ns", 0));
        raise_to(&ret->threads, ub_json_u64_or(o, "threads", 0));
        raise_to(&ret->queued, ub_json_u64_or(o, "queued_max", 0));
        ret->beside = ub_add_saturated(ret->beside, ub_json_u64_or(o, "beside", 0));
        ret->away = ub_add_saturated(ret->away, ub_json_u64_or(o, "away", 0));
        ret->busy_ns = ub_add_saturated(ret->busy_ns, ub_json_u64_or(o, "busy_ns", 0));
        ret->queued_now = ub_add_saturated(ret->queued_now, ub_json_u64_or(o, "queued", 0));
        raise_to(&ret->stack_bytes, ub_json_u64_or(o, "stack_bytes", 0));
    }
    return any;
}

static void add_function(json_t *sums, const json_t *line)
{
    static const char *const added[] = {"count", "ns"};
    const char *function = ub_json_string(line, "function"), *place = ub_json_string(line, "place");
    uint64_t longest = ub_json_u64_or(line, "longest_ns", 0);
    char key[512];
    json_t *sum;

    if (!function || !place)
        return;
    snprintf(key, sizeof(key), "%.300s\n%.200s", function, place);
    sum = json_object_get(sums, key);
    if (!sum) {
        sum = json_pack("{s:s, s:s}", "function", function, "place", place);
        json_object_set_new_nocheck(sums, key, sum);
    }
    for (size_t i = 0; i < UB_ARRAY_LEN(added); i++) {
        uint64_t n = ub_add_saturated(ub_json_u64_or(sum, added[i], 0), ub_json_u64_or(line, added[i], 0));

        json_object_set_new(sum, added[i], json_integer((json_int_t)n));
    }
    raise_to(&longest, ub_json_u64_or(sum, "longest_ns", 0));
    json_object_set_new(sum, "longest_ns", json_integer((json_int_t)longest));
}

static int by_time(const void *a, const void *b, void *key)
{
    uint64_t of_a = ub_json_u64_or(*(json_t *const *)a, key, 0), of_b = ub_json_u64_or(*(json_t *const *)b, key, 0);

    return (of_a < of_b) - (of_a > of_b);
}

/* The values of an object, by the time in `key`, the longest first. */
static json_t *sorted(json_t *sums, const char *key_of_time)
{
    json_t *ret = json_array(), *one, **list = calloc(json_object_size(sums) + 1, sizeof(json_t *));
    const char *key;
    size_t n = 0;

    json_object_foreach (sums, key, one)
        if (list)
            list[n++] = one;
    if (n > 0)
        qsort_r(list, n, sizeof(*list), by_time, (void *)key_of_time); /* NOLINT(bugprone-sizeof-expression) */
    for (size_t i = 0; i < n; i++)
        json_array_append(ret, list[i]);
    free(list);
    return ret;
}

/* What all runs have under `key`, summed by `add`, the one with the most `by` first. */
static json_t *sum_of_runs(const struct ub_model *m, const char *key, void (*add)(json_t *sums, const json_t *line),
                           const char *by)
{
    json_t *sums = json_object(), *ret;
    const json_t *line;
    size_t i;

    for (uint32_t run = 0; run < ub_model_runs(m); run++)
        json_array_foreach (json_object_get(offload_of(ub_model_run(m, run)), key), i, line)
            add(sums, line);
    ret = sorted(sums, by);
    json_decref(sums);
    return ret;
}

json_t *ub_figures_functions(const struct ub_model *m)
{
    return sum_of_runs(m, "functions", add_function, "ns");
}

/* ---- pins ------------------------------------------------------------- */

static void add_number(json_t *o, const char *key, uint64_t n)
{
    uint64_t sum = ub_add_saturated(ub_json_u64_or(o, key, 0), n);

    json_object_set_new(o, key, json_integer(sum > INT64_MAX ? INT64_MAX : (json_int_t)sum));
}

/* "db.c:70 txn_begin()" */
static void lock_words(const json_t *lock, char *ret, size_t size)
{
    const char *function = ub_json_string(lock, "function");
    char place[256], name[1026];

    ub_text_frame_place(lock, place, sizeof(place));
    snprintf(ret, size, "%s%s%s", place, *place && function ? " " : "",
             function ? ub_text_function_name(function, name, sizeof(name)) : "");
}

static void add_pin(json_t *pins, const json_t *pin)
{
    const char *reason = ub_json_string(pin, "reason");
    char lock[1300] = "", key[1600];
    json_t *o;

    if (json_object_get(pin, "lock"))
        lock_words(json_object_get(pin, "lock"), lock, sizeof(lock));
    if (json_object_size(pins) >= UB_FIGURES_PINS_MAX - 1) {
        snprintf(key, sizeof(key), "%.200s\n%s", reason ? reason : "?", lock);
        if (!json_object_get(pins, key)) {
            reason = "other";
            *lock = 0;
        }
    }
    snprintf(key, sizeof(key), "%.200s\n%s", reason ? reason : "?", lock);
    o = json_object_get(pins, key);
    if (!o) {
        o = json_pack("{s:s, s:s}", "reason", reason ? reason : "?", "lock", lock);
        if (!o || json_object_set_new(pins, key, o) < 0)
            return;
    }
    add_number(o, "count", ub_json_u64_or(pin, "count", 0));
    add_number(o, "total_ns", ub_json_u64_or(pin, "total_ns", 0));
}

json_t *ub_figures_pins(const struct ub_model *m)
{
    return sum_of_runs(m, "pins", add_pin, "total_ns");
}
