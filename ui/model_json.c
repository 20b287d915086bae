/*
 * The model as one JSON document: everything the text report says, as numbers.
 * Fields that are not known are left out, as in the recording.
 */
#include "model_private.h"
#include "advice.h"
#include "chain.h"
#include "figures.h"

static void set_u64(json_t *o, const char *key, uint64_t value)
{
    json_object_set_new(o, key, json_integer(value > INT64_MAX ? INT64_MAX : (json_int_t)value));
}

/* Names that were cut in the middle of a character are no UTF-8 any more: left out rather than failing the document. */
static void set_string(json_t *o, const char *key, const char *value)
{
    if (value)
        json_object_set_new(o, key, json_string(value));
}

static void copy(json_t *to, const json_t *from, const char *const *keys, size_t count)
{
    size_t i;

    for (i = 0; i < count; i++)
        if (json_object_get(from, keys[i]))
            json_object_set(to, keys[i], json_object_get(from, keys[i]));
}

/* ---- recordings ------------------------------------------------------ */

static json_t *run_json(const struct ub_run *run)
{
    static const char *const header_keys[] = {"tool",    "started",      "monotonic_ns", "host",
                                              "command", "threshold_ns", "source"};
    static const char *const end_keys[] = {"exit", "signal", "lost"};
    json_t *o = json_object();

    copy(o, run->header, header_keys, UB_ARRAY_LEN(header_keys));
    copy(o, run->end, end_keys, UB_ARRAY_LEN(end_keys));
    json_object_set_new(o, "ended", json_boolean(run->end != NULL));
    set_string(o, "next", run->next);
    return o;
}

static json_t *runs_json(const struct ub_model *m)
{
    json_t *list = json_array();
    uint32_t i;

    for (i = 0; i < m->runs; i++)
        json_array_append_new(list, run_json(&m->run[i].run));
    return list;
}

static json_t *files_json(const struct ub_model *m)
{
    json_t *list = json_array();
    uint32_t i;

    for (i = 0; i < m->files; i++) {
        json_t *o = json_object();

        set_string(o, "name", m->file[i].name);
        set_u64(o, "lines", m->file[i].stats.lines);
        set_u64(o, "torn", m->file[i].stats.torn);
        set_u64(o, "skipped", m->file[i].stats.skipped);
        json_array_append_new(list, o);
    }
    return list;
}

static json_t *pools_json(const struct ub_model *m)
{
    json_t *list = json_array(), *pool;
    const char *key;

    json_object_foreach (m->pools, key, pool) {
        json_array_append(list, pool);
    }
    return list;
}

static json_t *dropped_json(const struct ub_model_dropped *d)
{
    json_t *o = json_object();

    set_u64(o, "malformed", d->malformed);
    set_u64(o, "sites", d->sites);
    set_u64(o, "stacks", d->stacks);
    set_u64(o, "loops", d->loops);
    set_u64(o, "runs", d->runs);
    set_u64(o, "ongoing", d->ongoing);
    set_u64(o, "notes", d->notes);
    set_u64(o, "lints", d->lints);
    set_u64(o, "threads", d->threads);
    set_u64(o, "pools", d->pools);
    set_u64(o, "kinds", d->kinds);
    return o;
}

/* ---- figures --------------------------------------------------------- */

static json_t *totals_json(const struct ub_stall_totals *t)
{
    json_t *o = json_object();

    set_u64(o, "stalls", t->count);
    set_u64(o, "total_ns", t->total_ns);
    set_u64(o, "max_ns", t->max_ns);
    set_u64(o, "ongoing", t->ongoing);
    return o;
}

static void set_percentiles(json_t *o, const struct ub_distribution *d)
{
    if (d->used == 0)
        return;
    set_u64(o, "p50_ns", ub_distribution_percentile(d, 500));
    set_u64(o, "p90_ns", ub_distribution_percentile(d, 900));
    set_u64(o, "p99_ns", ub_distribution_percentile(d, 990));
    set_u64(o, "p999_ns", ub_distribution_percentile(d, 999));
}

