/*
 * sd-event as a host of suspended callbacks: its descriptors, times, signals and deferred work, in sd_event_loop.
 */
#ifndef UB_AGENT_SDHOST_H
#define UB_AGENT_SDHOST_H

#include "suspend.h"

#include "../loops/loop.h"

extern const struct ub_loop_ops ub_offload_sd;

/* The host of the callback that is about to run, made if need be, and its source. NULL: none, or not one that is left.
 */
struct ub_host *ub_sd_host(const struct ub_shape *shape, const uint64_t word[UB_FIBER_WORDS], uint64_t *ret_key);

/* Whether the callback of this source, which runs in this thread, may be left. Signal-safe. */
bool ub_sd_may_leave(uint64_t source);

#endif
