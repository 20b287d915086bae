/*
 * The Python frames of this very thread, in the midst of a blocking call that
 * has just returned (common/calls.h). Why without the GIL: README.md.
 */
#ifndef UB_AGENT_PYTHON_STACK_H
#define UB_AGENT_PYTHON_STACK_H

#include "../../common/calls.h"
#include "../loops/loop.h"
#include "layout.h"

/*
 * An interpreter is there. `version`: 0x030b is 3.11; before it any number is
 * the same. `state`: its PyGILState_GetThisThreadState; `current`: its PyThreadState_GetUnchecked, by whichever name.
 * Each may be 0. Slow path only.
 */
void ub_python_stack_found(uint32_t copy, uint32_t version, const void *state, const void *current);

/* Innermost first, at most `max`; 0 where the thread runs no Python that is known. Slow path only; signal-safe. */
uint32_t ub_python_stack(struct ub_call_frame *frame, uint32_t max);

/* Interpreters in this process, as loops/asyncio.c met them. Written on slow paths only. */
struct ub_python_known {
    void *(*state)(void);   /* NULL: its frames cannot be read */
    void *(*current)(void); /* whose thread holds the GIL: a load or two, where the other looks a thread's key up */
    const char *module;     /* the loader's name of where `state` is: it is called only while that is there */
    struct ub_python_chain chain;
};
extern struct ub_python_known ub_python_known[UB_LOOP_COPIES];

/* Likewise, where each is (ub_policy_place, at most UB_POLICY_FRAMES); of 3.11 and later. Slow path only; signal-safe.
 */
uint32_t ub_python_places(uint64_t *place, uint32_t max);

/*
 * The address of the innermost frame, and its code object; 0: not known. Only for what interpreter `copy` itself has
 * called, with the GIL: nothing can end meanwhile, so the reads are plain. Each handle and each step asks. Signal-safe.
 */
__attribute__((always_inline)) static inline uint64_t ub_python_innermost(uint32_t copy, uint64_t *ret_code)
{
    const struct ub_python_known *python = &ub_python_known[copy];
    uint64_t at;

    if (!python->state)
        return 0;
    at = (uint64_t)(uintptr_t)python->current();
    if (!at)
        return 0;
    at = *(const uint64_t *)(at + python->chain.frame);
    if (at && python->chain.cframe != UB_PYTHON_NO_CFRAME)
        at = *(const uint64_t *)(at + python->chain.cframe);
    if (at)
        *ret_code = *(const uint64_t *)(at + python->chain.code);
    return at;
}

/* Whether frames of that interpreter can be read. Signal-safe. */
bool ub_python_knows(uint32_t copy);

/* Whose PyGILState_GetThisThreadState this is; UB_LOOP_COPIES: none's that is known. Slow path only. */
uint32_t ub_python_copy_of(const void *state);

#endif
