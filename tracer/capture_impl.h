/*
 * Between capture.c and its ways of taking a stack: the /proc files of a
 * thread, kept open. Private to capture*.c and their tests.
 */
#ifndef UB_TRACER_CAPTURE_IMPL_H
#define UB_TRACER_CAPTURE_IMPL_H

#include "capture.h"

/* Files of /proc/PID/task/TID. */
enum ub_thread_file {
    UB_THREAD_FILE_SYSCALL,
    UB_THREAD_FILE_SCHEDSTAT,
    UB_THREAD_FILE_STATUS,
    UB_THREAD_FILE_STAT,
    UB_THREAD_FILES,
};

struct ub_thread_files {
    pid_t pid, tid; /* tid 0: a free entry of the cache */
    uint64_t used;  /* the cache's clock when it was last put back */
    int fd[UB_THREAD_FILES];
};

/*
 * The files of a thread, for this caller alone until it puts them back: opening
 * costs 4-6 us a file, reading an open one 1-2. A descriptor of a thread that is
 * gone fails with -ESRCH even when the number was given to a new thread, so
 * that keeping them open cannot mix threads up.
 *
 * Thread-safe. Never fails: what cannot be opened fails in ub_thread_files_read.
 */
void ub_thread_files_take(pid_t pid, pid_t tid, struct ub_thread_files *ret);
void ub_thread_files_put(struct ub_thread_files *f); /* usable as UB_CLEANUP */

/*
 * Reads one of them from its start, NUL-terminated: its length. -ESRCH: the
 * thread is gone; -EACCES (also for EPERM): not ours to look at.
 */
int ub_thread_files_read(struct ub_thread_files *f, enum ub_thread_file which, char *buf, uint32_t size);

/* How the stillness of a thread is proven; tests choose, everybody else leaves it at AUTO. */
enum ub_capture_proof_by {
    UB_PROOF_BY_AUTO,     /* schedstat where the kernel keeps it, else the switch counters */
    UB_PROOF_BY_SWITCHES, /* as on a kernel without sched_info */
    UB_PROOF_BY_NOTHING,  /* accept what was copied: the control of the tests, which must then see wrong stacks */
};
extern enum ub_capture_proof_by ub_capture_proof_by;

/*
 * Empties `ret` except for `bytes`, which is as good as no time to clear: 64 KB
 * that are only valid where a region says so.
 */
void ub_capture_reset(struct ub_capture *ret);

/* End of the mapping that holds `sp`, or 0 when the snapshot does not know it. Sees through a main stack that has
 * grown. */
uint64_t ub_capture_stack_end(const struct ub_maps *maps, uint64_t sp);

/* Spaces, then "0x1f" or "1f", at *text; moves past them. */
uint64_t ub_capture_parse_hex(const char **text);

/* The state letter of /proc/PID/task/TID/stat; 0 when it cannot be read. */
char ub_capture_state_letter(struct ub_thread_files *f);

#endif
