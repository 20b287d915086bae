/*
 * Fibers: a callback of the program on a stack of its own, so that it can be
 * left in the midst of a call and gone on with later, on the same thread.
 *
 * While a fiber runs its stack unwinds into that of whoever resumed it: a debugger
 * shows the loop below it, an exception, pthread_exit and a cancellation leave it
 * as they would leave a callback that was called directly. One that is suspended
 * has no caller, and unwinds to its own root.
 *
 * A fiber belongs to the thread that took it and never moves to another (compilers
 * keep addresses of thread-local variables). Nothing here locks or allocates from
 * the heap; only x86-64 is tested.
 */
#ifndef UB_AGENT_FIBER_H
#define UB_AGENT_FIBER_H

#include "../../common/base.h"

enum ub_fiber_state {
    UB_FIBER_FREE,
    UB_FIBER_READY,     /* has a function, was never resumed */
    UB_FIBER_RUNNING,   /* it, or what it called */
    UB_FIBER_SUSPENDED, /* waits to be resumed */
    UB_FIBER_DONE,      /* the function has returned: `result` */
    UB_FIBER_LEFT,      /* the function was left by an exception, or the thread ends */
};

#define UB_FIBER_WORDS 6u

typedef uint64_t ub_fiber_function(uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f);

/* What the C++ runtime keeps of exceptions, a thread: __cxa_get_globals() of the Itanium ABI. */
struct ub_fiber_exceptions {
    void *caught;
    unsigned int uncaught;
};

/* What AddressSanitizer is told, and tells, of a stack that is left. */
struct ub_fiber_told {
    void *fake;
    const void *low;
    size_t size;
};

struct ub_fiber {
    void *sp;     /* its registers are there while it does not run */
    void *caller; /* those of who resumed it, while it runs: the way down for unwinders. NULL otherwise */
    ub_fiber_function *function;
    uint64_t word[UB_FIBER_WORDS];
    uint64_t result;
    uint32_t state;                              /* enum ub_fiber_state */
    uintptr_t low;                               /* lowest usable byte of the stack; the guard is below */
    uintptr_t high;                              /* one past its highest: the root's frame */
    struct ub_fiber_exceptions exceptions;       /* its own, while it does not run */
    struct ub_fiber_exceptions *thread, callers; /* while it does: where they are now, and its resumer's */
    struct ub_fiber_told resumer;                /* AddressSanitizer's view of who resumed it */
    void *fake;                                  /* its own fake stack, while it does not run */
    struct ub_fiber *next;                       /* free */
    struct ub_fiber *older;                      /* of all the pool's */
};

/* The fibers of one thread. Zeroed but for `size` and `head`. */
struct ub_fiber_pool {
    size_t size; /* of a stack, whole pages */
    size_t head; /* of the caller's structure that begins with the struct ub_fiber, and lies above the stack */
    struct ub_fiber *free, *newest;
    uint32_t made, taken, most;
    struct ub_fiber_pool *next; /* of all pools */
};

/* Whether fibers work here at all: the CPU's kind, and shadow stacks, which a private stack would offend. Slow path
 * only. */
bool ub_fiber_supported(void);

/* How large a stack must be for what ran on the calling thread's. Slow path only: may take locks of libc. */
size_t ub_fiber_stack_size(void);

/* One that is free, or a new one; NULL: no memory, or too many. */
struct ub_fiber *ub_fiber_take(struct ub_fiber_pool *pool);
void ub_fiber_give(struct ub_fiber_pool *pool, struct ub_fiber *f);

/* READY. */
void ub_fiber_start(struct ub_fiber *f, ub_fiber_function *function, const uint64_t word[UB_FIBER_WORDS]);

/* AddressSanitizer's. */
extern void __sanitizer_start_switch_fiber(void **fake, const void *low, size_t size) __attribute__((weak));
extern void __sanitizer_finish_switch_fiber(void *fake, const void **low, size_t *size) __attribute__((weak));

/*
 * Whether it is told of each switch: in the build for `make check-sanitizers` only. Elsewhere nothing moves in a
 * program with a sanitizer, whose locks are taken past our hooks (ub_offload_start). Signal-safe.
 */
static inline bool ub_fiber_tells(void)
{
#ifdef UB_SANITIZED
    return __sanitizer_start_switch_fiber && __sanitizer_finish_switch_fiber;
#else
    return false;
#endif
}

/* It was left by a longjmp, which told nobody: the caller is on the stack of who resumed it. */
void ub_fiber_tell_left(struct ub_fiber *f);

/* fiber_x86_64.S, fiber_aarch64.S */
void ub_fiber_switch(void **save, void *load);

/*
 * In line, both of them: after a switch the CPU expects the next `ret` to go where the other stack's last call came
 * from, and each `ret` less is a wrong guess less.
 *
 * Runs a READY or SUSPENDED one until it is SUSPENDED or DONE. Comes back by an exception
 * as well, or not at all: then it is LEFT, or (longjmp) still said to be RUNNING, and may be
 * given back. `exceptions`: the thread's, or NULL where there is no C++.
 */
static inline enum ub_fiber_state ub_fiber_resume(struct ub_fiber *f, struct ub_fiber_exceptions *exceptions)
{
    f->state = UB_FIBER_RUNNING;
    f->thread = exceptions;
    if (exceptions) {
        f->callers = *exceptions;
        *exceptions = f->exceptions;
    }
    if (ub_fiber_tells())
        __sanitizer_start_switch_fiber(&f->resumer.fake, (const void *)f->low, f->high - f->low);
    ub_fiber_switch(&f->caller, f->sp);
    if (ub_fiber_tells())
        __sanitizer_finish_switch_fiber(f->resumer.fake, NULL, NULL);
    if (exceptions) {
        f->exceptions = *exceptions;
        *exceptions = f->callers;
    }
    f->caller = NULL;
    return (enum ub_fiber_state)f->state;
}

/* On the fiber `f`: back to who resumed it; returns when it is resumed again. */
static inline void ub_fiber_suspend(struct ub_fiber *f)
{
    f->state = UB_FIBER_SUSPENDED;
    if (ub_fiber_tells())
        __sanitizer_start_switch_fiber(&f->fake, f->resumer.low, f->resumer.size);
    ub_fiber_switch(&f->sp, f->caller);
    if (ub_fiber_tells())
        __sanitizer_finish_switch_fiber(f->fake, &f->resumer.low, &f->resumer.size);
}

/* Whether an address is on its stack. */
static inline bool ub_fiber_contains(const struct ub_fiber *f, uintptr_t sp)
{
    return sp - f->low < f->high - f->low;
}

/* The deepest that any stack of the pool was ever used, in bytes (whole pages). Slow path only. */
size_t ub_fiber_deepest(const struct ub_fiber_pool *pool);

/* The C++ runtime's __cxa_get_globals, where one was found in the process (patch.c); NULL. */
extern struct ub_fiber_exceptions *(*ub_runtime_exceptions)(void);

/* Unmaps what is free; the others are lost with their thread. Not while another thread uses fibers. */
void ub_fiber_pool_free(struct ub_fiber_pool *pool);

#endif
