/*
 * Loop turns: a turn begins where the loop's wait call returns and ends where
 * it is entered again. What counts as the loop's wait is settled in turn.c;
 * any other wait is a blocking call like any other.
 */
#ifndef UB_AGENT_TURN_H
#define UB_AGENT_TURN_H

#include "../after.h"
#include "../span.h"

enum ub_wait_kind {
    UB_WAIT_EPOLL,
    UB_WAIT_POLL,
    UB_WAIT_SELECT,
    UB_WAIT_URING,
};

/* What the slow path wants to know of a wait call. */
struct ub_wait {
    enum ub_wait_kind kind;
    int count;          /* epoll, uring: the descriptor; poll: number of entries; select: highest + 1 */
    const void *set[3]; /* select: the three sets; poll: set[0] is the array */
    uintptr_t ra, sp;   /* return address and frame of the call */
};

/*
 * Where single descriptors are polled by code that is no loop library: the
 * return address of the call last seen there, by its hash. One that is unloaded
 * and replaced by a loop library at the same address stays misjudged, which
 * costs that loop's turns of a single descriptor. Written by any thread, no
 * order needed.
 */
#define UB_TURN_SINGLES 64u
extern uintptr_t ub_turn_single[UB_TURN_SINGLES];

__attribute__((always_inline)) static inline uintptr_t *ub_turn_single_at(uintptr_t ra)
{
    return &ub_turn_single[(ra ^ ra >> 6) % UB_TURN_SINGLES];
}

/*
 * A poll that is never a loop's, to be told without a call: for nothing (it is
 * a sleep), or for a single descriptor by code known to be no loop library.
 * Signal-safe.
 */
__attribute__((always_inline)) static inline bool ub_turn_never(unsigned long count, uintptr_t ra)
{
    return count == 0 || (count == 1 && ub_load_relaxed(ub_turn_single_at(ra)) == ra);
}

/* The wait is not known to be this loop's: settle it. True when a turn's boundary. Slow path only; signal-safe. */
bool ub_turn_settle(struct ub_thread *t, const struct ub_wait *wait);

/* A turn over the threshold has ended. Slow path only; signal-safe. */
void ub_turn_slow(struct ub_thread *t, uint64_t start, uint64_t end);

/* Hands over a record of this turn: flags, site, turn and ready are filled in. Slow path only; signal-safe. */
void ub_turn_tell(struct ub_thread *t, struct ub_record *record);

/* Adds an ended turn to the thread's totals. Signal-safe. */
__attribute__((always_inline)) static inline void ub_turn_account(struct ub_thread *t, uint64_t spent)
{
    struct ub_slot *slot = t->slot;

    ub_histogram_add(&t->cold->turns, spent);
    ub_store_relaxed(&slot->busy, slot->busy + spent);
    ub_store_relaxed(&slot->turns, slot->turns + 1);
    if (ub_unlikely(spent > slot->max))
        ub_store_relaxed(&slot->max, spent);
}

/* Closes the running turn. Returns its length, 0 when none ran; the caller accounts for it. Signal-safe. */
__attribute__((always_inline)) static inline uint64_t ub_turn_close(struct ub_thread *t,
                                                                    const struct ub_process *process)
{
    uint64_t now = ub_clock_ticks(process->clock), start = t->start, spent = now - start;
    uint32_t flags;

    if (ub_unlikely(!start))
        return 0;
    flags = ub_load_relaxed(&t->slot->flags);
    if (ub_unlikely(flags & (UB_SLOT_CALLBACKS | UB_SLOT_AFTER))) { /* then it is a function that does it */
        if (ub_unlikely(flags & UB_SLOT_AFTER))
            ub_after_turn(t, now);
        if (flags & UB_SLOT_CALLBACKS)
            return ub_span_turn_close(t, now);
    }
    t->start = 0;
    ub_store_relaxed(&t->slot->start, 0);
    if (ub_unlikely(spent >= ub_load_relaxed(&process->arena->h.threshold)))
        ub_turn_slow(t, start, now);
    return spent;
}

/* Whether this call is the loop's settled wait: the same call instruction in the same frame. Signal-safe. */
__attribute__((always_inline)) static inline bool
ub_turn_settled(const struct ub_thread *t, const struct ub_process *process, uintptr_t ra, uintptr_t sp)
{
    return ub_likely(t->ra == ra) && ub_likely(t->sp == sp) && ub_likely(t->generation == process->generation);
}

/*
 * After the wait call; `n` is what it returned, `spent` the length of the turn
 * before it, which is accounted for only now: these stores then overlap with
 * the clock's reading instead of delaying the system call (measured: 21 ns a
 * turn rather than 36). Leaves errno alone. Signal-safe.
 */
__attribute__((always_inline)) static inline void ub_turn_begin(long n, uint64_t spent)
{
    const struct ub_process *process = ub_process;
    struct ub_thread *t = &ub_thread;
    struct ub_slot *slot = t->slot;
    uint64_t now;

    if (ub_unlikely(t->generation != process->generation))
        return; /* forked inside the wait: a signal handler did */
    now = ub_clock_ticks(process->clock);
    t->start = now;
    t->call_floor = ub_load_relaxed(&process->arena->h.call_floor_tsc);
    ub_store_relaxed(&slot->ready, n > 0 ? (uint32_t)n : 0);
    ub_store_release(&slot->start, now);
    /* No fence: a watcher that falls asleep issues a process-wide barrier between setting `asleep` and looking again.
     */
    if (ub_unlikely(ub_load_relaxed(&process->arena->h.asleep)))
        ub_process_ring();
    if (ub_likely(spent))
        ub_turn_account(t, spent);
}

#endif
