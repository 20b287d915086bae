/*
 * The last words of `run`: how it went, the worst sites, and what to type next.
 */
#include "text_private.h"
#include "text_escape.h"

#include <stdlib.h>

#define PREFIX      "unblock: "
#define SITES_SHOWN 3

static void free_text(char **text)
{
    free(*text);
}

static void free_array(void *array)
{
    free(*(void **)array);
}

/* "over 20 ms"; runs with different thresholds were joined: "over the threshold". */
static void put_threshold(const struct ub_text_view *view)
{
    uint64_t first = 0, ns;
    uint32_t i;

    for (i = 0; i < ub_model_runs(view->m); i++) {
        ns = ub_json_u64_or(ub_model_run(view->m, i)->header, "threshold_ns", 0);
        if (i > 0 && ns != first)
            first = 0;
        else
            first = ns;
        if (first == 0)
            break;
    }
    fputs(" over ", view->pen.out);
    if (first > 0)
        ub_text_put_duration(view, UB_INK_PLAIN, first);
    else
        fputs("the threshold", view->pen.out);
}

static void put_site(const struct ub_text_view *view, const struct ub_site *site)
{
    UB_CLEANUP(ub_chain_clear) struct ub_chain chain;

    ub_chain_of_site(site, &chain);
    ub_text_what(view, site->worst, &chain, ub_advice_of_site(site), false);
}

/* The site of the longest stall, when it is known. */
static void put_worst_site(const struct ub_text_view *view)
{
    UB_CLEANUP(free_array) const struct ub_site **sites = NULL;
    size_t count;

    sites = ub_model_sites(view->m, UB_STALL_COUNTED, UB_SORT_MAX, &count);
    if (count == 0)
        return;
    fputs(" (", view->pen.out);
    put_site(view, sites[0]);
    fputc(')', view->pen.out);
}

static void put_stalls(const struct ub_text_view *view, const struct ub_stall_totals *totals)
{
    ub_text_count(view, UB_INK_STALL, totals->count, "stall", "stalls");
    put_threshold(view);
    fputs(", ", view->pen.out);
    ub_text_put_duration(view, UB_INK_STALL, totals->total_ns);
    fputs(" lost, worst ", view->pen.out);
    ub_text_put_duration(view, UB_INK_STALL, totals->max_ns);
    put_worst_site(view);
    if (totals->ongoing > 0)
        fprintf(view->pen.out, ", %" PRIu64 " not over at the end", totals->ongoing);
    fputc('\n', view->pen.out);
}

static void put_no_stall(const struct ub_text_view *view, const struct ub_loop *const *loops, size_t count)
{
    struct ub_distribution all = {0};
    uint64_t turns = 0;
    size_t i;

    for (i = 0; i < count; i++) {
        ub_distribution_merge(&all, &loops[i]->duration);
        turns = ub_add_saturated(turns, loops[i]->turns ? loops[i]->turns : loops[i]->callbacks);
    }
    ub_pen_printf(&view->pen, UB_INK_GOOD,
                  ub_model_totals(view->m, UB_STALL_SUPPRESSED)->count > 0 ? "no other stall" : "no stall");
    put_threshold(view);
    if (turns > 0) {
        fputs(" in ", view->pen.out);
        ub_text_count(view, UB_INK_PLAIN, turns, "turn", "turns");
    }
    if (all.count > 0) {
        fputs(" (p99 ", view->pen.out);
        ub_text_put_duration(view, UB_INK_PLAIN, ub_distribution_percentile(&all, 990));
        fputs(", longest ", view->pen.out);
        ub_text_put_duration(view, UB_INK_PLAIN, all.max_ns);
        fputc(')', view->pen.out);
    }
    fputc('\n', view->pen.out);
    ub_distribution_clear(&all);
}

static void put_uncounted(const struct ub_text_view *view, enum ub_stall_class class, const char *words)
{
    const struct ub_stall_totals *totals = ub_model_totals(view->m, class);

    if (totals->count == 0)
        return;
    fprintf(view->pen.out, PREFIX "%" PRIu64 " %s, ", totals->count, words);
    ub_text_put_duration(view, UB_INK_PLAIN, totals->total_ns);
    fputs(": not counted\n", view->pen.out);
}

