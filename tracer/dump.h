/*
 * One look at a whole process from outside: every thread's state, blocking
 * call and stack. Nothing is injected, stopped or signalled.
 */
#ifndef UB_TRACER_DUMP_H
#define UB_TRACER_DUMP_H

#include "record.h"

#include <sys/types.h>

enum ub_dump_kind {
    UB_DUMP_PROCESS,
    UB_DUMP_ZOMBIE, /* ended, not yet reaped */
    UB_DUMP_KERNEL, /* a kernel thread: no user stack */
};

/* What can be known of a process without any right to look into it. */
struct ub_dump_target {
    pid_t pid; /* of the process; differs from what was asked for when that was a thread */
    enum ub_dump_kind kind;
    uid_t uid;     /* real user */
    char name[64]; /* printable */
    int access;    /* 0: we may look into it; -EACCES: not */
};

/* 0; -ESRCH: no such process; -ENOENT: /proc is not there. */
int ub_dump_look(pid_t pid, struct ub_dump_target *ret);

struct ub_dump_options {
    const struct ub_dump_target *target;
    bool redact;
    const struct ub_sink *sinks;
    uint32_t sink_count;
    int argc; /* the command, for the header */
    char *const *argv;
};

struct ub_dump_result {
    uint32_t threads;
    uint32_t without_stack;
};

/*
 * Writes header, process, and stack and thread lines to the sinks, from the
 * calling thread. 0; -ESRCH: it ended before the first thread was seen; -EACCES; -ENOMEM.
 */
int ub_dump(const struct ub_dump_options *options, struct ub_dump_result *ret);

#endif
