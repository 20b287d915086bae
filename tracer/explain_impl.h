/*
 * Shared by the files of the explaining thread (explain.c: events and the
 * other lines; explain_stall.c: one stall from its looks to its `slow` line).
 */
#ifndef UB_TRACER_EXPLAIN_IMPL_H
#define UB_TRACER_EXPLAIN_IMPL_H

#include "cause.h"
#include "frames.h"
#include "policy_file.h"
#include "python_merge.h"
#include "watch_impl.h"

#include <uthash.h>

#define UB_LOOKS_KEPT  24u
#define UB_PENDING_MAX 64u

/* One look that was explained. */
struct ub_explained_look {
    struct ub_seen seen;
    json_t *sample; /* an entry of `samples` */
};

/* What a task computed, by some looks at a stall. */
struct ub_elsewhere {
    uint32_t looks; /* 0: none */
    enum { UB_ELSEWHERE_FORK, UB_ELSEWHERE_FUNCTION, UB_ELSEWHERE_COROUTINE } how;
    char name[200];                    /* dotted: of a function, or of the coroutine itself */
    char called[80];                   /* the function of C that the coroutine is in, "" */
    const struct ub_python_code *code; /* where the innermost frame stood */
    int32_t offset;
    uint64_t locals;
    bool
        goes_on; /* some looks found it at another point, or with other variables: it is not in one call all the time */
    bool large;  /* the data that it works on */
};

/* The turn of a slot that is being explained. */
struct ub_stall {
    uint64_t start; /* ticks; 0: none */
    json_int_t id;  /* 0: no line written yet */
    uint32_t count;
    struct ub_explained_look look[UB_LOOKS_KEPT];
    struct ub_accounting baseline, last;
    uint64_t baseline_majflt;
    uint64_t told_ns; /* duration told by the last `ongoing` line */
    uint32_t ready;
    bool over;                         /* the loop itself has ended: no stall */
    struct ub_callback what;           /* as the thread itself says; kind TURN: it says nothing */
    json_t *named;                     /* owned; the function that `what` names, NULL */
    bool named_user;                   /* it is the program's own, and its name is known */
    const struct ub_python_code *code; /* of the coroutine, where `what` is a step of a task; NULL */
    json_t *callback;                  /* owned; the best known from stacks */
    json_t *input;                     /* owned; what it had read from last when that look was taken, NULL */
    json_t *call;                      /* owned; of the blocking call seen, NULL */
    json_t *calls;                     /* owned; those that the thread itself timed, NULL */
    uint64_t calls_ns;                 /* their sum */
    int64_t call_nr;
    bool call_timed; /* its duration is the thread's own, exact */
    char site[9];
    json_t *task;                                /* owned; NULL */
    struct ub_python_waiting waiting;            /* at the last look */
    struct ub_python_pool pool;                  /* at the look that found most work queued */
    struct ub_python_request request;            /* of the first look that found one */
    json_t *holder;                              /* owned; who held the GIL while this thread waited for it, NULL */
    uint32_t gil_held, gil_released, gil_waited; /* looks */
    struct ub_elsewhere elsewhere[4];
    uint32_t python_looks; /* with frames */
    bool has_python;       /* callback and site come from a look with Python frames */
    bool has_stack;        /* callback and site come from a look with a stack */
    uint32_t blocked_looks;
    struct ub_uv_pool_now
        uv_pool; /* the fullest that a look found the program's own pool; all 0: nothing waited in it */
};

/* Stalls alike of which some could leave the loop. */
struct ub_lag_stall {
    uint64_t duration_ns, saved_ns, count;
    bool function; /* by a rule for a function */
};

struct ub_lag {
    struct ub_lag_stall *stall; /* owned */
    uint32_t count;
    bool incomplete; /* there were more kinds than are kept */
};

struct ub_thread_record {
    pid_t pid, tid;
    uint64_t since_ns; /* CLOCK_MONOTONIC: when it was heard of */
    struct ub_lag lag;
    bool qualified;
    bool synchronous; /* what seemed a loop is code of Python's library that waits for some pipes, again and again */
    char name[32];
    const char *loop;        /* recording's name of the loop */
    uint32_t library;        /* enum ub_loop_library: its callbacks are timed by themselves */
    bool tasks;              /* steps of asyncio's tasks are */
    char version[16];        /* of that library, or "" */
    uint32_t python_version; /* 0x030b: 3.11; 0: no loop of Python's */
    struct ub_stack *wait_stack;
    struct ub_python_look *wait_python;
    struct ub_stall stall;
    json_t *pending[UB_PENDING_MAX]; /* stalls from before it was known to be a loop */
    uint32_t pending_count;
};

