/*
 * libuv as a host of suspended callbacks.
 */
#ifndef UB_AGENT_UVHOST_H
#define UB_AGENT_UVHOST_H

#include "suspend.h"

#include "../loops/loop.h"

extern const struct ub_loop_ops ub_offload_uv;

/* The host of a callback's loop, made if need be, and the handle or request that the callback is of. NULL: none. */
struct ub_host *ub_uv_host(const struct ub_shape *shape, const uint64_t word[UB_FIBER_WORDS], uint64_t *ret_key);

#endif
