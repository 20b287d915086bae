/*
 * What the agent knows of the process it is in, and of the calling thread.
 */
#ifndef UB_AGENT_PROCESS_H
#define UB_AGENT_PROCESS_H

#include "../common/arena.h"
#include "../common/attach.h"

/*
 * A seccomp filter may kill the program for a call that it never makes itself.
 * One that came with exec let the loader through and is as a rule a container's:
 * getpid and gettid are ventured, nothing else. One that the program itself
 * installs is as strict as it likes: from then on there is shared memory only.
 */
enum ub_quiet {
    UB_QUIET_NOT = 0,
    UB_QUIET_INHERITED = 1,
    UB_QUIET_STRICT = 2,
};

/*
 * Read on every turn. It lies in a page of its own that the kernel zeroes in a
 * forked child (MADV_WIPEONFORK): there the generation no longer matches any
 * thread's, the slow path is taken, and the child takes a slot of its own. No
 * atfork handler, and a raw clone() is noticed too.
 */
struct ub_process {
    uint32_t generation; /* 0: nothing is watched (no arena, or wiped by fork) */
    uint32_t clock;      /* enum ub_clock */
    struct ub_arena *arena;
    uint32_t quiet; /* enum ub_quiet */
    int32_t pid;
    uint32_t sampler;   /* our SIGURG handler is installed */
    uint32_t callbacks; /* the generation, as thunks want to see it: another number while callbacks may run on fibers */
    uint32_t barrier;   /* registered for global expedited membarriers */
};

#define UB_CALLBACKS_MAY_MOVE 0x80000000u

/* Never NULL: until the arena is mapped it points to a zeroed one. */
extern struct ub_process *ub_process;

/*
 * One thread. initial-exec TLS: reached with one instruction, allocated by the
 * loader, usable in signal handlers. At most 64 bytes, since a library that is
 * dlopened shares some 1.6 KB of static TLS with all others (agent/verify.sh).
 */
struct ub_thread {
    struct ub_slot *slot;
    struct ub_slot_cold *cold;
    uintptr_t ra; /* the loop's wait: return address and frame. 0 until the loop has qualified */
    uintptr_t sp;
    uint64_t start;    /* ticks when the running turn began; 0: none runs */
    uintptr_t cand_sp; /* a wait site on probation: frame and the lower half of the return address */
    uint32_t cand_ra;
    uint32_t generation; /* of the process when the thread was first seen; `slot` may still be NULL */
    uint8_t cand_count;  /* returns seen from the candidate: modulo 256 */
    uint8_t input;       /* common/inputs.h */
    uint16_t cand_turns; /* see loops/turn.c, which keeps three things in it, each at its time */
    uint32_t call_floor; /* the arena's call_floor_tsc as this turn found it */
};
_Static_assert(sizeof(struct ub_thread) <= 64, "static TLS is scarce");

extern __thread struct ub_thread ub_thread __attribute__((tls_model("initial-exec")));

/*
 * Fills the page again after a fork. False: nothing is watched here, or another
 * thread is just at it. Slow path only; signal-safe; leaves errno alone.
 */
bool ub_process_wake(void);

/* Takes a slot for this thread. True when t->slot is valid. Slow path only; signal-safe; leaves errno alone. */
bool ub_process_enter(struct ub_thread *t);

/* A seccomp filter is about to come: what must be undone is undone now, then no system call any more. Signal-safe. */
void ub_process_hush(void);

/* Whether the program itself defines this function of libc's: it calls that past our hooks. By the loader only. */
bool ub_process_has_its_own(const void *function);

/* enum ub_quiet, known as well in a forked child that is not yet watched again. Signal-safe. */
uint32_t ub_process_quiet(void);

/* For the report: a program was executed that the agent does not enter, and why (enum ub_image). Signal-safe. */
void ub_process_count_image(uint32_t image);

/* Wakes the watcher (futex, unless hushed). Signal-safe. */
__attribute__((cold)) void ub_process_ring(void);

/*
 * Goes dormant: the program's signal and slots are as without us, hooks that
 * are still called go straight on, and the arena is given up. Once a process;
 * attaching wakes it again. 0; UB_ATTACH_MORE: at `until_ns` (CLOCK_MONOTONIC) there were slots left to put back, which
 * the next waits do; -EAGAIN: not now (calls are moved off the loop, or another thread is at it). Slow path only;
 * leaves errno alone.
 */
int ub_process_leave(uint64_t until_ns);

/*
 * Loaded late, or dormant: makes an arena for whoever attaches, and is there.
 * `injected`: the loader binds nothing to us. UB_ATTACH_MORE: at `until_ns` (CLOCK_MONOTONIC) there were modules left
 * for ub_patch_attach_more(). -EBUSY: a->watcher watches; -EPERM: a seccomp filter; -EAGAIN: another thread is just
 * leaving; other -errno. Slow path only.
 */
int ub_process_attach(struct ub_attach *a, bool injected, uint64_t until_ns);

/*
 * Dormant, and no thread is in any hook or comes into one again: gives back what was mapped. 0, UB_ATTACH_KEPT_WATCHED,
 * UB_ATTACH_KEPT_LEAVING; -EAGAIN: another thread is just coming or going. Slow path only.
 */
int ub_process_forget(void);

/*
 * After attaching: whether the arena's descriptor is still open because nobody has taken the arena yet. Closes it when
 * somebody has; gives up after some seconds. Slow path only; signal-safe; leaves errno alone.
 */
bool ub_process_hands_over(void);

/* The program has taken SIGURG for itself: tell the watcher to sample otherwise. Signal-safe. */
void ub_process_lose_sampler(void);

#endif
