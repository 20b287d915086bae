/*
 * One look at one thread: what it does (running, or blocked in which system
 * call with which arguments), its registers as far as they are known, and a
 * copy of its stack, with a proof that these belong together.
 *
 * Nothing is done to a blocked thread: no signal, no stop. See docs in
 * tracer/README.md "Capture".
 */
#ifndef UB_TRACER_CAPTURE_H
#define UB_TRACER_CAPTURE_H

#include "../common/slot.h"
#include "maps.h"

#include <sys/types.h>

#define UB_STACK_COPY_FIRST (16u * 1024u)
#define UB_STACK_COPY_MAX   (64ul * 1024ul)

enum ub_thread_state {
    UB_THREAD_RUNNING, /* on a CPU, or waiting for one */
    UB_THREAD_BLOCKED, /* in a system call, see `nr` */
    UB_THREAD_FAULT,   /* blocked outside any system call: a page fault */
    UB_THREAD_STOPPED, /* T or t: SIGSTOP, debugger */
    UB_THREAD_DEAD,
};

enum ub_proof {
    UB_PROOF_NONE,     /* no stack was taken */
    UB_PROOF_STILL,    /* schedstat (or the switch counters) did not change around the copy: it did not run */
    UB_PROOF_SIGNAL,   /* copied by the thread itself, in the agent's signal handler */
    UB_PROOF_PERF,     /* copied by the kernel: perf_event sample */
    UB_PROOF_KERNEL,   /* copied by the kernel on behalf of the thread itself, in a system call: tracer/bpf */
    UB_PROOF_SELF,     /* copied by the thread itself as the call returned (common/calls.h) */
    UB_PROOF_UNPROVEN, /* copied, but the kernel gives no counter that could prove it still */
};

struct ub_schedstat {
    uint64_t run_ns;  /* time on a CPU */
    uint64_t wait_ns; /* time runnable without a CPU */
    uint64_t slices;
};

/* One copied range of the stack. Two when the thread stands on an alternate signal stack. */
struct ub_stack_region {
    uint64_t address;
    uint32_t len;
    uint32_t offset; /* into capture->bytes */
};

struct ub_capture {
    enum ub_thread_state state;
    enum ub_proof proof;
    uint64_t at_ns;  /* CLOCK_MONOTONIC when the stack was copied */
    char proc_state; /* the letter of /proc/PID/stat when it was read, else 0 */
    int64_t nr;      /* system call number; -1: none */
    uint64_t arg[6];
    struct ub_schedstat sched; /* when `has_sched` */
    bool has_sched;
    uint32_t reg_known;         /* bit i: reg[i] is valid (UB_REG_*) */
    uint64_t reg[UB_REG_COUNT]; /* DWARF numbering, see common/slot.h */
    uint32_t region_count;
    struct ub_stack_region region[2];
    int error; /* -errno of the step that denied the stack (-EACCES, -EPERM, -ESRCH ...), 0 */
    uint8_t bytes[UB_STACK_COPY_MAX];
};

/*
 * What thread `tid` of `pid` does now, without its stack: one read of
 * /proc/PID/task/TID/syscall. Fills state, nr, arg, RSP and RIP when blocked.
 * 0; -ESRCH: gone; -EACCES or -EPERM: not ours to look at (then state comes
 * from /proc/PID/task/TID/stat, which is always readable, and `error` is set).
 */
int ub_capture_peek(pid_t pid, pid_t tid, struct ub_capture *ret);

/*
 * Copies the stack of a thread that is blocked. Retries a few times when it
 * runs meanwhile. `maps` (may be NULL) bounds the copy to the stack's mapping
 * and finds the second region of an alternate signal stack.
 * 0; -EAGAIN: it never stood still, or runs; -ESRCH; -EACCES/-EPERM.
 */
int ub_capture_blocked(pid_t pid, pid_t tid, const struct ub_maps *maps, struct ub_capture *ret);

/*
 * Samples a running thread through the agent's handler: `sample` lies in the
 * arena. Checks that SIGURG is caught and not blocked before it sends.
 * 0; -EAGAIN: it blocked meanwhile or did not answer within ~2 ms (the request
 * stays open: the caller may collect it later with ub_capture_signal_collect);
 * -ENOTSUP: SIGURG is not ours in this thread; -ESRCH; -EPERM.
 * `ticks_to_ns` converts sample->at to CLOCK_MONOTONIC.
 * `ret->error` is set when the answer is final for this thread (-ESRCH, -EPERM,
 * -EACCES).
 */
int ub_capture_signal(pid_t pid, pid_t tid, struct ub_sample *sample, uint64_t (*ticks_to_ns)(uint64_t ticks),
                      struct ub_capture *ret);

/*
 * The parts of it, for a caller that wants to be exactly on time: whether
 * the signal would reach the handler at once (one read of /proc, the expensive
 * part); asking, at least UB_CAPTURE_ASK_NS before the next; and sending it. What was ready may no longer be when it is
 * sent; then the signal is ignored or waits, and -EAGAIN comes after ~2 ms. Nothing is sent to a thread that is in a
 * call (common/slot.h) which began at `start`, in ticks, or later: then it is -EAGAIN at once, the request stays open,
 * and the thread answers when its call is over. 0, too, if it has done so already.
 */
#define UB_CAPTURE_ASK_NS 5000u
int ub_capture_signal_ready(pid_t pid, pid_t tid, const struct ub_sample *sample);
void ub_capture_signal_ask(struct ub_sample *sample);
int ub_capture_signal_send(pid_t pid, pid_t tid, struct ub_sample *sample, uint64_t start,
                           uint64_t (*ticks_to_ns)(uint64_t ticks), struct ub_capture *ret);

/* No answer is wanted any more, unless the signal is on its way. */
void ub_capture_signal_withdraw(struct ub_sample *sample);

/*
 * The answer to a request that ub_capture_signal left open. 0; -EAGAIN: still
 * none; -ENOENT: no request is open. The next ub_capture_signal discards it.
 */
int ub_capture_signal_collect(struct ub_sample *sample, uint64_t (*ticks_to_ns)(uint64_t ticks),
                              struct ub_capture *ret);

/* Samples a running thread with perf_event_open (no agent needed). Same errors; -EPERM: perf_event_paranoid. */
int ub_capture_perf(pid_t pid, pid_t tid, const struct ub_maps *maps, struct ub_capture *ret);

/*
 * Memory of a process. Bytes copied (fewer at a hole), or -errno (-EFAULT, -EACCES, -ESRCH). Where
 * process_vm_readv is filtered it comes from /proc/PID/mem.
 */
int ub_capture_memory(pid_t pid, uint64_t address, void *buf, uint32_t len);

/* The three numbers of a schedstat file. False: all zero, the kernel keeps none (or that is no such file). */
bool ub_schedstat_parse(const char *text, struct ub_schedstat *ret);

/* /proc/PID/task/TID/schedstat. -ENOTSUP when the kernel keeps none (all zero). */
int ub_capture_schedstat(pid_t pid, pid_t tid, struct ub_schedstat *ret);

#endif
