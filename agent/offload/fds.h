/*
 * What the program does to numbers of descriptors that a moved call still uses: dup2, dup3, close_range, closefrom
 * (close is in moves.c). The call comes first, as it would have without us: else it acted on another file. Beside
 * these, what else of libc's is hooked only where calls move: what arms alarms, sets up resolvers, socket options.
 */
#ifndef UB_AGENT_FDS_H
#define UB_AGENT_FDS_H

#include "../loops/loop.h"

/* Before the program has threads: makes room for them. */
void ub_fds_start(void);

/* A duplicate of the program's, high in its table, where its numbers do not get to as a rule; -1. */
int ub_fds_duplicate(int fd);

/* One that was just made, of our own, likewise: the number that it has now is closed. -1: so it is, and that was all.
 */
int ub_fds_adopt(int fd);

/* Whether the number is one of those, and not the program's to close. Signal-safe. */
bool ub_fds_is_own(int fd);

/* Closes it, if it is. */
void ub_fds_close(int fd);

/* In a forked child: what waits for them is the parent's, and at the other end of a pipe somebody may wait for the last
 * to be closed. Signal-safe. */
void ub_fds_close_all(void);

struct ub_job;

/*
 * The descriptor that a call uses once it leaves: of pipes and sockets a duplicate (its number, to be closed by
 * ub_fds_close; -1: none), as another thread may close the number meanwhile. Of files none: closing any descriptor of
 * a file loses the process's record locks on it. What the number means now is kept in the job.
 */
int ub_fds_keep(struct ub_job *job, int fd);

/* Hooked only where offload moves calls. */
extern const struct ub_loop_ops ub_offload_libc;

#endif
