/*
 * The callbacks of each loop by their kinds: how many there were, how long they
 * took, and how late stalls made them.
 */
#include "text_private.h"
#include "text_escape.h"

#include <stdlib.h>

#define KINDS_SHOWN 60

static void free_array(void *array)
{
    free(*(void **)array);
}

static int busier_first(const void *a, const void *b)
{
    const struct ub_loop_kind *x = *(const struct ub_loop_kind *const *)a, *y = *(const struct ub_loop_kind *const *)b;

    if (x->ran.total_ns != y->ran.total_ns)
        return x->ran.total_ns < y->ran.total_ns ? 1 : -1;
    return strcmp(x->name, y->name);
}

static void put_cell(const struct ub_text_view *view, uint64_t ns)
{
    char buf[UB_TEXT_DURATION_MAX];

    fprintf(view->pen.out, "  %8s", ub_text_duration(ns, buf, sizeof(buf)));
}

/* "-": there is no histogram. */
static void put_percentile(const struct ub_text_view *view, const struct ub_kind_times *t, uint32_t permille)
{
    if (t->distribution.used == 0)
        fprintf(view->pen.out, "  %8s", "-");
    else
        put_cell(view, ub_distribution_percentile(&t->distribution, permille));
}

static void put_kind(const struct ub_text_view *view, const struct ub_loop *loop, const struct ub_loop_kind *k,
                     bool first)
{
    size_t columns = ub_escape_put(view->pen.out, first && loop->program ? loop->program : "", 20);
    char ids[48] = "";

    ub_pen_spaces(&view->pen, 22 - columns);
    columns = ub_escape_put(view->pen.out, k->name, sizeof(k->name));
    ub_pen_spaces(&view->pen, columns < 12 ? 12 - columns : 1);
    if (first && loop->pid == loop->tid)
        snprintf(ids, sizeof(ids), "%" PRIu64, loop->pid);
    else if (first)
        snprintf(ids, sizeof(ids), "%" PRIu64 "/%" PRIu64, loop->pid, loop->tid);
    fprintf(view->pen.out, "%-14s  %10" PRIu64, ids, k->ran.count);
    put_cell(view, k->ran.total_ns);
    put_percentile(view, &k->ran, 500);
    put_percentile(view, &k->ran, 990);
    put_cell(view, k->ran.max_ns);
    if (k->late.count > 0) {
        fprintf(view->pen.out, "  %8" PRIu64, k->late.count);
        put_percentile(view, &k->late, 500);
        put_cell(view, k->late.max_ns);
    }
    fputc('\n', view->pen.out);
}

/* Caller frees the array; NULL when there are none. */
static const struct ub_loop_kind **sorted_kinds(const struct ub_kinds *kinds)
{
    const struct ub_loop_kind **list = calloc(kinds->count + 1, sizeof(*list)); /* NOLINT(bugprone-sizeof-expression) */

    for (uint32_t i = 0; list && i < kinds->count; i++)
        list[i] = &kinds->kind[i];
    if (list)
        qsort(list, kinds->count, sizeof(*list), busier_first); /* NOLINT(bugprone-sizeof-expression) */
    return list;
}

/* Those of one loop; `shown` counts rows. */
static void put_loop(const struct ub_text_view *view, const struct ub_loop *loop, uint32_t *shown, uint32_t *left_out)
{
    UB_CLEANUP(free_array) const struct ub_loop_kind **sorted = NULL;

    if (loop->kinds.count > 0)
        sorted = sorted_kinds(&loop->kinds);
    if (!sorted)
        return;
    for (uint32_t i = 0; i < loop->kinds.count; i++) {
        if (*shown >= KINDS_SHOWN) {
            ++*left_out;
            continue;
        }
        if (++*shown == 1)
            ub_pen_printf(&view->pen, UB_INK_LABEL, "%-22s%-12s%-14s  %10s  %8s  %8s  %8s  %8s  %8s  %8s  %8s\n",
                          "callbacks", "kind", "pid/tid", "count", "time", "p50", "p99", "max", "delayed", "p50",
                          "max");
        put_kind(view, loop, sorted[i], i == 0);
    }
}

void ub_text_kinds(const struct ub_text_view *view)
{
    UB_CLEANUP(free_array) const struct ub_loop **loops = NULL;
    uint32_t shown = 0, left_out = 0;
    size_t count, i;

    loops = ub_model_loops(view->m, &count);
    for (i = 0; i < count; i++)
        put_loop(view, loops[i], &shown, &left_out);
    if (left_out > 0)
        fprintf(view->pen.out, "and %u more kinds: --format json has them\n", left_out);
    if (shown > 0)
        fputc('\n', view->pen.out);
}
