/*
 * The processes of a run, as both threads of the watcher know them.
 */
#ifndef UB_TRACER_PROCESS_H
#define UB_TRACER_PROCESS_H

#include "maps.h"
#include "python.h"

#include <pthread.h>

struct ub_static_pool;

struct ub_process {
    uint32_t refs;
    pid_t pid;
    pid_t ppid;
    uint64_t started; /* start time of /proc/PID/stat: tells a reused pid */
    int pidfd;        /* -1: none */
    char *exe;
    pthread_mutex_t lock; /* protects maps */
    struct ub_maps *maps; /* the newest snapshot, NULL before the first */
    uint32_t left;        /* its memory no longer holds the arena: exec'ed into something unwatched. Set by explain */
    struct ub_python *python;           /* watching thread: the interpreter in it, NULL */
    uint64_t python_maps;               /* watching thread: hash of the maps in which it was looked for */
    bool python_told;                   /* watching thread: the note that it cannot be read is written */
    struct ub_static_pool *static_pool; /* its own libuv's pool, NULL. Set once by explain (static_pool.h) */
    bool announced;                     /* explain thread: the `process` line is written */
    bool denied;                        /* explain thread: the note that stacks cannot be read is written */
};

/* -ESRCH when it is gone. *ret has one reference. */
int ub_process_open(pid_t pid, struct ub_process **ret);
struct ub_process *ub_process_ref(struct ub_process *p);
void ub_process_unref(struct ub_process *p);

/* The newest snapshot with a reference, or NULL. Any thread. */
struct ub_maps *ub_process_maps(struct ub_process *p);

/* Reads the maps again; when that fails the last snapshot stays. Any thread. */
int ub_process_refresh(struct ub_process *p);

/* The process has ended (zombies too). Any thread. */
bool ub_process_ended(const struct ub_process *p);

/* Start time in clock ticks since boot, for comparison with `started`. -ESRCH. */
int ub_process_start_time(pid_t pid, uint64_t *ret_started, pid_t *ret_ppid);

#endif
