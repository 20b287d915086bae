/*
 * Records from a watched thread to the tracer: one single-producer,
 * single-consumer ring a thread. The writer never blocks and never overwrites;
 * what does not fit is counted. The reader treats every field as hostile.
 *
 * Signal-safe on the writer's side (no record is written from a handler, so
 * one thread is one writer).
 */
#ifndef UB_RING_H
#define UB_RING_H

#include "base.h"
#include "callbacks.h"

#include <errno.h>

#define UB_RING_RECORDS 64u /* a power of two */

enum ub_record_kind {
    UB_RECORD_TURN = 1,     /* a loop turn, or the loop's own part of one, that exceeded the threshold has ended */
    UB_RECORD_CALLBACK = 2, /* a callback that did */
    UB_RECORD_BIG = 3,      /* one of the biggest callbacks of the turn whose record comes next */
    UB_RECORD_YIELDS = 5,   /* `function` has given way by bare yields so often that it is told: struct ub_span_yield */
    UB_RECORD_UNAWAITED = 6, /* a coroutine of `function` was let go of: `count` is its place in ub_spans.unawaited */
    UB_RECORD_WAITED = 4,    /* what the stall that began at `start` kept waiting */
};

#define UB_RECORD_QUALIFIED 1u  /* the thread was known to run an event loop when the turn ended */
#define UB_RECORD_STARTUP   2u  /* the turn began before the loop served its first descriptor */
#define UB_RECORD_ABANDONED 4u  /* no end was seen: the thread now waits elsewhere, what looked like a turn was none */
#define UB_RECORD_WHOLE     8u  /* a turn of callbacks none of which was slow by itself; `reported` is not in it */
#define UB_RECORD_ROUND     16u /* WAITED: the loop has come round: `ready` is known */

struct ub_record {
    uint32_t kind;  /* enum ub_record_kind */
    uint32_t flags; /* UB_RECORD_* */
    uint64_t start; /* ticks */
    uint64_t end;   /* ticks; WAITED: of the turn that served those descriptors */
    uint64_t site;  /* return address of the wait call whose return began the turn */
    uint64_t turn;  /* the thread's turn number */
    uint32_t ready; /* descriptors that the wait reported; WAITED: the wait after the stall, at once */
    /* CALLBACK, BIG: which. */
    int32_t fd; /* -1: none */
    uint64_t function;
    uint64_t object;  /* WAITED: ticks, when that turn began; 0: none was ready at once */
    uint8_t callback; /* enum ub_callback_kind */
    uint8_t library;  /* enum ub_loop_library */
    uint16_t reserved0;
    uint32_t count; /* BIG: of that function; TURN, WHOLE: callbacks in it; WAITED: timers */
    /* BIG: ticks of all of them; WHOLE: ticks of the turn that are reported elsewhere; WAITED: none waited longer. */
    uint64_t total;
    char name[UB_SPAN_NAME]; /* of the source, "" */
};
_Static_assert(sizeof(struct ub_record) == 128, "a record is two cache lines: agent and tracer agree on it");

struct ub_ring {
    uint32_t head; /* written by the agent: records ever written */
    uint32_t lost; /* written by the agent: records that did not fit */
    uint8_t pad1[UB_CACHE_LINE - 8];
    uint32_t tail; /* written by the tracer: records ever read */
    uint8_t pad2[UB_CACHE_LINE - 4];
    struct ub_record record[UB_RING_RECORDS];
};

/* 0, or -ENOSPC (counted in `lost`). */
static inline int ub_ring_put(struct ub_ring *ring, const struct ub_record *record)
{
    uint32_t head = ub_load_relaxed(&ring->head);
    uint32_t tail = ub_load_acquire(&ring->tail);

    if (head - tail >= UB_RING_RECORDS) {
        ub_store_relaxed(&ring->lost, ring->lost + 1);
        return -ENOSPC;
    }
    ring->record[head % UB_RING_RECORDS] = *record;
    ub_store_release(&ring->head, head + 1);
    return 0;
}

/* 0, -EAGAIN when empty, or -EBADMSG when `head` makes no sense (the ring is then skipped to `head`). */
static inline int ub_ring_get(struct ub_ring *ring, struct ub_record *ret_record)
{
    uint32_t tail = ub_load_relaxed(&ring->tail);
    uint32_t head = ub_load_acquire(&ring->head);

    if (head == tail)
        return -EAGAIN;
    if (head - tail > UB_RING_RECORDS) {
        ub_store_release(&ring->tail, head);
        return -EBADMSG;
    }
    *ret_record = ring->record[tail % UB_RING_RECORDS];
    ub_store_release(&ring->tail, tail + 1);
    return 0;
}

#endif
