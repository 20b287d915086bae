/*
 * What a watched thread publishes: one cache line that says what runs now, and
 * beside it a histogram, a ring of finished slow turns and a buffer for one
 * stack sample. Owned by the thread that took it; the tracer reads all of it,
 * writes only the fields marked "tracer", and trusts none.
 */
#ifndef UB_SLOT_H
#define UB_SLOT_H

#include "base.h"
#include "callbacks.h"
#include "calls.h"
#include "histogram.h"
#include "inputs.h"
#include "ring.h"

enum ub_slot_state {
    UB_SLOT_FREE = 0,     /* anybody may take it (compare-and-exchange to TAKING) */
    UB_SLOT_TAKING = 1,   /* being filled in */
    UB_SLOT_LIVE = 2,     /* pid and tid are valid */
    UB_SLOT_RELEASED = 3, /* the image that owned it is gone (exec); the tracer drains and frees it */
};

#define UB_SLOT_QUALIFIED 1u  /* the thread runs an event loop: detection.md "What is a loop" */
#define UB_SLOT_SERVED    2u  /* a wait has reported a descriptor, or the loop has qualified: no longer starting up */
#define UB_SLOT_SAMPLER   4u  /* our SIGURG handler is installed in this process */
#define UB_SLOT_BARRIER   8u  /* the process is registered for MEMBARRIER_CMD_GLOBAL_EXPEDITED */
#define UB_SLOT_EPOLL     16u /* the loop waits with epoll (else poll, select or io_uring) */
#define UB_SLOT_CALLBACKS 32u /* callbacks of a loop library are timed by themselves on this thread */
#define UB_SLOT_AFTER     64u /* a stall has just ended: what waited for it is being counted (callbacks.h) */

#define UB_READY_UNKNOWN UINT32_MAX /* slot.ready: the wait was not seen to return */

/* The line that the fast path writes. */
struct ub_slot {
    uint64_t
        start; /* ticks at which the running turn, or segment of it (callbacks.h), began; 0: in the wait, or no loop */
    uint64_t turns; /* turns ended */
    uint64_t busy;  /* ticks, sum over ended turns */
    uint64_t max;   /* ticks, longest ended turn */
    uint64_t site;  /* return address of the loop's wait call */
    uint32_t state; /* enum ub_slot_state */
    uint32_t flags; /* UB_SLOT_* */
    int32_t pid;    /* as the process itself sees it */
    int32_t tid;
    uint32_t ready; /* descriptors reported by the wait that began the running turn */
    int32_t epfd;   /* of the loop's wait, when UB_SLOT_EPOLL */
} __attribute__((aligned(UB_CACHE_LINE)));
_Static_assert(sizeof(struct ub_slot) == UB_CACHE_LINE, "the fast path touches one line");

/* Registers of a sample, in the order of DWARF's x86-64 numbering: rax rdx rcx rbx rsi rdi rbp rsp r8..r15 rip. */
#define UB_REG_COUNT 17
#define UB_REG_RBP   6
#define UB_REG_RSP   7
#define UB_REG_RIP   16

#define UB_SAMPLE_BYTES (16ul * 1024ul)

#define UB_SAMPLE_SENT  1u /* tracer: the signal is on its way */
#define UB_SAMPLE_OWN   2u /* agent: no signal any more, the thread answers when its call is over */
#define UB_SAMPLE_FLAGS 3u

/* The number that is asked for and has no answer yet; 0: none. */
static inline uint32_t ub_sample_open(uint32_t request, uint32_t done)
{
    uint32_t number = request & ~UB_SAMPLE_FLAGS;

    return number != done ? number : 0;
}

/*
 * One stack sample of a running thread. The tracer asks: it sets `request` to a fresh number. A few microseconds later,
 * if no call is under way, it adds UB_SAMPLE_SENT and sends SIGURG; the handler copies and sets `done` to the number.
 * The buffer belongs to the handler between the two, to the tracer otherwise.
 *
 * A signal cuts many calls short (bytes that were moved already are all that is told), and no handler can mend that. So
 * a hooked call says that it is under way, then looks whether somebody asks: if so it adds UB_SAMPLE_OWN, nothing is
 * sent, and the thread sends itself the signal when the call is over. If the signal is sent already, it is blocked
 * while the call lasts. Of the two that say "I come" and then look for the other one at least sees the other: the
 * tracer looks so late that what the thread wrote before it looked has long arrived.
 */
struct ub_sample {
    uint32_t request;  /* both: a number, of which UB_SAMPLE_FLAGS are no part, and one of them at the most; 0: none */
    uint32_t shielded; /* agent: the signal is blocked by us while a call lasts */
    uint32_t done;     /* agent: the number */
    uint32_t rewound;  /* system calls that the handler restarted, ever */
    uint64_t call;     /* agent: ticks when the call began that is under way; 0, or before slot.start: none */
    uint64_t at;       /* ticks when the copy was made */
    uint64_t reg[UB_REG_COUNT];
    uint32_t bytes; /* valid bytes of `stack`, from reg[RSP] upwards */
    uint64_t reserved[4];
    uint8_t stack[UB_SAMPLE_BYTES];
};

/* Everything else about the thread; touched only past the threshold, but for one histogram bucket. */
struct ub_slot_cold {
    struct ub_histogram turns;
    struct ub_ring ring;
    struct ub_calls calls;
    struct ub_spans spans;
    struct ub_inputs inputs;
    struct ub_sample sample;
} __attribute__((aligned(4096)));

#endif
