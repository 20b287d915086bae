/*
 * Small files of /proc as text. Thread-safe; not signal-safe.
 */
#ifndef UB_TRACER_PROCFILE_H
#define UB_TRACER_PROCFILE_H

#include "../common/base.h"

#include <sys/types.h>

/*
 * Reads at most size - 1 bytes of the file whose path `format` makes, and ends
 * them with a NUL. The number of bytes; 0 when it cannot be read.
 */
size_t ub_procfile_read(char *buf, size_t size, const char *format, ...) __attribute__((format(printf, 3, 4)));

/*
 * /proc/PID/task/TID/status without the line of its groups: there may be 65,536 of them, and what is asked for stands
 * behind it. The number of bytes; 0: it cannot be read.
 */
#define UB_STATUS_MAX 4096
size_t ub_procfile_status(pid_t pid, pid_t tid, char buf[UB_STATUS_MAX]);

/*
 * /proc/PID/task/TID/stat from its third field (the state letter) on, past the
 * name, which may hold anything; "" when the thread is gone.
 */
#define UB_STAT_MAX 1024
void ub_procfile_stat(pid_t pid, pid_t tid, char buf[UB_STAT_MAX]);

#endif
