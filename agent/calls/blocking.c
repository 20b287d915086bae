/*
 * The hooks of all blocking calls with a fixed argument list, expanded from
 * common/calls.def.
 */
#include "../real.h"
#include "timing.h"

#include <errno.h>

#define UB_CALL(type, name, params, args, syscall, letters, ...)                                                       \
    static __attribute__((noinline)) type timed_##name params                                                          \
    {                                                                                                                  \
        UB_HOOK_TIMED(type, UB_CALL_ID_##name, ub_real.name args, __VA_ARGS__);                                        \
    }
#define UB_CALLV(type, name, params, args, syscall, letters)
#include "../../common/calls.def"
#undef UB_CALL

/* From here on: what the program calls. Everything else in the agent is hidden (-fvisibility=hidden). */
#pragma GCC visibility push(default)

#define UB_CALL(type, name, params, args, syscall, letters, ...)                                                       \
    type name params;                                                                                                  \
    type name params                                                                                                   \
    {                                                                                                                  \
        UB_HOOK_FAST(ub_real.name args, timed_##name args);                                                            \
    }
#include "../../common/calls.def"
#undef UB_CALL
#undef UB_CALLV

#pragma GCC visibility pop
