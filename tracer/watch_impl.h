/*
 * Shared by the files of the watcher (watch.c: life cycle; watch_loop.c: the
 * watching thread; watch_look.c: one look at an overdue thread; explain*.c: the
 * explaining thread).
 */
#ifndef UB_TRACER_WATCH_IMPL_H
#define UB_TRACER_WATCH_IMPL_H

#include "bpf/bpf.h"
#include "outside.h"
#include "stall.h"
#include "ticks.h"
#include "watch.h"

#include <pthread.h>

#define UB_HELD_MAX 8u

/* What the watching thread remembers of a slot. Unless said otherwise a turn is also a segment of one (callbacks.h). */
struct ub_watched {
    pid_t pid, tid;           /* 0: nobody seen yet */
    pid_t slot_pid, slot_tid; /* as the slot says them: the same, but for a process in another PID namespace */
    struct ub_process *process;
    uint64_t start;      /* the turn last seen running, 0 */
    uint64_t seen_turns; /* slot->turns at the last round: quiet or not */
    uint64_t next;       /* ticks of the next look at it */
    uint32_t looks;      /* taken of this turn */
    uint64_t turn;       /* where `start` is a segment's: start of the turn that it is part of */
    uint64_t turn_next;  /* ticks of the next look at a turn whose segments are short */
    uint32_t turn_looks; /* how many there were, */
    uint32_t turn_tries; /* and since the last of them should have been */
    struct ub_accounting turn_baseline;
    uint32_t loop_tries; /* to catch the loop in its wait */
    bool loop_announced;
    uint64_t alive_at; /* ticks when the thread was last known to exist */
    struct ub_accounting baseline;
    uint32_t request;                   /* last number given to the sampling handler */
    int schedstat_fd;                   /* -1 */
    struct ub_event *held[UB_HELD_MAX]; /* ends of stalls whose victims are not known yet (watch_after.c) */
    uint32_t held_count;
    uint64_t held_until;                                 /* ticks, for what waited; 0: that is known */
    uint64_t reasons_until;                              /* and for what the kernel saw of them */
    const struct ub_python_code *yields[UB_SPAN_YIELDS]; /* functions that give way by sleep(0), as far as told */
    struct ub_bigs bigs;                                 /* read, for the record of their turn that follows */
    bool sampled; /* by the kernel while it runs: no sample need be taken from outside */
};

struct ub_watch {
    struct ub_arena *arena;
    int arena_fd;
    bool adopted;       /* an agent made it, and started us (a helper) */
    bool attached;      /* or was brought into its process by us */
    struct ub_bpf *bpf; /* NULL: none */
    bool agentless;     /* nothing is loaded into the programs: the slots are written by `bpf`, or by `outside` */
    struct ub_outside *outside; /* NULL: none */
    uint64_t blind_ns;          /* before this round the watching thread did not run, and not for want of a CPU */
    uint32_t quiet_seconds;     /* without a turn that the kernel's programs would have told */
    uint64_t see_for_ns;        /* how long they must not have been needed until less of them is seen */
    uint64_t see_waits_until_ns, see_all_until_ns; /* the tracer came too late to its looks: not less before */
    uint64_t last_late_ns;                         /* by how much the last timed sleep was too long */
    uint64_t foreign;          /* the PID namespace that numbers in the slots are meant in; 0: ours */
    uint64_t met[UB_SLOT_MAX]; /* there: pid and tid of a slot in our numbers (pid << 32 | tid), once it is met */
    ino_t arena_inode;
    char address[64];
    uint64_t threshold_ns;
    uint64_t threshold; /* ticks */
    uint32_t captures_per_s;
    bool redact;
    uint32_t offload; /* enum ub_offload_mode */
    uint64_t yield_ns;
    const char *python_rules;
    bool filtered; /* under a seccomp filter, and what we start as well: its agents cannot wake us */
    uint32_t stopping;
    uint64_t stop_from_ns, stop_to_ns; /* the last time this process was stopped; to UINT64_MAX: it is just going on */

    pthread_t watcher;
    struct ub_watched watched[UB_SLOT_MAX];
    double tokens; /* captures that may be taken now */
    uint64_t tokens_at;
    uint64_t lost;         /* ring records */
    uint64_t rate_limited; /* looks not taken */
    uint32_t sites_named;  /* of the policy's `fresh`, all of which are known to the explaining thread */
    bool site_named[UB_POLICY_SITES];
    uint8_t meanwhile_named[UB_POLICY_SITES]; /* one bit each */
    uint32_t left_running;                    /* watched threads that outlived the run */
    uint64_t housekeeping_at;
    uint64_t own_wait_ns; /* the watching thread's own time on the run queue, at the last housekeeping */
    uint64_t late_ns;     /* how late nearly all of its timed sleeps ended lately; */
    uint64_t early_ns;    /* and so, how much before a deadline it sets the timer */
    uint64_t delivery_ns; /* the least that a signal took to arrive, lately */

