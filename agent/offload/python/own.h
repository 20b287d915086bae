/*
 * Around Python code that we run for ourselves: nothing of it is left, and nobody else goes on. So no finalizer of
 * the program's may run in it either, which the collector could call at anything that is made: it may block, and wait
 * for a step that is suspended; and in a step that is about to be left it would be left first.
 */
#ifndef UB_OFFLOAD_PYTHON_OWN_H
#define UB_OFFLOAD_PYTHON_OWN_H

#include <Python.h>

#include <stdbool.h>

/* Whether the collector was on. `own`: the agent's. With the GIL. */
static inline bool ub_own_begins(void (*own)(int by))
{
    own(1);
    return PyGC_Disable();
}

static inline void ub_own_ends(void (*own)(int by), bool collects)
{
    if (collects)
        PyGC_Enable();
    own(-1);
}

#endif
