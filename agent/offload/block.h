/*
 * Is this call sure to block? Asked before it is made, by means that do not wait; some of
 * them make the call itself where it does not block.
 */
#ifndef UB_AGENT_BLOCK_H
#define UB_AGENT_BLOCK_H

#include "pool.h"

struct ub_block {
    bool may_move;
    bool made;          /* it did not block, and was made: the result is there */
    int fd;             /* -1 */
    uint32_t direction; /* enum ub_direction */
    uint64_t deadline_ns;
    ub_job_function *function; /* what to call in its place, with `word`; NULL: the call as it is */
    uint64_t word[UB_POOL_WORDS];
};

/* What it is about, by its arguments alone. */
void ub_block_look(uint32_t id, const uint64_t word[UB_POOL_WORDS], struct ub_block *ret);

/* True: it would block. False: it would not, as far as is known; `made` with *ret and errno, or to be made as it is. */
bool ub_block_proven(uint32_t id, const uint64_t word[UB_POOL_WORDS], struct ub_block *b, int64_t *ret);

#endif
