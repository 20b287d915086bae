/*
 * As python.h, for steps that yield.
 */
#ifndef UB_OFFLOAD_PYTHON_YIELD_H
#define UB_OFFLOAD_PYTHON_YIELD_H

#include "../../../common/python_table.h"
#include "functions.h"
#include "python.h"

/* What computes may do so for so long, whatever else is to be done. */
#define UB_PYTHON_YIELD_LEAST_NS 200000ull

struct ub_python_yield_agent {
    struct ub_python_table *table;
    void (*own)(int by);      /* as in python.h */
    void (*reserve)(bool on); /* what is set for the signal meanwhile is ours */
    uint64_t (*ran)(void);    /* how long what runs has had its slice, ns; 0: nothing that may be set aside just now */
    uint64_t (*waited)(void); /* ... computed since the signal came, ns; 0: it did not */
    uint64_t (*yield)(void);  /* sets it aside; for how long, ns. 0: it was not */
    void (*later)(uint64_t ns); /* it is not to be asked again before that */
    void (*pump)(void *host);   /* the loop came to it */
};

/* All with the GIL, but for `interrupt`. */
struct ub_python_yield {
    int (*interrupt)(int sig);                 /* signal-safe */
    bool (*call_soon)(void *loop, void *host); /* calls agent.pump(host) when it comes to it */
    long (*ready)(void *loop);                 /* what else waits in its queue; -1: it does not say */
};

/* NULL: not in this thread, or not of this interpreter. */
const struct ub_python_yield *ub_python_yield_start(const struct ub_python_yield_agent *agent);

/*
 * The object of a version may have been left by an earlier build (`make` without its headers does not touch it): where
 * `ub_python_build` in it is another number, or missing, it is not used. The first number goes up with each change
 * that sizes do not show.
 */
#define UB_PYTHON_BUILD                                                                                                \
    (5ull << 56 | (uint64_t)sizeof(struct ub_python_agent) << 44 | (uint64_t)sizeof(struct ub_python) << 32 |          \
     (uint64_t)sizeof(struct ub_python_yield_agent) << 20 | (uint64_t)sizeof(struct ub_python_yield) << 10 |           \
     (uint64_t)sizeof(struct ub_python_functions_agent))
extern const uint64_t ub_python_build;

#endif
