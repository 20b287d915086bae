/*
 * Entering a running process: a thread that waits in its event loop is stopped
 * for a moment, and goes on by way of code of ours, which loads the agent and
 * calls it. tracer/README.md "Entering a process" has the order of things and why.
 *
 * The thread is never held by ptrace while it does anything for us: whatever
 * becomes of this process, the thread comes back to where it was by itself.
 *
 * One thread of the caller's does all of it (ptrace knows threads). Not signal-safe.
 */
#ifndef UB_TRACER_INJECT_H
#define UB_TRACER_INJECT_H

#include "../common/base.h"

#include <sys/types.h>

#define UB_INJECT_WHY 512

/* What stands in the way; none of it touches the process. */
enum ub_inject_obstacle {
    UB_INJECT_POSSIBLE,
    UB_INJECT_ENDED,     /* no such process (any more) */
    UB_INJECT_DENIED,    /* its memory may not be read, and so not written */
    UB_INJECT_TRACED,    /* by a debugger or strace */
    UB_INJECT_STOPPED,   /* by a signal */
    UB_INJECT_SECCOMP,   /* a filter might kill it for what the agent does */
    UB_INJECT_STATIC,    /* no dynamic loader */
    UB_INJECT_MACHINE,   /* 32-bit or of another machine */
    UB_INJECT_LIBC,      /* another C library than glibc */
    UB_INJECT_OLD_LIBC,  /* a glibc before 2.35, without what the agent needs */
    UB_INJECT_SANITIZER, /* a sanitizer stands in for libc */
    UB_INJECT_NAMESPACE, /* our /proc is that of another PID namespace */
    UB_INJECT_NO_PROC,   /* it has no /proc, through which the agent is loaded */
    UB_INJECT_NOEXEC,    /* vm.memfd_noexec forbids code from memory files */
    UB_INJECT_MEMORY,    /* its address space is limited, and used up */
    UB_INJECT_CPU,       /* no XSAVE */
    UB_INJECT_OBSTACLES
};

/* Looks; `ret_detail` gets a number (TracerPid) or 0. The first obstacle found. */
enum ub_inject_obstacle ub_inject_look(pid_t pid, long *ret_detail);

/* What it is and what to do, in two strings that end a sentence each ("..., which ..."; "do ..."). Never NULL. */
const char *ub_inject_obstacle_text(enum ub_inject_obstacle o);
const char *ub_inject_obstacle_mend(enum ub_inject_obstacle o);

struct ub_inject_options {
    pid_t pid;
    const char *agent;    /* path of libunblock.so, as we see it; enter only */
    uint64_t deadline_ns; /* CLOCK_MONOTONIC, 0: for ever. How long to wait for a loop to come round */
    /* Asked some hundred times a second while no thread waits in a loop. True: give up. May be NULL. */
    bool (*cancelled)(void *self);
    void *self;
    /* Enter: the arena of a process that was entered before is to be its, too (its descriptor stays the caller's); 0: a
     * new one. */
    int join_fd;
    uint64_t hold_max_ns; /* unload: how long all threads may be stopped at most */
    uint32_t offload;     /* enter: enum ub_offload_mode, OFF or DRY_RUN */
};

/* What a thread that is kept from its work waits for, in this order. */
enum ub_inject_part {
    UB_PART_STOPPING, /* asked to stop, until we know that it has */
    UB_PART_FOLLOWED, /* it was busy: from system call to system call, less the time in which it did its own work */
    UB_PART_STOPPED,  /* until it was let go */
    UB_PART_WORKED,   /* until it was done with what we had asked of it */
    UB_PARTS
};

struct ub_inject_part_time {
    uint64_t took_ns;
    uint64_t starved_ns; /* of that it, or we where it could not go on without us, waited for a CPU (schedstat) */
};

/* One time that it was kept from its work. */
struct ub_inject_piece {
    const char *what; /* what it was asked for; never NULL where a part took time */
    struct ub_inject_part_time part[UB_PARTS];
};

/* All its parts. */
uint64_t ub_inject_piece_ns(const struct ub_inject_piece *piece);

struct ub_inject_result {
    int arena_fd;                   /* enter: the agent's arena, the caller's to close; -1 where another was joined */
    pid_t tid;                      /* the thread that was asked */
    pid_t watcher;                  /* -EBUSY: who watches already */
    bool loaded;                    /* the agent was not in there before */
    struct ub_inject_piece longest; /* the longest time that the thread was kept from its work */
    uint64_t held_all_ns;           /* all of these */
    uint64_t proof_ns;              /* unload: how long all threads were stopped the last time */
    uint32_t holds;                 /* how often */
    uint32_t stops;                 /* system calls at which it was looked at, on the way to its wait */
    char why[UB_INJECT_WHY];        /* for a failure */
};

/*
 * Brings the agent in, or wakes one that is there. 0; -EBUSY: it is watched;
 * -ETIME: no thread came to a wait in time; -ECANCELED; -ESRCH: it ended; other
 * -errno with `why`. After a failure the process is as before, but for memory
 * mapped in vain.
 */
int ub_inject_enter(const struct ub_inject_options *options, struct ub_inject_result *ret);

/* Asks the agent to go dormant at once, where its loop is too idle to see for itself. Same errors; -ENOENT: it is not
 * in there. */
int ub_inject_leave(const struct ub_inject_options *options, struct ub_inject_result *ret);

/*
 * Leaves, and has the agent unloaded where nothing in the process leads into it any more. Same errors; -EBUSY with
 * `why`: it has left, and stays loaded, asleep.
 */
int ub_inject_unload(const struct ub_inject_options *options, struct ub_inject_result *ret);

#endif
