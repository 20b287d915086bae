/*
 * One shared memory a run: a sealed memfd that the watcher creates and every
 * watched process maps. A process finds it by UNBLOCK_ARENA ("PID:FD:INODE",
 * to be opened as /proc/PID/fd/FD and compared with INODE; with ":helper" behind
 * it a process that finds the watcher gone may start another, see tree.h).
 *
 * Layout: header, then UB_SLOT_MAX slots (one line each, so that the watcher
 * scans them quickly), then a pool of stacks, then UB_SLOT_MAX cold parts. Sparse: an untouched slot
 * costs nothing. The layout is fixed by the version; no length or offset is
 * read from the memory itself.
 */
#ifndef UB_ARENA_H
#define UB_ARENA_H

#include "base.h"
#include "clock.h"
#include "image.h"
#include "policy.h"
#include "python_table.h"
#include "uv_pool.h"
#include "slot.h"

#define UB_ARENA_MAGIC   0x314b434f4c424e55ull /* "UNBLOCK1", little-endian */
#define UB_ARENA_VERSION 23u
#define UB_ARENA_NAME    "unblock-arena"
#define UB_SLOT_MAX      1024u

enum ub_arena_mode {
    UB_ARENA_RUN = 0,    /* made by the watcher */
    UB_ARENA_HELPER = 1, /* made by an agent that started a helper; `threshold` is UINT64_MAX until that watches */
    UB_ARENA_ALONE = 2,  /* made by an agent that cannot have a watcher: it writes finished stalls itself */
};

/* What the threads of an executor count as they go: of all processes that share it. */
struct ub_pool_now {
    uint64_t queued;  /* calls that wait for a thread. A process that dies leaves its own */
    uint64_t busy_ns; /* of threads, in calls that are over */
};

struct ub_arena_header {
    uint64_t magic;
    uint32_t version;
    uint32_t size;  /* UB_ARENA_LAYOUT: a second check that both sides were built from one layout */
    uint32_t clock; /* enum ub_clock */
    int32_t watcher_pid;
    uint64_t pid_namespace;    /* inode of /proc/self/ns/pid of who made this: pids in the slots are meant in it */
    int32_t starter_pid;       /* UB_ARENA_HELPER: whose agent made this arena (and started the watcher); in numbers of
                                  the watcher's where that one attached */
    uint32_t mode;             /* enum ub_arena_mode */
    int32_t root_pid;          /* UB_ARENA_HELPER: the first process of the starter's tree (common/tree.h) */
    uint32_t thunks_full;      /* callbacks that found no thunk left: they run untimed */
    uint32_t copies_full;      /* further copies of a loop library in one process: their callbacks run untimed */
    uint32_t offload;          /* enum ub_offload_mode; may change while it runs */
    uint32_t uv_pools_high;    /* one past the highest entry of `pool` ever taken */
    uint32_t offload_least_us; /* sleeps shorter than this stay */

    /* The line read by the fast path. Written by the watcher. */
    uint64_t threshold __attribute__((aligned(UB_CACHE_LINE))); /* ticks */
    uint64_t call_floor;                                        /* ticks; shorter calls are not kept (calls.h) */
    uint32_t asleep;                                            /* the watcher waits on `doorbell` */
    uint32_t closed;                                            /* the run is over: agents go dormant */
    uint32_t
        python_wanted; /* steps of asyncio's tasks run on stacks of their own, whatever `offload` (python_table.h) */
    uint32_t call_floor_tsc;    /* the same, at most UB_FLOOR_MOST; 0: the clock is no TSC. Odd: UB_FLOOR_PLACES */
    uint64_t watcher_namespace; /* after attaching: the PID namespace that `watcher_pid` is meant in; 0: the slots' */

