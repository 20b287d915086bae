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

#endif
