/*
 * The hooks of all blocking calls with a fixed argument list, expanded from
 * common/calls.def.
 */
#include "../real.h"
#include "timing.h"

#include <errno.h>

/* What the program calls is visible, as everything with external linkage here. */
#pragma GCC visibility push(default)

#define HOOK(text, type, name, params, args, id, ...)                                                                  \
    text static __attribute__((noinline)) type timed_##name params                                                     \
    {                                                                                                                  \
        UB_HOOK_TIMED(type, id, ub_real.name args, __VA_ARGS__);                                                       \
    }                                                                                                                  \
    type name params;                                                                                                  \
    text type name params                                                                                              \
    {                                                                                                                  \
        UB_HOOK_FAST(ub_real.name args, timed_##name args);                                                            \
    }
#define UB_CALL(type, name, params, args, syscall, letters, ...)                                                       \
    HOOK(UB_HOOK_TEXT, type, name, params, args, UB_CALL_ID_##name, __VA_ARGS__)
#define UB_CALL_OFTEN(type, name, params, args, syscall, letters, ...)                                                 \
    HOOK(UB_HOOK_TEXT_OFTEN, type, name, params, args, UB_CALL_ID_##name, __VA_ARGS__)
#define UB_CALLV(type, name, params, args, syscall, letters)
#include "../../common/calls.def"
#undef UB_CALL
#undef UB_CALLV

#pragma GCC visibility pop
