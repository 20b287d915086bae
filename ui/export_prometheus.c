/*
 * Prometheus text format, version 0.0.4: what `report --format prometheus`
 * writes and what `run --metrics` serves. Counters are totals since the recording
 * began, so that a scraper can rate() them.
 */
#include "export.h"
#include "figures.h"
#include "text_escape.h"
#include "text_frames.h"

#include <inttypes.h>
#include <stdlib.h>

static void put_seconds(FILE *out, uint64_t ns)
{
    fprintf(out, "%" PRIu64 ".%09" PRIu64 "\n", ns / 1000000000, ns % 1000000000);
}

static void put_label(FILE *out, const char *before, const char *name, const char *value)
{
    char *text = NULL, *p;
    size_t size;
    FILE *escaped = open_memstream(&text, &size);

    if (!escaped)
        return;
    ub_escape_put(escaped, value ? value : "", 100);
    fclose(escaped);
    fprintf(out, "%s%s=\"", before, name);
    for (p = text; *p; p++)
        fprintf(out, *p == '\\' || *p == '"' ? "\\%c" : "%c", *p);
    fputc('"', out);
    free(text);
}

static void head(FILE *out, const char *name, const char *type, const char *help)
{
    fprintf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void put_totals(FILE *out, const struct ub_model *m)
{
    int i;

    head(out, "unblock_stalls_total", "counter", "Stalls of event loops over the threshold.");
    for (i = 0; i < UB_STALL_CLASSES; i++)
        fprintf(out, "unblock_stalls_total{class=\"%s\"} %" PRIu64 "\n", ub_figures_class[i],
                ub_model_totals(m, (enum ub_stall_class)i)->count);
    head(out, "unblock_stall_seconds_total", "counter", "Time lost in these stalls.");
    for (i = 0; i < UB_STALL_CLASSES; i++) {
        fprintf(out, "unblock_stall_seconds_total{class=\"%s\"} ", ub_figures_class[i]);
        put_seconds(out, ub_model_totals(m, (enum ub_stall_class)i)->total_ns);
    }
    head(out, "unblock_stall_seconds_max", "gauge", "The longest counted stall.");
    fputs("unblock_stall_seconds_max ", out);
    put_seconds(out, ub_model_totals(m, UB_STALL_COUNTED)->max_ns);
    head(out, "unblock_stalls_ongoing", "gauge", "Counted stalls that are not over.");
    fprintf(out, "unblock_stalls_ongoing %" PRIu64 "\n", ub_model_totals(m, UB_STALL_COUNTED)->ongoing);
}

static void put_lost(FILE *out, const struct ub_model *m)
{
    int i;

    head(out, "unblock_lost_records_total", "counter", "What could not be recorded, known when a run has ended.");
    for (i = 0; ub_figures_loss[i]; i++)
        fprintf(out, "unblock_lost_records_total{kind=\"%s\"} %" PRIu64 "\n", ub_figures_loss[i],
                ub_figures_lost(m, ub_figures_loss[i]));
}

/* ---- loops ------------------------------------------------------------ */

/* Where recordings were joined a process number alone tells no loops apart, and no series may come twice. */
static void put_loop_labels(FILE *out, const struct ub_model *m, const struct ub_loop *loop)
{
    char ids[64];

    put_label(out, "{", "program", loop->program ? loop->program : "?");
    put_label(out, ",", "loop", loop->kind);
    put_label(out, ",", "thread", loop->thread);
    snprintf(ids, sizeof(ids), ",pid=\"%" PRIu64 "\",tid=\"%" PRIu64 "\"", loop->pid, loop->tid);
    fputs(ids, out);
    if (ub_model_runs(m) > 1) {
        put_label(out, ",", "host", ub_json_string(ub_model_run(m, loop->run)->header, "host"));
        fprintf(out, ",run=\"%" PRIu32 "\"", loop->run);
    }
}

static void put_histogram(FILE *out, const struct ub_model *m, const struct ub_loop *loop)
{
    size_t i;

    for (i = 0; ub_figures_edge[i].ns > 0; i++) {
        fputs("unblock_loop_turn_seconds_bucket", out);
        put_loop_labels(out, m, loop);
        fprintf(out, ",le=\"%s\"} %" PRIu64 "\n", ub_figures_edge[i].seconds,
                ub_figures_count_up_to(&loop->duration, ub_figures_edge[i].ns));
    }
    fputs("unblock_loop_turn_seconds_bucket", out);
    put_loop_labels(out, m, loop);
    fprintf(out, ",le=\"+Inf\"} %" PRIu64 "\nunblock_loop_turn_seconds_sum", loop->duration.count);
    put_loop_labels(out, m, loop);
    fputs("} ", out);
    put_seconds(out, loop->duration.total_ns);
    fputs("unblock_loop_turn_seconds_count", out);
    put_loop_labels(out, m, loop);
    fprintf(out, "} %" PRIu64 "\n", loop->duration.count);
}

static void put_loops(FILE *out, const struct ub_model *m)
{
    size_t count, i;
    const struct ub_loop **loops = ub_model_loops(m, &count);

    head(out, "unblock_loop_turn_seconds", "histogram", "Turns of an event loop, from its wait call to the next.");
    for (i = 0; i < count; i++)
        if (loops[i]->has_stats)
            put_histogram(out, m, loops[i]);
    head(out, "unblock_loop_busy_seconds_total", "counter", "Time that the loop was not waiting.");
    for (i = 0; i < count; i++) {
        if (!loops[i]->has_stats)
            continue;
        fputs("unblock_loop_busy_seconds_total", out);
        put_loop_labels(out, m, loops[i]);
        fputs("} ", out);
        put_seconds(out, loops[i]->busy_ns);
    }
    free(loops);
}

/* ---- offload ---------------------------------------------------------- */

static void put_lag(FILE *out, const struct ub_model *m)
{
    size_t count, i;
    const struct ub_loop **loops = ub_model_loops(m, &count);

    head(out, "unblock_loop_lag_p99_seconds", "gauge",
         "What all but 1 % of what comes at any moment wait less for until the loop looks at it.");
    for (i = 0; i < count; i++) {
        if (!loops[i]->lag.known)
            continue;
        fputs("unblock_loop_lag_p99_seconds", out);
        put_loop_labels(out, m, loops[i]);
        fputs("} ", out);
        put_seconds(out, loops[i]->lag.p99_ns);
    }
    free(loops);
}

static void put_most(FILE *out, const char *name, const char *help, uint64_t n)
{
    head(out, name, "gauge", help);
    fprintf(out, "%s %" PRIu64 "\n", name, n);
}

static void put_moved(FILE *out, const struct ub_figures_offload *o)
{
    head(out, "unblock_offload_moved_total", "counter", "Calls that were made off their loop.");
    fprintf(out, "unblock_offload_moved_total %" PRIu64 "\n", o->moved);
    head(out, "unblock_offload_moved_seconds_total", "counter", "Time for which these would have blocked their loops.");
    fputs("unblock_offload_moved_seconds_total ", out);
    put_seconds(out, o->saved_ns);
    head(out, "unblock_offload_wait_seconds_total", "counter",
         "Of that, until a thread took a call up, and from its end until its callback went on.");
    fputs("unblock_offload_wait_seconds_total ", out);
    put_seconds(out, o->wait_ns);
    head(out, "unblock_offload_beside_total", "counter", "Callbacks that ran while calls were off their loop.");
    fprintf(out, "unblock_offload_beside_total %" PRIu64 "\n", o->beside);
    head(out, "unblock_offload_busy_seconds_total", "counter", "Time that threads of the executor were in calls.");
    fputs("unblock_offload_busy_seconds_total ", out);
    put_seconds(out, o->busy_ns);
    put_most(out, "unblock_offload_queued", "Calls that wait for a thread now.", o->queued_now);
    put_most(out, "unblock_offload_away",
             "Calls that have left their loop and are not back, those of processes that ended meanwhile included.",
             o->away);
    put_most(out, "unblock_offload_threads_max", "Most threads of the executor of one process.", o->threads);
    put_most(out, "unblock_offload_queued_max", "Most calls that waited for a thread at once.", o->queued);
    put_most(out, "unblock_offload_stack_bytes_max", "Deepest that a callback's own stack was used.", o->stack_bytes);
}

static void put_function_labels(FILE *out, const char *name, const json_t *function)
{
    fputs(name, out);
    put_label(out, "{", "function", ub_json_string(function, "function"));
    put_label(out, ",", "place", ub_json_string(function, "place"));
    fputs("} ", out);
}

static void put_functions(FILE *out, const struct ub_model *m)
{
    static const char calls[] = "unblock_offload_function_calls_total",
                      seconds[] = "unblock_offload_function_seconds_total";
    json_t *functions = ub_figures_functions(m), *function;
    size_t i;

    if (json_array_size(functions) > 0)
        head(out, calls, "counter", "Calls of a Python function that ran elsewhere.");
    json_array_foreach (functions, i, function) {
        if (i == UB_FIGURES_SITES_MAX)
            break;
        put_function_labels(out, calls, function);
        fprintf(out, "%" PRIu64 "\n", ub_json_u64_or(function, "count", 0));
    }
    if (json_array_size(functions) > 0)
        head(out, seconds, "counter", "Time from these calls until their callers went on.");
    json_array_foreach (functions, i, function) {
        if (i == UB_FIGURES_SITES_MAX)
            break;
        put_function_labels(out, seconds, function);
        put_seconds(out, ub_json_u64_or(function, "ns", 0));
    }
    json_decref(functions);
}

static void put_pin_labels(FILE *out, const json_t *pin)
{
    put_label(out, "{", "reason", ub_json_string(pin, "reason"));
    put_label(out, ",", "lock", ub_json_string(pin, "lock"));
    fputs("} ", out);
}

static void put_pins(FILE *out, const struct ub_model *m)
{
    json_t *pins = ub_figures_pins(m);
    const json_t *pin;
    size_t i;

    head(out, "unblock_offload_pinned_total", "counter",
         "Stalls whose calls stayed on their loop, by reason and by where the lock was taken.");
    json_array_foreach (pins, i, pin) {
        fputs("unblock_offload_pinned_total", out);
        put_pin_labels(out, pin);
        fprintf(out, "%" PRIu64 "\n", ub_json_u64_or(pin, "count", 0));
    }
    head(out, "unblock_offload_pinned_seconds_total", "counter", "Time of these stalls.");
    json_array_foreach (pins, i, pin) {
        fputs("unblock_offload_pinned_seconds_total", out);
        put_pin_labels(out, pin);
        put_seconds(out, ub_json_u64_or(pin, "total_ns", 0));
    }
    json_decref(pins);
}

static void put_offload(FILE *out, const struct ub_model *m)
{
    struct ub_figures_offload o;

    if (!ub_figures_offload(m, &o))
        return;
    put_moved(out, &o);
    put_functions(out, m);
    put_pins(out, m);
    put_lag(out, m);
}

/* ---- call sites --------------------------------------------------------- */

static void put_site_labels(FILE *out, const struct ub_finding *f)
{
    put_label(out, "{", "site", f->site->id);
    put_label(out, ",", "program", f->site->program ? f->site->program : "?");
    put_label(out, ",", "cause", ub_model_cause_name(ub_model_site_cause(f->site)));
    put_label(out, ",", "what", f->what);
    fputs("} ", out);
}

static void put_sites(FILE *out, const struct ub_model *m)
{
    struct ub_findings f;
    size_t i;

    if (ub_findings_make(m, 0, NULL, &f) < 0)
        return;
    head(out, "unblock_site_stalls_total", "counter", "Stalls of a call site.");
    for (i = 0; i < f.count && i < UB_FIGURES_SITES_MAX; i++) {
        fputs("unblock_site_stalls_total", out);
        put_site_labels(out, &f.finding[i]);
        fprintf(out, "%" PRIu64 "\n", f.finding[i].site->durations.count);
    }
    head(out, "unblock_site_stall_seconds_total", "counter", "Time lost at a call site.");
    for (i = 0; i < f.count && i < UB_FIGURES_SITES_MAX; i++) {
        fputs("unblock_site_stall_seconds_total", out);
        put_site_labels(out, &f.finding[i]);
        put_seconds(out, f.finding[i].site->durations.total_ns);
    }
    ub_findings_clear(&f);
}

static void write_prometheus(FILE *out, const struct ub_export_job *job)
{
    head(out, "unblock_build_info", "gauge", "Version of unblock.");
    fputs("unblock_build_info{version=\"" UB_VERSION "\"} 1\n", out);
    put_totals(out, job->m);
    put_lost(out, job->m);
    put_loops(out, job->m);
    put_offload(out, job->m);
    put_sites(out, job->m);
}

const struct ub_export ub_export_prometheus = {.name = "prometheus", .write = write_prometheus};