    pthread_t explainer;
    pthread_mutex_t queue_lock; /* protects the queue only; nothing is called with it held */
    pthread_cond_t queue_filled;
    struct ub_event *queue_head, **queue_tail;
    uint32_t queue_length;
    uint64_t queue_dropped; /* looks and totals left out because the explaining thread could not keep up */
    struct ub_explain *explain;
};

/* The turns come from `bpf`; else it only knows the reasons of the agents' turns. */
static inline bool ub_watch_from_kernel(const struct ub_watch *w)
{
    return w->agentless && w->bpf;
}

/* Takes ownership of `e`. */
void ub_watch_queue(struct ub_watch *w, struct ub_event *e);

/* watch_loop.c: the watching thread. */
void *ub_watch_loop(void *watch);
/* What the thread of a slot that has been met has told of its turns is queued. */
void ub_watch_drain(struct ub_watch *w, uint32_t slot);
/* Our number of a process that the arena tells of by its own. 0: it is gone. */
pid_t ub_watch_number(const struct ub_watch *w, pid_t slot_pid);

/*
 * watch_look.c: reads what the thread of `slot` does now and queues it as
 * UB_EVENT_SAMPLE (an overdue turn) or UB_EVENT_LOOP (a loop in its wait).
 * Not before `due` (ticks; a few microseconds ahead: the caller woke early so as
 * to be on time). Nothing queued: -EAGAIN, that was over before the look was;
 * -ESRCH, the thread is gone; -EBUSY: it runs, and the kernel samples it.
 * `whole`: not the segment that runs is overdue, but the turn as a whole.
 */
int ub_watch_look(struct ub_watch *w, uint32_t slot, enum ub_event_kind kind, uint64_t due, bool whole);

/* watch_look.c: spins (a sleep this short lasts three times as long) until `until`. False: the turn ended meanwhile. */
bool ub_watch_still(const struct ub_slot *slot, uint64_t start, uint64_t until);

/*
 * watch_look.c: a program that has left its loop (asyncio.run() returned) goes on without ever waiting there
 * again. With epoll it shows: the descriptor is closed.
 */
bool ub_watch_loop_over(pid_t pid, const struct ub_slot *slot);

/*
 * watch_look.c: the stack of a running thread that got no CPU to answer with
 * while the look waited for it, but has answered since, between `start` and
 * `end` (ticks) of its turn: queued as one more UB_EVENT_SAMPLE.
 */
void ub_watch_collect(struct ub_watch *w, uint32_t slot, uint64_t start, uint64_t end);

/*
 * watch_python.c: the Python side of a look, after its native stack was taken.
 * `late`: the stack was taken earlier, so nothing is proven. NULL: no Python, or
 * nothing that made sense. The caller frees it.
 */
struct ub_python_look *ub_watch_python(struct ub_watch *w, struct ub_watched *t, const struct ub_capture *c, bool late);

/* watch_python.c: it runs a Python whose frames can be read. */
bool ub_watch_is_python(struct ub_watch *w, struct ub_watched *t);

/* watch_python.c: the frames that the thread itself has kept of a call. NULL: they make no sense. The caller frees it.
 */
struct ub_python_look *ub_watch_python_own(struct ub_watch *w, struct ub_watched *t, const struct ub_call_frame *frame,
                                           uint32_t count);

/* watch_python.c: a frame for that, of which only its code object and instruction are known. */
void ub_watch_python_frame(struct ub_watch *w, struct ub_watched *t, uint64_t code, uint64_t instruction,
                           struct ub_call_frame *ret);

/* watch_python.c: what takes longer: the request that is served, who waits. */
void ub_watch_python_more(struct ub_watch *w, struct ub_watched *t, struct ub_python_look *look);

/* watch_python.c: the code object of a task's step (its `function`, as the thread says). NULL: it makes no sense. */
const struct ub_python_code *ub_watch_python_code(struct ub_watch *w, struct ub_watched *t, uint64_t address);

