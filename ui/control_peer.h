/*
 * One client of the control socket, without the socket: bytes that it sent in,
 * whole lines for it out. Who talks nonsense or too much is refused, whoever does
 * not read loses lines. Not thread-safe: the server's lock is held.
 */
#ifndef UB_UI_CONTROL_PEER_H
#define UB_UI_CONTROL_PEER_H

#include "control_impl.h"

#define UB_CONTROL_REQUEST_MAX 4096
#define UB_CONTROL_QUEUE_MAX   ((size_t)2 << 20) /* bytes that a client may be behind */

struct ub_control_peer {
    int fd; /* the server's; -1: there is no such client */
    bool following;
    bool closing; /* once the queue is empty */
    char request[UB_CONTROL_REQUEST_MAX];
    size_t request_len;
    char *queue; /* owned; bytes [sent, len) are to go */
    size_t sent, len, size;
    uint64_t dropped;  /* lines */
    uint64_t waits_ns; /* since when it owes us something */
    json_t *stacks;    /* owned: ids that it has been told */
};

/* What its requests are answered from. `watch` may be NULL. */
struct ub_control_source {
    const struct ub_control_options *options;
    const struct ub_control_state *state;
    const struct ub_watch *watch;
};

/* 0 or -ENOMEM. */
int ub_control_peer_init(struct ub_control_peer *k, int fd);
/* Leaves the descriptor alone, but forgets it. */
void ub_control_peer_clear(struct ub_control_peer *k);

/* `n` more bytes are in `request`, behind the `request_len` that were: answers what is whole. */
void ub_control_peer_got(struct ub_control_peer *k, const struct ub_control_source *from, size_t n);

/* A line of the recording for a follower, as JSON and as text; the stacks that it refers to go before it, once each. */
void ub_control_peer_tell(struct ub_control_peer *k, const struct ub_control_state *s, const json_t *record,
                          const char *text);

#endif
