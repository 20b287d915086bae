/*
 * Coroutines that are let go of without ever having run: somebody forgot an
 * await, or gave an async function to what calls it and keeps the result
 * (run_in_executor, call_soon). Python warns of it on stderr, some time.
 */
#ifndef UB_AGENT_PYTHON_UNAWAITED_H
#define UB_AGENT_PYTHON_UNAWAITED_H

#include "../../common/base.h"

/*
 * An interpreter is there; after ub_python_stack_found. `coroutine`, `type`: PyCoro_Type and PyType_Type, `code`: where
 * a coroutine keeps its code object. Slow path only.
 */
void ub_unawaited_found(uint32_t copy, uint32_t version, const void *coroutine, const void *type, uint32_t code);

/* Hooks what ends a coroutine, or puts it back. Again and again. Slow path only. */
void ub_unawaited_hook(uint32_t copy, bool back);

#endif
