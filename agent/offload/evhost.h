/*
 * libev as a host of suspended callbacks: timers, descriptors, asyncs and signals, in ev_run.
 */
#ifndef UB_AGENT_EVHOST_H
#define UB_AGENT_EVHOST_H

#include "suspend.h"

#include "../loops/loop.h"

extern const struct ub_loop_ops ub_offload_ev;

/* The host of the callback that is about to run, made if need be, and its watcher. NULL: none, or not one that is left.
 */
struct ub_host *ub_ev_host(const struct ub_shape *shape, const uint64_t word[UB_FIBER_WORDS], uint64_t *ret_key);

/* Whether the callback that runs in this thread may be left: its loop calls it. Signal-safe. */
bool ub_ev_may_leave(void);

/* Whether it is that of our own watchers. */
bool ub_ev_is_waker(const void *callback);

#endif
