/*
 * The report of a recording: verdict, loops, call sites, and what is missing.
 */
#include "text_private.h"
#include "text_escape.h"
#include "wall_time.h"

#include <stdlib.h>

#define SITES_SHOWN     100
#define UNCOUNTED_SHOWN 10
#define RUNS_SHOWN      8
#define LOOPS_SHOWN     40

static void free_array(void *array)
{
    free(*(void **)array);
}

/* ---- heading --------------------------------------------------------- */

static void put_command(const struct ub_text_view *view, const json_t *header)
{
    const json_t *word;
    size_t i;

    json_array_foreach (json_object_get(header, "command"), i, word) {
        if (i == 8) {
            fputs(" ...", view->pen.out);
            break;
        }
        fputs(i > 0 ? " " : "", view->pen.out);
        ub_escape_put(view->pen.out, json_is_string(word) ? json_string_value(word) : "?", UB_TEXT_NAME_COLUMNS);
    }
}

static void put_when(const struct ub_text_view *view, const struct ub_run *run)
{
    const char *started = ub_json_string(run->header, "started");
    uint64_t begin;
    int64_t ns;
    char buf[64];

    if (started && ub_wall_time_parse(started, &ns) == 0)
        fprintf(view->pen.out, "  %s", ub_wall_time_format(ns, buf, sizeof(buf)));
    if (ub_json_u64(run->header, "monotonic_ns", &begin) && run->last_ns > begin) {
        fputs("  ", view->pen.out);
        ub_text_put_duration(view, UB_INK_PLAIN, run->last_ns - begin);
    }
}

static void put_ended(const struct ub_text_view *view, const struct ub_run *run)
{
    const json_t *code = json_object_get(run->end, "exit"), *signal = json_object_get(run->end, "signal");

    if (json_is_integer(code))
        fprintf(view->pen.out, "  exit status %" JSON_INTEGER_FORMAT, json_integer_value(code));
    if (json_is_integer(signal))
        fprintf(view->pen.out, "  killed by signal %" JSON_INTEGER_FORMAT, json_integer_value(signal));
}

static void put_run(const struct ub_text_view *view, const struct ub_run *run)
{
    const char *host = ub_json_string(run->header, "host");
    uint64_t threshold;

    ub_pen_take(&view->pen, UB_INK_FUNCTION);
    put_command(view, run->header);
    ub_pen_drop(&view->pen);
    if (host) {
        fputs("  host ", view->pen.out);
        ub_escape_put(view->pen.out, host, UB_TEXT_NAME_COLUMNS);
    }
    put_when(view, run);
    if (ub_json_u64(run->header, "threshold_ns", &threshold)) { /* a dump has none */
        fputs("  threshold ", view->pen.out);
        ub_text_put_duration(view, UB_INK_PLAIN, threshold);
    }
    put_ended(view, run);
    fputc('\n', view->pen.out);
}

static void put_runs(const struct ub_text_view *view)
{
    uint32_t runs = ub_model_runs(view->m), i;

    for (i = 0; i < runs && i < RUNS_SHOWN; i++)
        if (ub_model_run(view->m, i)->header)
            put_run(view, ub_model_run(view->m, i));
    if (runs > RUNS_SHOWN)
        fprintf(view->pen.out, "and %u more recordings\n", runs - RUNS_SHOWN);
    fputc('\n', view->pen.out);
}

/* ---- verdict --------------------------------------------------------- */

static void put_uncounted_sum(const struct ub_text_view *view, enum ub_stall_class class, const char *words)
{
    const struct ub_stall_totals *totals = ub_model_totals(view->m, class);

    if (totals->count == 0)
        return;
    fprintf(view->pen.out, "%" PRIu64 " more %s, ", totals->count, words);
    ub_text_put_duration(view, UB_INK_PLAIN, totals->total_ns);
    fputs(": not counted\n", view->pen.out);
}

static void put_verdict(const struct ub_text_view *view)
{
    const struct ub_stall_totals *totals = ub_model_totals(view->m, UB_STALL_COUNTED);

    if (totals->count == 0) {
        ub_pen_printf(&view->pen, UB_INK_GOOD,
                      ub_model_totals(view->m, UB_STALL_SUPPRESSED)->count > 0 ? "no other stalls\n" : "no stalls\n");
    } else {
        ub_text_count(view, UB_INK_STALL, totals->count, "stall", "stalls");
        fputs(", ", view->pen.out);
        ub_text_put_duration(view, UB_INK_STALL, totals->total_ns);
        fputs(" lost, worst ", view->pen.out);
        ub_text_put_duration(view, UB_INK_STALL, totals->max_ns);
        if (totals->ongoing > 0)
            fprintf(view->pen.out, ", %" PRIu64 " not over at the end", totals->ongoing);
        fputc('\n', view->pen.out);
    }
    put_uncounted_sum(view, UB_STALL_STARTUP, "at start-up");
    put_uncounted_sum(view, UB_STALL_STOPPED, "while it was stopped");
    put_uncounted_sum(view, UB_STALL_SUPPRESSED, "suppressed");
    put_uncounted_sum(view, UB_STALL_UNCLEAR, "that may have been several short turns each");
    fputc('\n', view->pen.out);
}

