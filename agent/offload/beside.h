/*
 * Which callbacks run on a thread while others of it are suspended: counted by function and kind. Who is left takes the
 * counts along, and what they have grown by when it is its turn again is what ran meanwhile: so a callback costs one
 * count, however many are suspended. Of one thread; no allocation.
 */
#ifndef UB_AGENT_BESIDE_H
#define UB_AGENT_BESIDE_H

#include "../../common/base.h"

#define UB_BESIDE_FUNCTIONS 32u /* told apart since nothing was suspended last */
#define UB_BESIDE_TRIES     8u

struct ub_beside_counts {
    uint32_t n[UB_BESIDE_FUNCTIONS + 1]; /* the last: all others */
};

struct ub_beside {
    struct {
        uint64_t function; /* of the callback; a task's step: its coroutine's code object; 0: free */
        uint32_t kind, library;
    } who[UB_BESIDE_FUNCTIONS];
    struct ub_beside_counts counts;
    uint64_t ran; /* callbacks that began or went on, suspended or not: ever */
};

/* A callback begins or goes on. `suspended`: others are, while it does. */
static inline void ub_beside_ran(struct ub_beside *b, bool suspended, uint64_t function, uint32_t kind,
                                 uint32_t library)
{
    uint32_t first = (uint32_t)(function >> 4 ^ function >> 9), i = UB_BESIDE_FUNCTIONS;

    b->ran++;
    if (!suspended)
        return;
    for (uint32_t k = 0; function && k < UB_BESIDE_TRIES && i == UB_BESIDE_FUNCTIONS; k++) {
        uint32_t at = (first + k) % UB_BESIDE_FUNCTIONS;

        if (!b->who[at].function) {
            b->who[at].function = function;
            b->who[at].kind = kind;
            b->who[at].library = library;
        }
        if (b->who[at].function == function && b->who[at].kind == kind && b->who[at].library == library)
            i = at;
    }
    b->counts.n[i]++;
}

/* One is about to be left. `first`: nothing else is suspended, so nobody needs what was counted until now. */
static inline void ub_beside_leaves(struct ub_beside *b, bool first, struct ub_beside_counts *ret)
{
    if (first) {
        for (uint32_t i = 0; i < UB_BESIDE_FUNCTIONS; i++)
            b->who[i].function = 0;
        b->counts = (struct ub_beside_counts){0};
    }
    *ret = b->counts;
}

/* It is its turn again, and is not counted yet: *c is what ran meanwhile from now on. */
static inline void ub_beside_returns(const struct ub_beside *b, struct ub_beside_counts *c)
{
    for (uint32_t i = 0; i <= UB_BESIDE_FUNCTIONS; i++)
        c->n[i] = b->counts.n[i] - c->n[i];
}

#endif