struct ub_known_stack {
    uint64_t hash;
    json_int_t id;
    UT_hash_handle hh;
};

struct ub_known_site {
    char site[9];
    json_int_t seen;
    UT_hash_handle hh;
};

struct ub_explain {
    struct ub_watch *w;
    const struct ub_sink *sinks;
    uint32_t sink_count;
    struct ub_unwinder *unwinder;
    struct ub_known_stack *stacks;
    struct ub_known_site *sites;
    json_t *site[UB_POLICY_SITES];                           /* owned; names of the arena's entries, NULL: not known */
    json_t *meanwhile[UB_POLICY_SITES][UB_POLICY_MEANWHILE]; /* owned; likewise */
    struct ub_site_names *names[UB_POLICY_SITES];            /* owned; likewise, for the policy */
    struct ub_policy_file *policy;                           /* owned; NULL: none */
    uint32_t policy_version;
    uint64_t moved_told, away_told, functions_told, pinned_told; /* by the last `executor` line */
    uint64_t pinned;                                             /* stalls that were kept, of all `pins` */
    json_t *offload;   /* owned; `offload` lines by site, NULL before the first */
    json_t *pins;      /* owned; what kept stalls on their loops, by reason and lock; NULL before the first */
    json_t *elsewhere; /* owned; `python` lines by function, of a dry run; NULL before the first */
    json_int_t last_stack, last_slow;
    struct ub_watch_totals totals;
    uint64_t rate_limited;
    struct ub_thread_record thread[UB_SLOT_MAX];
    struct ub_stack raw;               /* scratch: too large for a thread's stack */
    struct ub_named_stack named;       /* scratch */
    pid_t pool_warned[UB_UV_POOL_MAX]; /* processes whose pool was warned of */
    uint32_t pools_warned;
    bool merged; /* its Python and its native frames fit together */
};

/* Hands a line to every sink and drops the reference. */
void ub_explain_emit(struct ub_explain *x, json_t *line);

/* A `note` line. */
void ub_explain_note(struct ub_explain *x, const char *level, const char *text);

/* [[upper bound in ns, count], ...] of the buckets that are not empty. */
json_t *ub_explain_histogram(const struct ub_histogram *h);

/* The id of a stack; writes its `stack` line the first time. */
json_int_t ub_explain_stack(struct ub_explain *x, const struct ub_named_stack *s);

/* explain_calls.c: what the thread timed, longest first; NULL when there is none. `ret_ns`: all of it together. */
json_t *ub_calls_json(struct ub_explain *x, const struct ub_event *e, uint64_t *ret_ns);

/* explain_pool.c */
void ub_explain_pool(struct ub_explain *x, const struct ub_event *e);
json_t *ub_uv_pool_now_json(const struct ub_uv_pool_now *now);

/* explain_python.c */

/* Merges the look's Python frames into x->named; without a native stack (*ret_stack false) they stand alone. */
bool ub_stall_python_merge(struct ub_explain *x, const struct ub_event *e, struct ub_maps *maps, bool *ret_stack);
/* Counts what the look found of the GIL. */
void ub_stall_python_gil(struct ub_explain *x, struct ub_stall *s, pid_t pid, const struct ub_python_look *look);
void ub_stall_python_loop(struct ub_explain *x, const struct ub_event *e, bool stack);
/* Keeps who waited at that look, and the request that was served. */
void ub_stall_python_waiting(struct ub_stall *s, const struct ub_python_look *look);
/* `task`, `request`, `gil`, `pool`, who waited and the task's name, into a `slow` line of a stall that has lasted to
 * `end_ns`. */
void ub_stall_python_set(json_t *line, const struct ub_stall *s, uint64_t end_ns, bool redact);

/* explain_callback.c */
const char *ub_callback_kind_name(uint32_t kind);       /* enum ub_callback_kind */
const char *ub_callback_library_name(uint32_t library); /* enum ub_loop_library */
void ub_callback_keep(struct ub_explain *x, struct ub_stall *s, const struct ub_event *e);
/* The frame of the function that begins at this address, -1: it is not on the stack. */
int ub_callback_frame(const struct ub_named_stack *stack, uint64_t function);
/* {function, file, line, module} of an address; NULL: nothing is known of it. */
json_t *ub_callback_place(struct ub_maps *maps, uint64_t address, bool redact);
json_t *ub_callback_json(const struct ub_stall *s);
/* A site where there is no stack. Overwrites x->named. */
void ub_callback_site(struct ub_explain *x, const struct ub_event *e, uint64_t function,
                      const struct ub_python_code *code, const char *call, const char *cause, const char *program,
                      char ret[9]);
