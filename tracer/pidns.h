/*
 * Numbers in other PID namespaces: a process in a container knows itself, and its
 * threads, by other numbers than we do. What the kernel tells about itself in
 * /proc/PID/task/TID/status (NSpid) is all that is used. Thread-safe.
 */
#ifndef UB_TRACER_PIDNS_H
#define UB_TRACER_PIDNS_H

#include "../common/base.h"

#include <sys/types.h>

/* The namespace of the process (0: our own) as its inode; 0 where that may not be known. */
uint64_t ub_pidns_of(pid_t pid);

/* Whether its numbers are not ours. */
bool ub_pidns_is_foreign(pid_t pid);

/* What thread `tid` of the process takes for its own number (gettid); 0: it is gone. */
pid_t ub_pidns_inner(pid_t pid, pid_t tid);

/* Our number of the process's thread that takes `inner` for its own; 0: it has none such. */
pid_t ub_pidns_thread(pid_t pid, pid_t inner);

/* Our number of the process that is `inner` in the namespace; 0: there is none. Looks at all processes: slow. */
pid_t ub_pidns_process(uint64_t ns, pid_t inner);

/*
 * The number in a file that says what it says per PID namespace of the reader (/proc/sys), as a process in that of
 * `pid` reads it: a child of ours goes there, which takes CAP_SYS_ADMIN where it is not our own. `unknown` where it
 * cannot.
 */
int ub_pidns_number(pid_t pid, const char *file, int unknown);

#endif