static json_t *times_json(const struct ub_kind_times *t)
{
    json_t *o = json_object();

    set_u64(o, "callbacks", t->count);
    set_u64(o, "total_ns", t->total_ns);
    set_u64(o, "max_ns", t->max_ns);
    set_percentiles(o, &t->distribution);
    return o;
}

static json_t *kinds_json(const struct ub_kinds *kinds)
{
    json_t *o = json_object();

    for (uint32_t i = 0; i < kinds->count; i++) {
        json_t *kind = times_json(&kinds->kind[i].ran);

        if (kinds->kind[i].late.count > 0)
            json_object_set_new(kind, "delayed", times_json(&kinds->kind[i].late));
        json_object_set_new(o, kinds->kind[i].name, kind);
    }
    return o;
}

static json_t *loop_json(const struct ub_loop *loop)
{
    json_t *o = json_object();

    set_u64(o, "pid", loop->pid);
    set_u64(o, "tid", loop->tid);
    set_string(o, "loop", loop->kind);
    set_string(o, "program", loop->program);
    if (*loop->thread)
        set_string(o, "thread", loop->thread);
    if (!loop->has_stats)
        return o;
    set_u64(o, "callbacks", loop->callbacks);
    if (loop->turns > 0)
        set_u64(o, "turns", loop->turns);
    set_u64(o, "busy_ns", loop->busy_ns);
    set_u64(o, "max_ns", loop->max_ns);
    if (loop->observed_ns > 0) {
        set_u64(o, "observed_ns", loop->observed_ns);
        json_object_set_new(o, "busy_share", json_real((double)loop->busy_ns / (double)loop->observed_ns));
    }
    set_percentiles(o, &loop->duration);
    if (loop->kinds.count > 0)
        json_object_set_new(o, "kinds", kinds_json(&loop->kinds));
    return o;
}

static json_t *loops_json(const struct ub_model *m)
{
    size_t count, i;
    const struct ub_loop **loops = ub_model_loops(m, &count);
    json_t *list = json_array();

    for (i = 0; i < count; i++)
        json_array_append_new(list, loop_json(loops[i]));
    free(loops);
    return list;
}

/* ---- call sites ------------------------------------------------------ */

static json_t *where_json(const struct ub_chain *chain)
{
    static const char *const keys[] = {"function", "file", "line", "module", "offset", "nearest"};
    json_t *list = json_array();
    uint32_t i;

    for (i = 0; i < chain->count; i++) {
        json_t *o = json_object();

        copy(o, chain->link[i].frame, keys, UB_ARRAY_LEN(keys));
        set_u64(o, "samples", chain->link[i].samples);
        json_array_append_new(list, o);
    }
    return list;
}

static json_t *stacks_json(const struct ub_site *site)
{
    json_t *list = json_array();
    uint32_t i;

    for (i = 0; i < site->stacks; i++) {
        json_t *o;

        if (site->stack[i].samples == 0)
            continue;
        o = json_object();
        set_u64(o, "samples", site->stack[i].samples);
        set_u64(o, "unproven", site->stack[i].unproven);
        set_u64(o, "incomplete", site->stack[i].incomplete);
        json_object_set(o, "frames", site->stack[i].frames);
        json_array_append_new(list, o);
    }
    return list;
}

static json_t *causes_json(const struct ub_site *site)
{
    json_t *o = json_object();
    int i;

    for (i = 0; i < UB_CAUSES; i++)
        if (site->cause[i] > 0)
            set_u64(o, ub_model_cause_name((enum ub_cause)i), site->cause[i]);
    return o;
}

