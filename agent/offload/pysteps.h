/*
 * Steps of asyncio's tasks on fibers: the C task resumes its coroutine by one call; that call is made on a fiber, and
 * returns early, with a future to wait for, where the coroutine comes to a call that is sure to block.
 */
#ifndef UB_AGENT_PYSTEPS_H
#define UB_AGENT_PYSTEPS_H

#include "../loops/loop.h"
#include "pool.h"

typedef uint64_t ub_pysteps_send(uintptr_t coroutine, uint64_t value, uint64_t result);

/* `send` is the interpreter's PyIter_Send; the GIL is held. What it returns. */
uint64_t ub_pysteps_run(ub_pysteps_send *send, uintptr_t coroutine, uint64_t value, uint64_t result);

/* Whether the calling thread is in such a step, or has some that are suspended. Signal-safe. */
bool ub_pysteps_concerned(void);

/* As ub_suspend_call. */
bool ub_pysteps_call(uint32_t id, void *function, const uint64_t word[UB_POOL_WORDS], int64_t *ret);

/* The interpreter is of this version (Py_Version): its object is looked for when the first step comes. */
void ub_pysteps_found(unsigned long version);

/* Semaphores: the interpreter's locks. sem_wait is hooked in fds.c, which tells of it here. Signal-safe. */
void ub_pysteps_taken(const void *semaphore);
extern const struct ub_loop_ops ub_pysteps_locks;

#endif
