/*
 * Starting the helper watcher: another process that is no child of the program
 * in any way that the program could notice.
 */
#ifndef UB_AGENT_HELPER_H
#define UB_AGENT_HELPER_H

#include "../common/base.h"

#include <sys/types.h>

/*
 * Remembers where the helper is (beside the agent, or UNBLOCK_HELPER) and the
 * variables that it is to see: programs overwrite their environment. In the
 * constructor only.
 */
void ub_helper_prepare(char *const *environment);

/* A variable of those remembered, or NULL. Signal-safe. */
const char *ub_helper_variable(const char *name);

/*
 * Starts it, with the arena of descriptor `fd` (inode `inode`) at UB_HELPER_FD.
 * The calling thread is held until it has been executed (some 300 us), the others run
 * on. 0 with its pid, or -errno: *ret_exec tells a failure to execute it from
 * one to make a process. Slow path only; signal-safe.
 */
int ub_helper_start(int fd, uint64_t inode, pid_t *ret_pid, bool *ret_exec);

#endif
