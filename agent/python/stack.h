/*
 * The Python frames of this very thread, in the midst of a blocking call that
 * has just returned (common/calls.h). Why without the GIL: README.md.
 */
#ifndef UB_AGENT_PYTHON_STACK_H
#define UB_AGENT_PYTHON_STACK_H

#include "../../common/calls.h"

/*
 * An interpreter is there. `version`: 0x030b is 3.11; before it any number is
 * the same. `state`: its PyGILState_GetThisThreadState. Either may be 0. Slow path only.
 */
void ub_python_stack_found(uint32_t copy, uint32_t version, const void *state);

/* Innermost first, at most `max`; 0 where the thread runs no Python that is known. Slow path only; signal-safe. */
uint32_t ub_python_stack(struct ub_call_frame *frame, uint32_t max);

/*
 * The address of the innermost frame, and its code object; 0: not known. Only for what interpreter `copy` itself has
 * called, with the GIL: nothing can end meanwhile, so the reads are plain. Signal-safe.
 */
uint64_t ub_python_innermost(uint32_t copy, uint64_t *ret_code);

/* Whether frames of that interpreter can be read. Signal-safe. */
bool ub_python_knows(uint32_t copy);

/* Whose PyGILState_GetThisThreadState this is; UB_LOOP_COPIES: none's that is known. Slow path only. */
uint32_t ub_python_copy_of(const void *state);

#endif
