/*
 * Since when a thread has not run, from the scheduler's own books
 * (/proc/PID/task/TID/sched, where the kernel has them; readable by anybody).
 */
#ifndef UB_TRACER_SLEEPTIME_H
#define UB_TRACER_SLEEPTIME_H

#include "../common/base.h"

#include <sys/types.h>

/*
 * Nanoseconds since thread `tid` last left its CPU, right within a few
 * milliseconds. The books of a CPU keep the time of that CPU, so the calling
 * thread visits it for a moment. 0; -ESRCH; -ENOTSUP: the kernel does not tell,
 * or that CPU is not ours to run on. Thread-safe; meaningless for a running thread.
 */
int ub_sleep_time(pid_t pid, pid_t tid, uint64_t *ret_ns);

#endif
