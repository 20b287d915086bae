/*
 * A recording turned into totals: loops, call sites, the verdict. Fed line by
 * line, live or from a file, so memory grows with call sites, not with stalls;
 * and each table has an upper limit, because recordings come from strangers.
 *
 * Not thread-safe: fed and read by one thread at a time. Everything returned
 * belongs to the model and is valid until the next ub_model_line.
 */
#ifndef UB_UI_MODEL_H
#define UB_UI_MODEL_H

#include "../tracer/record.h"
#include "distribution.h"
#include "recording.h"

struct ub_model;
struct ub_site;

struct ub_model *ub_model_new(void);
void ub_model_free(struct ub_model *m);
void ub_model_line(struct ub_model *m,
                   json_t *record); /* any line of any recording; several recordings may follow one another */
struct ub_sink ub_model_sink(struct ub_model *m);
struct ub_taker ub_model_taker(struct ub_model *m); /* refuses what it must keep the record of */

/* The frames (json array) of stack `id` of the recording that is being read, or NULL. */
json_t *ub_model_stack(const struct ub_model *m, json_int_t id);

/*
 * The name of the program that process `pid` of the recording being read runs
 * ("redis-server"), or NULL. It is what the program was started as where that
 * is known: Debian's redis-server is a link to redis-check-rdb.
 */
const char *ub_model_program(const struct ub_model *m, uint64_t pid);
/* The path of its executable, or NULL. */
const char *ub_model_exe(const struct ub_model *m, uint64_t pid);

/*
 * Tells `hear` of every stall that is over, as it is counted, with its site and
 * the index of its run. NULL: no more. Those that were not over when all was
 * read are told by ub_model_follow_ongoing.
 */
void ub_model_follow(struct ub_model *m,
                     void (*hear)(void *self, const struct ub_stall *stall, const struct ub_site *site, uint32_t run),
                     void *self);
void ub_model_follow_ongoing(struct ub_model *m);

/* ---- what a reader of files knows beside the lines -------------------- */

struct ub_model_file {
    char *name;
    struct ub_recording_stats stats;
};

/* Tells how the reading of a file went: it shows at the end of the report. */
void ub_model_file_read(struct ub_model *m, const char *name, const struct ub_recording_stats *stats);

/* Looks at figures of loops that were put off: before the loops are read while more lines may come. */
void ub_model_settle(struct ub_model *m);

/* Forgets all stalls, not what the recording's ids mean: from here on counts what comes. Sites are gone. */
void ub_model_forget_stalls(struct ub_model *m);

/* ---- runs -------------------------------------------------------------- */

/* One run; the parts of a rotated recording are one run. */
struct ub_run {
    json_t *header;            /* NULL: lines came without one */
    json_t *executor;          /* the last of its lines; NULL: nothing was moved (yet) */
    json_t *end;               /* NULL: the run goes on, was killed, or its last part was not read */
    char *next;                /* the file in which the recording goes on, as its last note says; or NULL */
    uint64_t last_ns;          /* the latest moment that any line speaks of (CLOCK_MONOTONIC); 0: none */
    uint64_t processes, loops; /* lines of that kind */
};

uint32_t ub_model_runs(const struct ub_model *m);
const struct ub_run *ub_model_run(const struct ub_model *m, uint32_t i);
const struct ub_run *ub_model_current_run(const struct ub_model *m); /* NULL before the first line */

/* ---- stalls ------------------------------------------------------------ */

enum ub_stall_class {
    UB_STALL_COUNTED,    /* the verdict is about these */
    UB_STALL_STARTUP,    /* before the first served descriptor */
    UB_STALL_STOPPED,    /* SIGSTOP, debugger, suspended machine */
    UB_STALL_SUPPRESSED, /* known, and not of interest: ub_model_suppress */
    UB_STALL_UNCLEAR,    /* perhaps several turns below the threshold, between which nobody looked */
    UB_STALL_CLASSES,
};

/* Turns and callbacks inside one another count once: a stall with a `parent` is left out here. */
struct ub_stall_totals {
    uint64_t count; /* repeats included */
    uint64_t total_ns;
    uint64_t max_ns;
    uint64_t ongoing; /* of count: not over when the recording ended */
};

const struct ub_stall_totals *ub_model_totals(const struct ub_model *m, enum ub_stall_class class);

enum ub_cause {
    UB_CAUSE_UNKNOWN,
    UB_CAUSE_CALL,
    UB_CAUSE_CPU,
    UB_CAUSE_LOCK,
    UB_CAUSE_RUNQUEUE,
    UB_CAUSE_PAGEFAULT,
    UB_CAUSE_GIL,
    UB_CAUSE_GC,
    UB_CAUSE_IMPORT,
    UB_CAUSE_STOPPED,
    UB_CAUSES,
};

enum ub_cause ub_model_cause_parse(const char *name); /* NULL or not known: UB_CAUSE_UNKNOWN */
enum ub_cause ub_model_cause_of(struct ub_slice name);
const char *ub_model_cause_name(enum ub_cause cause);

/* A distinct stack of a site and how many of its samples showed it. */
struct ub_site_stack {
    json_t *frames; /* innermost first */
    uint64_t samples;
    uint64_t unproven;   /* of samples: proof "unproven" */
    uint64_t incomplete; /* of samples: the outermost frame was not reached */
};

#define UB_SITE_STACKS_MAX 64

