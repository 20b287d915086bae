/*
 * The time lost, spread over the stacks it was lost in: what every profile
 * format and the flame graph show. All weights together are the time lost of the
 * verdict, to the nanosecond.
 */
#ifndef UB_UI_LOST_H
#define UB_UI_LOST_H

#include "model.h"

struct ub_lost_stack {
    const struct ub_site *site;
    const json_t *frames; /* innermost first; NULL: no sample of the site has a stack */
    uint64_t ns;          /* its share, by samples, of what the site lost */
    uint64_t samples;
};

/* Counted sites in the order of the model, their stacks by share. */
void ub_lost_each(const struct ub_model *m, void (*take)(void *self, const struct ub_lost_stack *stack), void *self);

/* What stands for a frame in a profile: "wal_commit", "libz.so.1+0x4db42". Not escaped. Returns `buf`. */
const char *ub_lost_frame_name(const json_t *frame, char *buf, size_t size);

#endif
