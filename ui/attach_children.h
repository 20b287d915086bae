/*
 * `unblock attach --children`: a process and its descendants, those there are and
 * those to come, entered one by one into one watch. Which of them run a loop shows
 * itself: they are tried in turn, and those that do not come to a wait again later.
 */
#ifndef UB_UI_ATTACH_CHILDREN_H
#define UB_UI_ATTACH_CHILDREN_H

#include "trace_targets.h"

#include "../tracer/inject.h"
#include "../tracer/watch.h"

struct ub_family {
    pid_t root;
    bool verbose;
    uint32_t entered, refused; /* refused: for good, as things are */
    struct ub_bpf *bpf;        /* NULL: the agents alone */
    struct ub_trace_targets processes;
};

/* Looks for them. 0, or -errno with `why` (UB_WHY_MAX bytes). */
int ub_family_find(struct ub_family *f, pid_t root, char *why);

/*
 * Enters the first one that comes to a wait, each being given a moment in turn. `options` as for one process but for
 * its number. 0; -errno as ub_inject_enter, with what is said of the last one that was refused.
 */
int ub_family_enter_one(struct ub_family *f, const struct ub_inject_options *options, struct ub_inject_result *ret);

/* What the kernel knows of their stalls, too: of those who are entered already, and of those who will be. */
void ub_family_see_from_kernel(struct ub_family *f, struct ub_bpf *bpf);

/* The others, into the arena of the first one; each is given `each_ns`. Again and again, as long as it is watched. */
void ub_family_enter_others(struct ub_family *f, struct ub_watch *watch, const struct ub_inject_options *options,
                            uint64_t each_ns);

/* The watch is over: waits for those that see it by themselves, and tells the idle ones. How many are left behind. */
uint32_t ub_family_leave(struct ub_family *f, const struct ub_inject_options *options, uint64_t each_ns);

#endif
