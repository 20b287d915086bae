/*
 * Shared by the files of the control socket's server: control_state.c (what a
 * status tells), control_peer.h (one client), control_server.c (sockets).
 */
#ifndef UB_UI_CONTROL_IMPL_H
#define UB_UI_CONTROL_IMPL_H

#include "control.h"

#include <pthread.h>

#define UB_CONTROL_VERSION 1

/* Kept of the recording's lines, so that a client that comes late knows as much as one that was there. */
struct ub_control_state {
    json_t *header;
    json_t *processes; /* pid -> process line */
    json_t *loops;     /* "pid/tid" -> loop line */
    json_t *sites;     /* site -> {site, count, total_ns, max_ns, last_ns, cause, callback, call, program} */
    json_t *stalls;    /* the latest `slow` lines, oldest first, each id once */
    json_t *notes;     /* the latest */
    json_t *stacks;    /* id -> text of the line, the latest */
    uint64_t slow, worst_ns;
    uint64_t sites_left_out;
};

int ub_control_state_init(struct ub_control_state *s);
void ub_control_state_clear(struct ub_control_state *s);
void ub_control_state_line(struct ub_control_state *s, json_t *record);

/* The answer to "status". `watch` may be NULL. A new reference. */
json_t *ub_control_state_status(const struct ub_control_state *s, const struct ub_control_options *options,
                                const struct ub_watch *watch);

#endif
