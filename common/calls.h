/*
 * Blocking calls of a running turn, as the thread itself took their time: they
 * are known exactly, even when the watcher came late or not at all.
 *
 * The agent keeps a report a turn that had a call worth mentioning, the last
 * few turns of each thread, and for a turn's longest call a copy of its stack in
 * a pool of the whole run. Nothing is handed over and nobody waits: the oldest
 * is overwritten. The tracer copies a report when the turn's end tells it to,
 * and takes nothing for granted: it may be overwritten meanwhile (`seq`).
 *
 * One writer a report: the thread. Signal-safe.
 */
#ifndef UB_CALLS_H
#define UB_CALLS_H

#include "base.h"
#include "offload.h"

#define UB_CALLS_KEPT    4u  /* the K longest of a turn; further ones are only summed */
#define UB_CALLS_REPORTS 8u  /* turns a thread */
#define UB_CALLS_STACKS  64u /* of the whole run */
#define UB_CALLS_VALUES  4u
#define UB_CALLS_TEXTS   3u
#define UB_CALLS_TEXT    96u  /* bytes of a path, host name or descriptor's link, cut */
#define UB_CALLS_FRAMES  32u  /* Python frames of a stack, innermost first; a deeper one lacks the outer */
#define UB_CALLS_FRAME   112u /* bytes of each: all that is read of one lies in them */
#define UB_CALLS_TOLD    4    /* threshold >> this: calls that took less in all are told without strings */

/*
 * Shorter calls are not kept: to keep one costs a microsecond. A hundred short
 * ones may be the stall all the same, therefore 0.1 ms is always long.
 */
static inline uint64_t ub_calls_floor(uint64_t threshold, uint64_t tenth_ms)
{
    uint64_t low = threshold >> 8 > tenth_ms ? threshold >> 8 : tenth_ms;

    return low < threshold >> UB_CALLS_TOLD ? low : threshold >> UB_CALLS_TOLD;
}

/* Numbers of the calls: their places in calls.def. */
enum ub_call_id {
#define UB_CALL(type, name, params, args, syscall, letters, ...) UB_CALL_ID_##name,
#define UB_CALLV(type, name, params, args, syscall, letters)     UB_CALL_ID_##name,
#include "calls.def"
#undef UB_CALL
#undef UB_CALLV
    UB_CALL_IDS
};

/*
 * Functions that compute, or make many system calls: those are not cut short for good by a signal, since the function
 * goes on with the rest, and who computes is to be seen.
 */
#define UB_CALL_IS_MANY(id)                                                                                            \
    (((id) >= UB_CALL_ID_getaddrinfo && (id) <= UB_CALL_ID_initgroups) ||                                              \
     ((id) >= UB_CALL_ID_fopen && (id) <= UB_CALL_ID___getdelim) ||                                                    \
     ((id) >= UB_CALL_ID_system && (id) <= UB_CALL_ID_pclose))

/* All calls of one function from one place. */
struct ub_timed_call {
    uint32_t id; /* enum ub_call_id */
    uint32_t count;
    uint64_t ra;             /* return address */
    uint64_t first;          /* ticks when the first of them began */
    uint64_t total, longest; /* ticks */
    uint64_t start;          /* ticks when the longest one began; what follows is of that one (strings: or a shorter) */
    uint64_t value[UB_CALLS_VALUES];   /* as the program gave them, unless `told` */
    uint32_t text_len[UB_CALLS_TEXTS]; /* 0: could not be read */
    uint8_t pin;                       /* enum ub_pin: of the longest one; UB_PIN_UNKNOWN: offload is off */
    uint8_t executor;                  /* enum ub_executor */
    uint16_t told;                     /* with strings, times and links */
    uint64_t movable;                  /* ticks of those that offload would have moved */
    uint64_t lock;                     /* UB_PIN_LOCK: return address of the call that took the lock; 0: not known */
    uint8_t text[UB_CALLS_TEXTS][UB_CALLS_TEXT]; /* one for each f, p and a among the letters, in their order */
};
_Static_assert(sizeof(struct ub_timed_call) == 8 + 7 * 8 + 32 + 16 + 288, "calls: agent and tracer agree on it");

struct ub_call_report {
    uint32_t seq;   /* odd: being written */
    uint32_t count; /* entries of `call` */
    uint64_t turn;  /* ticks when the turn began: which turn it is. 0: none yet */
    uint32_t others;
    uint32_t stack;        /* one more than the place in the pool; 0: no stack */
    uint64_t others_total; /* ticks */
    uint64_t stack_call;   /* ticks when the call began whose stack it is */
    struct ub_timed_call call[UB_CALLS_KEPT];
};

struct ub_calls {
    uint32_t last;    /* the report written last */
    uint32_t lost;    /* calls of signal handlers that interrupted the writing of another one */
    uint64_t writing; /* the turn whose report is being written, 0 */
    struct ub_call_report report[UB_CALLS_REPORTS];
};

/* A Python frame of the thread that called, as the interpreter has it: the tracer knows what is where. */
struct ub_call_frame {
    uint64_t address;
    uint8_t bytes[UB_CALLS_FRAME]; /* from its beginning */
};

/* DWARF's numbering, as in slot.h; the registers that a caller keeps are all that is needed (and valid). */
struct ub_call_stack {
    uint32_t seq;   /* odd: being written */
    uint32_t bytes; /* valid bytes of `stack`, from reg[RSP] upwards */
    uint64_t turn;  /* whose it is: turn and thread */
    int32_t tid;
    uint32_t frames; /* entries of `frame` */
    uint64_t reg[17];
    uint64_t reserved;
    uint8_t stack[16ul * 1024ul];
    struct ub_call_frame frame[UB_CALLS_FRAMES];
};

#endif
