/*
 * All asyncio tasks of a process, those that wait too: what each awaits, from
 * its own coroutine inwards. asyncio keeps them in a WeakSet.
 */
#include "python_impl.h"

#include <errno.h>
#include <stdlib.h>

#define SET_MAX  (1u << 18)
#define TASK_MAX 256u

/* The set inside a WeakSet: the first attribute that its __init__ gives it. Where it lies differs most of all. */
static uint64_t first_in_dict(struct ub_python *py, uint64_t dict)
{
    uint64_t values = 0, first = 0;

    if (!dict || !ub_python_is(py, dict, "dict"))
        return 0;
    if (ub_python_read_pointer(py, dict + py->layout.dict_values, &values) && values) {
        ub_python_read_pointer(py, values + py->layout.values_first, &first);
        return first;
    }
    return ub_python_dict_get(py, dict, "data");
}

uint64_t ub_python_weak_set(struct ub_python *py, uint64_t object)
{
    const struct ub_python_layout *l = &py->layout;
    uint64_t type, at = 0, word = 0, size = 0;

    if (!ub_python_is(py, object, "WeakSet") || !ub_python_read_pointer(py, object + UB_PYTHON_OBJECT_TYPE, &type))
        return 0;
    switch (l->instance) {
    case UB_PYTHON_DICT_AT:
        if (!ub_python_read_pointer(py, type + UB_PYTHON_TYPE_DICT_AT, &at) || at == 0 || at > 4096)
            return 0;
        return ub_python_read_pointer(py, object + at, &word) ? first_in_dict(py, word) : 0;
    case UB_PYTHON_VALUES_BEFORE:
        if (ub_python_read_pointer(py, object - 32, &word) && word)
            return ub_python_read_pointer(py, word, &at) ? at : 0;
        return ub_python_read_pointer(py, object - 24, &word) ? first_in_dict(py, word) : 0;
    case UB_PYTHON_TAGGED_BEFORE:
        if (!ub_python_read_pointer(py, object - 24, &word))
            return 0;
        if (word & 1)
            return ub_python_read_pointer(py, word + 1, &at) ? at : 0;
        return first_in_dict(py, word);
    case UB_PYTHON_INLINE:
        if (ub_python_read_pointer(py, object - 24, &word) && word)
            return first_in_dict(py, word);
        if (!ub_python_read_pointer(py, type + UB_PYTHON_TYPE_SIZE_AT, &size) || size > 4096)
            return 0;
        return ub_python_read_pointer(py, object + size + l->values_first, &at) ? at : 0;
    }
    return 0;
}

/* ---- a coroutine that is suspended ----------------------------------- */

/* What its frame has on top of its stack: the object that it awaits. 0: nothing. */
static uint64_t awaited(struct ub_python *py, uint64_t frame)
{
    const struct ub_python_layout *l = &py->layout;
    uint64_t top, stack, value = 0;
    int depth;

    if (l->frame_stack == UB_PYTHON_NONE) { /* a count from the first local on */
        if (!ub_python_read(py, frame + l->frame_stack_top, &depth, sizeof(depth)) || depth <= 0 || depth > 65536)
            return 0;
        top = frame + l->frame_locals + 8 * (uint64_t)depth;
    } else if (l->version >= 0x030a) { /* a count on a stack */
        if (!ub_python_read(py, frame + l->frame_stack_top, &depth, sizeof(depth)) || depth <= 0 || depth > 65536 ||
            !ub_python_read_pointer(py, frame + l->frame_stack, &stack))
            return 0;
        top = stack + 8 * (uint64_t)depth;
    } else if (!ub_python_read_pointer(py, frame + l->frame_stack_top, &top) || !top) { /* an address */
        return 0;
    }
    return ub_python_read_pointer(py, top - 8, &value) ? value : 0;
}

/* The frame of a generator or coroutine, 0 when it has ended; and whether it runs. */
static uint64_t frame_of(struct ub_python *py, uint64_t generator, bool *ret_runs)
{
    const struct ub_python_layout *l = &py->layout;
    uint64_t frame = 0;
    int8_t state;

    *ret_runs = false;
    if (l->generator_state == UB_PYTHON_NONE) {
        if (!ub_python_read_pointer(py, generator + l->generator_frame, &frame) || !frame)
            return 0;
        if (l->generator_running != UB_PYTHON_NONE)
            *ret_runs = ub_python_read(py, generator + l->generator_running, &state, sizeof(state)) && state == 1;
        else
            *ret_runs = ub_python_read(py, frame + l->frame_state, &state, sizeof(state)) && state == 0;
        return frame;
    }
    if (!ub_python_read(py, generator + l->generator_state, &state, sizeof(state)) || state > 0)
        return 0;
    *ret_runs = state == 0;
    return generator + l->generator_frame;
}