/* A call site: everything that shares one `site` value (and class). */
struct ub_site {
    char *id;
    enum ub_stall_class class;
    char *program;                    /* of its first stall, or NULL */
    char *exe;                        /* likewise */
    struct ub_distribution durations; /* count, total_ns and max_ns are in it */
    struct ub_stall_totals own;       /* what it adds to the totals of its class */
    uint64_t ongoing;
    uint64_t cause[UB_CAUSES]; /* stalls by cause */
    json_t *worst;             /* the `slow` record of the longest stall */
    struct ub_site_stack *stack;
    uint32_t stacks;
    uint64_t samples;          /* with a stack, those beyond UB_SITE_STACKS_MAX distinct ones included */
    uint64_t samples_no_stack; /* none was taken, or it is not in the recording */
};

/* The cause of most of its stalls. */
enum ub_cause ub_model_site_cause(const struct ub_site *site);

/* The site of a `slow` record, or NULL (too many sites, or a malformed record). */
const struct ub_site *ub_model_site_of(const struct ub_model *m, const json_t *slow);

enum ub_sort {
    UB_SORT_TOTAL,
    UB_SORT_MAX,
    UB_SORT_COUNT,
    UB_SORT_P99,
    UB_SORTS,
};

/* The sites of a class, worst first. Caller frees the array; NULL when there are none (or no memory). */
const struct ub_site **ub_model_sites(const struct ub_model *m, enum ub_stall_class class, enum ub_sort sort,
                                      size_t *ret_count);

/*
 * Takes the sites that `choose` says out of the verdict: their class becomes
 * UB_STALL_SUPPRESSED. For when all has been read.
 */
void ub_model_suppress(struct ub_model *m, bool (*choose)(void *self, const struct ub_site *site), void *self);

/* ---- loops ------------------------------------------------------------- */

/* Figures of callbacks of one kind. Where no histogram was written the distribution is empty. */
struct ub_kind_times {
    uint64_t count, total_ns, max_ns;
    struct ub_distribution distribution;
};

struct ub_loop_kind {
    char name[16];
    struct ub_kind_times ran;  /* how long they took */
    struct ub_kind_times late; /* those that stalls made late, and by how much at most */
};

struct ub_kinds {
    struct ub_loop_kind *kind;
    uint32_t count;
};

/* How long what comes at any moment waits until the loop looks at it. */
struct ub_loop_lag {
    bool known;
    uint64_t p99_ns, longest_ns;
};

struct ub_loop_lag ub_model_lag(const json_t *lag); /* {p99_ns, longest_ns}; NULL: not known */

struct ub_loop {
    uint32_t run; /* index of its run: processes of two hosts may have the same numbers */
    uint64_t pid, tid;
    char kind[24];      /* "libuv", "turn" ... */
    char thread[32];    /* "" when not told */
    char *program;      /* or NULL */
    bool has_stats;     /* a `stats` line was seen; else only the loop's first sign */
    uint64_t callbacks; /* turns, for a loop whose callbacks are not known */
    uint64_t turns;     /* 0: not told */
    uint64_t busy_ns;
    uint64_t max_ns;
    uint64_t observed_ns;                                /* 0: not known, so there is no busy share */
    struct ub_distribution duration;                     /* of callbacks or turns */
    struct ub_loop_lag lag, predicted, predicted_policy; /* if calls had moved that may; and functions, too */
    struct ub_kinds kinds;                               /* empty: its callbacks are not timed by themselves */
};

/* The loop of the current run that lags most; NULL: no lag was recorded. */
const struct ub_loop *ub_model_slowest_loop(const struct ub_model *m);

/* Loops by busy time, the busiest first. Caller frees the array; NULL when there are none. */
const struct ub_loop **ub_model_loops(const struct ub_model *m, size_t *ret_count);

/* ---- the rest ---------------------------------------------------------- */

/* The `offload` lines: one a call site. */
const json_t *ub_model_offload(const struct ub_model *m);

/* The `python` lines: one a coroutine or function. */
const json_t *ub_model_python(const struct ub_model *m);
/* Distinct notes, oldest first: {level, text, times}. */
const json_t *ub_model_notes(const struct ub_model *m);
/* The last `lint` record of each habit, by any key. */
const json_t *ub_model_lints(const struct ub_model *m);
/* The programs' own pools of threads: the last `pool` record of each process, with its `program`, by any key. */
const json_t *ub_model_pools(const struct ub_model *m);
/* `thread` records of a dump. */
const json_t *ub_model_threads(const struct ub_model *m);
uint32_t ub_model_files(const struct ub_model *m);
const struct ub_model_file *ub_model_file(const struct ub_model *m, uint32_t i);

/* What did not fit or made no sense; all zero for an honest recording of a sane size. */
struct ub_model_dropped {
    uint64_t malformed; /* lines without the fields that their type needs */
    uint64_t sites, stacks, loops, runs, ongoing, notes, threads, pools, kinds, lints;
};
const struct ub_model_dropped *ub_model_dropped(const struct ub_model *m);

/* How ub_model_json and the report order the sites. */
void ub_model_sort(struct ub_model *m, enum ub_sort sort);
enum ub_sort ub_model_sorted(const struct ub_model *m);

/* The whole model as one JSON document (the output of `report --format json`). Caller owns. */
json_t *ub_model_json(const struct ub_model *m);

#endif
