/*
 * What cannot be left, and waits: for a lock, a condition, a thread, a descriptor. Alone, every callback that began
 * before it would have been over by now; here one of them may be suspended, and be the very one that
 * does what is waited for. So, after a while, those go on right there, above what waits.
 *
 * Only those that began earlier: what waits may depend on them, and on no later one; and so the callbacks above one
 * another on a thread are each older than the one beneath, and there is an end to it. One that goes on like this
 * does not wait above another in its turn: it is left and asked again.
 */
#ifndef UB_AGENT_DRIVE_H
#define UB_AGENT_DRIVE_H

#include "suspend.h"

struct ub_drive {
    uint64_t begun_ns; /* CLOCK_MONOTONIC; 0: not yet */
};

enum ub_drove {
    UB_DROVE_NOTHING, /* nobody is there who could do what is waited for: wait as ever */
    UB_DROVE_WAITED,
    UB_DROVE_ON, /* somebody went on */
};

/* Whether a wait on this thread has to care at all. Signal-safe. */
bool ub_drive_concerned(void);

/*
 * Once: goes on with an older callback that can, or waits for one, for `fd` (-1: none) or for `wait_ns`. Not at the
 * beginning: most waits are over soon, and the program had rather not be entered in their midst. Keeps errno. Slow path
 * only.
 */
enum ub_drove ub_drive(struct ub_drive *d, int fd, short events, uint64_t wait_ns);

/* Until all older callbacks are over, as far as they can be. Keeps errno. Slow path only. */
void ub_drive_all(void);

/* Until no such callback is suspended in the loop, whenever it began: what they use is about to be gone. */
void ub_drive_until_over(const struct ub_host *h, bool (*such)(const struct ub_task *task, const void *which),
                         const void *which);

/* Who takes locks here: a callback on a stack of its own, or NULL. Signal-safe. */
const void *ub_drive_holder(void);

#endif
