/*
 * libevent as a host of suspended callbacks: its plain events, timers and descriptors.
 */
#ifndef UB_AGENT_EVENTHOST_H
#define UB_AGENT_EVENTHOST_H

#include "suspend.h"

#include "../loops/loop.h"

extern const struct ub_loop_ops ub_offload_event;

/* The host of the callback that is about to run, made if need be, and its event. NULL: none, or not one that is left.
 */
struct ub_host *ub_event_host(const struct ub_shape *shape, uint64_t function, uint64_t *ret_key);

#endif
