/*
 * What a thread says of its callbacks (common/callbacks.h), out of the arena. It
 * goes on while we read, and may be hostile: numbers are bounded, and what
 * changes under our hands is dropped.
 */
#include "watch_impl.h"

#include <stdlib.h>
#include <string.h>

static bool is_known(uint32_t kind, uint32_t library)
{
    return kind != UB_CALLBACK_TURN && kind < UB_CALLBACK_KINDS && library != UB_LOOP_NONE &&
           library < UB_LOOP_LIBRARIES;
}

/* A step of a task names a code object: only the interpreter's own memory says what that is. */
static const struct ub_python_code *code_of(struct ub_watch *w, struct ub_watched *t, uint32_t library,
                                            uint64_t function)
{
    return library == UB_LOOP_ASYNCIO && function ? ub_watch_python_code(w, t, function) : NULL;
}

void ub_watch_callback(struct ub_watch *w, uint32_t slot, uint64_t start, struct ub_event *ret)
{
    const struct ub_spans *s = &w->arena->cold[slot].spans;
    uint64_t before = ub_load_acquire(&s->segment);
    uint32_t depth = ub_load_acquire(&s->depth);
    struct ub_callback copy;

    ret->callback = (struct ub_callback){.fd = -1};
    if (!(ub_load_relaxed(&w->arena->slot[slot].flags) & UB_SLOT_CALLBACKS) || depth == 0 || depth > UB_SPAN_LEVELS)
        return;
    memcpy(&copy, &s->level[depth - 1].callback, sizeof(copy));
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    if (before == start && ub_load_relaxed(&s->segment) == start && is_known(copy.kind, copy.library)) {
        ret->callback = copy;
        ret->code = code_of(w, &w->watched[slot], copy.library, copy.function);
    }
}

uint64_t ub_watch_turn(const struct ub_watch *w, uint32_t slot, uint64_t start, uint64_t *ret_reported)
{
    const struct ub_spans *s = &w->arena->cold[slot].spans;
    uint64_t turn, reported;

    *ret_reported = 0;
    if (!(ub_load_acquire(&w->arena->slot[slot].flags) & UB_SLOT_CALLBACKS) || ub_load_acquire(&s->segment) != start)
        return start; /* begun by the wait */
    turn = ub_load_relaxed(&s->turn);
    reported = ub_load_relaxed(&s->reported);
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    if (ub_load_relaxed(&w->arena->slot[slot].start) != start || (int64_t)(start - turn) < 0 || reported > start - turn)
        return start;
    *ret_reported = reported;
    return turn;
}

void ub_watch_callback_record(struct ub_watch *w, struct ub_watched *t, const struct ub_record *record,
                              struct ub_event *e)
{
    e->callback = (struct ub_callback){.fd = -1};
    if (record->kind == UB_RECORD_CALLBACK && is_known(record->callback, record->library)) {
        e->callback = (struct ub_callback){.function = record->function,
                                           .object = record->object,
                                           .fd = record->fd,
                                           .kind = record->callback,
                                           .library = record->library};
        memcpy(e->name, record->name, sizeof(record->name));
        e->code = code_of(w, t, record->library, record->function);
    }
    if (!(record->flags & UB_RECORD_WHOLE))
        return;
    e->turn_callbacks = record->count;
    e->turn_reported = record->total < record->end - record->start ? record->total : 0;
    e->bigs = malloc(sizeof(*e->bigs));
    if (e->bigs)
        *e->bigs = t->bigs;
    t->bigs.count = 0;
}

void ub_watch_keep_big(struct ub_watch *w, struct ub_watched *t, const struct ub_record *record)
{
    if (t->bigs.count && t->bigs.record[0].start != record->start)
        t->bigs.count = 0; /* of a turn whose own record was lost */
    if (t->bigs.count >= UB_SPAN_BIGGEST || !is_known(record->callback, record->library))
        return;
    t->bigs.code[t->bigs.count] = code_of(w, t, record->library, record->function);
    t->bigs.record[t->bigs.count++] = *record;
}

void ub_watch_library(const struct ub_watch *w, uint32_t slot, struct ub_event *e)
{
    const struct ub_spans *s = &w->arena->cold[slot].spans;

    if (!(ub_load_acquire(&w->arena->slot[slot].flags) & UB_SLOT_CALLBACKS))
        return;
    e->library = ub_load_relaxed(&s->library);
    if (e->library >= UB_LOOP_LIBRARIES)
        e->library = UB_LOOP_NONE;
    e->tasks = ub_load_relaxed(&s->sum[UB_CALLBACK_TASK].count) > 0;
    memcpy(e->version, s->version, sizeof(e->version) - 1);
    for (char *c = e->version; *c; c++) {
        if (*c < ' ' || *c > '~')
            *c = '?';
    }
}

static void keep_late(const struct ub_spans *s, uint32_t kind, struct ub_kind_stats *k)
{
    const struct ub_span_sum *late = &s->late[kind];
    uint32_t place = ub_load_acquire(&late->histogram);
    const struct ub_coarse_histogram *h = place - 1 < UB_SPAN_LATE ? &s->late_histogram[place - 1] : NULL;

    k->late = ub_load_relaxed(&late->count);
    k->late_ticks = ub_load_relaxed(&late->total);
    k->late_max_ticks = ub_load_relaxed(&late->max);
    k->has_late_histogram = h != NULL;
    if (h)
        memcpy(&k->late_histogram, h, sizeof(k->late_histogram));
}

void ub_watch_kinds(const struct ub_watch *w, uint32_t slot, struct ub_stats *stats)
{
    const struct ub_spans *s = &w->arena->cold[slot].spans;
    struct ub_kind_stats *kind = calloc(UB_CALLBACK_KINDS, sizeof(*kind));

    for (uint32_t i = 0; kind && i < UB_CALLBACK_KINDS; i++) {
        struct ub_kind_stats *k = &kind[stats->kinds];
        uint32_t place = ub_load_acquire(&s->sum[i].histogram);
        const struct ub_histogram *h = place - 1 < UB_SPAN_HISTOGRAMS ? &s->histogram[place - 1] : NULL;

        k->count = ub_load_relaxed(&s->sum[i].count);
        if (!k->count)
            continue;
        k->kind = i;
        k->total_ticks = ub_load_relaxed(&s->sum[i].total);
        k->max_ticks = ub_load_relaxed(&s->sum[i].max);
        k->has_histogram = h != NULL;
        if (h)
            memcpy(&k->histogram, h, sizeof(*h));
        keep_late(s, i, k);
        stats->kinds++;
    }
    if (!stats->kinds) {
        free(kind);
        return;
    }
    stats->kind = realloc(kind, stats->kinds * sizeof(*kind));
    if (!stats->kind)
        stats->kind = kind;
}
