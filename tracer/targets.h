/*
 * Who is still there of the processes that a helper watches. A helper is not
 * their parent: it learns of their ends by pidfd. The first process of the tree
 * is waited for even if it never loops: servers like nginx fork workers from it
 * at any time. Another process that has forked but not come to a loop of its own
 * yet is found by its maps, once the others are gone.
 *
 * One thread.
 */
#ifndef UB_TRACER_TARGETS_H
#define UB_TRACER_TARGETS_H

#include "watch.h"

struct ub_targets;

/* NULL: out of memory. */
struct ub_targets *ub_targets_new(const struct ub_watch *w);
void ub_targets_free(struct ub_targets *t);

/* Forgets those that have ended and looks for others when none is left. The number of those that live. */
uint32_t ub_targets_update(struct ub_targets *t);

/* Waits until one of them may have ended, `fd` is readable (true), or `timeout_ms` (-1: for ever) is over. */
bool ub_targets_wait(const struct ub_targets *t, int fd, int timeout_ms);

#endif
