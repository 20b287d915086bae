/*
 * Between the agent and what it knows of one minor version of CPython (tstate.c, an object of its
 * own, loaded only where that interpreter is and calls are to be moved). Neither side trusts
 * the other's memory beyond these structures; both are built together.
 */
#ifndef UB_OFFLOAD_PYTHON_H
#define UB_OFFLOAD_PYTHON_H

#include <stdbool.h>
#include <stdint.h>

#define UB_PYTHON_STATE_WORDS 48u

/* What the interpreter keeps of a thread, twice: that of the fiber, and of who resumed it. */
struct ub_python_state {
    uint64_t word[UB_PYTHON_STATE_WORDS];
};

struct ub_python_wait; /* a future of the program's loop, and that loop */

struct ub_python_agent {
    void (*wake)(void *host); /* the loop found `fd` readable */
};

struct ub_python {
    /* Whether this thread runs Python just now. */
    bool (*holds_gil)(void);
    /* A step begins on a fiber that is new: GIL held. */
    void (*first)(struct ub_python_state *s);
    /* Back to the resumer's, and to the fiber's again; `over`: the fiber has ended. GIL held. */
    void (*leave)(struct ub_python_state *s, bool over);
    void (*enter)(struct ub_python_state *s);
    /* On the fiber, without the GIL: NULL, or with it, and a future for the task to wait for. */
    void *(*begin_wait)(void **ret_loop);
    /* On the fiber, with the GIL: lets go of it. `future`: it came to nothing. */
    void (*end_wait)(void *future);
    bool (*watch)(void *loop, int fd, void *host); /* false: the loop would not */
    void (*unwatch)(void *loop, int fd);
    void (*set_done)(void *future);
    /* Whoever cancelled the task meanwhile is heard at its next await. Drops the future. */
    void (*resumed)(void *future);
    void (*hold)(void *object);
    void (*drop)(void *object);
};

/* NULL: this interpreter is not the one that it was built for. */
const struct ub_python *ub_python_start(const struct ub_python_agent *agent);

#endif
