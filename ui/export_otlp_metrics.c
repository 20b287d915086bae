/*
 * OTLP metrics: the figures that Prometheus gets, as cumulative sums and
 * histograms since the recording began.
 */
#include "export.h"
#include "figures.h"
#include "otlp.h"

#include <stdlib.h>

#define CUMULATIVE 2 /* AGGREGATION_TEMPORALITY_CUMULATIVE */

static const struct ub_otlp_words words = {"resourceMetrics", "scopeMetrics", "metrics"};

struct metrics {
    const struct ub_model *m;
    json_t *list;
    uint64_t begin_ns, end_ns; /* wall clock; 0: not known */
};

/* ---- one metric ---------------------------------------------------------- */

enum kind {
    SUM,
    GAUGE,
    HISTOGRAM,
};

static const char *const kinds[] = {"sum", "gauge", "histogram"};

/* Returns its data points, to be added to. */
static json_t *metric(struct metrics *all, enum kind kind, const char *name, const char *unit, const char *help)
{
    json_t *points = json_array(), *o = json_pack("{s:o}", "dataPoints", points);

    if (kind != GAUGE)
        json_object_set_new(o, "aggregationTemporality", json_integer(CUMULATIVE));
    if (kind == SUM)
        json_object_set_new(o, "isMonotonic", json_true());
    json_array_append_new(
        all->list, json_pack("{s:s, s:s, s:s, s:o}", "name", name, "unit", unit, "description", help, kinds[kind], o));
    return points;
}

/* Takes `attributes`. */
static json_t *point(const struct metrics *all, json_t *points, json_t *attributes)
{
    json_t *o = json_pack("{s:o}", "attributes", attributes);

    if (all->begin_ns > 0)
        json_object_set_new(o, "startTimeUnixNano", ub_otlp_u64(all->begin_ns));
    if (all->end_ns > 0)
        json_object_set_new(o, "timeUnixNano", ub_otlp_u64(all->end_ns));
    json_array_append_new(points, o);
    return o;
}

static void set_count(json_t *o, uint64_t count)
{
    json_object_set_new(o, "asInt", ub_otlp_u64(count));
}

static json_t *seconds(uint64_t ns)
{
    return json_real((double)ns / 1e9);
}

static void set_seconds(json_t *o, uint64_t ns)
{
    json_object_set_new(o, "asDouble", seconds(ns));
}

/* ---- what there is to tell ----------------------------------------------- */

static json_t *one(const char *key, const char *value)
{
    json_t *attributes = json_array();

    ub_otlp_text(attributes, key, value);
    return attributes;
}

static void put_totals(struct metrics *all)
{
    json_t *stalls = metric(all, SUM, "unblock.stalls", "{stall}", "Stalls of event loops over the threshold.");
    json_t *time = metric(all, SUM, "unblock.stall.time", "s", "Time lost in these stalls.");
    json_t *max = metric(all, GAUGE, "unblock.stall.max", "s", "The longest of these stalls.");
    int i;

    for (i = 0; i < UB_STALL_CLASSES; i++) {
        const struct ub_stall_totals *totals = ub_model_totals(all->m, (enum ub_stall_class)i);
        const char *name = ub_figures_class[i];

        set_count(point(all, stalls, one("unblock.class", name)), totals->count);
        set_seconds(point(all, time, one("unblock.class", name)), totals->total_ns);
        if (totals->count > 0)
            set_seconds(point(all, max, one("unblock.class", name)), totals->max_ns);
    }
}

static void put_lost(struct metrics *all)
{
    json_t *points = metric(all, SUM, "unblock.lost_records", "{record}", "What could not be recorded.");
    int i;

    for (i = 0; ub_figures_loss[i]; i++)
        set_count(point(all, points, one("unblock.kind", ub_figures_loss[i])),
                  ub_figures_lost(all->m, ub_figures_loss[i]));
}

/* Where recordings were joined a process number alone tells no loops apart. */
static json_t *loop_attributes(const struct metrics *all, const struct ub_loop *loop)
{
    json_t *a = json_array();

    ub_otlp_text(a, "process.executable.name", loop->program);
    ub_otlp_number(a, "process.pid", loop->pid);
    ub_otlp_number(a, "thread.id", loop->tid);
    ub_otlp_text(a, "thread.name", loop->thread);
    ub_otlp_text(a, "unblock.loop", loop->kind);
    if (ub_model_runs(all->m) > 1) {
        ub_otlp_text(a, "host.name", ub_json_string(ub_model_run(all->m, loop->run)->header, "host"));
        ub_otlp_number(a, "unblock.run", loop->run);
    }
    return a;
}

/* Counts and sum are those of the recording; which bucket, errs by 3 % of the duration. */
static void put_turns(const struct metrics *all, json_t *points, const struct ub_loop *loop)
{
    const struct ub_distribution *d = &loop->duration;
    json_t *o = point(all, points, loop_attributes(all, loop)), *bounds = json_array(), *counts = json_array();
    uint64_t before = 0, upto;
    size_t i;

    for (i = 0; ub_figures_edge[i].ns > 0; i++) {
        upto = ub_figures_count_up_to(d, ub_figures_edge[i].ns);
        json_array_append_new(bounds, seconds(ub_figures_edge[i].ns));
        json_array_append_new(counts, ub_otlp_u64(upto - before));
        before = upto;
    }
    json_array_append_new(counts, ub_otlp_u64(d->count - before));
    json_object_set_new(o, "count", ub_otlp_u64(d->count));
    json_object_set_new(o, "sum", seconds(d->total_ns));
    json_object_set_new(o, "max", seconds(d->max_ns));
    json_object_set_new(o, "explicitBounds", bounds);
    json_object_set_new(o, "bucketCounts", counts);
}

