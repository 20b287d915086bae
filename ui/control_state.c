#include "control_impl.h"
#include "json_get.h"

#include "../common/clock.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define PROCESSES_MAX 256
#define LOOPS_MAX     1024
#define SITES_MAX     256
#define STALLS_MAX    32
#define NOTES_MAX     16
#define STACKS_MAX    256
#define LIVE_LOOPS    256

int ub_control_state_init(struct ub_control_state *s)
{
    s->processes = json_object();
    s->loops = json_object();
    s->sites = json_object();
    s->stalls = json_array();
    s->notes = json_array();
    s->stacks = json_object();
    return s->processes && s->loops && s->sites && s->stalls && s->notes && s->stacks ? 0 : -ENOMEM;
}

void ub_control_state_clear(struct ub_control_state *s)
{
    json_decref(s->header);
    json_decref(s->processes);
    json_decref(s->loops);
    json_decref(s->sites);
    json_decref(s->stalls);
    json_decref(s->notes);
    json_decref(s->stacks);
}

/* The oldest one gives way. */
static void keep(json_t *table, const char *key, json_t *value, size_t max)
{
    if (json_object_size(table) >= max && !json_object_get(table, key))
        json_object_del(table, json_object_iter_key(json_object_iter(table)));
    json_object_set(table, key, value);
}

static void keep_last(json_t *list, json_t *value, size_t max)
{
    if (json_array_size(list) >= max)
        json_array_remove(list, 0);
    json_array_append(list, value);
}

static bool counts(const json_t *slow)
{
    return !ub_json_true(slow, "startup") && !ub_json_true(slow, "unclear") && !ub_json_is(slow, "cause", "stopped");
}

/* What was told of the same stall before: its lines repeat while it goes on. NULL: this is the first one. */
static json_t *told_before(const struct ub_control_state *s, const json_t *slow, size_t *ret_at)
{
    uint64_t id = ub_json_u64_or(slow, "id", UINT64_MAX);

    for (size_t i = json_array_size(s->stalls); i > 0; i--) {
        json_t *other = json_array_get(s->stalls, i - 1);

        if (ub_json_u64_or(other, "id", 0) == id) {
            *ret_at = i - 1;
            return other;
        }
    }
    return NULL;
}

static void copy(json_t *to, const json_t *from, const char *key)
{
    json_t *value = json_object_get(from, key);

    if (value)
        json_object_set(to, key, value);
}

static void add(json_t *site, const char *key, uint64_t more)
{
    json_object_set_new(site, key, json_integer((json_int_t)ub_add_saturated(ub_json_u64_or(site, key, 0), more)));
}

static void add_to_site(struct ub_control_state *s, const json_t *slow, uint64_t count, uint64_t duration_ns,
                        uint64_t more_ns)
{
    const char *id = ub_json_string(slow, "site");
    json_t *site = id ? json_object_get(s->sites, id) : NULL;

    if (!id)
        return;
    if (!site) {
        if (json_object_size(s->sites) >= SITES_MAX) {
            s->sites_left_out++;
            return;
        }
        site = json_pack("{s:s}", "site", id);
        json_object_set_new(s->sites, id, site);
    }
    add(site, "count", count);
    add(site, "total_ns", more_ns);
    json_object_set_new(site, "last_ns", json_integer((json_int_t)ub_json_u64_or(slow, "start_ns", 0)));
    if (duration_ns < ub_json_u64_or(site, "max_ns", 0))
        return;
    json_object_set_new(site, "max_ns", json_integer((json_int_t)duration_ns));
    copy(site, slow, "cause");
    copy(site, slow, "callback");
    copy(site, slow, "call");
    copy(site, slow, "kind");
    copy(site, slow, "pid");
}

static void on_slow(struct ub_control_state *s, json_t *slow)
{
    uint64_t duration_ns = ub_json_u64_or(slow, "duration_ns", 0), count = 1, more_ns = duration_ns;
    size_t at;
    json_t *before = told_before(s, slow, &at);

    if (before) {
        uint64_t told_ns = ub_json_u64_or(before, "duration_ns", 0);

        count = 0;
        more_ns = duration_ns > told_ns ? duration_ns - told_ns : 0;
        json_array_set(s->stalls, at, slow);
    } else {
        keep_last(s->stalls, slow, STALLS_MAX);
    }
    if (!counts(slow))
        return;
    count = ub_add_saturated(count, ub_json_u64_or(slow, "repeats", 0));
    s->slow = ub_add_saturated(s->slow, count);
    if (duration_ns > s->worst_ns)
        s->worst_ns = duration_ns;
    add_to_site(s, slow, count, duration_ns, more_ns);
}

static void on_stack(struct ub_control_state *s, const json_t *stack)
{
    char key[32], *text = json_dumps(stack, JSON_COMPACT);
    json_t *value = text ? json_string(text) : NULL;

    snprintf(key, sizeof(key), "%" PRIu64, ub_json_u64_or(stack, "id", 0));
    if (value)
        keep(s->stacks, key, value, STACKS_MAX);
    json_decref(value);
    free(text);
}