/* What the thread had read from last; NULL: not known. */
json_t *ub_callback_input(const struct ub_explain *x, const struct ub_event *e);
json_t *ub_callback_bigs(struct ub_explain *x, const struct ub_event *e);
json_t *ub_callback_kinds(const struct ub_stats *s);

/* lints.c: `lint` lines; the figures of one, {count, total_ns, max_ns} */
void ub_lint_yields(struct ub_explain *x, const struct ub_event *e);
void ub_lint_unawaited(struct ub_explain *x, const struct ub_event *e);
json_t *ub_lint_yields_json(const struct ub_yield_stats *y);

/* explain_offload.c: what offload would have done; NULL: it is off, or no call was to blame. */
json_t *ub_offload_json(struct ub_explain *x, const struct ub_event *e, const struct ub_stall *s, const char *cause,
                        uint64_t duration_ns, uint64_t blocked_ns);
/* Adds a finished `slow` line to its call site's sums; writes those. */
void ub_offload_count(struct ub_explain *x, const json_t *line);
void ub_offload_site(struct ub_explain *x, const struct ub_event *e);

/* And what ran while its calls were away. */
void ub_offload_meanwhile(struct ub_explain *x, const struct ub_event *e);
void ub_offload_finish(struct ub_explain *x);
void ub_offload_progress(struct ub_explain *x);          /* an `executor` line, where something moved since the last */
void ub_offload_end(struct ub_explain *x, json_t *line); /* what was moved, into the `end` line */

/* The watcher was told to switch. */
void ub_offload_switch(struct ub_explain *x, struct ub_event *e);

/* explain_elsewhere.c: one look at a stall (NULL is fine); `elsewhere` of its line, NULL: nothing is known. */
void ub_elsewhere_look(struct ub_stall *s, const struct ub_python_look *look);
json_t *ub_elsewhere_json(const struct ub_stall *s, const char *cause, uint64_t duration_ns);
/* In a dry run: a stall that is over; the `python` lines. */
void ub_elsewhere_count(struct ub_explain *x, const json_t *line);
void ub_elsewhere_finish(struct ub_explain *x);

/* explain_lag.c: a `slow` line of the thread that is over; `lag` of its `stats` line, NULL: offload is off. */
void ub_lag_keep(struct ub_thread_record *t, const json_t *slow);
json_t *ub_lag_json(const struct ub_explain *x, const struct ub_thread_record *t, const struct ub_stats *s);
void ub_lag_clear(struct ub_lag *lag);

/* explain_policy.c. Takes the policy (NULL: none from now on). */
void ub_explain_policy(struct ub_explain *x, struct ub_policy_file *policy);
/* The place of an event is given its names, and its answer. */
void ub_explain_policy_site(struct ub_explain *x, const struct ub_event *e);
/* A note for each rule that fitted nothing. */
void ub_explain_policy_tell(struct ub_explain *x);
void ub_explain_policy_free(struct ub_explain *x);

/* explain_rows.c: the `python` lines. */
void ub_python_finish(struct ub_explain *x);
json_t *ub_python_elsewhere(const struct ub_explain *x,
                            uint64_t *ret_calls); /* functions so far; NULL: none; to the caller */

void ub_stall_look(struct ub_explain *x, const struct ub_event *e);
void ub_stall_end(struct ub_explain *x, const struct ub_event *e);
void ub_stall_gone(struct ub_explain *x, const struct ub_event *e); /* thread gone in mid-stall */
void ub_stall_qualified(struct ub_explain *x, struct ub_thread_record *t);
void ub_stall_clear(struct ub_stall *s);

/* explain_reasons.c: what the kernel saw of a turn. */
void ub_reasons_shares(const struct ub_reasons *r, struct ub_shares *ret);
/* `by_looks`: what the looks alone would say. */
const char *ub_reasons_cause(const struct ub_reasons *r, const struct ub_seen *seen, uint32_t count,
                             const char *by_looks);
/* Adds the calls, the lock's holder, the neighbour ... to a `slow` line; `seen_call` is the call that a look saw, or
 * NULL. */
void ub_reasons_write(struct ub_explain *x, const struct ub_event *e, const char *cause, const json_t *seen_call,
                      json_t *line);
/* Stack `i` of the reasons as a look; the caller frees `args` and `fd_link`. False: it is another thread's. */
bool ub_reasons_as_look(const struct ub_explain *x, const struct ub_event *e, uint32_t i, struct ub_event *ret);
void ub_reasons_tell_losses(struct ub_explain *x,
                            void (*note)(struct ub_explain *x, const char *level, const char *text));

#endif
