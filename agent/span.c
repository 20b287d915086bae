#include "span.h"

#include "loops/turn.h"

#include <string.h>

/* threshold >> this: shorter callbacks are not kept as a turn's biggest. It takes a thousand of them to fill one. */
#define UB_BIG_FLOOR 10

/* ---- sums ---------------------------------------------------------------------- */

/* The first callback of this kind on this thread. NULL: too many kinds. Slow path only; signal-safe. */
static __attribute__((noinline)) struct ub_histogram *take_histogram(struct ub_spans *s, struct ub_span_sum *sum)
{
    uint32_t place = s->histograms;

    if (place >= UB_SPAN_HISTOGRAMS) {
        ub_store_relaxed(&sum->histogram, UINT32_MAX);
        return NULL;
    }
    memset(&s->histogram[place], 0, sizeof(s->histogram[place]));
    s->histograms++;
    ub_store_release(&sum->histogram, place + 1);
    return &s->histogram[place];
}

__attribute__((always_inline)) static inline void account(struct ub_spans *s, struct ub_span_sum *sum, uint64_t spent)
{
    uint32_t place = sum->histogram;
    struct ub_histogram *h;

    ub_store_relaxed(&sum->count, sum->count + 1);
    ub_store_relaxed(&sum->total, sum->total + spent);
    if (ub_unlikely(spent > sum->max))
        ub_store_relaxed(&sum->max, spent);
    if (ub_likely(place - 1 < UB_SPAN_HISTOGRAMS))
        h = &s->histogram[place - 1];
    else
        h = place ? NULL : take_histogram(s, sum);
    if (ub_likely(h != NULL))
        ub_histogram_add(h, spent);
}

/* ---- the biggest callbacks of a turn ---------------------------------------------- */

/* Slow path only; signal-safe. */
static __attribute__((noinline)) void keep_big(struct ub_spans *s, const struct ub_callback *c, uint64_t spent)
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

/* A segment over the threshold has ended. `c`: what ran in it, NULL: the loop itself, or nobody knows. Slow path only;
 * signal-safe. */
static __attribute__((noinline)) void slow_segment(struct ub_thread *t, const struct ub_callback *c, uint64_t now,
                                                   const char *name)
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

/* ---- begin, end ------------------------------------------------------------------- */

/* The thread's first callback, ever. Slow path only; signal-safe. */
static __attribute__((noinline)) void introduce(struct ub_thread *t, const struct ub_shape *shape)
{
    struct ub_spans *s = &t->cold->spans;
    const char *version = shape->version ? shape->version() : NULL;

    for (uint32_t i = 0; version && version[i] && i + 1 < sizeof(s->version); i++)
        s->version[i] = version[i];
    ub_store_relaxed(&s->library, shape->library);
    __atomic_fetch_or(&t->slot->flags, UB_SLOT_CALLBACKS, __ATOMIC_RELEASE);
}

/* The segment that runs was begun by the loop's wait: a new turn. */
static void new_turn(struct ub_thread *t, struct ub_spans *s)
{
    s->turn = t->start;
    s->segment = t->start;
    s->reported = 0;
    s->callbacks = 0;
    if (s->big[0].count)
        memset(s->big, 0, sizeof(s->big));
    s->floor = ub_load_relaxed(&ub_process->arena->h.threshold) >> UB_BIG_FLOOR;
}

/* Levels whose frame is gone: ours is in their place. */
static void drop_levels(struct ub_spans *s, uintptr_t sp)
{
    while (s->depth && s->level[s->depth - 1].sp <= sp)
        s->depth--;
}

/* From `now` on runs `c`; NULL: the loop itself. */
__attribute__((always_inline)) static inline void publish(struct ub_thread *t, struct ub_spans *s,
                                                          const struct ub_callback *c, uint64_t now)
{
    ub_store_relaxed(&s->now.start, 0);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    if (c) {
        ub_store_relaxed(&s->now.function, c->function);
        ub_store_relaxed(&s->now.object, c->object);
        ub_store_relaxed(&s->now.fd, c->fd);
    }
    ub_store_relaxed(&s->now.library, c ? c->library : (uint8_t)UB_LOOP_NONE);
    ub_store_relaxed(&s->now.kind, c ? c->kind : (uint8_t)UB_CALLBACK_TURN);
    ub_store_release(&s->now.start, now);
    s->segment = now;
    t->start = now;
    ub_store_release(&t->slot->start, now);
}

static int32_t fd_of(const struct ub_shape *shape, const uint64_t argument[3], uint64_t object)
{
    if (shape->fd == UB_FD_ARGUMENT)
        return (int32_t)argument[shape->fd_at];
    if (shape->fd == UB_FD_MEMBER)
        return *(const int32_t *)(object + shape->fd_at);
    return -1;
}

