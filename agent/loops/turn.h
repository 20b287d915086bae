/*
 * Loop turns: a turn begins where the loop's wait call returns and ends where
 * it is entered again. What counts as the loop's wait is settled in turn.c;
 * any other wait is a blocking call like any other.
 */
#ifndef UB_AGENT_TURN_H
#define UB_AGENT_TURN_H

#include "../process.h"

enum ub_wait_kind {
    UB_WAIT_EPOLL,
    UB_WAIT_POLL,
    UB_WAIT_SELECT,
    UB_WAIT_URING,
};

/* What the slow path wants to know of a wait call. */
struct ub_wait {
    enum ub_wait_kind kind;
    int count;             /* epoll, uring: the descriptor; poll: number of entries; select: highest + 1 */
    const void *set[3];    /* select: the three sets; poll: set[0] is the array */
    uintptr_t ra, sp;      /* return address and frame of the call */
};

/* The wait is not known to be this loop's: settle it. True when a turn's boundary. Slow path only; signal-safe. */
bool ub_turn_settle(struct ub_thread *t, const struct ub_wait *wait);

/* A turn over the threshold has ended. Slow path only; signal-safe. */
void ub_turn_slow(struct ub_thread *t, uint64_t start, uint64_t end);

/* Closes the running turn, if any. Signal-safe. */
static inline void ub_turn_close(struct ub_thread *t)
{
    struct ub_slot *slot = t->slot;
    uint64_t start = t->start;
    uint64_t now, spent;

    if (ub_unlikely(!start))
        return;
    now = ub_clock_ticks(ub_process->clock);
    spent = now - start;
    ub_store_relaxed(&slot->start, 0);
    t->start = 0;
    ub_histogram_add(&t->cold->turns, spent);
    ub_store_relaxed(&slot->busy, slot->busy + spent);
    ub_store_relaxed(&slot->turns, slot->turns + 1);
    if (ub_unlikely(spent > slot->max))
        ub_store_relaxed(&slot->max, spent);
    if (ub_unlikely(spent >= ub_load_relaxed(&ub_process->arena->h.threshold)))
        ub_turn_slow(t, start, now);
}

/* Before a wait call. True: ub_turn_begin is to follow it. Signal-safe. */
static inline bool ub_turn_end(const struct ub_wait *wait)
{
    struct ub_thread *t = &ub_thread;

    if (ub_unlikely(t->generation != ub_process->generation || t->ra != wait->ra || t->sp != wait->sp))
        return ub_turn_settle(t, wait);
    ub_turn_close(t);
    return true;
}

/* After the wait call; `n` is what it returned. Leaves errno alone. Signal-safe. */
static inline void ub_turn_begin(long n)
{
    struct ub_thread *t = &ub_thread;
    struct ub_slot *slot = t->slot;
    uint64_t now;

    if (ub_unlikely(t->generation != ub_process->generation))
        return; /* forked inside the wait: a signal handler did */
    now = ub_clock_ticks(ub_process->clock);
    t->start = now;
    ub_store_relaxed(&slot->ready, n > 0 ? (uint32_t)n : 0);
    ub_store_release(&slot->start, now);
    /* No fence: a watcher that falls asleep issues a process-wide barrier between setting `asleep` and looking again. */
    if (ub_unlikely(ub_load_relaxed(&ub_process->arena->h.asleep)))
        ub_process_ring();
}

#endif
