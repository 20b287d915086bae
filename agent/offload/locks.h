/*
 * The locks that a loop's thread holds. While a callback holds one it cannot be
 * left: with a recursive mutex another callback would walk into its critical section,
 * with any other it would wait for ever. Counted where modules of the program
 * call the functions that take and release one: pthread mutexes, rwlocks, spin locks, C11's
 * mtx_lock, GLib's. Not seen: locks made of futexes or atomics by hand (Rust's, Abseil's),
 * calls through a pointer, libc's own.
 */
#ifndef UB_AGENT_LOCKS_H
#define UB_AGENT_LOCKS_H

#include "../loops/loop.h"

extern const struct ub_loop_ops ub_locks_libc, ub_locks_glib;

/* The agent is about to be unloaded: gives back the memory. Nothing is hooked any more. */
void ub_locks_forget(void);

/* Whether the calling thread holds one; *ret_ra: where it took the last of them. Signal-safe. */
bool ub_locks_held(uint64_t *ret_ra);

/* The only one that it holds (several times, perhaps), and where it took it; NULL: there are others, or none. */
const void *ub_locks_only_one(uint64_t *ret_ra);

/* What holds that one is left (true), and goes on: meanwhile it is not what the thread holds. */
void ub_locks_put_away(const void *lock, const void *holder, bool away);

/* How many are put away, and suspended steps that have used a connection. Others than the thread's own may take them
 * only when they are back. */
extern uint32_t ub_locks_away;

/* Not a lock, but like one: what the calling callback has set for its thread, and will set back. */
void ub_locks_enter(const void *what, uintptr_t ra);
void ub_locks_leave(const void *what);

/* As where the program calls pthread_mutex_lock or g_mutex_lock; only where those are hooked. Slow path only. */
int ub_locks_lock(void *mutex);
int ub_locks_unlock(void *mutex);
void ub_locks_g_lock(void *mutex);
void ub_locks_g_unlock(void *mutex);

#endif
