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
#define UB_PYTHON_ERROR       ((uint64_t)-1) /* PYGEN_ERROR of PySendResult */

/* What the interpreter keeps of a thread, twice: that of the fiber, and of who resumed it. */
struct ub_python_state {
    uint64_t word[UB_PYTHON_STATE_WORDS];
};

/* What was current before a step went on in a place that is not its task's. */
struct ub_python_visit {
    void *before;
};

enum ub_python_leave {
    UB_PYTHON_SUSPENDED,
    UB_PYTHON_OVER,       /* what it raised goes to who resumed it */
    UB_PYTHON_OVER_LATER, /* ... to its task, when that comes */
};

/* A function of a file object's that runs, on its caller's stack. */
struct ub_python_file {
    const void *file, *by; /* `by`: the agent's */
    struct ub_python_file *next, **at;
};

struct ub_python_agent {
    void (*wake)(void *host);    /* the loop found `fd` readable */
    bool (*stop)(void *host);    /* the loop is about to be stopped. True: it is to be told when it came round */
    void (*stopped)(void *host); /* it came round after that, or is gone */
    void (*before_fork)(void);
    /* Around the methods of locks; `owner`: where it says whose thread has it, NULL. True: to be tried once more. */
    void (*acquire)(void);
    bool (*acquired)(void *lock, uint64_t *owner, bool got);
    void (*signalled)(void *semaphore); /* what was just taken is no lock: nobody has it */
    void (*importing)(int by);
    /*
     * Python code that we call for ourselves (in asyncio's debug mode making a future reads files) begins (1), is
     * over (-1): nothing of it leaves, and nothing goes on meanwhile.
     */
    void (*own)(int by);
    /* Around the functions of a file object, with the GIL: after the one nobody else is in the midst of one. */
    void (*file_begins)(struct ub_python_file *use, const void *file);
    void (*file_ends)(struct ub_python_file *use);
};

/* Of files.c: false, if there is none. */
bool ub_python_hook_files(const struct ub_python_agent *agent);

/* All with the GIL, unless it says otherwise. */
struct ub_python {
    /* Whether this thread runs Python just now. Without the GIL. */
    bool (*holds_gil)(void);
    bool (*alone)(void);    /* no other interpreter is in the process. Without the GIL */
    void (*take_gil)(void); /* without it */
    void (*give_gil)(void);
    /* Handlers of signals that have come run; true: one raised something, which the caller's own code will find. */
    bool (*interrupted)(void);
    /* A step begins on a fiber that is new. */
    void (*first)(struct ub_python_state *s);
    /* Back to the resumer's, and to the fiber's again. */
    void (*leave)(struct ub_python_state *s, enum ub_python_leave how);
    void (*enter)(struct ub_python_state *s);
    /* What a step raised that was over before its task came (UB_PYTHON_OVER_LATER). */
    void (*deliver)(struct ub_python_state *s);
    /*
     * On the fiber, for a `lock` or a call, with the GIL if `gil`: false, or with it and a future for the task to wait
     * for (or that which is there already), and a reference to the loop.
     */
    bool (*begin_wait)(uintptr_t coroutine, bool gil, bool lock, void **ret_loop, void **future);
    /* On the fiber: lets go of the GIL unless `gil`. `future`: it came to nothing. */
    void (*end_wait)(bool gil, void *future);
    void *(*wait_again)(void *loop); /* one more future; NULL: an exception is set */
    /* A step goes on that is not the task which the interpreter believes to be current. */
    void (*visit)(void *future, struct ub_python_visit *v);
    void (*visited)(struct ub_python_visit *v);
    bool (*watch)(void *loop, int fd, void *host); /* false: the loop would not */
    void (*unwatch)(void *loop, int fd);
    void (*set_done)(void *future);
    /* Whoever cancelled the task meanwhile is heard at its next await. Drops the future. */
    void (*resumed)(void *future);
    void (*hold)(void *object);
    void (*drop)(void *object); /* NULL: nothing */
};

/* NULL: this interpreter is not the one that it was built for. */
const struct ub_python *ub_python_start(const struct ub_python_agent *agent);

#endif
