/*
 * The hooks of all blocking calls with a fixed argument list, expanded from
 * common/calls.def.
 */
#include "../real.h"
#include "timing.h"

#include <errno.h>

/* What the program calls is visible, as everything with external linkage here. */
#pragma GCC visibility push(default)

#define UB_CALL(type, name, params, args, syscall, letters, ...)                                                       \
    UB_HOOK_TEXT static __attribute__((noinline)) type timed_##name params                                             \
    {                                                                                                                  \
        UB_HOOK_TIMED(type, UB_CALL_ID_##name, ub_real.name args, __VA_ARGS__);                                        \
    }                                                                                                                  \
    type name params;                                                                                                  \
    UB_HOOK_TEXT type name params                                                                                      \
    {                                                                                                                  \
        UB_HOOK_FAST(ub_real.name args, timed_##name args);                                                            \
    }
#define UB_CALLV(type, name, params, args, syscall, letters)
#include "../../common/calls.def"
#undef UB_CALL
#undef UB_CALLV

#pragma GCC visibility pop
