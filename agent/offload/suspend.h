/*
 * Callbacks on fibers: where one comes to a call that is sure to block, the fiber is left, its loop
 * goes on, and when the call is done the fiber is resumed, on its own thread.
 *
 * Nothing here is reached unless offload moves calls: then the originals of the hooked calls
 * (real.h) lead here, and thunks find ub_process.callbacks unlike their generation.
 */
#ifndef UB_AGENT_SUSPEND_H
#define UB_AGENT_SUSPEND_H

#include "../../common/policy.h"
#include "../span.h"
#include "beside.h"
#include "fiber.h"
#include "pool.h"

#define UB_HOST_PENDING 1024u

/* What a call is to its descriptor, for the order in which calls are made. */
enum ub_direction {
    UB_DIRECTION_NONE = 0,
    UB_DIRECTION_READ = 1,
    UB_DIRECTION_WRITE = 2,
    UB_DIRECTION_LOCK = 4,
    UB_DIRECTION_LOOK = 8,    /* positional reads, and what else leaves a file as it is */
    UB_DIRECTION_CHANGE = 16, /* positional writes, lengths, names */
    UB_DIRECTION_SYNC = 32,
    UB_DIRECTION_ALL = 63, /* closing it */
};

/* One callback on a fiber. */
struct ub_task {
    struct ub_fiber fiber; /* first: the pool of fibers makes room for all of this */
    struct ub_host *host;
    struct ub_task *next;  /* of the host's suspended ones, in the order of their suspension */
    struct ub_task *outer; /* while it runs: the callback above which it was resumed; NULL: none */
    uint64_t born;         /* the order in which a thread's callbacks began */
    const struct ub_shape *shape;
    uint64_t function, argument[UB_FIBER_WORDS];
    uint64_t key;                   /* the handle or request: its callbacks run one at a time */
    struct ub_job job;              /* the call that it waits for */
    uint64_t deadline_ns;           /* CLOCK_MONOTONIC, of a sleep; 0: none */
    int fd, own_fd;                 /* of the call, -1; our duplicate of it, -1 */
    uint64_t object;                /* what it is, by whatever number; 0: by its number only */
    uint32_t direction;             /* of it: enum ub_direction */
    uint32_t holds_up;              /* likewise */
    bool started, done;             /* the call */
    bool for_child;                 /* it is waitpid, or its like */
    bool driven;                    /* it was resumed above what waits in its place (drive.h) */
    bool left;                      /* it has been suspended before */
    bool muted, freed;              /* its handle: kept from firing; to be freed when this is over */
    uint64_t own[8];                /* the backend's */
    struct ub_beside_counts beside; /* what ran while it was suspended, last */
    bool over;                      /* likewise, and has ended; its loop is to be told */
    struct ub_task *behind;         /* it never begins: its event is kept from firing until this one is over; NULL */
    uintptr_t nested_sp;            /* of the callback that runs inside this one; 0 */
    struct ub_policy_site *site;    /* of the call; NULL: there was no room */
    uint64_t held_close;            /* close callback of the handle, which came meanwhile; 0 */
};

/* A callback that is due while another one of the same handle is suspended. */
struct ub_pending {
    uint64_t key, function, argument[UB_FIBER_WORDS];
    const struct ub_shape *shape;
};

struct ub_host_ops {
    bool (*attach)(struct ub_host *h);           /* from now on the loop calls ub_suspend_wake, see `hold` */
    void (*detach)(struct ub_host *h);           /* its loop is about to be gone; NULL: nothing is to be done */
    void (*hold)(struct ub_host *h, bool alive); /* the loop must not end, and has to look from time to time */
    /* The rest may be NULL: nothing is to be done. A callback begins: its handle is still what it was. */
    void (*begin)(struct ub_task *task);
    /* It is suspended (it may be for the second time): what would come again at once is kept from it, and it `muted`.
     */
    void (*mute)(struct ub_task *task);
    /* One more is due of its handle. True: it will be when this one is over, if it still is; else it is put off. */
    bool (*again)(struct ub_task *task, const struct ub_shape *shape, const uint64_t word[UB_FIBER_WORDS]);
    /* Whether this callback is told that the descriptor is ready, and would be told again if it still is. */
    bool (*is_told_ready)(const struct ub_task *task, int fd);
    /* It is over, having been suspended. `muted`: and the program has left the handle alone; `freed`: it wanted to free
     * it. */
    void (*back)(struct ub_task *task);
    /* `back` tells the program of an end, which it hears before anything else goes on: also where the callback was over
     * above another one (drive.h). Nothing of such a host is ever put off. */
    bool back_at_once;
    /* In a forked child, which has no suspended callbacks: its handle is as it was. */
    void (*orphan)(struct ub_task *task);
    bool orphan_at_fork; /* that and `hold` only write memory: at the fork itself; else when the loop wakes there */
    /* What was put off is next: the handle may have another callback by now. */
    void (*due)(struct ub_pending *p);
    uint64_t keep; /* what the loop is told of one that is not over */
};

/* One loop of a library, in one thread. */
struct ub_host {
    void *loop; /* NULL: free. By atomics where another thread may be destroying it */
    const struct ub_host_ops *ops;
    struct ub_inbox inbox;
    struct ub_task *suspended;
    uint32_t count;      /* of them */
    uint32_t generation; /* of the process that made it: not a forked child's */
    bool held;           /* the loop is */
    uint32_t pendings;
    struct ub_pending pending[UB_HOST_PENDING];
    uint64_t room[64]; /* the backend's own handles */
};

/*
 * A callback is due on the frame `sp`. True: it was called, or will be; *ret is what the loop gets. False: to be called
 * as ever. Slow path only; may allocate.
 */
bool ub_suspend_dispatch(struct ub_thread *t, uintptr_t sp, uint64_t function, const struct ub_shape *shape,
                         const uint64_t word[UB_FIBER_WORDS], uint64_t *ret);

/* The program calls `id`. True: it was made, with *ret and errno. Slow path only. */
bool ub_suspend_call(uint32_t id, void *function, const uint64_t word[UB_POOL_WORDS], const uint64_t *value,
                     int64_t *ret);

/* The upper end of the callback's own stack that `sp` is on; 0: on none. Signal-safe. */
uintptr_t ub_suspend_stack(uintptr_t sp);

/* The program gives these numbers of descriptors another meaning: moved calls that use them come first. */
void ub_suspend_settle_numbers(unsigned first, unsigned last);

/* Whatever is done goes on. */
void ub_suspend_wake(struct ub_host *h);

/* Until nothing is suspended, on the spot: the loop is about to return to who ran it. */
void ub_suspend_drain(struct ub_host *h);

/* The loop's in this thread, or NULL. `make`: a new one if need be. */
struct ub_host *ub_suspend_host(void *loop, const struct ub_host_ops *ops, bool make);

/* The loop is destroyed, by whatever thread: no thread has a host of it any more. Nothing may be suspended in it. */
void ub_suspend_gone(void *loop);

/* A handle was stopped, started anew or closed: what is due of it is no longer. */
void ub_suspend_touched(void *handle);

/* The callback of the handle that runs here or is suspended; NULL. */
struct ub_task *ub_suspend_find(const void *handle);

/* The callback on whose own stack the caller is; NULL. */
struct ub_task *ub_suspend_current(void);

/* The program frees it. True: its callback is suspended, and will be the last; then `back` is to free it. */
bool ub_suspend_free_later(void *handle);

#endif