/* From what an await sees to the generator behind it. 0: it is none, *ret_last is what is waited for. */
static uint64_t generator_behind(struct ub_python *py, uint64_t object, uint64_t *ret_last)
{
    static const char *const wrappers[] = {"coroutine_wrapper", "async_generator_asend", "async_generator_athrow",
                                           "_asyncio.FutureIter"};
    uint64_t type;
    const char *name;

    *ret_last = object;
    for (int i = 0; object && i < 4; i++) {
        if (!ub_python_read_pointer(py, object + UB_PYTHON_OBJECT_TYPE, &type))
            return 0;
        name = ub_python_type_name(py, type);
        if (strcmp(name, "coroutine") == 0 || strcmp(name, "generator") == 0 || strcmp(name, "async_generator") == 0)
            return object;
        for (size_t k = 0; k < UB_ARRAY_LEN(wrappers) && strcmp(name, wrappers[k]) != 0; k++) {
            if (k + 1 == UB_ARRAY_LEN(wrappers))
                return 0;
        }
        if (!ub_python_read_pointer(py, object + 16, &object))
            return 0;
        *ret_last = object;
    }
    return 0;
}

static void read_chain(struct ub_python *py, uint64_t object, struct ub_python_waiter *w)
{
    uint64_t generator, last, frame;
    bool runs, complete;

    for (w->count = 0; w->count < UB_PYTHON_CHAIN_MAX; w->count++) {
        generator = generator_behind(py, object, &last);
        frame = generator ? frame_of(py, generator, &runs) : 0;
        if (!frame || ub_python_walk(py, frame, &w->frame[w->count], 1, &complete) != 1)
            return;
        if (runs) {
            w->running = true;
            w->count++;
            return;
        }
        object = awaited(py, frame);
    }
}

/* ---- tasks ----------------------------------------------------------- */

static void read_task(struct ub_python *py, uint64_t address, struct ub_python_waiter *w)
{
    const struct ub_python_layout *l = &py->layout;
    uint8_t bytes[TASK_MAX];
    uint64_t waiter;

    memset(w, 0, sizeof(*w));
    if (!ub_python_read(py, address, bytes, sizeof(bytes)))
        return;
    w->done = ub_python_u32(bytes, sizeof(bytes), l->future_state) != 0;
    ub_python_task_name(py, ub_python_u64(bytes, sizeof(bytes), l->task_name), w->name, sizeof(w->name));
    read_chain(py, ub_python_u64(bytes, sizeof(bytes), l->task_coroutine), w);
    waiter = ub_python_u64(bytes, sizeof(bytes), l->task_waiter);
    w->waits = waiter != 0;
    if (waiter && ub_python_derives(py, waiter, "_asyncio.Task") && ub_python_read(py, waiter, bytes, sizeof(bytes)))
        ub_python_task_name(py, ub_python_u64(bytes, sizeof(bytes), l->task_name), w->waits_for, sizeof(w->waits_for));
}

/* The tasks that a set holds, weakly or not; *ret is counted on even when there is no more room. */
static void add_set(struct ub_python *py, uint64_t set, bool weak, struct ub_python_waiter *list, uint32_t max,
                    uint32_t *count)
{
    uint64_t mask, table, *entry;

    if (!set || !ub_python_is(py, set, "set") || !ub_python_read_pointer(py, set + UB_PYTHON_SET_MASK, &mask) ||
        mask >= SET_MAX || !ub_python_read_pointer(py, set + UB_PYTHON_SET_TABLE, &table))
        return;
    entry = malloc((mask + 1) * 16);
    if (entry && ub_python_read(py, table, entry, (mask + 1) * 16)) {
        for (uint64_t i = 0; i <= mask; i++) {
            uint64_t task = entry[2 * i];

            if (task && weak && !ub_python_read_pointer(py, task + UB_PYTHON_WEAKREF_TO, &task))
                continue;
            if (!task || !ub_python_derives(py, task, "_asyncio.Task"))
                continue;
            if (*count < max) {
                read_task(py, task, &list[*count]);
                if (list[*count].done)
                    continue;
            }
            ++*count;
        }
    }
    free(entry);
}

uint32_t ub_python_tasks(struct ub_python *py, struct ub_python_waiter *list, uint32_t max)
{
    uint64_t dict = py->gone ? 0 : ub_python_asyncio(py);
    uint32_t count = 0;

    if (!dict)
        return 0;
    if (py->layout.version < 0x030c) {
        add_set(py, ub_python_weak_set(py, ub_python_dict_get(py, dict, "_all_tasks")), true, list, max, &count);
    } else {
        add_set(py, ub_python_weak_set(py, ub_python_dict_get(py, dict, "_scheduled_tasks")), true, list, max, &count);
        add_set(py, ub_python_dict_get(py, dict, "_eager_tasks"), false, list, max, &count);
    }
    return count;
}