static void set_stacks(json_t *o, const struct ub_site *site)
{
    UB_CLEANUP(ub_chain_clear) struct ub_chain chain;

    ub_chain_of_site(site, &chain);
    set_u64(o, "samples", site->samples);
    set_u64(o, "samples_without_stack", site->samples_no_stack);
    json_object_set_new(o, "where", where_json(&chain));
    json_object_set_new(o, "stacks", stacks_json(site));
}

static json_t *site_json(const struct ub_site *site)
{
    static const char *const worst_keys[] = {"site", "loop", "kind", "callback", "task", "gil", "call"};
    struct ub_advice_query query;
    const struct ub_advice *advice;
    char words[UB_ADVICE_WORDS_MAX];
    json_t *o = json_object();

    ub_advice_query_site(site, &query);
    advice = ub_advice_find(&query);

    set_string(o, "site", site->id); /* an overlong one is replaced by the whole of it */
    copy(o, site->worst, worst_keys, UB_ARRAY_LEN(worst_keys));
    set_string(o, "class", ub_figures_class[site->class]);
    set_string(o, "program", site->program);
    set_string(o, "cause", ub_model_cause_name(ub_model_site_cause(site)));
    json_object_set_new(o, "causes", causes_json(site));
    set_u64(o, "stalls", site->durations.count);
    set_u64(o, "total_ns", site->durations.total_ns);
    set_u64(o, "max_ns", site->durations.max_ns);
    set_percentiles(o, &site->durations);
    if (site->ongoing > 0)
        set_u64(o, "ongoing", site->ongoing);
    set_stacks(o, site);
    if (advice) {
        set_string(o, "what", advice->title);
        set_string(o, "do", ub_advice_words(&query, advice, words, sizeof(words)));
    }
    json_object_set(o, "longest", site->worst);
    return o;
}

static json_t *sites_json(const struct ub_model *m)
{
    json_t *list = json_array();
    int class;

    for (class = 0; class < UB_STALL_CLASSES; class ++) {
        size_t count, i;
        const struct ub_site **sites = ub_model_sites(m, (enum ub_stall_class) class, m->sort, &count);

        for (i = 0; i < count; i++)
            json_array_append_new(list, site_json(sites[i]));
        free(sites);
    }
    return list;
}

static json_t *lints_json(const struct ub_model *m)
{
    json_t *list = json_array(), *lint;
    const char *key;

    json_object_foreach (m->lints, key, lint)
        json_array_append(list, lint);
    return list;
}

json_t *ub_model_json(const struct ub_model *m)
{
    json_t *o = json_object();

    set_string(o, "schema", "unblock-report");
    set_u64(o, "version", 1);
    json_object_set_new(o, "recordings", runs_json(m));
    json_object_set_new(o, "files", files_json(m));
    json_object_set_new(o, "verdict", totals_json(&m->totals[UB_STALL_COUNTED]));
    json_object_set_new(o, "startup", totals_json(&m->totals[UB_STALL_STARTUP]));
    json_object_set_new(o, "stopped", totals_json(&m->totals[UB_STALL_STOPPED]));
    if (m->totals[UB_STALL_SUPPRESSED].count > 0)
        json_object_set_new(o, "suppressed", totals_json(&m->totals[UB_STALL_SUPPRESSED]));
    if (m->totals[UB_STALL_UNCLEAR].count > 0)
        json_object_set_new(o, "unclear", totals_json(&m->totals[UB_STALL_UNCLEAR]));
    json_object_set_new(o, "loops", loops_json(m));
    json_object_set_new(o, "sites", sites_json(m));
    json_object_set(o, "threads", m->threads);
    json_object_set_new(o, "pools", pools_json(m));
    json_object_set(o, "notes", m->notes);
    if (json_object_size(m->lints) > 0)
        json_object_set_new(o, "lints", lints_json(m));
    if (json_array_size(m->offload) > 0)
        json_object_set(o, "offload", m->offload);
    if (json_array_size(m->python) > 0)
        json_object_set(o, "python", m->python);
    json_object_set_new(o, "dropped", dropped_json(&m->dropped));
    return o;
}
