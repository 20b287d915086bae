#include "after.h"

/* sd-event serves one source a turn: so many turns are gone through for those that waited. */
#define UB_ROUNDS_OF_ONE 32u

/*
 * libevent's callbacks are not told their event, only the program's argument:
 * timers of one function and one argument count as one.
 */
static uint64_t identity(uint64_t function, uint64_t object)
{
    return function * 0x9e3779b97f4a7c15ull ^ object;
}

/* The loop has come round often enough, or another stall came first. */
static void tell(struct ub_thread *t)
{
    struct ub_span_after *a = &t->cold->spans.after;
    struct ub_record record = {
        .kind = UB_RECORD_WAITED,
        .flags = a->round ? UB_RECORD_ROUND : 0,
        .start = a->start,
        .library = (uint8_t)t->cold->spans.library,
        .ready = a->ready,
        .count = a->timers,
        .total = a->last ? a->last - a->start : 0,
        .fd = -1,
    };

    a->start = 0;
    __atomic_fetch_and(&t->slot->flags, ~UB_SLOT_AFTER, __ATOMIC_RELAXED);
    ub_ring_put(&t->cold->ring, &record);
    ub_process_ring();
}

/* The turn that a stall was in is slow as a whole, too: what waited did so for the stall. */
static bool is_same(const struct ub_span_after *a, const struct ub_record *record)
{
    return a->start && record->flags & UB_RECORD_WHOLE;
}

void ub_after_before(struct ub_thread *t, const struct ub_record *record)
{
    struct ub_span_after *a = &t->cold->spans.after;

    if (a->start && !is_same(a, record))
        tell(t);
}

void ub_after_stall(struct ub_thread *t, const struct ub_record *record)
{
    struct ub_span_after *a = &t->cold->spans.after;

    if (is_same(a, record))
        return;
    *a = (struct ub_span_after){
        .start = record->start, .who = identity(record->function, record->object), .turns = t->slot->turns};
    /* Told by the turn's end, there will be no other. */
    if (record->kind == UB_RECORD_TURN)
        a->left = ub_clock_ticks(ub_process->clock);
    __atomic_fetch_or(&t->slot->flags, UB_SLOT_AFTER, __ATOMIC_RELAXED);
}

void ub_after_callback(struct ub_thread *t, const struct ub_callback *c, uint64_t now)
{
    struct ub_span_after *a = &t->cold->spans.after;
    uint64_t who = identity(c->function, c->object);

    if (c->kind != UB_CALLBACK_TIMER || !a->start || who == a->who)
        return;
    for (uint32_t i = 0; i < a->told_apart; i++) {
        if (a->timer[i] == who)
            return; /* it has run already */
    }
    if (a->told_apart < UB_SPAN_WAITED)
        a->timer[a->told_apart++] = who;
    a->timers++;
    a->last = now;
}

void ub_after_turn(struct ub_thread *t, uint64_t now)
{
    const struct ub_spans *s = &t->cold->spans;
    struct ub_span_after *a = &t->cold->spans.after;
    uint64_t back = t->start == s->segment ? s->turn : t->start;
    bool at_once = back - a->left < ub_load_relaxed(&ub_process->arena->h.call_floor);

    if (t->slot->turns == a->turns) {
        a->left = now;
        return;
    }
    /* A wait that has slept: what it reported came later. */
    if (!a->round++ && at_once && t->slot->ready) {
        a->ready = t->slot->ready;
        if (back > a->last)
            a->last = back;
    }
    a->left = now;
    if (s->library != UB_LOOP_SD_EVENT || !at_once || a->round == UB_ROUNDS_OF_ONE)
        tell(t);
}