void ub_control_state_line(struct ub_control_state *s, json_t *record)
{
    const char *type = ub_json_string(record, "type");
    char key[48];

    if (!type)
        return;
    if (!strcmp(type, "slow")) {
        on_slow(s, record);
    } else if (!strcmp(type, "stack")) {
        on_stack(s, record);
    } else if (!strcmp(type, "header")) {
        json_decref(s->header);
        s->header = json_incref(record);
    } else if (!strcmp(type, "process")) {
        snprintf(key, sizeof(key), "%" PRIu64, ub_json_u64_or(record, "pid", 0));
        keep(s->processes, key, record, PROCESSES_MAX);
    } else if (!strcmp(type, "loop")) {
        snprintf(key, sizeof(key), "%" PRIu64 "/%" PRIu64, ub_json_u64_or(record, "pid", 0),
                 ub_json_u64_or(record, "tid", 0));
        keep(s->loops, key, record, LOOPS_MAX);
    } else if (!strcmp(type, "note")) {
        keep_last(s->notes, record, NOTES_MAX);
    }
}

static json_t *live_loops(const struct ub_control_state *s, const struct ub_watch *watch)
{
    static struct ub_watch_loop loop[LIVE_LOOPS]; /* under the caller's lock */
    uint32_t count = watch ? ub_watch_loops(watch, loop, LIVE_LOOPS) : 0;
    json_t *list = json_array();

    for (uint32_t i = 0; i < count; i++) {
        const struct ub_watch_loop *l = &loop[i];
        char key[48];
        const char *kind, *exe;
        json_t *one = json_pack("{s:i, s:i, s:I, s:I, s:I, s:I, s:I, s:I}", "pid", (int)l->pid, "tid", (int)l->tid,
                                "turns", (json_int_t)l->turns, "busy_ns", (json_int_t)l->busy_ns, "max_ns",
                                (json_int_t)l->max_ns, "running_ns", (json_int_t)l->running_ns, "p50_ns",
                                (json_int_t)l->p50_ns, "p99_ns", (json_int_t)l->p99_ns);

        snprintf(key, sizeof(key), "%d/%d", (int)l->pid, (int)l->tid);
        kind = ub_json_string(json_object_get(s->loops, key), "loop");
        snprintf(key, sizeof(key), "%d", (int)l->pid);
        exe = ub_json_string(json_object_get(s->processes, key), "exe");
        if (one && kind)
            json_object_set_new(one, "loop", json_string(kind));
        if (one && exe)
            json_object_set_new(one, "program", json_string(ub_path_base(exe)));
        json_array_append_new(list, one);
    }
    return list;
}

static json_t *values_of(const json_t *table)
{
    json_t *list = json_array(), *value;
    const char *key;

    json_object_foreach ((json_t *)table, key, value) {
        json_array_append(list, value);
    }
    return list;
}

/* Where the watcher's losses are, as in the recording's `end` line. */
static json_t *losses(const struct ub_control_options *options, const struct ub_watch *watch)
{
    struct ub_watch_lost lost = {0};

    if (watch)
        ub_watch_lost(watch, &lost);
    return json_pack("{s:I, s:I, s:I, s:I}", "ring", (json_int_t)lost.ring, "rate_limited",
                     (json_int_t)lost.rate_limited, "queue", (json_int_t)lost.queue, "recording",
                     (json_int_t)(options->recording_lost ? options->recording_lost(options->self) : 0));
}

json_t *ub_control_state_status(const struct ub_control_state *s, const struct ub_control_options *options,
                                const struct ub_watch *watch)
{
    json_t *status = json_pack("{s:s, s:i, s:s, s:i, s:s, s:i, s:I, s:I, s:o, s:o, s:o, s:O, s:O}", "type", "status",
                               "version", UB_CONTROL_VERSION, "tool", "unblock " UB_VERSION, "watcher", (int)getpid(),
                               "mode", options->mode, "pid", (int)options->pid, "slow", (json_int_t)s->slow, "worst_ns",
                               (json_int_t)s->worst_ns, "lost", losses(options, watch), "loops", live_loops(s, watch),
                               "sites", values_of(s->sites), "stalls", s->stalls, "notes", s->notes);

    if (!status)
        return NULL;
    copy(status, s->header, "command");
    copy(status, s->header, "started");
    copy(status, s->header, "monotonic_ns");
    copy(status, s->header, "threshold_ns");
    json_object_set_new(status, "now_ns", json_integer((json_int_t)ub_clock_monotonic_ns()));
    if (options->recording)
        json_object_set_new(status, "recording", json_string(options->recording));
    if (options->recording_error)
        json_object_set_new(status, "recording_error", json_string(options->recording_error));
    if (s->sites_left_out)
        json_object_set_new(status, "sites_left_out", json_integer((json_int_t)s->sites_left_out));
    return status;
}
