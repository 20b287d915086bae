/*
 * The interpreter's locks are semaphores. Whose they are where several steps share one thread, who waits for
 * them without its thread, and in what order they get them.
 */
#ifndef UB_AGENT_PYLOCKS_H
#define UB_AGENT_PYLOCKS_H

#include "../loops/loop.h"
#include "pool.h"

#define UB_HELD_MAX 32u

/*
 * What a step has taken and not given back; likewise what runs on a thread outside of steps. Written by its thread
 * alone, but while it is `away` (suspended, or waiting below another step): then under the lock of pylocks.c.
 */
struct ub_holder {
    struct ub_holder *next, *previous; /* of all that are away */
    uint32_t forks;                    /* of the process, when it was put there */
    const void *thread;                /* of whose steps it is one */
    const void *waits;                 /* for this lock; NULL */
    uint32_t count;
    bool beyond; /* it has taken more than there is room for, and which is not known */
    bool rolls;  /* it never ends: the last ones are kept */
    bool away;
    uint32_t foreign;   /* of `held`: taken by who knows its owner by the thread, and whom we cannot tell otherwise */
    uint8_t acquiring;  /* enum ub_acquiring */
    uint32_t importing; /* modules, one inside the other */
    struct {
        const void *lock;
        bool foreign;
        uint64_t *owner; /* where the lock says whose thread it is, NULL: it does not */
        uint64_t ident;  /* what stood there; 0 while it is not taken away */
    } held[UB_HELD_MAX];
};

/* Where in a lock object's method a thread is. */
enum ub_acquiring {
    UB_ACQUIRING_NOT,
    UB_ACQUIRING_BEGUN,
    UB_ACQUIRING_TRIED,  /* in vain */
    UB_ACQUIRING_WAITED, /* after that */
};

/* At the start, where anything is moved or judged: glibc then has a pointer of ours. Slow path only. */
void ub_pylocks_start(void);

enum ub_lock_state {
    UB_LOCK_WAITS,
    UB_LOCK_HAD,  /* it is its holder's */
    UB_LOCK_OVER, /* who had it is gone; it may be free or not */
};

/* One that waits in a queue and not in the kernel. */
struct ub_lock_wait {
    struct ub_lock_wait *next;
    const void *lock;
    struct ub_holder *holder;
    struct ub_job *job; /* put into its inbox when `state` is no longer UB_LOCK_WAITS */
    uint32_t state;     /* enum ub_lock_state */
    bool foreign;       /* as in `held` */
    bool tries;         /* only until who has it now is gone */
};

/* Away and back, by its own thread. While it is away, locks that let their thread in again do not know its thread. */
void ub_holder_leaves(struct ub_holder *h);
void ub_holder_returns(struct ub_holder *h);

/* Its step is over: what it has not given back is nobody's. Not while it is away. */
void ub_holder_end(struct ub_holder *h);

/* Whether another of the same thread's has it and is away. `tries` of a wait that is about to come. */
bool ub_holder_is_away_with(const void *lock, const struct ub_holder *own);

/* The lock that was just taken says at `owner` whose thread has it; NULL: it does not ask. */
void ub_holder_owner(struct ub_holder *h, const void *lock, uint64_t *owner);

/* What was just taken is no lock: who has taken it does not have it. */
void ub_holder_forgets(struct ub_holder *h, const void *semaphore);

/* It took it by other means than the hooks. */
void ub_holder_takes(struct ub_holder *h, const void *lock, bool foreign);

/* What it has just taken by hand it has not taken. */
void ub_holder_gives(struct ub_holder *h, const void *lock);

/* Into the queue; false: it was free, and is the holder's now. The holder is away. */
bool ub_lock_park(struct ub_lock_wait *w);

/* Out of it again; false: it has come to an end by itself. */
bool ub_lock_withdraw(struct ub_lock_wait *w);

/* Posted by somebody whom no hook saw? True: it is the holder's now. */
bool ub_lock_look(struct ub_lock_wait *w);

extern const struct ub_loop_ops ub_pysteps_locks;

#endif