/* watch_kernel.c: what the kernel's programs have to say. */
void ub_watch_kernel_poll(struct ub_watch *w);
/* How much of the system calls is looked at. Returns when to be back. */
uint64_t ub_watch_kernel_see(struct ub_watch *w, uint32_t high, uint64_t deadline);
bool ub_watch_kernel_looks(const struct ub_watch *w);
void ub_watch_kernel_doze(struct ub_watch *w); /* nothing has run for a while */
void ub_watch_kernel_end_doze(struct ub_watch *w);
bool ub_watch_any_running(const struct ub_watch *w);
/*
 * The reasons of an END, if the kernel's record of that turn has come by the last poll; NULL: it has not, or never
 * will. Beside an agent the kernel ends a turn later, when the wait call is entered: what came in between is left out.
 */
void ub_watch_kernel_reasons(struct ub_watch *w, struct ub_event *e);

/* watch_look.c: schedstat and page faults of a thread, now. */
void ub_watch_account(struct ub_watched *t, bool faults, struct ub_accounting *ret);

/* watch_calls.c: the blocking calls that the thread of `slot` timed in the turn that began at `start`, into `e`. */
void ub_watch_calls(struct ub_watch *w, uint32_t slot, uint64_t start, struct ub_event *e);

/* watch_input.c: what the thread of `slot` has read from last between `start` and `end`: its turn's beginning and a
 * look. */
void ub_watch_input(const struct ub_watch *w, uint32_t slot, uint64_t start, uint64_t end, struct ub_input_seen *ret);

/* Sockets that it has read from in a turn that is over, the last ones first. Returns how many; the links are the
 * caller's. */
uint32_t ub_watch_reads(const struct ub_watch *w, uint32_t slot, uint64_t from, uint64_t to,
                        struct ub_socket_read ret[UB_INPUTS]);

/* watch_callbacks.c: what runs in the segment that began at `start`, as the thread says. Kind TURN when it says
 * nothing. */
void ub_watch_callback(struct ub_watch *w, uint32_t slot, uint64_t start, struct ub_event *ret);

/* watch_callbacks.c: when the turn began of which the segment that began at `start` is part; `ret_reported`: ticks of
 * it that were reported as slow segments. */
uint64_t ub_watch_turn(const struct ub_watch *w, uint32_t slot, uint64_t start, uint64_t *ret_reported);

/* watch_callbacks.c: the record of a callback that ended, of a whole turn, of the biggest callbacks of one. */
void ub_watch_callback_record(struct ub_watch *w, struct ub_watched *t, const struct ub_record *record,
                              struct ub_event *e);
void ub_watch_keep_big(struct ub_watch *w, struct ub_watched *t, const struct ub_record *record);

/* watch_callbacks.c: the library whose callbacks the thread times, into a LOOP or STATS event; sums by kind. */
void ub_watch_library(const struct ub_watch *w, uint32_t slot, struct ub_event *e);
void ub_watch_kinds(const struct ub_watch *w, uint32_t slot, struct ub_stats *stats);

/* lints.c: records of the ring; figures for a STATS event, for the END of a step. */
void ub_watch_yields_told(struct ub_watch *w, uint32_t slot, const struct ub_record *record);
void ub_watch_unawaited(struct ub_watch *w, uint32_t slot, const struct ub_record *record);
void ub_watch_yields(const struct ub_watch *w, uint32_t slot, struct ub_stats *stats);
void ub_watch_yields_of(const struct ub_watch *w, uint32_t slot, struct ub_event *e);

/* watch_pool.c: the programs' own pools, as lines of the recording when it is time; `finish`: it is. */
void ub_watch_pools(struct ub_watch *w, bool finish);
/* False: nothing is known of a pool in that process. */
bool ub_watch_pool_state(const struct ub_watch *w, pid_t pid, struct ub_uv_pool_now *ret);

/* watch_sites.c: places of moved calls, as they become known. */
void ub_watch_sites(struct ub_watch *w);

/*
 * watch_after.c: an END that waits for what the stall kept waiting and for the
 * kernel's reasons, and takes the event; its thread's word; all of a slot to the
 * explaining thread, at once or when it is time (returns the moment, UINT64_MAX:
 * nothing is held).
 */
void ub_watch_hold(struct ub_watch *w, struct ub_event *e);
void ub_watch_waited(struct ub_watch *w, uint32_t slot, const struct ub_record *record);
void ub_watch_release(struct ub_watch *w, uint32_t slot);
uint64_t ub_watch_held_until(struct ub_watch *w, uint32_t slot, uint64_t now);

/* explain.c: the explaining thread. */
struct ub_explain;
int ub_explain_new(struct ub_watch *w, const struct ub_watch_options *options, struct ub_explain **ret);
void *ub_explain_loop(void *watch);
void ub_explain_free(struct ub_explain *x, struct ub_watch_totals *ret_totals);

#endif
