/*
 * The watcher of one run: creates the arena, notices overdue turns of all
 * threads of all processes that map it, captures and explains them, and hands
 * the recording's lines to the sinks.
 *
 * It owns two threads (watch, explain). Not signal-safe.
 */
#ifndef UB_TRACER_WATCH_H
#define UB_TRACER_WATCH_H

#include "policy_file.h"
#include "record.h"

#include <sys/types.h>

struct ub_watch;
struct ub_bpf; /* bpf/bpf.h */

struct ub_watch_options {
    uint64_t threshold_ns;
    bool redact;                   /* no arguments, paths or peers */
    uint32_t offload;              /* enum ub_offload_mode: what the agents shall do */
    struct ub_policy_file *policy; /* of UB_OFFLOAD_POLICY, and what UB_OFFLOAD_FLAGGED knows beforehand; NULL: none.
                                      Taken */
    uint64_t yield_ns;             /* steps of asyncio's tasks yield after so long; 0: they do not */
    const char *python_rules;      /* as in common/python_table.h; NULL: none */
    uint32_t captures_per_s;       /* stacks taken a second at the most; every stall is counted all the same. 0: 100 */
    const struct ub_sink *sinks;
    uint32_t sink_count;
    int argc; /* the command, for the header record */
    char *const *argv;
    bool adopt; /* the arena is there already: `arena_fd`, made by an agent that started us. Stays the caller's */
    int arena_fd;
    bool attached;      /* that agent was brought into a running process */
    struct ub_bpf *bpf; /* may be NULL; stays the caller's */
    bool agentless;     /* nothing is loaded into the programs: turns come from `bpf`, or from /proc without it */
};

/* Totals for the verdict and the exit status; filled by ub_watch_stop. */
struct ub_watch_totals {
    uint64_t slow;     /* stalls over the threshold, start-up and stopped ones not counted */
    uint64_t worst_ns; /* longest of them */
    uint64_t lost;     /* records that did not fit a ring */
    uint32_t images;   /* program images that loaded the agent */
    uint32_t loops;    /* threads that ran an event loop */
};

/* 0 or -errno (memfd, threads). Writes the `header` line to the sinks. */
int ub_watch_start(const struct ub_watch_options *options, struct ub_watch **ret);

/* A `note` line. `level`: "info", "warning", "error"; `text` is copied. Any thread. */
void ub_watch_note(struct ub_watch *w, const char *level, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Switches the agents that can move calls to another mode (enum ub_offload_mode). `policy` is taken. 0 or -ENOMEM. Any
 * thread. */
int ub_watch_offload(struct ub_watch *w, uint32_t mode, struct ub_policy_file *policy);

/* The process whose agent made the adopted arena; 0 for one of our own. */
pid_t ub_watch_starter(const struct ub_watch *w);

/* The first process of its tree: others may come from it as long as it lives, loops or not. 0 likewise. */
pid_t ub_watch_root(const struct ub_watch *w);

/* The processes that own slots, each once, as far as they fit. Hostile: any number may be in it. */
uint32_t ub_watch_owners(const struct ub_watch *w, pid_t *ret, uint32_t max);

/* 1: the process maps this run's arena, 0: it does not, or is gone; -EACCES: its maps may not be read. */
int ub_watch_is_target(const struct ub_watch *w, pid_t pid);

/* What a loop does right now, for live views. Any thread; costs the watching thread nothing. */
struct ub_watch_loop {
    pid_t pid, tid;
    uint64_t turns, busy_ns, max_ns; /* of ended turns, ever */
    uint64_t running_ns;             /* of the turn that runs now; 0: the loop waits */
    uint64_t p50_ns, p99_ns;         /* upper bounds, of ended turns */
};

/* The loops, as far as they fit. */
uint32_t ub_watch_loops(const struct ub_watch *w, struct ub_watch_loop *ret, uint32_t max);

/* What was left out so far, as in the `end` line. Any thread. */
struct ub_watch_lost {
    uint64_t ring, rate_limited, queue;
};
void ub_watch_lost(const struct ub_watch *w, struct ub_watch_lost *ret);

/* The reduced view (`agentless` without `bpf`): watches `pid`. As ub_outside_add (outside.h). */
int ub_watch_add(struct ub_watch *w, pid_t pid);

/* The value of UNBLOCK_ARENA for the child. Valid until ub_watch_stop. */
const char *ub_watch_address(const struct ub_watch *w);

/*
 * This process is about to stop together with the program, as job control has
 * it, or goes on again: it cannot look meanwhile, and the turns of that time were
 * "stopped". Signal-safe; one thread only.
 */
void ub_watch_stops(struct ub_watch *w, bool stopping);

/*
 * Ends the run: collects what is left, writes the last `stats` and the `end`
 * line, joins the threads. `status` is a wait status (exit or signal) when
 * `has_status`. The sinks are called no more after it returns.
 */
void ub_watch_stop(struct ub_watch *w, bool has_status, int status, struct ub_watch_totals *ret_totals);

#endif
