/*
 * The type's finalizer, PyCoro_Type.tp_finalize, is hooked: a pointer in the interpreter's data. The interpreter calls
 * it with the GIL for each coroutine that goes. One load and a comparison tell those that have never begun; of the
 * first of each function, on a thread that is just in a loop's turn, the frame is kept that let go of it.
 */
#include "unawaited.h"

#include "../loops/loop.h"
#include "../patch.h"
#include "layout.h"
#include "stack.h"

#include <string.h>

typedef void finalizer(void *object);

static const struct {
    uint32_t version;
    struct ub_python_begun begun;
} layouts[] = {
#define UB_PYTHON_BEGUN(version, ...) {version, {__VA_ARGS__}},
    UB_PYTHON_BEGUNS
#undef UB_PYTHON_BEGUN
};

static struct {
    finalizer **at; /* NULL: not known to be one */
    finalizer *original;
    struct ub_python_begun begun;
    uint32_t code;
} python[UB_LOOP_COPIES];

static uint64_t word(uint64_t address)
{
    return *(const uint64_t *)(uintptr_t)address;
}

static bool never_begun(uint32_t copy, uint64_t coroutine)
{
    const struct ub_python_begun *l = &python[copy].begun;
    uint64_t frame;

    if (l->state)
        return *(const int8_t *)(uintptr_t)(coroutine + l->state) == l->created;
    frame = word(coroutine + l->frame);
    return frame && *(const int32_t *)(uintptr_t)(frame + l->last) == -1;
}

/* The first of its function that this function has let go of, on this thread. Slow path only; signal-safe. */
static __attribute__((noinline)) void tell(struct ub_thread *t, uint32_t copy, uint64_t code)
{
    struct ub_span_unawaited *kept = t->cold->spans.unawaited;
    struct ub_record record = {.kind = UB_RECORD_UNAWAITED,
                               .function = code,
                               .callback = UB_CALLBACK_TASK,
                               .library = UB_LOOP_ASYNCIO,
                               .fd = -1};
    uint64_t by;
    uint32_t i;

    if (!ub_python_innermost(copy, &by))
        return;
    for (i = 0; i < UB_SPAN_UNAWAITED && kept[i].function; i++) {
        if (kept[i].function == code && kept[i].by == by)
            return;
    }
    if (i == UB_SPAN_UNAWAITED || ub_python_stack(&kept[i].frame, 1) == 0)
        return;
    kept[i].by = by;
    ub_store_release(&kept[i].function, code);
    record.count = i;
    ub_ring_put(&t->cold->ring, &record);
}

__attribute__((always_inline)) static inline void finalize(uint32_t copy, void *object)
{
    struct ub_thread *t = &ub_thread;

    if (ub_unlikely(never_begun(copy, (uintptr_t)object)) && t->start && t->generation == ub_process->generation)
        tell(t, copy, word((uintptr_t)object + python[copy].code));
    python[copy].original(object);
}

static void finalize0(void *object)
{
    finalize(0, object);
}

static void finalize1(void *object)
{
    finalize(1, object);
}

static finalizer *const hook[UB_LOOP_COPIES] = {finalize0, finalize1};

void ub_unawaited_found(uint32_t copy, uint32_t version, const void *coroutine, const void *type, uint32_t code)
{
    uint64_t address = (uintptr_t)coroutine;

    python[copy].at = NULL;
    if (!coroutine || !type || !code || !ub_python_knows(copy) || word(address + UB_PYTHON_TYPE) != (uintptr_t)type)
        return;
    for (uint32_t i = 0; i < UB_ARRAY_LEN(layouts); i++) {
        if (layouts[i].version != version)
            continue;
        python[copy].begun = layouts[i].begun;
        python[copy].code = code;
        python[copy].at = (finalizer **)(uintptr_t)(address + UB_PYTHON_FINALIZE);
        python[copy].original = *python[copy].at;
    }
    if (!python[copy].original)
        python[copy].at = NULL;
}

void ub_unawaited_hook(uint32_t copy, bool back)
{
    finalizer *from = back ? hook[copy] : python[copy].original, *to = back ? python[copy].original : hook[copy];
    void *value;

    if (!python[copy].at || ub_load_relaxed(python[copy].at) != from)
        return;
    memcpy(&value, &to, sizeof(value));
    ub_patch_pointer((void **)python[copy].at, value);
}
