/*
 * libevent as a host of suspended callbacks: its plain events (timers and descriptors), and the requests of evhttp's
 * clients.
 */
#ifndef UB_AGENT_EVENTHOST_H
#define UB_AGENT_EVENTHOST_H

#include "suspend.h"

#include "../loops/loop.h"

extern const struct ub_loop_ops ub_offload_event, ub_offload_evhttp, ub_offload_bufferevent;

/* The host of the callback that is about to run, made if need be, and its event or request. NULL: none, or not one that
 * is left. */
struct ub_host *ub_event_host(const struct ub_shape *shape, uint64_t function, const uint64_t word[UB_FIBER_WORDS],
                              uint64_t *ret_key);

/* The program makes an event in its own memory, where one may have been whose callback is suspended. */
void ub_event_assigned(void *event);

/* ---- between eventhost.c and evhttphost.c ---- */

/* The loop that runs in this thread; NULL. */
void *ub_event_base(void);

/* Its host in this thread; NULL. */
struct ub_host *ub_event_existing_host(void *base);

/* As the functions of a struct ub_host_ops. */
bool ub_evhttp_usable(void);
void *ub_evhttp_base(uint64_t request);
void ub_evhttp_begin(struct ub_task *task);
void ub_evhttp_mute(struct ub_task *task);
void ub_evhttp_back(struct ub_task *task);

#endif
