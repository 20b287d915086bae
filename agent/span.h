/*
 * Callbacks, each timed by itself. A thread's turn is a chain of segments
 * without gaps (common/callbacks.h): where a callback begins or ends, one
 * segment ends and the next begins. Two readings of the clock a callback; the
 * loop's own code between callbacks is never counted to one of them (with one
 * reading, the end of one callback being the start of the next, a slow `prepare`
 * of the loop would be reported under the name of the callback after it).
 *
 * Callbacks nest (a loop run inside a callback); each level keeps the address of
 * the frame that will see its end. A frame that is gone (longjmp, an exception,
 * pthread_cancel) is noticed where the next callback begins or the turn ends.
 */
#ifndef UB_AGENT_SPAN_H
#define UB_AGENT_SPAN_H

#include "after.h"

/* Where the things that name a callback are found among its arguments. */
enum ub_shape_fd {
    UB_FD_NONE,
    UB_FD_ARGUMENT, /* argument fd_at */
    UB_FD_MEMBER,   /* an int at fd_at in the object */
};

/* To offload: of its kind; made by the library for one time; a request that may be answered at any time. */
enum ub_shape_special { UB_SHAPE_USUAL, UB_SHAPE_ONCE, UB_SHAPE_REQUEST };

struct ub_shape {
    uint8_t kind;     /* enum ub_callback_kind */
    uint8_t library;  /* enum ub_loop_library */
    uint8_t object;   /* which argument is the handle, source, watcher ... */
    uint8_t function; /* which argument is the program's function, plus one; 0: the function that is called itself */
    uint8_t fd;       /* enum ub_shape_fd */
    uint8_t special;  /* enum ub_shape_special: what it is to offload, beyond its kind */
    uint16_t fd_at;
    /* The object's name, or NULL. Called only after a slow callback, while the library still holds the object. */
    const char *(*name)(uint64_t object);
    const char *(*version)(void); /* of the library, or NULL */
    void (*before)(void);         /* called before each callback, timed or not; or NULL */
};

/* ---- slow paths (span.c), all signal-safe ---- */

/* The thread's first callback, ever. */
void ub_span_introduce(struct ub_thread *t, const struct ub_shape *shape);

/* The segment that runs was begun by the loop's wait: a new turn. */
void ub_span_new_turn(struct ub_thread *t, struct ub_spans *s);

/* A segment over the threshold has ended. `c`: what ran in it, NULL: the loop itself, or nobody knows. */
void ub_span_slow(struct ub_thread *t, const struct ub_callback *c, uint64_t now, const char *name);

/* The first callback of this kind on this thread, or one too many (NULL). */
struct ub_histogram *ub_span_histogram(struct ub_spans *s, struct ub_span_sum *sum);

/* Perhaps one of the turn's biggest. */
void ub_span_keep_big(struct ub_spans *s, const struct ub_callback *c, uint64_t spent);

/* The callback that runs turns out to be this one. */
void ub_span_rename(struct ub_thread *t, enum ub_callback_kind kind, uint64_t function, uint64_t object);

/* The callbacks that run are interrupted by others, which are not inside of them; and go on. Signal-safe. */
struct ub_span_aside {
    uint32_t depth; /* 0: nothing was timed */
    struct ub_span_level level[UB_SPAN_LEVELS];
};
void ub_span_aside(struct ub_thread *t, struct ub_span_aside *ret);
void ub_span_back(struct ub_thread *t, const struct ub_span_aside *aside);

/* The turn of a thread with callbacks ends. Returns its whole length in ticks. */
uint64_t ub_span_turn_close(struct ub_thread *t, uint64_t now);

/* ---- begin, end: in line, since the calls alone were a fifth of a callback's price ---- */

/* How many levels are left when those whose frame is gone are not counted: ours, at `sp`, is in their place. */
__attribute__((always_inline)) static inline uint32_t ub_span_depth(const struct ub_spans *s, uintptr_t sp)
{
    uint32_t depth = s->depth;

    while (depth && ub_unlikely(s->level[depth - 1].sp <= sp))
        depth--;
    return depth;
}

/*
 * The callback that asyncio's loop runs, NULL: it runs none. In a uvloop it is inside others, which are uvloop's own: a
 * handle without a function, and one of libuv's where that is the system's.
 */
static inline const struct ub_callback *ub_span_asyncio(const struct ub_spans *s)
{
    const struct ub_callback *c = NULL;

    for (uint32_t i = 0; i < s->depth; i++) {
        c = &s->level[i].callback;
        if (c->library != UB_LOOP_LIBUV &&
            (c->library != UB_LOOP_ASYNCIO || c->kind != UB_CALLBACK_CALLBACK || c->function))
            break;
    }
    return c && c->library == UB_LOOP_ASYNCIO ? c : NULL;
}

/*
 * From `now` on runs what the first `depth` levels say (0: the loop itself). A
 * watcher believes `depth` and the level only if `segment` is, before and after,
 * the slot's start.
 */
