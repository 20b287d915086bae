/*
 * SQLite, as the interpreter's module calls it. While a step is inside one of its calls the connection's mutex is
 * taken, and that is a recursive one of the thread's, which all steps share; and while a transaction is open, others
 * wait for its end.
 */
#ifndef UB_AGENT_PYSQLITE_H
#define UB_AGENT_PYSQLITE_H

#include "pysteps_impl.h"

extern const struct ub_loop_ops ub_pysqlite, ub_pysqlite_methods;

/*
 * A sleep made at `from`, by SQLite for itself: it waits for a lock on a file, or makes a pause that it was asked for.
 * `mutex`: its connection's, which goes on being taken; NULL: none is. False: not one that a step may be left in.
 */
bool ub_pysqlite_may_nap(const struct step *s, uint32_t id, uintptr_t from, const void **mutex);

/* Whether the step has a transaction open. */
bool ub_pysqlite_in_transaction(const struct mine *m, const struct step *s);

/* The coroutine is over. The second: of the calling thread, where no step is on a fiber (the dry run). */
void ub_pysqlite_forget(struct mine *m, uintptr_t coroutine);
void ub_pysqlite_ended(uintptr_t coroutine);

#endif
