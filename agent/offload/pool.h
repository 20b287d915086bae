/*
 * The executor: threads that make blocking calls in the place of a loop's thread.
 *
 * Two lanes. FILES is for what the disk ends by itself, bounded by what the machine
 * can do at once; WAIT for what ends when somebody else does something (a lock, a
 * peer, a name server): were they one, a flock could keep away the very write
 * that its holder needs to let go. Threads are started one by one as they are needed,
 * block every signal, and stay.
 *
 * The caller's side never waits for a job: a full queue is an answer. It takes the lane's lock, which
 * is never held over a call, with all signals blocked (a handler's own calls do not move); a fork takes it, too.
 */
#ifndef UB_AGENT_POOL_H
#define UB_AGENT_POOL_H

#include "../../common/base.h"

enum ub_lane {
    UB_LANE_FILES,
    UB_LANE_WAIT,
    UB_LANES,
};

#define UB_POOL_WORDS 8u
#define UB_POOL_QUEUE 1024u /* jobs of a lane that wait for a thread */

struct ub_job;

/* Where a loop finds what was done for it. Zeroed, then ub_inbox_open. */
struct ub_inbox {
    struct ub_job *done; /* last first */
    int fd;              /* an epoll's, for the loop to watch: readable when it has to be looked at. -1: none */
    int bell;            /* an eventfd that always has something to read; in `fd`, which is told to look at it once */
    int timer;           /* a timerfd, in `fd` */
    uint64_t armed_ns;   /* when that expires, CLOCK_MONOTONIC; 0: at no time */
    struct ub_job *watched; /* calls whose descriptors are in `fd`; the loop's thread only */
    uint32_t limited;       /* so many of them have a time limit */
    uint32_t takings;       /* of our numbers by the program, that it knows of */
    uint64_t beat_ns;       /* CLOCK_MONOTONIC: when to look at them next, though nothing was told */
};

/* A call with all its arguments as words; int and pointer arguments only. */
typedef int64_t ub_job_function(uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t);

enum ub_attempt {
    UB_ATTEMPT_OVER,    /* the call was made */
    UB_ATTEMPT_NOT_YET, /* it would wait; `result` is what it says once its time is over (negative: EAGAIN) */
    UB_ATTEMPT_THREAD,  /* it would not, as far as can be known, but cannot be made without the risk: by a thread */
};

/* Belongs to the pool from ub_pool_submit or ub_pool_start until it is collected. */
struct ub_job {
    struct ub_job *next;
    struct ub_job *previous; /* while it is watched */
    struct ub_inbox *inbox;
    ub_job_function *function;
    uint64_t word[UB_POOL_WORDS];
    int64_t result;
    int error;      /* errno: what the call shall find there, then what it left */
    int signal;     /* SIGPIPE or SIGXFSZ that the call brought its thread, to be raised where it was called; 0 */
    uint32_t lane;  /* enum ub_lane */
    bool libc_lock; /* libc (or SQLite) may hold a lock of its own meanwhile: a fork waits for it */
    bool check; /* word[0] has to be a descriptor of this file still: if not, the call is not made, and fails with EBADF
                 */
    int named;  /* likewise: the program's own number of it, if word[0] is a duplicate */
    uint64_t device, inode;
    uint64_t queued_ns, begun_ns, ended_ns; /* CLOCK_MONOTONIC */
    /* Makes the call if it does not wait, with result, error and signal. Called by the loop's thread, on any stack of
     * it, and makes no call that a hook sees. NULL: only a thread can make it. */
    enum ub_attempt (*attempt)(struct ub_job *job);
    uint32_t id;          /* which call, for `attempt` */
    int wait_fd;          /* which says when to try: a number that nobody else puts into the inbox */
    uint32_t wait_events; /* EPOLLIN ... */
    uint64_t limit_ns;    /* how long it may take, from when it is begun; 0: for ever */
    uint64_t until_ns;    /* CLOCK_MONOTONIC; while it is watched */
    uint32_t vain;        /* tried so often since it last got on */
    bool watched;
    bool unsure; /* its descriptor does not tell of all that ends the call: it is tried at each beat, too */
};

/* 0; -EAGAIN: the lane is full, or no thread can be had. May start a thread (and so allocate). Not in signal handlers.
 */
int ub_pool_submit(struct ub_job *job);

/* Likewise, but it waits for its descriptor in its inbox where that can be, without a thread. The loop's thread only.
 */
int ub_pool_start(struct ub_job *job);

/* What is done, in the order in which it was; NULL: nothing. Tries what waits for descriptors that are ready. The
 * loop's thread only. */
struct ub_job *ub_pool_collect(struct ub_inbox *inbox);

/* Puts it there, by any thread: it is done. Signal-safe. */
void ub_pool_deliver(struct ub_job *job);

/* Whether something is. */
static inline bool ub_pool_has_done(const struct ub_inbox *inbox)
{
    return ub_load_acquire(&inbox->done) != NULL;
}

/* Its descriptors are made; none can be had: `fd` is -1. */
void ub_inbox_open(struct ub_inbox *inbox);
void ub_inbox_close(struct ub_inbox *inbox);

/* Whether the number is one of any inbox's, and not the program's to close. Signal-safe. */
bool ub_inbox_owns(int fd);

/* All of its numbers are ours still. */
bool ub_inbox_is_whole(const struct ub_inbox *inbox);

/* The program takes these numbers for itself (dup2, closefrom): they are its own from now on. Signal-safe. */
void ub_inbox_gives_up(unsigned first, unsigned last);

/* It has taken some of ours: who waits with one of them has to see to it. Any thread; signal-safe. */
void ub_inbox_taken(void);

/* It becomes readable at `next_ns` (CLOCK_MONOTONIC; 1: at once, 0: at no time), and at once if something is done. The
 * loop's thread only. */
void ub_inbox_arm(struct ub_inbox *inbox, uint64_t next_ns);

/* The job's descriptor is put into its inbox. False: it cannot be. The loop's thread only. */
bool ub_inbox_watch(struct ub_job *job);

/* Of one that is `watched`: it waits for this duplicate of its descriptor instead. The loop's thread only. */
void ub_inbox_move(struct ub_job *job, int fd);

/* Whether its descriptor is of the same file as when it was begun (`check`): the duplicate, or else from now on the
 * program's own number. By who has the job. Signal-safe. */
bool ub_pool_is_still_there(struct ub_job *job);

/* Makes the call here and now, as a thread of the pool would, but for signals. */
void ub_pool_call_here(struct ub_job *job);

/* The number of one of the threads, 0: there is none yet. */
int32_t ub_pool_thread(void);

/* At most so many threads in each lane (UINT32_MAX: as many as there may be). Before the first job. */
void ub_pool_limit(uint32_t threads);

/* The same by a number from 1 on; NULL or anything else: nothing is changed. Before the first job. */
void ub_pool_limit_to(const char *text);

/* From now on what waits and what was done is counted there too, in shared memory, which has to stay. Before the first
 * job. */
struct ub_pool_now;
void ub_pool_tell(struct ub_pool_now *now);

struct ub_pool_totals {
    uint32_t threads, most_queued;
    uint64_t jobs, refused;
    uint64_t waited_ns, longest_wait_ns; /* in the queue */
    uint64_t busy_ns;
};
void ub_pool_totals(enum ub_lane lane, struct ub_pool_totals *ret);

/* Waits until the jobs that are there now are done (their calls, not their collection). 0 or -ETIMEDOUT. */
int ub_pool_settle(uint64_t timeout_ns);

#endif
