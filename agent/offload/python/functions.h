/*
 * As python.h, for functions that a policy has called elsewhere: in a thread, in another process, in a fork of this
 * one.
 */
#ifndef UB_OFFLOAD_PYTHON_FUNCTIONS_H
#define UB_OFFLOAD_PYTHON_FUNCTIONS_H

#include "../../../common/python_table.h"

/* Done once, by any thread; waited for by one. */
struct ub_ticket {
    uint64_t word; /* 0: not done; 1: done; else the struct ub_job of who waits for it */
};

/* Where a function is called. */
enum ub_python_where {
    UB_PYTHON_ANYWHERE,  /* nothing is to be moved from here */
    UB_PYTHON_IN_STEP,   /* in a task's step, which can be left */
    UB_PYTHON_IN_THREAD, /* in another thread than the main one; perhaps it runs a loop nevertheless */
    UB_PYTHON_STAYS      /* in a step that cannot be left here */
};

/* All with the GIL, which the waits release. */
struct ub_python_functions_agent {
    struct ub_python_table *table;
    void (*own)(int by);                                   /* as in python.h */
    enum ub_python_where (*where)(const char **ret_why);   /* of STAYS */
    bool (*wait)(struct ub_ticket *ticket);                /* false: to be asked again */
    bool (*wait_fd)(int fd, short events, int timeout_ms); /* false: it was not ready */
    void (*done)(struct ub_ticket *ticket);
    uint64_t (*now_ns)(void);
};

/* False: this interpreter is not the one that it was built for, or something went wrong. */
bool ub_python_functions_start(const struct ub_python_functions_agent *agent);

/*
 * Within the object: what this thread calls stays where it is, if this is not 0. It is one of our threads, a forked
 * child, or in the midst of our own code; of a thread that runs steps it is the step's (tstate.c).
 */
extern __thread int ub_python_functions_inside;

/* Within the object: a module has been imported. An exception that is set stays so. */
void ub_python_functions_imported(void);

#endif
