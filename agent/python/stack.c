#include "stack.h"

#include "../../common/policy.h"
#include "../calls/timing.h"
#include "../module.h"

#include <string.h>

struct ub_python_known ub_python_known[UB_LOOP_COPIES];

static const struct {
    uint32_t version;
    struct ub_python_chain chain;
} chains[] = {
#define UB_PYTHON_CHAIN(version, ...) {version, {__VA_ARGS__}},
    UB_PYTHON_CHAINS
#undef UB_PYTHON_CHAIN
};

void ub_python_stack_found(uint32_t copy, uint32_t version, const void *state, const void *current)
{
    struct ub_python_known *known = &ub_python_known[copy];

    known->state = NULL;
    for (uint32_t i = 0; state && i < UB_ARRAY_LEN(chains); i++) {
        if (chains[i].version != version)
            continue;
        known->chain = chains[i].chain;
        known->module = ub_module_name(state);
        memcpy(&known->current, current ? &current : &state, sizeof(state));
        if (known->module)
            memcpy(&known->state, &state, sizeof(state));
    }
}

static uint64_t word(const uint8_t *bytes, uint32_t at)
{
    uint64_t value;

    memcpy(&value, bytes + at, sizeof(value));
    return value;
}

/* `settled`: as below. */
static uint32_t copy(bool settled, void *to, uint64_t from, size_t size)
{
    if (!settled)
        return ub_timing_copy(to, from, size);
    memcpy(to, (const void *)(uintptr_t)from, size);
    return (uint32_t)size;
}

/*
 * Reads that cannot fault: while an interpreter ends, its daemon threads' states are freed under them. Each is a system
 * call, of 1.3 us on the machine where they were seen to be a third of what leaving a step costs.
 */
static uint32_t walk(const struct ub_python_chain *chain, uint64_t state, bool settled, struct ub_call_frame *frame,
                     uint32_t max)
{
    size_t size = settled ? UB_PYTHON_FRAME_LEAST : UB_CALLS_FRAME; /* behind its end may be nothing */
    uint64_t at = 0;
    uint32_t n = 0;

    if (copy(settled, &at, state + chain->frame, sizeof(at)) != sizeof(at))
        return 0;
    if (at && chain->cframe != UB_PYTHON_NO_CFRAME && copy(settled, &at, at + chain->cframe, sizeof(at)) != sizeof(at))
        return 0;
    while (at && at % 8 == 0 && n < max && copy(settled, frame[n].bytes, at, size) >= UB_PYTHON_FRAME_LEAST) {
        frame[n].address = at;
        at = word(frame[n++].bytes, chain->back);
    }
    return n;
}

/* The interpreter that this thread is in; NULL: none that is known. */
static const struct ub_python_known *known_of_thread(uint64_t *ret_state)
{
    for (uint32_t i = 0; i < UB_LOOP_COPIES; i++) {
        void *(*get)(void) = ub_python_known[i].state;
        const void *address = NULL;
        uint64_t state;

        memcpy(&address, &get, sizeof(address));
        if (!get || ub_module_name(address) != ub_python_known[i].module)
            continue;
        state = (uint64_t)(uintptr_t)get();
        *ret_state = state;
        if (state)
            return &ub_python_known[i];
    }
    return NULL;
}

/*
 * Whether nothing changes or ends the thread's frames meanwhile: it has let go of the GIL, so it is in a call that
 * returns to them (also where a handler of a signal interrupted that one); and an interpreter frees the states of other
 * threads than the one that ends it, which is the main thread.
 */
static bool is_settled(const struct ub_python_known *known, uint64_t state)
{
    return ub_thread.slot && ub_thread.slot->tid == ub_process->pid && !ub_process->quiet &&
           (uint64_t)(uintptr_t)known->current() != state;
}

uint32_t ub_python_stack(struct ub_call_frame *frame, uint32_t max)
{
    uint64_t state;
    const struct ub_python_known *known = known_of_thread(&state);

    return known ? walk(&known->chain, state, false, frame, max) : 0;
}

uint32_t ub_python_places(uint64_t *place, uint32_t max)
{
    struct ub_call_frame frame[UB_POLICY_FRAMES];
    uint64_t state;
    const struct ub_python_known *known = known_of_thread(&state);
    const struct ub_python_chain *chain = known ? &known->chain : NULL;
    uint32_t frames, n = 0, deep = max < UB_POLICY_FRAMES ? max : UB_POLICY_FRAMES;

    if (!chain || !chain->next)
        return 0;
    if (max == 1) /* it may be that one: the last that has been entered from C */
        deep = 2;
    frames = walk(chain, state, is_settled(known, state), frame, deep);
    for (uint32_t i = 0; i < frames && n < max; i++) {
        if (chain->entry < 0 || (int8_t)frame[i].bytes[chain->owner] < chain->entry)
            place[n++] = ub_policy_place(word(frame[i].bytes, chain->code), word(frame[i].bytes, chain->next));
    }
    return n;
}

bool ub_python_knows(uint32_t copy)
{
    return ub_python_known[copy].state != NULL;
}

uint32_t ub_python_copy_of(const void *state)
{
    const void *address;
    uint32_t i;

    for (i = 0; i < UB_LOOP_COPIES; i++) {
        memcpy(&address, &ub_python_known[i].state, sizeof(address));
        if (state && address == state)
            break;
    }
    return i;
}
