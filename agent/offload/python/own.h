/*
 * Around Python code that we run for ourselves: nothing of it is left, and nobody else goes on. So no finalizer of
 * the program's may run in it either, which the collector could call at anything that is made: it may block, and wait
 * for a step that is suspended; and in a step that is about to be left it would be left first.
 */
#ifndef UB_OFFLOAD_PYTHON_OWN_H
#define UB_OFFLOAD_PYTHON_OWN_H

#include <Python.h>

#include <stdbool.h>

/* 3.12 puts a collection off until Python code runs next, and makes it even if the collector is off by then. */
#if PY_VERSION_HEX >= 0x030c0000 && PY_VERSION_HEX < 0x030d0000
#define Py_BUILD_CORE 1
#undef _PyGC_FINALIZED /* a macro outside, a function inside */
#include <internal/pycore_interp.h>
#undef Py_BUILD_CORE

#define UB_OWN_ON     1
#define UB_OWN_WAITED 2

static inline int ub_own_takes_collection(void)
{
    _Py_atomic_int *scheduled = &PyInterpreterState_Get()->ceval.gc_scheduled;
    bool waited = _Py_atomic_load_relaxed(scheduled);

    _Py_atomic_store_relaxed(scheduled, 0);
    return waited ? UB_OWN_WAITED : 0;
}

static inline void ub_own_gives_collection(int waited)
{
    struct _ceval_state *ceval = &PyInterpreterState_Get()->ceval;

    if (!(waited & UB_OWN_WAITED))
        return;
    _Py_atomic_store_relaxed(&ceval->gc_scheduled, 1);
    _Py_atomic_store_relaxed(&ceval->eval_breaker, 1);
}
#else
#define UB_OWN_ON 1
static inline int ub_own_takes_collection(void)
{
    return 0;
}

static inline void ub_own_gives_collection(int waited)
{
    (void)waited;
}
#endif

/* What ub_own_ends wants to know: the collector was on, and was about to run. `own`: the agent's. With the GIL. */
static inline int ub_own_begins(void (*own)(int by))
{
    own(1);
    return (PyGC_Disable() ? UB_OWN_ON : 0) | ub_own_takes_collection();
}

static inline void ub_own_ends(void (*own)(int by), int collects)
{
    if (collects & UB_OWN_ON)
        PyGC_Enable();
    ub_own_gives_collection(collects);
    own(-1);
}

#endif
