/*
 * The stacks of one stall or one site, merged into what a person reads: the
 * user's frames from the innermost one to the callback, and how many of the
 * samples each was seen in.
 */
#ifndef UB_UI_CHAIN_H
#define UB_UI_CHAIN_H

#include "model.h"

struct ub_chain_link {
    const json_t *frame;
    uint64_t samples;      /* that went through this function on the same way from outside */
    uint32_t folded;       /* library frames directly inside it */
    const json_t *library; /* the outermost of these: the function it called; NULL when folded is 0 */
};

#define UB_CHAIN_ALSO_MAX 3

/* Where other samples were. */
struct ub_chain_also {
    const json_t *frame;
    const json_t *caller; /* NULL: none */
    uint64_t samples;
};

struct ub_chain {
    struct ub_chain_link *link; /* innermost first */
    uint32_t count;
    bool foreign; /* no frame of the user's own was found: these are a library's or the loop's */
    uint64_t samples, unproven, incomplete;
    uint64_t no_stack;                            /* samples that have none */
    struct ub_chain_also also[UB_CHAIN_ALSO_MAX]; /* most frequent first */
    uint32_t also_count;
    uint64_t also_samples; /* all samples that are not on the chain, those beyond `also` included */
};

/* Frames are borrowed from the model. 0 or -ENOMEM; a chain of no samples has count 0. */
int ub_chain_of_record(const struct ub_model *m, const json_t *slow, struct ub_chain *ret);
int ub_chain_of_site(const struct ub_site *site, struct ub_chain *ret);

void ub_chain_clear(struct ub_chain *chain); /* for UB_CLEANUP too */

#endif
