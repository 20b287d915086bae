#include "after.h"

#include <string.h>

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
        .end = a->left,
        .object = a->back,
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

/* ---- by kind -------------------------------------------------------------------- */

/* Something has to become ready or due before it runs: what runs in every turn (idle, check ...) never waits. */
static bool can_wait(uint32_t kind)
{
    switch (kind) {
    case UB_CALLBACK_IDLE:
    case UB_CALLBACK_PREPARE:
    case UB_CALLBACK_CHECK:
    case UB_CALLBACK_CLOSE:
    case UB_CALLBACK_DEFER:
    case UB_CALLBACK_POST:
    case UB_CALLBACK_EXIT:
    case UB_CALLBACK_EVBUFFER:
    case UB_CALLBACK_TASK:
    case UB_CALLBACK_CALLBACK:
    case UB_CALLBACK_TURN:
        return false;
    default:
        return true;
    }
}

static struct ub_coarse_histogram *histogram_of(struct ub_spans *s, struct ub_span_sum *late)
{
    if (late->histogram)
        return late->histogram - 1 < UB_SPAN_LATE ? &s->late_histogram[late->histogram - 1] : NULL;
    if (s->late_histograms >= UB_SPAN_LATE) {
        ub_store_relaxed(&late->histogram, UINT32_MAX);
        return NULL;
    }
    memset(&s->late_histogram[s->late_histograms], 0, sizeof(s->late_histogram[0]));
    ub_store_release(&late->histogram, ++s->late_histograms);
    return &s->late_histogram[s->late_histograms - 1];
}

static void account_late(struct ub_spans *s, uint32_t kind, uint64_t delay)
{
    struct ub_span_sum *late = &s->late[kind % UB_CALLBACK_KINDS];
    struct ub_coarse_histogram *h = histogram_of(s, late);

    ub_store_relaxed(&late->count, late->count + 1);
    ub_store_relaxed(&late->total, late->total + delay);
    if (delay > late->max)
        ub_store_relaxed(&late->max, delay);
    if (h)
        ub_coarse_add(h, delay);
}

/* Keeps `who`; false: it was there, so that it has run already. */
static bool is_new(uint64_t *list, uint32_t *count, uint64_t who)
{
    for (uint32_t i = 0; i < *count; i++) {
        if (list[i] == who)
            return false;
    }
    if (*count < UB_SPAN_WAITED)
        list[(*count)++] = who;
    return true;
}

/* After the stall's own turn it has waited only if the loop's wait did not sleep before this one. */
static bool has_waited(const struct ub_thread *t, const struct ub_span_after *a)
{
    return t->slot->turns == a->turns ||
           t->cold->spans.turn - a->left < ub_load_relaxed(&ub_process->arena->h.call_floor);
}

void ub_after_callback(struct ub_thread *t, const struct ub_callback *c, uint64_t now)
{
    struct ub_span_after *a = &t->cold->spans.after;
    uint64_t who = identity(c->function, c->object);

    if (!a->start || who == a->who || !can_wait(c->kind) || !has_waited(t, a))
        return;
    if (c->kind == UB_CALLBACK_TIMER) {
        if (!is_new(a->timer, &a->told_apart, who))
            return;
        a->timers++;
        a->last = now;
    } else if (!is_new(a->other, &a->others, who ^ (uint64_t)(uint32_t)c->fd << 32)) {
        return;
    }
    account_late(&t->cold->spans, c->kind, now - a->start);
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
        a->back = back;
        if (back > a->last)
            a->last = back;
    }
    a->left = now;
    if (s->library != UB_LOOP_SD_EVENT || !at_once || a->round == UB_ROUNDS_OF_ONE)
        tell(t);
}
