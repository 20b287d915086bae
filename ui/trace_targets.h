/*
 * The processes that `unblock trace` was told to watch: by number, with their
 * children, or all of a control group; and whether they are still there.
 */
#ifndef UB_UI_TRACE_TARGETS_H
#define UB_UI_TRACE_TARGETS_H

#include "../common/base.h"

#include <sys/types.h>

struct ub_trace_target {
    pid_t pid;
    int pidfd; /* -1: it has ended */
    bool told; /* the kernel's programs know it */
};

struct ub_trace_targets {
    struct ub_trace_target *process;
    uint32_t count, size;
    bool fresh; /* some have been added */
};

/* 0, or -errno with `why` (UB_WHY_MAX bytes). A process that has just ended, or is there already, is no error. */
int ub_trace_targets_add(struct ub_trace_targets *t, pid_t pid, bool children, char *why);

/* All of a control group and those below it; `path` is absolute or below /sys/fs/cgroup. */
int ub_trace_targets_cgroup(struct ub_trace_targets *t, const char *path, char *why);

/* How many live. */
uint32_t ub_trace_targets_left(struct ub_trace_targets *t);

/* Waits until one of them may have ended, `fd` is readable (true), or `timeout_ms` is over. */
bool ub_trace_targets_wait(const struct ub_trace_targets *t, int fd, int timeout_ms);

void ub_trace_targets_clear(struct ub_trace_targets *t);

#endif
