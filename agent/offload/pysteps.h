/*
 * Steps of asyncio's tasks on fibers: the C task resumes its coroutine by one call; that call is made on a fiber, and
 * returns early, with a future to wait for, where the coroutine comes to a call or a lock that is sure to block.
 */
#ifndef UB_AGENT_PYSTEPS_H
#define UB_AGENT_PYSTEPS_H

#include "../loops/loop.h"
#include "decide.h"
#include "pool.h"

typedef uint64_t ub_pysteps_send(uintptr_t coroutine, uint64_t value, uint64_t result);

/* `send` is the interpreter's PyIter_Send; the GIL is held. What it returns. */
uint64_t ub_pysteps_run(ub_pysteps_send *send, uintptr_t coroutine, uint64_t code, uint64_t value, uint64_t result);

/*
 * ub_decide of a call that asyncio's thread makes, but for what the kind of call says. UB_PIN_MOVABLE: a
 * step may be left in it. Signal-safe.
 */
enum ub_pin ub_pysteps_judge(const struct ub_thread *t, uint32_t id, const uint64_t *value, uintptr_t sp,
                             uint64_t *ret_lock);

/* Whether the calling thread is in such a step, or has some that are suspended. Signal-safe. */
bool ub_pysteps_concerned(void);

/* As ub_suspend_call. */
bool ub_pysteps_call(uint32_t id, void *function, const uint64_t word[UB_POOL_WORDS], int64_t *ret);

/* Suspended steps that can go on do so here, until none can. Others are not waited for: a call that is moved may take
 * for ever. Not in the midst of an import, or of a transaction of SQLite's. Keeps errno. */
void ub_pysteps_drive_ready(void);

/* As ub_suspend_settle_numbers. */
void ub_pysteps_settle_numbers(unsigned first, unsigned last);

/* The interpreter is of this version (Py_Version): its object is looked for when the first step comes. */
void ub_pysteps_found(unsigned long version);

/* Entering, when the process has its arena: `objects` as in struct ub_attach. */
void ub_pysteps_attach(uint64_t objects);

/* What the calling thread takes now is this one's; NULL: it runs no steps. Signal-safe. */
struct ub_holder *ub_pysteps_holder(void);

/* Waits for a semaphore until a time (CLOCK_MONOTONIC; 0: none). False: that is for the caller to do. `foreign`:
 * struct ub_holder. */
bool ub_pysteps_wait(void *lock, uint64_t deadline_ns, bool foreign, int *ret);

#define UB_UNIT_EAGER    1u
#define UB_UNIT_CONNECTS 2u
#define UB_UNIT_ANY      ((const void *)1) /* whichever of the odd connections: it has to be alone with all of them */

/*
 * A whole call of a client library's on this connection (NULL: none yet; odd: UB_UNIT_ANY may be the same). True: it
 * was made, and this step left meanwhile. `how`: UB_UNIT_EAGER: it is made for what takes its time; UB_UNIT_CONNECTS:
 * under locks of libc's. Who comes to a connection that a suspended step has used waits until that one is over.
 */
bool ub_pysteps_unit(uint32_t id, ub_job_function *function, uint64_t word, const void *connection, uint32_t how,
                     int64_t *ret);

/* Whoever makes a call of SQLite's: waits while a thread makes one for another step (ub_pysteps_wait_for_mutex). */
#define UB_SQLITE_ANY ((const void *)3)

/*
 * Likewise a call of SQLite's that computes, on a connection with this mutex, which the caller does not hold. Never
 * made at first: only from a place that has blocked, or by a policy. *ret_pin: why it was not, MOVABLE: its place is
 * not known to block.
 */
bool ub_pysteps_computes(uint32_t id, ub_job_function *function, const uint64_t word[UB_POOL_WORDS], const void *mutex,
                         enum ub_pin *ret_pin, int64_t *ret);

/* sem_trywait has failed. Its result, and errno. */
int ub_pysteps_try(void *lock);

/* Around the methods of lock objects; `owner` as ub_holder_owner. True: to be tried once more. */
void ub_pysteps_acquire(void);
bool ub_pysteps_acquired(void *lock, uint64_t *owner, bool got);
void ub_pysteps_signalled(void *semaphore);

/*
 * A mutex is about to be taken that a suspended step may have, and that would let its thread in again. It is in the
 * midst of a call, and lets nobody of its thread wait: who comes queues.
 */
void ub_pysteps_wait_for_mutex(const void *mutex);

/* A module is being imported (1), no longer (-1): half of it must not be seen. */
void ub_pysteps_importing(int by);

/* Python code of our own runs (1), no longer (-1). */
void ub_pysteps_own(int by);

/* As in python/python.h. */
struct ub_python_file;
void ub_pysteps_file_begins(struct ub_python_file *use, const void *file);
void ub_pysteps_file_ends(struct ub_python_file *use);

#endif
