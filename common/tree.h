/*
 * LD_PRELOAD without `unblock run`: one page that a process tree shares, from
 * the first preloaded process on and through every fork, in which its members
 * agree on one helper watcher. Nobody else writes it; `unblock ps` reads it to
 * say why a process is not watched.
 *
 * It is anonymous shared memory, known by its magic: in the maps of a process
 * it is the page of "/dev/zero (deleted)" that begins so.
 */
#ifndef UB_TREE_H
#define UB_TREE_H

#include "base.h"

#define UB_TREE_MAGIC       0x33455254424e55ffull /* "\xffUNBTRE3" */
#define UB_TREE_VERSION     1u
#define UB_TREE_BYTES       4096u
#define UB_TREE_ADDRESS_MAX 64u

enum ub_tree_state {
    UB_TREE_IDLE = 0,     /* no loop has been seen yet */
    UB_TREE_STARTING = 1, /* `starter` is starting the helper */
    UB_TREE_READY = 2,    /* `address` leads to the helper's arena */
    UB_TREE_ALONE = 3,    /* no helper (`reason`): the agents record finished stalls themselves */
    UB_TREE_OFF = 4,      /* no helper (`reason`), and nothing is recorded */
};

/* Why there is no helper. */
enum ub_tree_reason {
    UB_TREE_NO_REASON = 0,
    UB_TREE_SECCOMP = 1,   /* a filter might kill the program for what starting a helper takes */
    UB_TREE_PID1 = 2,      /* the program is pid 1: it would be the helper's parent and see its end */
    UB_TREE_SUBREAPER = 3, /* likewise, as it adopts orphans */
    UB_TREE_INIT = 4,      /* pid 1 of this container is preloaded as well */
    UB_TREE_EXEC = 5,      /* the helper could not be executed (`error`) */
    UB_TREE_RESOURCES = 6, /* no memory, descriptor or process for it (`error`) */
    UB_TREE_DIED = 7,      /* helpers were started and killed again and again */
};

struct ub_tree {
    uint64_t magic;
    uint32_t version;
    uint32_t state;                    /* enum ub_tree_state */
    int32_t starter;                   /* STARTING: pid */
    int32_t helper;                    /* READY: pid */
    uint32_t reason;                   /* enum ub_tree_reason */
    int32_t error;                     /* errno, positive; 0: none */
    uint32_t starts;                   /* helpers started one soon after the other */
    uint32_t tries;                    /* starts that failed for want of something */
    uint64_t written, lost;            /* ALONE: lines of the recording */
    uint64_t started_ns;               /* CLOCK_MONOTONIC: the last start of a helper */
    int32_t write_error;               /* ALONE: errno of the first that was lost */
    int32_t root;                      /* the process that made the page */
    char address[UB_TREE_ADDRESS_MAX]; /* READY: value of UNBLOCK_ARENA */
};
_Static_assert(sizeof(struct ub_tree) <= UB_TREE_BYTES, "it is one page");

/* The helper finds the arena at this descriptor. */
#define UB_HELPER_FD 3

/* The command that the helper is: `unblock __watch`. */
#define UB_HELPER_COMMAND "__watch"

#endif
