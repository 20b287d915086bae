/*
 * Why a turn was slow, from what was seen of it: looks at the thread, and the
 * kernel's accounts of its time.
 */
#ifndef UB_TRACER_CAUSE_H
#define UB_TRACER_CAUSE_H

#include "capture.h"
#include "frames.h"
#include "stall.h"
#include "python.h"

/* What one look saw, without the stack itself. */
struct ub_seen {
    enum ub_thread_state state;
    int64_t nr;
    bool stack;   /* where it was is known */
    bool lock;    /* a futex wait inside a pthread lock, condition or semaphore */
    bool stopped; /* state T */
    enum ub_python_gil gil;
    bool collecting; /* Python's garbage collector */
    bool importing;  /* a Python import */
    uint64_t slices;
    uint64_t at_ns;
};

/* Time of the turn between two readings of the kernel's accounts. */
struct ub_shares {
    bool known;
    uint64_t window_ns; /* length of the observed part of the turn */
    uint64_t cpu_ns, runqueue_ns, blocked_ns;
    uint64_t majflt;
};

/* `end_ns`: when the turn ended; the second reading may be a little later. */
void ub_cause_shares(const struct ub_accounting *from, const struct ub_accounting *to, uint64_t end_ns,
                     struct ub_shares *ret);

/* The recording's `cause`. `blind_ns`: how long the watcher itself was stopped meanwhile. */
const char *ub_cause_name(const struct ub_seen *seen, uint32_t count, const struct ub_shares *shares,
                          uint64_t duration_ns, uint64_t blind_ns);

/* Whether this stack waits in a pthread lock, condition variable or semaphore. */
bool ub_cause_is_lock(const struct ub_named_stack *s);

#endif
