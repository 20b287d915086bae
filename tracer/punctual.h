/*
 * Running soon after waking, on a machine with more to do than CPUs: a short time slice (Linux 6.12; before, it changes
 * nothing) and no timer slack. Both are granted to anybody, and neither gives more of the CPU to us.
 */
#ifndef UB_TRACER_PUNCTUAL_H
#define UB_TRACER_PUNCTUAL_H

#include "../common/base.h"

struct ub_punctual {
    uint64_t slice_ns, slack_ns; /* as they were; 0: not known */
};

/* The calling thread, from now on. `ret_before` may be NULL. */
void ub_punctual_begin(struct ub_punctual *ret_before);

/* As it was before. */
void ub_punctual_end(const struct ub_punctual *before);

#endif
