/*
 * The reduced view: what of event loops in other processes can be seen without
 * privilege and with nothing loaded into them. /proc tells which call a thread
 * sleeps in, and whether it ran since it was last asked; where perf_event_open
 * is allowed, its records of context switches tell when exactly.
 *
 * Seen is a loop that sleeps in a call other than its wait for longer than the
 * threshold. Not seen, and never guessed: turns that compute (from here one long
 * turn looks like many short ones), and what adds up of short calls.
 *
 * It writes the arena's slots as an agent would, from a thread of its own.
 */
#ifndef UB_TRACER_OUTSIDE_H
#define UB_TRACER_OUTSIDE_H

#include "../common/arena.h"

#include <sys/types.h>

struct ub_outside;

/* `arena` stays the caller's, and must outlive it. 0 or -errno. */
int ub_outside_start(struct ub_arena *arena, uint64_t threshold_ns, struct ub_outside **ret);
void ub_outside_stop(struct ub_outside *o); /* joins its thread, once; NULL is fine */
void ub_outside_free(struct ub_outside *o); /* when it has stopped, and nobody looks any more; NULL is fine */

/*
 * 0; -ESRCH; -EACCES: not a process that this user may look at; -ENOTSUP: this
 * kernel keeps no schedstat, without which nothing tells whether a thread ran.
 */
int ub_outside_may_look(pid_t pid);

/* Watches all threads of `pid`, now and later. Errors likewise. */
int ub_outside_add(struct ub_outside *o, pid_t pid);

/* Whether `c`, a look at the thread of `slot`, is of the sleep that the slot tells of: its end is noticed late. Any
 * thread. */
struct ub_capture;
bool ub_outside_same_sleep(const struct ub_outside *o, uint32_t slot, const struct ub_capture *c);

/* Whether the kernel would tell this process when one of its own threads is switched (perf_event_paranoid, seccomp). */
bool ub_outside_exact(void);

#endif
