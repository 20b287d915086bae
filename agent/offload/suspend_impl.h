/*
 * Between suspend.c (what a callback goes through), leave.c (a call that it makes), order.c, hosts.c (the loops in
 * which it does) and drive.c (what goes on while the thread cannot return to its loop). For those only.
 */
#ifndef UB_AGENT_SUSPEND_IMPL_H
#define UB_AGENT_SUSPEND_IMPL_H

#include "suspend.h"

#define UB_HOSTS_MAX 4u

/* What belongs to a thread that runs loops. Reached by the number of its slot. */
struct mine {
    int32_t tid;
    const void *slot;        /* the thread's */
    uint32_t generation;     /* of the process that made it: not a forked child's */
    struct ub_task *current; /* whose stack this is, as long as it is */
    struct ub_fiber_pool fibers;
    struct ub_fiber_exceptions *exceptions;
    struct ub_host *host[UB_HOSTS_MAX];
    uint32_t suspended; /* of all hosts */
    uint32_t rounds;
    uint64_t born; /* callbacks that began on fibers */
    struct ub_beside beside;
};

/* NULL: this thread runs no loop, or (a forked child) is not watched yet. */
struct mine *ub_suspend_mine(bool make);

/* Of the thread, running or ended, that has or had the slot; NULL: none that could have hosts. */
struct mine *ub_suspend_mine_at(uint32_t slot);

/* Zeroed memory, for good; NULL: there is none. */
void *ub_suspend_map(size_t size);

/* Of a thread that has ended: its loop was not destroyed, and may still know of it. *host is NULL then. */
void ub_suspend_lose(struct ub_host **host);

/* The callback whose own stack `sp` is on; NULL: the thread's. Signal-safe. */
static inline struct ub_task *ub_suspend_task(const struct mine *m, uintptr_t sp)
{
    return m->current && ub_fiber_contains(&m->current->fiber, sp) ? m->current : NULL;
}

/* What has ended meanwhile is marked, and what waited for it started. */
void ub_suspend_collect(struct ub_host *h);

/* The loop is woken when something of it has ended. */
void ub_suspend_arm(struct ub_host *h);

/* Goes on with a suspended one right here, until it is suspended again or over. What comes after it is left to its
 * loop. */
void ub_suspend_run_here(struct mine *m, struct ub_task *task);

/* Leaves the callback that runs, for so long. */
void ub_suspend_park(struct ub_task *task, uint64_t ns);

#endif