bool ub_span_begin(struct ub_thread *t, uintptr_t sp, uint64_t function, const struct ub_shape *shape,
                   const uint64_t argument[3])
{
    struct ub_spans *s = &t->cold->spans;
    uint64_t now = ub_clock_ticks(ub_process->clock);
    struct ub_span_level *level;
    uint32_t depth = s->depth;

    if (ub_unlikely(!s->library))
        introduce(t, shape);
    if (t->start != s->segment)
        new_turn(t, s);
    drop_levels(s, sp);
    if (ub_unlikely(s->depth == UB_SPAN_LEVELS))
        return false;
    level = s->depth ? &s->level[s->depth - 1] : NULL;
    if (ub_unlikely(now - t->start >= ub_load_relaxed(&ub_process->arena->h.threshold)))
        slow_segment(t, level && s->depth == depth ? &level->callback : NULL, now, NULL);
    if (level)
        level->own += now - t->start;

    level = &s->level[s->depth];
    level->sp = sp;
    level->own = 0;
    level->callback.object = argument[shape->object];
    level->callback.function =
        shape->function && argument[shape->function - 1] ? argument[shape->function - 1] : function;
    level->callback.fd = fd_of(shape, argument, argument[shape->object]);
    level->callback.kind = shape->kind;
    level->callback.library = shape->library;
    s->depth++;
    if (ub_unlikely(ub_load_relaxed(&t->slot->flags) & UB_SLOT_AFTER))
        ub_after_callback(t, &level->callback, now);
    publish(t, s, &level->callback, now);
    return true;
}

void ub_span_end(struct ub_thread *t, uintptr_t sp, const struct ub_shape *shape)
{
    struct ub_span_level *level;
    struct ub_spans *s;
    uint64_t now;

    if (ub_unlikely(t->generation != ub_process->generation) || ub_unlikely(!t->slot))
        return; /* a forked child comes back from its parent's callback */
    s = &t->cold->spans;
    now = ub_clock_ticks(ub_process->clock);
    while (s->depth && s->level[s->depth - 1].sp < sp)
        s->depth--; /* left without an end */
    if (ub_unlikely(s->depth == 0 || s->level[s->depth - 1].sp != sp))
        return;
    level = &s->level[--s->depth];
    if (ub_unlikely(!t->start)) /* a wait inside it took over as the loop's, and did not come back */
        return;
    if (ub_unlikely(t->start != s->segment)) /* turns of a loop inside it have ended: only the rest is its own */
        new_turn(t, s);
    level->own += now - t->start;
    if (ub_unlikely(now - t->start >= ub_load_relaxed(&ub_process->arena->h.threshold)))
        slow_segment(t, &level->callback, now, shape->name ? shape->name(level->callback.object) : NULL);
    s->callbacks++;
    account(s, &s->sum[level->callback.kind % UB_CALLBACK_KINDS], level->own);
    if (ub_unlikely(level->own > s->floor))
        keep_big(s, &level->callback, level->own);
    publish(t, s, s->depth ? &s->level[s->depth - 1].callback : NULL, now);
}

void ub_span_rename(struct ub_thread *t, enum ub_callback_kind kind, uint64_t function, uint64_t object)
{
    struct ub_spans *s = &t->cold->spans;
    struct ub_callback *c = &s->level[s->depth - 1].callback;
    uint64_t start = s->now.start;

    c->kind = (uint8_t)kind;
    c->function = function;
    c->object = object;
    ub_store_relaxed(&s->now.start, 0);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    ub_store_relaxed(&s->now.function, function);
    ub_store_relaxed(&s->now.object, object);
    ub_store_relaxed(&s->now.kind, c->kind);
    ub_store_release(&s->now.start, start);
}

uint64_t ub_span_turn_close(struct ub_thread *t, uint64_t now)
{
    uintptr_t sp = (uintptr_t)__builtin_frame_address(0);
    uint64_t threshold = ub_load_relaxed(&ub_process->arena->h.threshold), start = t->start, whole;
    struct ub_spans *s = &t->cold->spans;
    uint32_t depth = s->depth;

    if (start != s->segment)
        new_turn(t, s);
    whole = now - s->turn;
    drop_levels(s, sp);
    ub_store_relaxed(&t->slot->start, 0);
    if (ub_unlikely(now - start >= threshold))
        slow_segment(t, depth && s->depth == depth ? &s->level[depth - 1].callback : NULL, now, NULL);
    if (ub_unlikely(whole - s->reported >= threshold))
        slow_whole(t, s->turn, now);
    ub_store_relaxed(&s->now.start, 0);
    s->segment = 0;
    t->start = 0;
    return whole;
}
