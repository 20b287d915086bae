/*
 * From the watching thread to the explaining one. Watching must never wait for
 * symbols: it takes what vanishes (stack, registers, state) and queues it here.
 */
#ifndef UB_TRACER_STALL_H
#define UB_TRACER_STALL_H

#include "../common/arena.h"
#include "capture.h"
#include "policy_file.h"
#include "process.h"

enum ub_event_kind {
    UB_EVENT_LOOP,      /* a thread has qualified as an event loop; capture: its stack while it waits, if one was had */
    UB_EVENT_SAMPLE,    /* a look at a thread whose turn is overdue */
    UB_EVENT_GOING,     /* still the same turn, no new look */
    UB_EVENT_END,       /* a turn over the threshold has ended */
    UB_EVENT_GONE,      /* the thread or its process is gone, its slot is given back */
    UB_EVENT_STATS,     /* totals of a thread */
    UB_EVENT_SITE,      /* of moved calls: `slot` is its place in the arena's policy */
    UB_EVENT_MEANWHILE, /* what ran while calls of a site were away: `slot` as above, `code` or `address` */
    UB_EVENT_POOL,      /* totals of a process's own pool of threads */
    UB_EVENT_LINT,      /* a coroutine was let go of: `code`; python: by whom */
    UB_EVENT_OFFLOAD,   /* `flags`: the mode from now on; `policy` */
    UB_EVENT_NOTE,      /* text for the recording */
    UB_EVENT_FINISH,    /* the run is over */
};

/* Steps that ended with sleep(0). */
struct ub_yield_stats {
    const struct ub_python_code *code; /* NULL: not known */
    uint64_t count, total_ticks, max_ticks;
};

struct ub_stats {
    uint64_t turns, busy_ticks, max_ticks;
    uint64_t cpu_ns;
    struct ub_histogram histogram;
    struct ub_kind_stats *kind; /* owned: of the callbacks, one a kind that there was; NULL: none are timed */
    uint32_t kinds;
    struct ub_yield_stats yield[UB_SPAN_YIELDS]; /* by function */
};

struct ub_kind_stats {
    uint32_t kind; /* enum ub_callback_kind */
    bool has_histogram;
    uint64_t count, total_ticks, max_ticks;
    struct ub_histogram histogram;
    /* Of them, those that stalls made late. */
    bool has_late_histogram;
    uint64_t late, late_ticks, late_max_ticks;
    struct ub_coarse_histogram late_histogram;
};

/* Callbacks that a turn is told by which was slow as a whole. */
struct ub_bigs {
    uint32_t count;
    struct ub_record record[UB_SPAN_BIGGEST];
    const struct ub_python_code *code[UB_SPAN_BIGGEST]; /* steps of tasks: of the coroutine, NULL: not known */
};

/* A socket that a thread has read from. */
struct ub_socket_read {
    int fd;
    char *link; /* owned: what the descriptor was a link to */
};

/* What a stall kept waiting, as its thread has seen it afterwards. */
struct ub_waited {
    bool known;
    bool round;   /* the loop has come round: `ready` is known */
    bool counted; /* its timers are callbacks of a library: `timers` is known */
    uint32_t ready, timers;
    uint64_t delay; /* ticks: none of them waited longer for this stall */
    uint32_t reads; /* sockets that were read from in the turn that served them, the last ones first */
    struct ub_socket_read read[UB_INPUTS];
};

/* What a thread has read from last in its turn, files apart. */
struct ub_input_seen {
    struct ub_input input; /* `at` 0: nothing is known */
    uint32_t others;       /* further descriptors that it read from in this turn, earlier */
    char *link;            /* owned: what the descriptor is a link to */
};

struct ub_accounting {
    struct ub_schedstat sched;
    uint64_t at_ns; /* CLOCK_MONOTONIC; 0: not known */
    uint64_t majflt;
};

/* A program's own pool at one moment. `threads` 0: not known. */
struct ub_uv_pool_now {
    uint32_t threads, busy, queued;
};

struct ub_reasons; /* bpf/bpf.h */

struct ub_event {
    struct ub_event *next;
    enum ub_event_kind kind;
    uint32_t slot;
    uint32_t flags; /* UB_SLOT_* at that moment; UB_EVENT_END: UB_RECORD_* */
    pid_t pid, tid;
    struct ub_process *process; /* one reference */
    uint64_t start;             /* ticks: identifies the turn */
    bool whole;                 /* SAMPLE: of a turn no segment of which is overdue by itself */
    uint64_t end;               /* ticks: end of the turn, or the moment of the look */
    uint32_t ready;
    struct ub_callback callback;       /* what ran, as the thread itself says; kind TURN: the loop, or nobody knows */
    const struct ub_python_code *code; /* `callback` is a step of a task: its coroutine's, NULL: not known */
    char name[UB_SPAN_NAME + 1];       /* END: of its source; "" */
    uint32_t turn_callbacks;           /* END of a whole turn: how many there were in it, */
    uint64_t turn_reported;            /* and ticks of it that were reported as callbacks of their own */
    struct ub_bigs *bigs;              /* likewise: the biggest of them; owned */
    uint32_t library;                  /* LOOP, STATS: enum ub_loop_library; 0: its callbacks are not known */
    char version[16];                  /* of that library, or "" */
    bool tasks;                        /* LOOP, STATS, SAMPLE: steps of asyncio's tasks are timed */
    bool loop_over; /* SAMPLE, GOING: the loop's epoll descriptor is closed: what runs now is no callback */
    struct ub_accounting account;  /* at the look or at the end */
    struct ub_accounting baseline; /* when the turn was first seen */
    struct ub_waited waited;       /* END */
    struct ub_yield_stats yields;  /* END of a step: how its function has given way so far; count 0: never */
    uint64_t blind_ns;             /* END: how much of the turn the watcher itself did not run (both were stopped) */
    /* Owned; NULL when there is none. */
    struct ub_capture *capture;
    struct ub_python_look *python; /* SAMPLE, LOOP: the Python side of it */
    char *args;                    /* of the blocking call, as text */
    char *fd_link;                /* what its descriptor is a link to: cheap to read; explained later, if it still is */
    int fd;                       /* -1: none */
    struct ub_input_seen input;   /* SAMPLE of a turn */
    struct ub_call_report *calls; /* END: the turn's blocking calls, as the thread itself timed them */
    struct ub_capture *call_capture;    /* END: where the longest of them was called, */
    struct ub_python_look *call_python; /* and its Python frames */
    struct ub_stats *stats;
    struct ub_uv_pool *pool;        /* POOL */
    struct ub_uv_pool_now pool_now; /* SAMPLE */
    struct ub_reasons *reasons;     /* END: what the kernel saw of the turn */
    struct ub_policy_file *policy;  /* OFFLOAD; owned, NULL: none */
    char *text;                     /* NOTE */
    const char *level;
};

struct ub_event *ub_event_new(enum ub_event_kind kind);
void ub_event_free(struct ub_event *e);

#endif
