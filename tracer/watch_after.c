/*
 * Ends of stalls wait a little for what the thread tells of their victims: that
 * is known when the loop has come round once (agent/after.h), which takes
 * microseconds where anything waited. Where nothing did the loop sleeps, and its
 * word comes too late to matter.
 *
 * Beside an agent they wait for what the kernel saw of them as well: the agent
 * ends its turn a moment before the wait call is entered, where the kernel ends
 * it. A thread that loses its CPU in between enters that call when it gets one.
 */
#include "watch_impl.h"

#include <string.h>

#define UB_HOLD_NS         20000000u
#define UB_HOLD_REASONS_NS 200000000u
#define UB_REASONS_LOOK_NS 500000u

void ub_watch_hold(struct ub_watch *w, struct ub_event *e)
{
    struct ub_watched *t = &w->watched[e->slot];
    uint64_t now = ub_ticks_now();

    if (w->agentless || t->held_count == UB_HELD_MAX)
        ub_watch_release(w, e->slot);
    if (w->agentless) {
        ub_watch_queue(w, e);
        return;
    }
    if (t->held_count == 0)
        t->reasons_until = now + ub_ticks_from_span_ns(UB_HOLD_REASONS_NS);
    t->held[t->held_count++] = e;
    t->held_until = now + ub_ticks_from_span_ns(UB_HOLD_NS);
}

/* False: the kernel has not told of their turn yet. */
static bool find_reasons(struct ub_watch *w, struct ub_watched *t)
{
    bool found = false;

    if (!w->bpf)
        return true;
    ub_watch_kernel_poll(w);
    for (uint32_t i = 0; i < t->held_count; i++) {
        struct ub_event *e = t->held[i];

        if (!e->reasons)
            ub_watch_kernel_reasons(w, e);
        found |= e->reasons != NULL; /* a turn has one record, which the first of its callbacks gets */
    }
    return found;
}

void ub_watch_release(struct ub_watch *w, uint32_t slot)
{
    struct ub_watched *t = &w->watched[slot];
    uint32_t count = t->held_count;

    if (count == 0)
        return;
    find_reasons(w, t);
    t->held_count = 0; /* first: queueing asks for it */
    for (uint32_t i = 0; i < count; i++)
        ub_watch_queue(w, t->held[i]);
}

void ub_watch_waited(struct ub_watch *w, uint32_t slot, const struct ub_record *record)
{
    struct ub_watched *t = &w->watched[slot];

    for (uint32_t i = 0; i < t->held_count; i++) {
        struct ub_event *e = t->held[i];

        if (e->start != record->start || e->flags & UB_RECORD_WHOLE || e->waited.known)
            continue;
        e->waited = (struct ub_waited){
            .known = true,
            .round = record->flags & UB_RECORD_ROUND,
            .counted = record->library != UB_LOOP_NONE && record->library != UB_LOOP_ASYNCIO,
            .ready = record->ready,
            .timers = record->count,
            .delay = record->total,
        };
        if (record->object)
            e->waited.reads = ub_watch_reads(w, slot, record->object, record->end, e->waited.read);
    }
    t->held_until = 0;
    ub_watch_held_until(w, slot, ub_ticks_now());
}

uint64_t ub_watch_held_until(struct ub_watch *w, uint32_t slot, uint64_t now)
{
    struct ub_watched *t = &w->watched[slot];
    bool found;

    if (!t->held_count)
        return UINT64_MAX;
    found = find_reasons(w, t);
    if (now >= t->held_until && (found || now >= t->reasons_until)) {
        ub_watch_release(w, slot);
        return UINT64_MAX;
    }
    return found ? t->held_until : now + ub_ticks_from_span_ns(UB_REASONS_LOOK_NS);
}