/* ---- loops ----------------------------------------------------------- */

static void put_cell(const struct ub_text_view *view, uint64_t ns)
{
    char buf[UB_TEXT_DURATION_MAX];

    fprintf(view->pen.out, "  %8s", ub_text_duration(ns, buf, sizeof(buf)));
}

static void put_loop(const struct ub_text_view *view, const struct ub_loop *loop)
{
    static const uint32_t permille[] = {500, 990, 999};
    size_t columns = ub_escape_put(view->pen.out, loop->program ? loop->program : "?", 20), i;
    char ids[48];

    ub_pen_spaces(&view->pen, 22 - columns);
    columns = ub_escape_put(view->pen.out, *loop->kind ? loop->kind : "?", 10);
    ub_pen_spaces(&view->pen, 12 - columns);
    if (loop->pid == loop->tid)
        snprintf(ids, sizeof(ids), "%" PRIu64, loop->pid);
    else
        snprintf(ids, sizeof(ids), "%" PRIu64 "/%" PRIu64, loop->pid, loop->tid);
    fprintf(view->pen.out, "%-14s", ids);
    if (!loop->has_stats) {
        ub_pen_printf(&view->pen, UB_INK_FAINT, "  no figures were written\n");
        return;
    }
    fprintf(view->pen.out, "  %10" PRIu64, loop->turns ? loop->turns : loop->callbacks);
    if (loop->observed_ns > 0)
        fprintf(view->pen.out, "  %6.1f %%", 100.0 * (double)loop->busy_ns / (double)loop->observed_ns);
    else
        put_cell(view, loop->busy_ns);
    for (i = 0; i < UB_ARRAY_LEN(permille); i++)
        put_cell(view, ub_distribution_percentile(&loop->duration, permille[i]));
    put_cell(view, loop->max_ns);
    fputc('\n', view->pen.out);
}

static void put_loops(const struct ub_text_view *view)
{
    UB_CLEANUP(free_array) const struct ub_loop **loops = NULL;
    size_t count, i;

    loops = ub_model_loops(view->m, &count);
    if (count == 0) {
        ub_pen_printf(&view->pen, UB_INK_WARNING, "no event loop was seen\n");
        ub_text_no_loop(view, "");
        fputc('\n', view->pen.out);
        return;
    }
    ub_pen_take(&view->pen, UB_INK_LABEL);
    fprintf(view->pen.out, "%-22s%-12s%-14s  %10s  %8s  %8s  %8s  %8s  %8s", "program", "loop", "pid/tid", "turns",
            "busy", "p50", "p99", "p99.9", "max");
    ub_pen_drop(&view->pen);
    fputc('\n', view->pen.out);
    for (i = 0; i < count && i < LOOPS_SHOWN; i++)
        put_loop(view, loops[i]);
    if (count > LOOPS_SHOWN)
        fprintf(view->pen.out, "and %zu more loops\n", count - LOOPS_SHOWN);
    fputc('\n', view->pen.out);
}

/* ---- call sites ------------------------------------------------------ */

static void put_share(const struct ub_text_view *view, uint64_t ns, uint64_t total_ns)
{
    if (total_ns > 0)
        fprintf(view->pen.out, " (%.0f %%)", 100.0 * (double)ns / (double)total_ns);
}

static void put_lost(const struct ub_text_view *view, const struct ub_site *site, uint64_t total_ns)
{
    const struct ub_distribution *d = &site->durations;

    ub_pen_label(&view->pen, "lost");
    ub_text_put_duration(view, UB_INK_STALL, d->total_ns);
    put_share(view, d->total_ns, total_ns);
    fprintf(view->pen.out, " in %" PRIu64 " stall%s", d->count, d->count == 1 ? "" : "s");
    if (d->count > 1) {
        fputs(", p50 ", view->pen.out);
        ub_text_put_duration(view, UB_INK_PLAIN, ub_distribution_percentile(d, 500));
        fputs(", p99 ", view->pen.out);
        ub_text_put_duration(view, UB_INK_PLAIN, ub_distribution_percentile(d, 990));
        fputs(", max ", view->pen.out);
        ub_text_put_duration(view, UB_INK_PLAIN, d->max_ns);
    }
    if (site->ongoing > 0)
        fprintf(view->pen.out, ", %" PRIu64 " not over at the end", site->ongoing);
    fputc('\n', view->pen.out);
}

