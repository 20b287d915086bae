/*
 * Is this call sure to block? Asked before it is made, by means that do not wait; some of
 * them make the call itself where it does not block.
 */
#ifndef UB_AGENT_BLOCK_H
#define UB_AGENT_BLOCK_H

#include "../../common/calls.h"
#include "pool.h"

/* sem_wait, which is moved but not timed: it has no number among those of calls.def. */
#define UB_BLOCK_SEM_WAIT UB_CALL_IDS
#define UB_BLOCK_CALLS    (UB_CALL_IDS + 1)

/* `fd` of calls on paths: all of them keep one order. No descriptor. */
#define UB_BLOCK_PATHS (-2)

struct ub_block {
    bool may_move;
    bool made;          /* it did not block, and was made: the result is there */
    bool likely;        /* nothing proves beforehand that it blocks, and it is made for what takes its time */
    bool stays;         /* asked about, but never left: a loop's own wait, in which no other one may be turned */
    bool asked;         /* what receives was tried already, and would wait (ub_block_receive) */
    bool any_sleep;     /* also one below the threshold: one of many */
    bool libc_lock;     /* libc (or SQLite) may hold a lock of its own meanwhile */
    int fd;             /* -1 */
    short events;       /* of a wait for that one descriptor */
    uint32_t direction; /* enum ub_direction: what it does */
    uint32_t holds_up;  /* what must not overtake it, on the same object */
    uint32_t lane;      /* enum ub_lane */
    uint64_t deadline_ns;
    ub_job_function *function; /* what to call in its place, with `word`; NULL: the call as it is */
    uint64_t word[UB_POOL_WORDS];
};

/* What it is about, by its arguments alone. */
void ub_block_look(uint32_t id, const uint64_t word[UB_POOL_WORDS], struct ub_block *ret);

/*
 * Most calls that receive have something to receive. True: it was made, with *ret and errno, by who does not wait.
 * False: it is of another kind, or would wait, or nothing says that it would not.
 */
bool ub_block_receive(uint32_t id, const uint64_t word[UB_POOL_WORDS], int64_t *ret);

/* True: it does not wait whatever comes, by one question only. A loop's own sends are asked about at each request. */
bool ub_block_never(uint32_t id, const uint64_t word[UB_POOL_WORDS]);

/* True: it would block. False: it would not, as far as is known; `made` with *ret and errno, or to be made as it is. */
bool ub_block_proven(uint32_t id, const uint64_t word[UB_POOL_WORDS], struct ub_block *b, int64_t *ret);

/* Of one that is `likely` to block, or of which the same place has blocked before: whether another thread may make it.
 */
bool ub_block_expected(uint32_t id, const uint64_t word[UB_POOL_WORDS], struct ub_block *b);

/* Whether it may be made by another thread because an earlier one on the same file is not over. */
bool ub_block_may_queue(uint32_t id, const struct ub_block *b);

/* ---- one that stays where it is ---- */

/* Of a blocking descriptor that is not ready. */
bool ub_block_would(int fd, short events);

/* Whether it waits for somebody who may be in this process. */
bool ub_block_is_awaited(uint32_t id);

/* When it ends by itself (CLOCK_MONOTONIC), as of now; 0: at no time. */
uint64_t ub_block_until(uint32_t id, const uint64_t word[UB_POOL_WORDS]);

/* Of one that has an end: what is left of it, without hooks. With errno. */
int64_t ub_block_rest(uint32_t id, const uint64_t word[UB_POOL_WORDS], uint64_t until_ns);

/* The descriptor that says when to ask again, -1: none does. */
int ub_block_ready_on(uint32_t id, const struct ub_block *b, short *ret_events);

/* Whether it would still block; else it may have been `made`. */
bool ub_block_waits(uint32_t id, const uint64_t word[UB_POOL_WORDS], struct ub_block *b, int64_t *ret);

bool ub_block_is_sleep(uint32_t id);

/* It waits for a child: its first argument says which. */
bool ub_block_is_child(uint32_t id);

/* Whether any mode moves this call. */
bool ub_block_is_listed(uint32_t id);

/* The program has set up the resolver of one of its threads: names are looked up where they are asked for. */
extern bool ub_block_resolver_touched;

#endif