/* One site is named in the first line already. */
static void put_sites(const struct ub_text_view *view)
{
    UB_CLEANUP(free_array) const struct ub_site **sites = NULL;
    size_t count, i;

    sites = ub_model_sites(view->m, UB_STALL_COUNTED, UB_SORT_TOTAL, &count);
    for (i = 0; count > 1 && i < count && i < SITES_SHOWN; i++) {
        fputs(PREFIX "  ", view->pen.out);
        ub_text_put_duration(view, UB_INK_STALL, sites[i]->durations.total_ns);
        fprintf(view->pen.out, "  %" PRIu64 " x  ", sites[i]->durations.count);
        put_site(view, sites[i]);
        fputs("  site ", view->pen.out);
        ub_pen_put(&view->pen, UB_INK_FAINT, sites[i]->id, UB_TEXT_NAME_COLUMNS);
        fputc('\n', view->pen.out);
    }
    if (count > SITES_SHOWN)
        fprintf(view->pen.out, PREFIX "  and %zu more call site%s\n", count - SITES_SHOWN,
                count == SITES_SHOWN + 1 ? "" : "s");
}

/* `info` notes only where they explain why there is nothing to see. */
static void put_notes(const struct ub_text_view *view, bool all)
{
    const json_t *note;
    size_t i;

    json_array_foreach (ub_model_notes(view->m), i, note) {
        const char *level = ub_json_string(note, "level"), *text = ub_json_string(note, "text");
        bool info = !level || strcmp(level, "info") == 0;

        if (info && !all)
            continue;
        fputs(PREFIX, view->pen.out);
        if (!info)
            ub_pen_printf(&view->pen, UB_INK_WARNING, "%s: ", strcmp(level, "error") == 0 ? "error" : "warning");
        ub_escape_put(view->pen.out, text, UB_TEXT_LINE_COLUMNS);
        fputc('\n', view->pen.out);
    }
}

/* A path as one word of a shell command that can be copied. */
static void put_word(FILE *out, const char *path)
{
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./+:@%,=-";
    const char *p;

    if (*path == '-')
        fputs("./", out);
    if (path[strspn(path, plain)] == 0) {
        fputs(path, out);
        return;
    }
    fputc('\'', out);
    for (p = path; *p; p += strcspn(p, "'"), p += *p == '\'') {
        ub_escape_put_bytes(out, p, strcspn(p, "'"), 0);
        if (p[strcspn(p, "'")])
            fputs("'\\''", out);
    }
    fputc('\'', out);
}

void ub_text_verdict(FILE *out, const struct ub_model *model, const char *recording_path, bool colour)
{
    const struct ub_stall_totals *totals = ub_model_totals(model, UB_STALL_COUNTED);
    UB_CLEANUP(free_array) const struct ub_loop **loops = NULL;
    UB_CLEANUP(free_text) char *program = NULL;
    struct ub_text_view view;
    size_t count;

    ub_text_view_init(&view, out, model, colour);
    loops = ub_model_loops(model, &count);
    program = ub_text_program(&view);
    fputs(PREFIX, out);
    if (program) {
        ub_escape_put(out, program, UB_TEXT_NAME_COLUMNS);
        fputs(": ", out);
    }
    if (totals->count > 0)
        put_stalls(&view, totals);
    else if (count > 0)
        put_no_stall(&view, loops, count);
    else
        ub_pen_printf(&view.pen, UB_INK_WARNING, "no event loop was seen\n");
    if (totals->count > 0)
        put_sites(&view);
    put_uncounted(&view, UB_STALL_STARTUP, "at start-up");
    put_uncounted(&view, UB_STALL_STOPPED, "while it was stopped");
    put_uncounted(&view, UB_STALL_SUPPRESSED, "suppressed");
    put_uncounted(&view, UB_STALL_UNCLEAR, "that may have been several short turns each");
    if (totals->count == 0 && count == 0)
        ub_text_no_loop(&view, PREFIX);
    ub_text_offload_run(&view, PREFIX);
    ub_text_python_run(&view, PREFIX);
    ub_text_lints(&view, PREFIX);
    put_notes(&view, totals->count == 0 && count == 0);
    ub_text_end(&view, PREFIX);
    if (recording_path && strcmp(recording_path, "-") != 0) {
        fputs(PREFIX "next: unblock report ", out);
        put_word(out, recording_path);
        fputc('\n', out);
    }
}
