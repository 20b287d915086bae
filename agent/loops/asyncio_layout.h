/*
 * Where a coroutine object keeps its code object, by CPython's minor version
 * (tests/e2e/test_python_layouts.py compares it with the headers). Offsets in
 * bytes; generators have it at the same place.
 */
#ifndef UB_AGENT_ASYNCIO_LAYOUT_H
#define UB_AGENT_ASYNCIO_LAYOUT_H

#define UB_CORO_CODE_3_8  32u
#define UB_CORO_CODE_3_9  32u
#define UB_CORO_CODE_3_10 24u
#define UB_CORO_CODE_3_11 16u
#define UB_CORO_CODE_3_12 72u
#define UB_CORO_CODE_3_13 72u

/* Likewise a function; a bound method and a functools.partial what they call; a function of C its PyMethodDef. */
#define UB_FUNCTION_CODE_3_9  16u /* and before */
#define UB_FUNCTION_CODE_3_10 48u /* and later */
#define UB_WRAPPED            16u
#define UB_C_FUNCTION_DEF     16u

/* The same in every version. */
#define UB_OBJECT_TYPE  8u
#define UB_TYPE_NAME    24u
#define UB_TYPE_METHODS 232u

#endif
