#include "span.h"

#include "loops/turn.h"

#include <string.h>

/* threshold >> this: shorter callbacks are not kept as a turn's biggest. It takes a thousand of them to fill one. */
#define UB_BIG_FLOOR 10

/* ---- sums ---------------------------------------------------------------------- */

struct ub_histogram *ub_span_histogram(struct ub_spans *s, struct ub_span_sum *sum)
{
    uint32_t place = s->histograms;

    if (sum->histogram) /* none was left for it */
        return NULL;
    if (place >= UB_SPAN_HISTOGRAMS) {
        ub_store_relaxed(&sum->histogram, UINT32_MAX);
        return NULL;
    }
    memset(&s->histogram[place], 0, sizeof(s->histogram[place]));
    s->histograms++;
    ub_store_release(&sum->histogram, place + 1);
    return &s->histogram[place];
}

/* ---- the biggest callbacks of a turn ---------------------------------------------- */

void ub_span_keep_big(struct ub_spans *s, const struct ub_callback *c, uint64_t spent)
{
    struct ub_span_big *least = &s->big[0], *own = NULL;

    for (uint32_t i = 0; i < UB_SPAN_BIGGEST; i++) {
        if (s->big[i].count && s->big[i].function == c->function && s->big[i].kind == c->kind)
            own = &s->big[i];
        if (s->big[i].total < least->total)
            least = &s->big[i];
    }
    if (!own) {
        if (spent <= least->total)
            return;
        own = least;
        *own = (struct ub_span_big){.function = c->function, .kind = c->kind, .library = c->library, .fd = c->fd};
    }
    own->count++;
    own->total += spent;
}

/* ---- records ---------------------------------------------------------------------- */

static void tell_slow(struct ub_thread *t, const struct ub_callback *c, uint64_t start, uint64_t end, const char *name)
{
    struct ub_record record = {.kind = UB_RECORD_TURN, .start = start, .end = end, .fd = -1};

    if (c && c->kind != UB_CALLBACK_TURN) {
        record.kind = UB_RECORD_CALLBACK;
        record.function = c->function;
        record.object = c->object;
        record.fd = c->fd;
        record.callback = c->kind;
        record.library = c->library;
        for (uint32_t i = 0; name && name[i] && i < sizeof(record.name); i++)
            record.name[i] = name[i];
    }
    ub_turn_tell(t, &record);
}

void ub_span_slow(struct ub_thread *t, const struct ub_callback *c, uint64_t now, const char *name)
{
    t->cold->spans.reported += now - t->start;
    tell_slow(t, c, t->start, now, name);
}

/* A turn of callbacks none of which was slow by itself. Slow path only; signal-safe. */
static __attribute__((noinline)) void slow_whole(struct ub_thread *t, uint64_t start, uint64_t end)
{
    struct ub_spans *s = &t->cold->spans;
    struct ub_record record = {.kind = UB_RECORD_TURN,
                               .flags = UB_RECORD_WHOLE,
                               .start = start,
                               .end = end,
                               .count = s->callbacks,
                               .total = s->reported,
                               .fd = -1};

    for (uint32_t i = 0; i < UB_SPAN_BIGGEST && ub_process->arena->h.mode != UB_ARENA_ALONE; i++) {
        const struct ub_span_big *b = &s->big[i];
        struct ub_record big = {.kind = UB_RECORD_BIG,
                                .start = start,
                                .end = end,
                                .function = b->function,
                                .fd = b->fd,
                                .callback = b->kind,
                                .library = b->library,
                                .count = b->count,
                                .total = b->total};

        if (b->count)
            ub_ring_put(&t->cold->ring, &big);
    }
    ub_turn_tell(t, &record);
}

/* ---- threads, turns ---------------------------------------------------------------- */

void ub_span_introduce(struct ub_thread *t, const struct ub_shape *shape)
{
    struct ub_spans *s = &t->cold->spans;
    const char *version = shape->version ? shape->version() : NULL;

    for (uint32_t i = 0; version && version[i] && i + 1 < sizeof(s->version); i++)
        s->version[i] = version[i];
    ub_store_relaxed(&s->library, shape->library);
    __atomic_fetch_or(&t->slot->flags, UB_SLOT_CALLBACKS, __ATOMIC_RELEASE);
}

void ub_span_new_turn(struct ub_thread *t, struct ub_spans *s)
{
    s->turn = t->start;
    s->reported = 0;
    s->callbacks = 0;
    if (s->big[0].count)
        memset(s->big, 0, sizeof(s->big));
    s->floor = ub_load_relaxed(&ub_process->arena->h.threshold) >> UB_BIG_FLOOR;
}

void ub_span_rename(struct ub_thread *t, enum ub_callback_kind kind, uint64_t function, uint64_t object)
{
    struct ub_spans *s = &t->cold->spans;
    struct ub_callback *c = &s->level[s->depth - 1].callback;
    uint64_t segment = s->segment;

    ub_store_relaxed(&s->segment, 0);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    c->kind = (uint8_t)kind;
    c->function = function;
    c->object = object;
    ub_store_release(&s->segment, segment);
}

void ub_span_aside(struct ub_thread *t, struct ub_span_aside *ret)
{
    struct ub_spans *s;
    uint64_t now;

    ret->depth = 0;
    if (!t->start || t->generation != ub_process->generation)
        return;
    s = &t->cold->spans;
    if (s->depth == 0 || s->depth > UB_SPAN_LEVELS)
        return;
    now = ub_clock_ticks(ub_process->clock);
    if (t->start != s->segment)
        ub_span_new_turn(t, s);
    if (now - t->start >= ub_load_relaxed(&ub_process->arena->h.threshold))
        ub_span_slow(t, &s->level[s->depth - 1].callback, now, NULL);
    s->level[s->depth - 1].own += now - t->start;
    ret->depth = s->depth;
    memcpy(ret->level, s->level, sizeof(ret->level));
    ub_span_publish(t, s, 0, now);
}

void ub_span_back(struct ub_thread *t, const struct ub_span_aside *aside)
{
    struct ub_spans *s;

    if (!aside->depth || !t->start || t->generation != ub_process->generation)
        return;
    s = &t->cold->spans;
    ub_store_relaxed(&s->segment, 0);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    memcpy(s->level, aside->level, sizeof(s->level));
    ub_span_publish(t, s, aside->depth, ub_clock_ticks(ub_process->clock));
}

uint64_t ub_span_turn_close(struct ub_thread *t, uint64_t now)
{
    uintptr_t sp = (uintptr_t)__builtin_frame_address(0);
    uint64_t threshold = ub_load_relaxed(&ub_process->arena->h.threshold), start = t->start, whole;
    struct ub_spans *s = &t->cold->spans;
    uint32_t depth = s->depth;

    if (start != s->segment)
        ub_span_new_turn(t, s);
    whole = now - s->turn;
    ub_store_relaxed(&s->depth, ub_span_depth(s, sp));
    ub_store_relaxed(&t->slot->start, 0);
    if (ub_unlikely(now - start >= threshold))
        ub_span_slow(t, depth && s->depth == depth ? &s->level[depth - 1].callback : NULL, now, NULL);
    if (ub_unlikely(whole - s->reported >= threshold))
        slow_whole(t, s->turn, now);
    ub_store_relaxed(&s->segment, 0);
    t->start = 0;
    return whole;
}
