#include "thunk.h"

#include "offload/suspend.h"

#define UB_TRIES 64u

/* thunk_entry.S */
extern const char ub_thunk_table[], ub_thunk_table_end[];
uint64_t ub_thunk_call(uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f, uint32_t index);

/*
 * An entry is taken by storing its function, and ready when its shape is there.
 * Never given back: a callback that is not registered any more may still be pending.
 */
static struct {
    uint64_t function;
    const struct ub_shape *shape;
} thunk[UB_THUNKS];

static bool is_thunk(const void *function)
{
    return (const char *)function >= ub_thunk_table && (const char *)function < ub_thunk_table_end;
}

static uint32_t index_of(const void *function)
{
    return (uint32_t)(((const char *)function - ub_thunk_table) / 16) % UB_THUNKS;
}

static uint32_t hash(uint64_t function, const struct ub_shape *shape)
{
    uint64_t h = (function ^ (uintptr_t)shape << 20) * 0x9e3779b97f4a7c15ull;

    return (uint32_t)(h >> 40);
}

void *ub_thunk_original(void *function)
{
    return is_thunk(function) ? (void *)ub_load_relaxed(&thunk[index_of(function)].function) : function;
}

/* Whether entry `i` is, or now becomes, that of `function` and `shape`. */
static bool claim(uint32_t i, uint64_t function, const struct ub_shape *shape)
{
    uint64_t nobody = 0;
    const struct ub_shape *known;

    if (ub_load_relaxed(&thunk[i].function) == 0 &&
        __atomic_compare_exchange_n(&thunk[i].function, &nobody, function, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) {
        ub_store_release(&thunk[i].shape, shape);
        return true;
    }
    if (ub_load_relaxed(&thunk[i].function) != function)
        return false;
    known = ub_load_acquire(&thunk[i].shape);
    return known == shape; /* NULL: another thread is just taking it, perhaps for the same; a second one does no harm */
}

void *ub_thunk(void *function, const struct ub_shape *shape)
{
    uint32_t start;

    if (!function)
        return NULL;
    if (is_thunk(function)) {
        if (ub_load_relaxed(&thunk[index_of(function)].shape) == shape)
            return function;
        function = ub_thunk_original(function);
    }
    start = hash((uintptr_t)function, shape);
    for (uint32_t i = 0; i < UB_TRIES; i++) {
        uint32_t at = (start + i) % UB_THUNKS;

        if (claim(at, (uintptr_t)function, shape))
            return (void *)(ub_thunk_table + 16ul * at);
    }
    if (ub_process->arena)
        __atomic_fetch_add(&ub_process->arena->h.thunks_full, 1, __ATOMIC_RELAXED);
    return function;
}

/*
 * Every thunk ends up here (thunk_entry.S), on a frame that unwinders, exceptions and
 * longjmp pass like any other. What the callback does to us in the meantime
 * (forking, ending the loop, leaving without a return) ub_span_end is ready for.
 */
uint64_t ub_thunk_call(uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f, uint32_t index)
{
    uint64_t (*call)(uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t) =
        (uint64_t(*)(uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t))thunk[index].function;
    const struct ub_shape *shape = ub_load_relaxed(&thunk[index].shape);
    uintptr_t sp = (uintptr_t)__builtin_frame_address(0);
    const uint64_t argument[3] = {a, b, c};
    struct ub_thread *t = &ub_thread;
    uint64_t ret;

    if (ub_unlikely(shape && shape->before))
        shape->before();
    if (ub_unlikely(t->generation != ub_process->callbacks)) {
        const uint64_t word[UB_FIBER_WORDS] = {a, b, c, d, e, f};

        if (t->generation != ub_process->generation || !shape)
            return call(a, b, c, d, e, f);
        if (ub_suspend_dispatch(t, sp, (uintptr_t)call, shape, word, &ret))
            return ret;
    }
    /* No turn runs (not a loop, or not known as one yet), nothing is watched, or a fork was not noticed yet. */
    if (ub_unlikely(!t->start) || ub_unlikely(!shape) ||
        ub_unlikely(!ub_span_begin(t, sp, (uintptr_t)call, shape, argument)))
        return call(a, b, c, d, e, f);
    ret = call(a, b, c, d, e, f);
    ub_span_end(t, sp, shape);
    return ret;
}
