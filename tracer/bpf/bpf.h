/*
 * The view from outside: BPF programs that see turns of event loops, and where
 * their time goes, in processes into which nothing is loaded. README.md.
 *
 * One ub_bpf a tracer. All calls from one thread at a time (the watching
 * thread, once it runs) but ub_bpf_wake. Nothing here prints; what failed is
 * told in `why`.
 */
#ifndef UB_TRACER_BPF_H
#define UB_TRACER_BPF_H

#include "../../common/arena.h"
#include "records.h"

#include <sys/types.h>

struct ub_bpf;
struct ub_capture;

struct ub_bpf_options {
    uint64_t threshold_ns;
    bool children;      /* what watched processes fork is watched too */
    bool beside_agents; /* only the reasons of their turns are wanted: no ub_bpf_map_slots */
};

#define UB_BPF_WHY_MAX 512

/*
 * Loads and attaches; nobody is watched yet. 0, or with `why` (UB_BPF_WHY_MAX
 * bytes) what is missing and what to do:
 * -EPERM: not the capabilities; -ENOTSUP: this kernel lacks something; -errno.
 */
int ub_bpf_open(const struct ub_bpf_options *options, struct ub_bpf **ret, char *why);
void ub_bpf_close(struct ub_bpf *b); /* NULL is fine */

/* All threads of `pid`, now and later, from the next ub_bpf_find on. 0 or -errno. */
int ub_bpf_add(struct ub_bpf *b, pid_t pid);
int ub_bpf_find(struct ub_bpf *b);

/*
 * Samples the thread of a slot, whose turn is overdue, while it runs, until told
 * to stop: a thread with a clock of its own pays for it at every context switch.
 * 0 or -errno: it has to be done from outside.
 */
int ub_bpf_sample(struct ub_bpf *b, uint32_t slot, pid_t tid);
void ub_bpf_stop_sampling(struct ub_bpf *b, uint32_t slot);

/* Puts the slots that the kernel writes in place of the first ones of `arena`. 0 or -errno. */
int ub_bpf_map_slots(struct ub_bpf *b, struct ub_arena *arena);

/* The slot may be used again; its histogram is emptied. */
void ub_bpf_free_slot(struct ub_bpf *b, uint32_t slot);
void ub_bpf_histogram(struct ub_bpf *b, uint32_t slot, struct ub_histogram *ret);

/* Sleeps until a record comes, ub_bpf_wake, or `until_ns` (CLOCK_MONOTONIC). */
void ub_bpf_sleep(struct ub_bpf *b, uint64_t until_ns);
/* The next turn that begins is a record too, once. */
void ub_bpf_ask_to_be_woken(struct ub_bpf *b, bool please);
void ub_bpf_wake(struct ub_bpf *b);

/*
 * To see system calls costs all programs of the machine, so nobody looks longer than needed.
 *
 * UB_BPF_SEES_NO_CALLS: a turn begins when its thread wakes, and ends when that falls asleep in its
 *   wait; waits that do not sleep go unseen: turns that follow each other without a sleep are taken
 *   for one. Enough as long as nobody works for ub_bpf_stretch_ns without a pause. `quiet` says whether
 *   nothing runs, asked once more when no turn can begin unnoticed; if something does, all stays as it is.
 *   Where ub_bpf_stretch_ns is 0 a record tells of the first turn.
 * UB_BPF_SEES_ENTRIES: turns are exact, calls that did not sleep are counted, not timed. Enough as long
 *   as no single turn takes so long.
 *
 * ub_bpf_see only asks for it, since the kernel may take its time; another thread does it, and calls `quiet`. 0;
 * -EBUSY: it is at it still; -errno: what was asked for before has failed.
 */
enum ub_bpf_sees { UB_BPF_SEES_NO_CALLS, UB_BPF_SEES_ENTRIES, UB_BPF_SEES_ALL };
int ub_bpf_see(struct ub_bpf *b, enum ub_bpf_sees sees, bool (*quiet)(void *self), void *self);
void ub_bpf_see_no_more(struct ub_bpf *b); /* `quiet` is not called any more */
enum ub_bpf_sees ub_bpf_sees(const struct ub_bpf *b);
uint64_t ub_bpf_sees_from_ns(const struct ub_bpf *b); /* since when, CLOCK_MONOTONIC */
uint64_t ub_bpf_stretch_ns(const struct ub_bpf *b);
/* When somebody had last worked so long without a pause, or in one turn, and when a program came: what it waits in is
 * not known. CLOCK_MONOTONIC. */
uint64_t ub_bpf_stretched_ns(const struct ub_bpf *b);
uint64_t ub_bpf_long_turn_ns(const struct ub_bpf *b);
uint64_t ub_bpf_program_ns(const struct ub_bpf *b);
/* Since when waits are looked at: turns that began earlier may have been several. UINT64_MAX: they are not. From any
 * thread. */
uint64_t ub_bpf_calls_seen_ns(const struct ub_bpf *b);

/*
 * What the kernel saw of one turn. The stacks are captures that belong to it,
 * in the order in which they were taken.
 */
#define UB_REASON_STACKS 8
struct ub_reasons {
    struct ub_bpf_turn turn;
    uint32_t stack_count;
    struct {
        enum ub_bpf_stack_why why;
        pid_t pid, tid;
        uint64_t call_ns; /* how long the call had lasted */
        struct ub_capture *capture;
    } stack[UB_REASON_STACKS];
};
void ub_reasons_free(struct ub_reasons *r); /* NULL is fine */

/* What wants to be told at once, while records are read. Both may be NULL. */
struct ub_bpf_listener {
    void (*turn)(void *self, const struct ub_bpf_turn *t); /* a finished turn over the threshold */
    /* A stack of a running thread, which becomes the callee's. */
    void (*sample)(void *self, const struct ub_bpf_stack *s, struct ub_capture *capture);
    void *self;
};

/* Reads what has come. */
void ub_bpf_poll(struct ub_bpf *b, const struct ub_bpf_listener *listener);

/* The reasons of the turn of `tid` that covers most of [start_ns, end_ns], NULL: not seen. The caller frees them. */
struct ub_reasons *ub_bpf_take(struct ub_bpf *b, pid_t tid, uint64_t start_ns, uint64_t end_ns);

struct ub_bpf_losses {
    uint64_t records; /* turns and stacks that did not fit the ring */
    uint32_t no_slot; /* threads without a slot */
    uint32_t threads; /* threads for which the kernel had no memory */
    uint64_t unclear; /* turns over the threshold that may have been several shorter ones, see UB_BPF_SEES_NO_CALLS */
};
void ub_bpf_losses(const struct ub_bpf *b, struct ub_bpf_losses *ret);

/* probe.c: why it cannot work here, before anything is tried. 0, -EPERM or -ENOTSUP with `why`. */
int ub_bpf_probe(char *why);

/*
 * Tests take things away: UNBLOCK_BPF_WITHOUT="capabilities,btf,switches,calls". Without "calls" none
 * are looked at again once nobody did, as if the kernel never came to attaching the programs.
 */
bool ub_bpf_forced_off(const char *what);

#endif