static void put_loops(struct metrics *all)
{
    size_t count, i;
    const struct ub_loop **loops = ub_model_loops(all->m, &count);
    json_t *turns = metric(all, HISTOGRAM, "unblock.loop.turn.duration", "s",
                           "Turns of an event loop, from its wait call to the next.");
    json_t *busy = metric(all, SUM, "unblock.loop.busy_time", "s", "Time that the loop was not waiting.");

    for (i = 0; i < count; i++) {
        if (!loops[i]->has_stats)
            continue;
        put_turns(all, turns, loops[i]);
        set_seconds(point(all, busy, loop_attributes(all, loops[i])), loops[i]->busy_ns);
    }
    free(loops);
}

static json_t *site_attributes(const struct ub_finding *f)
{
    json_t *a = json_array();

    ub_otlp_text(a, "unblock.site", f->site->id);
    ub_otlp_text(a, "process.executable.name", f->site->program);
    ub_otlp_text(a, "unblock.cause", ub_model_cause_name(ub_model_site_cause(f->site)));
    ub_otlp_text(a, "unblock.what", f->what);
    return a;
}

static void put_sites(struct metrics *all)
{
    struct ub_findings f;
    json_t *stalls, *time;
    size_t i;

    if (ub_findings_make(all->m, 0, NULL, &f) < 0)
        return;
    stalls = metric(all, SUM, "unblock.site.stalls", "{stall}", "Stalls of a call site.");
    time = metric(all, SUM, "unblock.site.stall.time", "s", "Time lost at a call site.");
    for (i = 0; i < f.count && i < UB_FIGURES_SITES_MAX; i++) {
        set_count(point(all, stalls, site_attributes(&f.finding[i])), f.finding[i].site->durations.count);
        set_seconds(point(all, time, site_attributes(&f.finding[i])), f.finding[i].site->durations.total_ns);
    }
    ub_findings_clear(&f);
}

/* A metric without a data point says nothing. */
static void drop_empty(json_t *list)
{
    size_t i = json_array_size(list);

    while (i-- > 0) {
        const json_t *o = json_array_get(list, i), *points = NULL;
        int kind;

        for (kind = SUM; kind <= HISTOGRAM && !points; kind++)
            points = json_object_get(json_object_get(o, kinds[kind]), "dataPoints");
        if (json_array_size(points) == 0)
            json_array_remove(list, i);
    }
}

/* ---- all of it ------------------------------------------------------------ */

static void find_times(struct metrics *all)
{
    uint32_t i;

    for (i = 0; i < ub_model_runs(all->m); i++) {
        const struct ub_run *run = ub_model_run(all->m, i);
        uint64_t begin = ub_json_u64_or(run->header, "monotonic_ns", 0), end = run->last_ns;
        int64_t offset, wall;

        if (!ub_timeline_offset(run, &offset))
            continue;
        if (!__builtin_add_overflow(offset, begin, &wall) && wall > 0 &&
            (all->begin_ns == 0 || (uint64_t)wall < all->begin_ns))
            all->begin_ns = (uint64_t)wall;
        if (!__builtin_add_overflow(offset, end > begin ? end : begin, &wall) && wall > 0 &&
            (uint64_t)wall > all->end_ns)
            all->end_ns = (uint64_t)wall;
    }
}

/* What all recordings agree on; otherwise it would be said of the wrong ones. */
static const char *common_host(const struct ub_model *m)
{
    const char *host = NULL, *other;
    uint32_t i;

    for (i = 0; i < ub_model_runs(m); i++) {
        other = ub_json_string(ub_model_run(m, i)->header, "host");
        if (!other || (host && strcmp(host, other) != 0))
            return NULL;
        host = other;
    }
    return host;
}

static const char *common_program(const struct ub_model *m)
{
    size_t count, i;
    const struct ub_loop **loops = ub_model_loops(m, &count);
    const char *program = count > 0 ? loops[0]->program : NULL;

    for (i = 0; i < count && program; i++)
        if (!loops[i]->program || strcmp(program, loops[i]->program) != 0)
            program = NULL;
    free(loops);
    return program;
}

static void write_otlp_metrics(FILE *out, const struct ub_export_job *job)
{
    struct metrics all = {.m = job->m, .list = json_array()};

    find_times(&all);
    put_totals(&all);
    put_lost(&all);
    put_loops(&all);
    put_sites(&all);
    drop_empty(all.list);
    ub_otlp_line(out, &words, ub_otlp_resource(common_program(job->m), common_host(job->m)), all.list);
}

const struct ub_export ub_export_otlp_metrics = {.name = "otlp-metrics", .write = write_otlp_metrics};