__attribute__((always_inline)) static inline void ub_span_publish(struct ub_thread *t, struct ub_spans *s,
                                                                  uint32_t depth, uint64_t now)
{
    ub_store_relaxed(&s->segment, 0);
    ub_store_release(&s->depth, depth);
    ub_store_release(&s->segment, now);
    t->start = now;
    ub_store_release(&t->slot->start, now);
}

__attribute__((always_inline)) static inline void ub_span_account(struct ub_spans *s, struct ub_span_sum *sum,
                                                                  uint64_t spent)
{
    uint32_t place = sum->histogram - 1;
    struct ub_histogram *h = ub_likely(place < UB_SPAN_HISTOGRAMS) ? &s->histogram[place] : ub_span_histogram(s, sum);

    ub_store_relaxed(&sum->count, sum->count + 1);
    ub_store_relaxed(&sum->total, sum->total + spent);
    if (ub_unlikely(spent > sum->max))
        ub_store_relaxed(&sum->max, spent);
    if (ub_likely(h != NULL))
        ub_histogram_add(h, spent);
}

__attribute__((always_inline)) static inline int32_t ub_span_fd(const struct ub_shape *shape,
                                                                const uint64_t argument[3], uint64_t object)
{
    if (shape->fd == UB_FD_ARGUMENT)
        return (int32_t)argument[shape->fd_at];
    if (shape->fd == UB_FD_MEMBER)
        return *(const int32_t *)(object + shape->fd_at);
    return -1;
}

/* False: not timed; ub_span_end must not be called. `sp`: the caller's frame. Signal-safe; leaves errno alone. */
__attribute__((always_inline)) static inline bool ub_span_begin(struct ub_thread *t, uintptr_t sp, uint64_t function,
                                                                const struct ub_shape *shape,
                                                                const uint64_t argument[3])
{
    struct ub_spans *s = &t->cold->spans;
    uint64_t now = ub_clock_ticks(ub_process->clock), object = argument[shape->object];
    uint32_t depth = ub_span_depth(s, sp);
    struct ub_span_level *level = &s->level[depth];

    if (ub_unlikely(!s->library))
        ub_span_introduce(t, shape);
    if (t->start != s->segment)
        ub_span_new_turn(t, s);
    if (ub_unlikely(depth == UB_SPAN_LEVELS))
        return false;
    if (ub_unlikely(now - t->start >= ub_load_relaxed(&ub_process->arena->h.threshold)))
        ub_span_slow(t, depth && s->depth == depth ? &level[-1].callback : NULL, now, NULL);
    if (depth)
        level[-1].own += now - t->start;
    if (shape->function && argument[shape->function - 1])
        function = argument[shape->function - 1];
    level->sp = sp;
    level->own = 0;
    level->callback = (struct ub_callback){.function = function,
                                           .object = object,
                                           .fd = ub_span_fd(shape, argument, object),
                                           .kind = shape->kind,
                                           .library = shape->library,
                                           .moves = shape->special == UB_SHAPE_REQUEST};
    if (ub_unlikely(ub_load_relaxed(&t->slot->flags) & UB_SLOT_AFTER))
        ub_after_callback(t, &level->callback, now);
    ub_span_publish(t, s, depth + 1, now);
    return true;
}

/* Returns the ticks that were the callback's own, 0: it was not timed. Signal-safe; leaves errno alone. */
__attribute__((always_inline)) static inline uint64_t ub_span_end(struct ub_thread *t, uintptr_t sp,
                                                                  const struct ub_shape *shape)
{
    struct ub_span_level *level;
    struct ub_spans *s;
    uint64_t now, own;
    uint32_t depth, kind;

    if (ub_unlikely(t->generation != ub_process->generation) || ub_unlikely(!t->slot))
        return 0; /* a forked child comes back from its parent's callback */
    s = &t->cold->spans;
    now = ub_clock_ticks(ub_process->clock);
    depth = ub_span_depth(s, sp - 1); /* those above were left without an end */
    level = &s->level[depth - 1];
    if (ub_unlikely(depth == 0 || level->sp != sp)) {
        ub_store_relaxed(&s->depth, depth);
        return 0;
    }
    if (ub_unlikely(!t->start)) { /* a wait inside it took over as the loop's, and did not come back */
        ub_store_relaxed(&s->depth, depth - 1);
        return 0;
    }
    if (ub_unlikely(t->start != s->segment)) /* turns of a loop inside it have ended: only the rest is its own */
        ub_span_new_turn(t, s);
    own = level->own + (now - t->start);
    if (ub_unlikely(now - t->start >= ub_load_relaxed(&ub_process->arena->h.threshold)))
        ub_span_slow(t, &level->callback, now, shape->name ? shape->name(level->callback.object) : NULL);
    s->callbacks++;
    kind = level->callback.kind; /* it may have been renamed */
    ub_span_account(s, &s->sum[kind < UB_CALLBACK_KINDS ? kind : UB_CALLBACK_TURN], own);
    if (ub_unlikely(own > s->floor))
        ub_span_keep_big(s, &level->callback, own);
    ub_span_publish(t, s, depth - 1, now);
    return own;
}

#endif
