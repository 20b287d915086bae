/*
 * Calls that wait for what a descriptor can tell: no thread waits for them. Their descriptor is put into the loop's
 * inbox, and when it is ready the call is made without waiting, by the loop's thread, or (where that cannot be
 * asked for: accept) by one of the pool's, for a moment.
 */
#ifndef UB_AGENT_READY_H
#define UB_AGENT_READY_H

#include "pool.h"

/*
 * The call `id` that `job` is to make: filled in for ub_pool_start, if it is of that kind; else it is left alone, and
 * is for a thread. `own_fd`: our duplicate of the call's descriptor, -1: none. What it returns is to be closed by
 * ub_fds_close when the call is over: that, or a descriptor of our own that says when; -1.
 */
int ub_ready_prepare(uint32_t id, struct ub_job *job, int own_fd);

/*
 * Makes the call `id`, which receives from a pipe or a socket, if it does not wait. True: it was made, with *ret and
 * errno. False: it would wait, or nothing says that it would not. `socket`: its descriptor is one.
 */
bool ub_ready_receive(uint32_t id, const uint64_t word[UB_POOL_WORDS], bool socket, int64_t *ret);

/* The program takes these numbers for itself: if `own_fd` is one of them and is waited for, it becomes another. The
 * loop's thread only. */
void ub_ready_make_way(struct ub_job *job, int *own_fd, unsigned first, unsigned last);

/* The rest of a send: fd, buf, length, flags, what is on its way. In one that blocks. */
int64_t ub_ready_send_rest(uint64_t fd, uint64_t buf, uint64_t n, uint64_t flags, uint64_t done, uint64_t f, uint64_t g,
                           uint64_t h);

#endif
