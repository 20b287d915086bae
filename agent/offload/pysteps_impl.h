/*
 * Between pysteps.c (what a step goes through), pydrive.c (what goes on while the thread cannot return to its
 * loop) and pycalls.c (where calls and locks come in). For those three only.
 */
#ifndef UB_AGENT_PYSTEPS_IMPL_H
#define UB_AGENT_PYSTEPS_IMPL_H

#include "../raw.h"
#include "beside.h"
#include "block.h"
#include "decide.h"
#include "fds.h"
#include "fiber.h"
#include "locks.h"
#include "pylocks.h"
#include "pysteps.h"
#include "python/functions.h"
#include "python/python.h"
#include "ready.h"
#include "sites.h"
#include "suspend.h"

#define HOSTS_MAX           4u
#define UB_TRANSACTIONS_MAX 32u
#define UB_COROUTINES       256u
#define UB_STEP_UNITS       8u

/* One step of a task. */
struct step {
    struct ub_fiber fiber;        /* first: the pool of fibers makes room for all of this */
    struct step *next, *previous; /* of those suspended, in the order of their suspension */
    struct step *same;            /* of those whose coroutines share a place in `by_coroutine` */
    struct host *host;
    uintptr_t coroutine;
    uint64_t value, result; /* for the send, and what it left */
    void *future;           /* what its task waits for; NULL: it does not wait */
    struct ub_job job;
    struct ub_lock_wait wait; /* for a lock; .lock NULL: for the job */
    uint64_t deadline_ns;     /* CLOCK_MONOTONIC; 0: none */
    int fd, own_fd;           /* of the call, -1; our duplicate of it, -1 */
    uint32_t direction;       /* of the call, and what must not overtake it: enum ub_direction */
    uint32_t holds_up, nested;
    bool started, done;
    bool told;                       /* its task was */
    void *connection;                /* of SQLite, inside of one of its calls; NULL */
    uint32_t sqlite;                 /* which copy of the library it is of */
    const void *queues;              /* for this, which another step has (pyqueue.c); NULL */
    uint64_t ticket;                 /* its place there */
    uint64_t began;                  /* a ticket, too: the order of steps */
    const void *mutex;               /* suspended in such a call: it is taken, and recursive; NULL */
    const void *computes;            /* a thread makes its call of SQLite's: the connection's mutex; NULL */
    const void *unit[UB_STEP_UNITS]; /* connections that its whole calls have used (pyunits.c), and their mutexes */
    uint32_t units;                  /* so many; more than there is room for: it is not left any more */
    uint64_t code;                   /* its coroutine's code object; 0: not known */
    struct ub_beside_counts beside;  /* what ran while it was left, last */
    uint64_t left_ns;                /* CLOCK_MONOTONIC: when it was, last */
    bool over;                       /* it has ended while its task could not be told: `fiber.result` and `result` */
    bool yields;                     /* it waits for its turn only (pyyield.c) */
    bool picked;                     /* and that has come: its task is on its way */
    struct ub_ticket *awaits;        /* it waits for this; NULL */
    bool calls;                      /* one of its functions is being called elsewhere: no call is told of as moved */
    uint64_t yielded_ns;             /* CLOCK_MONOTONIC */
    struct ub_holder holder;
    struct ub_python_state state;
};

/* A loop with something suspended. */
struct host {
    void *loop; /* NULL: free */
    struct ub_inbox inbox;
    uint32_t count;
    uint64_t armed_ns;         /* when its timer fires; 0: at no time */
    uint64_t lingers_ns;       /* CLOCK_MONOTONIC: with nothing suspended it is watched until then; 0: not so */
    bool used;                 /* since that was set */
    bool stopping;             /* nothing is left there until it has come round */
    uint32_t yielders, picked; /* of `count`: those that yield; of these: struct step */
    bool pumping;              /* the loop is going to ask whose turn it is */
    uint64_t ran;              /* as in struct mine, when it last did; UINT64_MAX: never */
};

/* Of SQLite; `connection` NULL: none. */
struct ub_transaction {
    const void *connection;
    uintptr_t coroutine; /* whose step has used it last */
};

/* A thread that runs loops. Reached by the number of its slot. */
struct mine {
    int32_t tid;
    uint32_t generation; /* of the process that made it: not a forked child's */
    struct step *current;
    struct step *suspended, *last;
    struct step *by_coroutine[UB_COROUTINES]; /* the same ones: each step of a task asks whether it is here */
    uint32_t own;                             /* Python code that we have called is running */
    uint32_t here;                            /* steps that go on in a place that is not their task's */
    struct ub_beside beside;                  /* steps */
    struct ub_fiber_pool fibers;
    struct ub_fiber_exceptions *exceptions;
    struct host host[HOSTS_MAX];
    struct ub_inbox place; /* of what waits without being left */
    struct ub_holder base; /* what runs outside of steps */
    uint64_t tickets;
    uint32_t queued;              /* steps that queue for something */
    struct ub_python_file *files; /* functions of file objects, of whatever step; or of none */
    uint64_t sqlite_entered; /* a method of its module began at this place of Python's (ub_policy_place); 0: none */
    bool sqlite_opens;       /* a connection was, just now */
    uint32_t transactions;
    struct ub_transaction transaction[UB_TRANSACTIONS_MAX];
};

