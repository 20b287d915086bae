/*
 * Ends of stalls wait a little for what the thread tells of their victims: that
 * is known when the loop has come round once (agent/after.h), which takes
 * microseconds where anything waited. Where nothing did the loop sleeps, and its
 * word comes too late to matter.
 */
#include "watch_impl.h"

#include <string.h>

#define UB_HOLD_NS 20000000u

void ub_watch_hold(struct ub_watch *w, struct ub_event *e)
{
    struct ub_watched *t = &w->watched[e->slot];

    if (w->agentless || t->held_count == UB_HELD_MAX)
        ub_watch_release(w, e->slot);
    if (w->agentless) {
        ub_watch_queue(w, e);
        return;
    }
    t->held[t->held_count++] = e;
    t->held_until = ub_ticks_now() + ub_ticks_from_span_ns(UB_HOLD_NS);
}

void ub_watch_release(struct ub_watch *w, uint32_t slot)
{
    struct ub_watched *t = &w->watched[slot];
    uint32_t count = t->held_count;

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
    ub_watch_release(w, slot);
}

uint64_t ub_watch_held_until(struct ub_watch *w, uint32_t slot, uint64_t now)
{
    struct ub_watched *t = &w->watched[slot];

    if (t->held_count && now >= t->held_until)
        ub_watch_release(w, slot);
    return t->held_count ? t->held_until : UINT64_MAX;
}
