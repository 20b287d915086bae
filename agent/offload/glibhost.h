/*
 * GLib as a host of suspended callbacks: a source's whole dispatch is on a fiber.
 */
#ifndef UB_AGENT_GLIBHOST_H
#define UB_AGENT_GLIBHOST_H

#include "suspend.h"

#include "../loops/loop.h"

extern const struct ub_loop_ops ub_offload_glib, ub_offload_gio;

/* The host of the source that is about to be dispatched, made if need be, and the source. NULL: none, or not one that
 * is left. */
struct ub_host *ub_glib_host(const struct ub_shape *shape, const uint64_t word[UB_FIBER_WORDS], uint64_t *ret_key);

/* Whether the dispatch of `source`, which runs, is one that may be left. Signal-safe. */
bool ub_glib_may_leave(uint64_t source);

#endif