extern const struct ub_python *ub_pysteps_python;

/* NULL: this thread runs no loop. Signal-safe. */
struct mine *ub_pysteps_mine(bool make);

static inline struct ub_holder *ub_pysteps_holder_of(struct mine *m)
{
    return m->current ? &m->current->holder : &m->base;
}

/* An earlier call on the same descriptor that is not over. `before`: only those suspended before it. */
struct step *ub_pysteps_busy(const struct mine *m, int fd, uint32_t direction, const struct step *before);

/* What has ended meanwhile is marked. `tell`: its tasks are told, with the GIL held. */
void ub_pysteps_collect(struct mine *m, struct host *h, bool tell);

/* The loop is woken when something of it has ended. */
void ub_pysteps_arm(struct mine *m, struct host *h);

/* Goes on with a step right here, with the GIL held, until it is suspended again or over. */
void ub_pysteps_run_here(struct mine *m, struct step *s);

/* Whether steps can be moved in this process, as far as is known: its interpreter, and what lives in it. */
enum ub_pin ub_pysteps_judge_process(void);

/* With step->job or step->wait filled in. False: it was not left, nothing was waited for. */
bool ub_pysteps_leave(struct mine *m, struct step *s, bool gil);

/* ---- pycalls.c ---- */

/* Whether the current step may be left here. `gil`: it has it, and it is the interpreter's own waiting. */
enum ub_pin ub_pysteps_judge_place(const struct mine *m, uintptr_t sp, bool gil, uint64_t *ret_lock);

/* May the current step be left here? May suspended steps go on above this place? */
bool ub_pysteps_may_leave(const struct mine *m, uintptr_t sp, bool gil);
bool ub_pysteps_may_drive(const struct mine *m, bool gil);

/* ---- pyqueue.c ---- */

/* The step uses a connection, or its mutex, from now on (NULL: none); it does. */
void ub_pyqueue_add_unit(struct step *s, const void *connection);
bool ub_pyqueue_has_unit(const struct step *s, const void *connection);

/* The first that queues for it is to look at once. */
void ub_pyqueue_tell_next(struct mine *m, const void *what);

/* ---- pyyield.c ---- */

/* Whether the object for this Python can be used; if not, that is told. With the GIL. */
bool ub_pyyield_is_of_this_build(void *handle);
/* An object for the interpreter was found, and this is its file's handle. GIL held. */
void ub_pyyield_start(void *object);

/* Around a step's going on; and when one has ended, or was left. */
void ub_pyyield_begins(struct mine *m, struct step *s);
void ub_pyyield_ends(struct mine *m);

/* Before a fork: our thread is gone until the next step. */
void ub_pyyield_before_fork(void);

/* ---- pyfunctions.c ---- */

/* An object for the interpreter was found, and this is its file's handle. GIL held. */
void ub_pyfunctions_start(void *object);

/* Told at the run's end, with how often. */
void ub_pyfunctions_note(const char *text);

/* The recording's word for it. */
const char *ub_pyfunctions_reason(enum ub_pin pin);

/* `job` is delivered when the ticket is done. False: it is already. */
bool ub_pyfunctions_park(struct ub_ticket *ticket, struct ub_job *job);

/* ---- pydrive.c ---- */

struct ub_place {
    struct ub_lock_wait wait;
    struct ub_job job;
    bool done;
};

/*
 * Waits for a lock (.lock, .foreign, .tries) without leaving, while suspended steps go on. 0: it is the holder's. -1
 * with ETIMEDOUT, or (not with `gil`) EINTR: a signal came. 1: nothing is suspended any more, or who had it (`tries`)
 * is gone.
 */
int ub_pydrive_wait(struct mine *m, const struct ub_lock_wait *what, uint64_t deadline_ns, bool gil);

/* Whether one can go on. */
bool ub_pydrive_has_some(struct mine *m);

/*
 * Goes on with one step that can, or waits until one can, `fd` is ready (-1: none), `until_ns` (0: none) or for 20 ms.
 * -EINTR: a signal.
 */
int ub_pydrive_once(struct mine *m, bool gil, int fd, short events, uint64_t until_ns);

/* Steps of the loop (NULL: of any) go on to their ends. `holding`: only as long as one of them has a lock. GIL held. */
void ub_pydrive_drain(struct mine *m, const struct host *h, bool holding);

#endif