/* The longest stall stands for all; where others had another cause, that is said. */
static void put_why(const struct ub_text_view *view, const struct ub_site *site)
{
    uint64_t stalls = 0;
    int i, causes = 0;

    ub_pen_label(&view->pen, "why");
    ub_text_why(view, site->worst);
    for (i = 0; i < UB_CAUSES; i++) {
        causes += site->cause[i] > 0;
        stalls += site->cause[i];
    }
    if (stalls > 1)
        fputs("; the longest", view->pen.out);
    fputc('\n', view->pen.out);
    if (causes <= 1)
        return;
    ub_pen_label(&view->pen, "");
    fputs("causes of all:", view->pen.out);
    for (i = 0; i < UB_CAUSES; i++)
        if (site->cause[i] > 0)
            fprintf(view->pen.out, " %s %" PRIu64, ub_model_cause_name((enum ub_cause)i), site->cause[i]);
    fputc('\n', view->pen.out);
}

/* " timer on_flush()": which callback of the loop, where callbacks are known by themselves. */
static void put_callback(const struct ub_text_view *view, const json_t *slow)
{
    const char *kind = ub_json_string(slow, "kind");
    const char *function = ub_json_string(json_object_get(slow, "callback"), "function");
    char name[1024];

    if (!kind || strcmp(kind, "turn") == 0)
        return;
    fputc(' ', view->pen.out);
    ub_escape_put(view->pen.out, kind, UB_TEXT_NAME_COLUMNS);
    if (!function)
        return;
    fputc(' ', view->pen.out);
    ub_escape_put(view->pen.out, ub_text_function_name(function, name, sizeof(name)), UB_TEXT_NAME_COLUMNS);
}

static void put_site_id(const struct ub_text_view *view, const struct ub_site *site)
{
    const char *loop = ub_json_string(site->worst, "loop"), *thread = ub_json_string(site->worst, "thread");

    ub_pen_label(&view->pen, "site");
    ub_pen_put(&view->pen, UB_INK_FAINT, site->id, UB_TEXT_NAME_COLUMNS);
    if (site->program) {
        fputs("  ", view->pen.out);
        ub_escape_put(view->pen.out, site->program, UB_TEXT_NAME_COLUMNS);
    }
    if (thread && site->program && strncmp(thread, site->program, strlen(thread)) != 0) {
        fputs("  thread ", view->pen.out);
        ub_escape_put(view->pen.out, thread, UB_TEXT_NAME_COLUMNS);
    }
    if (loop) {
        fputs("  ", view->pen.out);
        ub_escape_put(view->pen.out, loop, UB_TEXT_NAME_COLUMNS);
        put_callback(view, site->worst);
    }
    fputc('\n', view->pen.out);
}

static void put_site(const struct ub_text_view *view, const struct ub_site *site, size_t rank, uint64_t total_ns)
{
    UB_CLEANUP(ub_chain_clear) struct ub_chain chain;
    struct ub_advice_query query;

    ub_advice_query_site(site, &query);
    ub_chain_of_site(site, &chain);
    if (rank > 0)
        fprintf(view->pen.out, "%zu. ", rank);
    ub_text_what(view, site->worst, &chain, ub_advice_find(&query), false);
    fputc('\n', view->pen.out);
    put_lost(view, site, total_ns);
    put_why(view, site);
    ub_text_turn(view, site->worst);
    if (chain.count > 0 || !ub_text_is_whole_turn(site->worst))
        ub_text_where(view, &chain);
    ub_text_request(view, site->worst);
    ub_text_input(view, site->worst);
    ub_text_await(view, site->worst);
    ub_text_cost_of_longest(view, site);
    ub_text_pool(view, site->worst);
    ub_text_offload(view, site->worst);
    ub_text_proposed(view, site);
    ub_text_do(view, &query);
    put_site_id(view, site);
    fputc('\n', view->pen.out);
}

void ub_text_site(const struct ub_text_view *view, const struct ub_site *site)
{
    put_site(view, site, 0, ub_model_totals(view->m, UB_STALL_COUNTED)->total_ns);
}

