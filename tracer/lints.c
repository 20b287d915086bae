/*
 * What a loop's thread says of habits, not of stalls: functions that give way by
 * sleep(0), coroutines that are let go of without having run. Facts only; what
 * is too much of it the reader of the recording decides.
 */
#include "explain_impl.h"
#include "watch_impl.h"

#include <stdlib.h>
#include <string.h>

/* ---- the watching thread ------------------------------------------------------------ */

void ub_watch_yields_told(struct ub_watch *w, uint32_t slot, const struct ub_record *record)
{
    const struct ub_span_yield *y = w->arena->cold[slot].spans.yield;
    struct ub_watched *t = &w->watched[slot];

    for (uint32_t i = 0; i < UB_SPAN_YIELDS; i++) {
        if (record->function && ub_load_acquire(&y[i].function) == record->function)
            t->yields[i] = ub_watch_python_code(w, t, record->function);
    }
}

void ub_watch_yields(const struct ub_watch *w, uint32_t slot, struct ub_stats *stats)
{
    const struct ub_span_yield *y = w->arena->cold[slot].spans.yield;

    for (uint32_t i = 0; i < UB_SPAN_YIELDS; i++) {
        stats->yield[i] = (struct ub_yield_stats){.code = w->watched[slot].yields[i],
                                                  .count = ub_load_acquire(&y[i].count),
                                                  .total_ticks = ub_load_relaxed(&y[i].total),
                                                  .max_ticks = ub_load_relaxed(&y[i].max)};
    }
}

void ub_watch_yields_of(const struct ub_watch *w, uint32_t slot, struct ub_event *e)
{
    const struct ub_span_yield *y = w->arena->cold[slot].spans.yield;

    for (uint32_t i = 0; i < UB_SPAN_YIELDS; i++) {
        if (e->callback.kind == UB_CALLBACK_TASK && e->callback.function &&
            ub_load_acquire(&y[i].function) == e->callback.function)
            e->yields = (struct ub_yield_stats){.count = ub_load_acquire(&y[i].count),
                                                .total_ticks = ub_load_relaxed(&y[i].total),
                                                .max_ticks = ub_load_relaxed(&y[i].max)};
    }
}

void ub_watch_unawaited(struct ub_watch *w, uint32_t slot, const struct ub_record *record)
{
    struct ub_watched *t = &w->watched[slot];
    struct ub_span_unawaited kept;
    struct ub_event *e;

    if (record->count >= UB_SPAN_UNAWAITED || !t->process)
        return;
    memcpy(&kept, &w->arena->cold[slot].spans.unawaited[record->count], sizeof(kept));
    e = kept.function == record->function ? ub_event_new(UB_EVENT_LINT) : NULL;
    if (!e)
        return;
    e->slot = slot;
    e->pid = t->pid;
    e->tid = t->tid;
    e->process = ub_process_ref(t->process);
    e->code = ub_watch_python_code(w, t, record->function);
    e->python = ub_watch_python_own(w, t, &kept.frame, 1);
    if (e->code)
        ub_watch_queue(w, e);
    else
        ub_event_free(e);
}

/* ---- the explaining thread ---------------------------------------------------------- */

static json_t *lint(const struct ub_explain *x, const struct ub_event *e, const char *what,
                    const struct ub_python_code *code)
{
    return json_pack("{s:s, s:i, s:i, s:s, s:o}", "type", "lint", "pid", e->pid, "tid", e->tid, "lint", what,
                     "callback", ub_python_code_place(code, x->w->redact));
}

json_t *ub_lint_yields_json(const struct ub_yield_stats *y)
{
    return json_pack("{s:I, s:I, s:I}", "count", (json_int_t)y->count, "total_ns",
                     (json_int_t)ub_ticks_span_to_ns(y->total_ticks), "max_ns",
                     (json_int_t)ub_ticks_span_to_ns(y->max_ticks));
}

void ub_lint_yields(struct ub_explain *x, const struct ub_event *e)
{
    for (uint32_t i = 0; i < UB_SPAN_YIELDS; i++) {
        const struct ub_yield_stats *y = &e->stats->yield[i];
        json_t *line = y->code && y->count ? lint(x, e, "sleep0", y->code) : NULL, *figures;

        if (!line)
            continue;
        figures = ub_lint_yields_json(y);
        json_object_update(line, figures);
        json_decref(figures);
        ub_explain_emit(x, line);
    }
}

void ub_lint_unawaited(struct ub_explain *x, const struct ub_event *e)
{
    json_t *line = lint(x, e, "never-awaited", e->code);

    if (line && e->python && e->python->count > 0 && e->python->frame[0].code->owner != UB_PYTHON_LOOP)
        json_object_set_new(line, "at", ub_python_place(&e->python->frame[0], x->w->redact));
    if (line)
        ub_explain_emit(x, line);
}