    /* Written by the agents, seldom. */
    uint32_t doorbell __attribute__((aligned(UB_CACHE_LINE))); /* futex; any change wakes the watcher */
    uint32_t slots_high;                                       /* one past the highest slot ever taken */
    uint32_t images;                                           /* program images that mapped the arena */
    uint32_t no_slot;                                          /* threads that found no free slot */
    uint32_t elsewhere;                                        /* images that stepped aside: another PID namespace */
    uint32_t not_entered[UB_IMAGE_KINDS];                      /* programs executed without us, by enum ub_image */
    uint32_t call_stacks;                                      /* ever taken from the pool of stacks */
    uint32_t left; /* processes whose agent has gone dormant because of `closed` */

    /* Written by the agents as well: calls that were moved off their loops. */
    uint64_t moved __attribute__((aligned(UB_CACHE_LINE)));
    uint64_t moved_ns;      /* how long those loops would have been blocked */
    uint64_t python_steps;  /* bit n: an agent has met CPython 3.n, and can leave its steps */
    uint64_t policy_images; /* program images with entries in `policy` */
    uint64_t stack_deepest; /* bytes of the stacks that callbacks ran on */
    uint64_t pool_queued;   /* most calls that waited for a thread at once */
    uint64_t pool_threads;  /* most threads of one process */
    uint64_t away;          /* calls that have left and are not back. A process that dies leaves its own */

    struct ub_pool_now pool __attribute__((aligned(UB_CACHE_LINE))); /* the executors', of all processes */
};
_Static_assert(sizeof(struct ub_arena_header) == 5 * UB_CACHE_LINE, "arena header: agent and watcher agree on it");

struct ub_arena {
    struct ub_arena_header h;
    uint8_t pad[4096 - sizeof(struct ub_arena_header)];
    struct ub_slot slot[UB_SLOT_MAX];
    struct ub_uv_pool uv_pool[UB_UV_POOL_MAX];
    struct ub_call_stack call_stack[UB_CALLS_STACKS];
    struct ub_policy policy;
    struct ub_python_table python;
    struct ub_slot_cold cold[UB_SLOT_MAX] __attribute__((aligned(4096)));
};

/* Changes with the size of any part, be the version forgotten: no padding to a page is in it. */
#define UB_ARENA_LAYOUT                                                                                                \
    ((uint32_t)(offsetof(struct ub_arena, python) + sizeof(struct ub_python_table) + sizeof(struct ub_slot_cold)))

static inline bool ub_arena_is_known(const struct ub_arena_header *h)
{
    return h->magic == UB_ARENA_MAGIC && h->version == UB_ARENA_VERSION && h->size == UB_ARENA_LAYOUT;
}

/* What every process maps; an agent maps a cold part when a thread takes its slot. */
#define UB_ARENA_HOT offsetof(struct ub_arena, cold)
_Static_assert(offsetof(struct ub_arena, slot) == 4096, "slots start on the second page");
_Static_assert(offsetof(struct ub_arena, cold) % 4096 == 0, "cold parts are whole pages: freeing one punches a hole");

/* In call_floor_tsc: calls may leave their loops, and what they are made from has to be known. One tick more or less.
 */
#define UB_FLOOR_PLACES 1u
#define UB_FLOOR_MOST   (UINT32_MAX - 1)

/* The floors for a threshold; `tenth_ms`: ticks in 0.1 ms. Threads may read them meanwhile. */
static inline void ub_arena_set_floor(struct ub_arena_header *h, uint64_t threshold, uint64_t tenth_ms)
{
    uint64_t floor = ub_calls_floor(threshold, tenth_ms), most = UB_FLOOR_MOST;
    uint32_t places = h->offload > UB_OFFLOAD_DRY_RUN || h->python_wanted ? UB_FLOOR_PLACES : 0;

    ub_store_relaxed(&h->call_floor, floor);
    ub_store_relaxed(&h->call_floor_tsc, h->clock != UB_CLOCK_TSC
                                             ? 0
                                             : ((uint32_t)(floor < most ? floor : most) & ~UB_FLOOR_PLACES) | places);
}

#endif