static void put_sites(const struct ub_text_view *view)
{
    UB_CLEANUP(free_array) const struct ub_site **sites = NULL;
    uint64_t total_ns = ub_model_totals(view->m, UB_STALL_COUNTED)->total_ns;
    size_t count, i;

    sites = ub_model_sites(view->m, UB_STALL_COUNTED, ub_model_sorted(view->m), &count);
    for (i = 0; i < count && i < SITES_SHOWN; i++)
        put_site(view, sites[i], i + 1, total_ns);
    if (count > SITES_SHOWN)
        fprintf(view->pen.out, "and %zu more call sites: --min, --site or --format json show them\n\n",
                count - SITES_SHOWN);
}

/* One line a site: enough to recognise it. */
static void put_uncounted(const struct ub_text_view *view, enum ub_stall_class class, const char *title)
{
    UB_CLEANUP(free_array) const struct ub_site **sites = NULL;
    size_t count, i;

    sites = ub_model_sites(view->m, class, UB_SORT_TOTAL, &count);
    if (count == 0)
        return;
    ub_pen_printf(&view->pen, UB_INK_LABEL, "%s\n", title);
    for (i = 0; i < count && i < UNCOUNTED_SHOWN; i++) {
        UB_CLEANUP(ub_chain_clear) struct ub_chain chain;

        ub_chain_of_site(sites[i], &chain);
        fputs("  ", view->pen.out);
        put_cell(view, sites[i]->durations.total_ns);
        fprintf(view->pen.out, "  %" PRIu64 " x  ", sites[i]->durations.count);
        ub_text_what(view, sites[i]->worst, &chain, ub_advice_of_site(sites[i]), false);
        fputs("  site ", view->pen.out);
        ub_pen_put(&view->pen, UB_INK_FAINT, sites[i]->id, UB_TEXT_NAME_COLUMNS);
        fputc('\n', view->pen.out);
    }
    if (count > UNCOUNTED_SHOWN)
        fprintf(view->pen.out, "  and %zu more\n", count - UNCOUNTED_SHOWN);
    fputc('\n', view->pen.out);
}

/* ---- the rest -------------------------------------------------------- */

static void put_notes(const struct ub_text_view *view)
{
    const json_t *note;
    size_t i;

    json_array_foreach (ub_model_notes(view->m), i, note) {
        const char *level = ub_json_string(note, "level");
        uint64_t times = ub_json_u64_or(note, "times", 1);

        ub_pen_printf(&view->pen, level && strcmp(level, "info") != 0 ? UB_INK_WARNING : UB_INK_LABEL, "%s: ",
                      level && strcmp(level, "error") == 0     ? "error"
                      : level && strcmp(level, "warning") == 0 ? "warning"
                                                               : "note");
        ub_escape_put(view->pen.out, ub_json_string(note, "text"), UB_TEXT_LINE_COLUMNS);
        if (times > 1)
            fprintf(view->pen.out, " (%" PRIu64 " times)", times);
        fputc('\n', view->pen.out);
    }
}

static void put_threads(const struct ub_text_view *view)
{
    json_t *thread;
    size_t i;

    json_array_foreach (ub_model_threads(view->m), i, thread) {
        ub_text_thread(view->pen.out, view->m, thread, view->pen.colour);
        fputc('\n', view->pen.out);
    }
}

/* A dump holds threads, not stalls: then a verdict would be about nothing. */
static bool is_dump(const struct ub_text_view *view)
{
    const struct ub_run *run = ub_model_current_run(view->m);

    return run && ub_json_is(run->header, "source", "dump");
}

void ub_text_report(FILE *out, const struct ub_model *model, bool colour)
{
    struct ub_text_view view;

    ub_text_view_init(&view, out, model, colour);
    put_runs(&view);
    if (!is_dump(&view)) {
        put_verdict(&view);
        if (ub_text_offload_run(&view, "") | ub_text_python_run(&view, ""))
            fputc('\n', out);
        put_loops(&view);
        ub_text_kinds(&view);
        ub_text_pools(&view);
        put_sites(&view);
        put_uncounted(&view, UB_STALL_STARTUP, "At start-up, before the first descriptor was served (not counted)");
        put_uncounted(&view, UB_STALL_STOPPED, "While the program was stopped or the machine slept (not counted)");
        put_uncounted(&view, UB_STALL_UNCLEAR, "Perhaps several short turns: nobody looked between them (not counted)");
    }
    put_threads(&view);
    if (ub_text_lints(&view, "") > 0)
        fputc('\n', out);
    put_notes(&view);
    ub_text_end(&view, "");
}
