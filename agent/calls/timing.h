/*
 * The time of a blocking call on a loop's thread. Outside a turn a hook costs
 * one load and a branch; inside, two readings of the clock: how long the call
 * took is then known exactly, without any help of the watcher. (One reading, at
 * the return, would tell only what passed since the call before, the program's
 * own computing included.) `make bench` has the figures.
 */
#ifndef UB_AGENT_TIMING_H
#define UB_AGENT_TIMING_H

#include "../process.h"

#include <stdio.h>

/* One that took longer than the floor. `value`: UB_CALLS_VALUES of them. Slow path only; signal-safe; leaves errno
 * alone. */
void ub_timing_slow(struct ub_thread *t, uint32_t id, uint64_t begun, uint64_t ended, uintptr_t ra,
                    const uint64_t *value);

/* What this thread has kept of the turn that began at `turn`; NULL: nothing. Signal-safe. */
const struct ub_call_report *ub_timing_report(const struct ub_thread *t, uint64_t turn);

/* The function's name, and that of the system call in which it hangs as a rule. Signal-safe. */
const char *ub_timing_name(uint32_t id);
const char *ub_timing_syscall(uint32_t id);

/* The descriptor of a stream, UINT64_MAX for none. */
uint64_t ub_timing_stream(FILE *stream);

/* Whether a call that began at `begun`, in the turn that began at `turn`, is worth keeping. Signal-safe. */
__attribute__((always_inline)) static inline bool ub_timing_is_slow(const struct ub_thread *t, uint64_t turn,
                                                                    uint64_t begun, uint64_t ended)
{
    const struct ub_process *process = ub_process;

    /* The process forked or the turn ended while we were in it (a signal handler did): nothing is told of it. */
    if (ub_unlikely(t->generation != process->generation) || ub_unlikely(t->start != turn))
        return false;
    return ub_unlikely(ended - begun >= ub_load_relaxed(&process->arena->h.call_floor));
}

/*
 * A hook is two functions, so that the one that is called mostly (no turn runs)
 * saves no registers: UB_HOOK_FAST is the body of the hook, UB_HOOK_TIMED that of
 * the function to which it leaves by a tail jump. CALL is the original, the rest
 * the values that calls.def names. A cancelled call, or one that is left by
 * longjmp or an exception, just leaves nothing.
 */
#define UB_HOOK_FAST(call, timed)                                                                                      \
    do {                                                                                                               \
        if (ub_likely(!ub_thread.start))                                                                               \
            return (call);                                                                                             \
        return (timed);                                                                                                \
    } while (0)

#define UB_HOOK_TIMED(type, id, call, ...)                                                                             \
    do {                                                                                                               \
        struct ub_thread *t_ = &ub_thread;                                                                             \
        const struct ub_process *process_ = ub_process;                                                                \
        uint64_t turn_ = t_->start, begun_, ended_;                                                                    \
        type ret_;                                                                                                     \
                                                                                                                       \
        if (ub_unlikely(t_->generation != process_->generation))                                                       \
            return (call); /* forked: not watched again yet */                                                         \
        begun_ = ub_clock_ticks(process_->clock);                                                                      \
        ret_ = (call);                                                                                                 \
        ended_ = ub_clock_ticks(process_->clock);                                                                      \
        if (ub_timing_is_slow(t_, turn_, begun_, ended_)) {                                                            \
            int errno_ = errno;                                                                                        \
            const uint64_t value_[UB_CALLS_VALUES] = {__VA_ARGS__};                                                    \
                                                                                                                       \
            ub_timing_slow(t_, (id), begun_, ended_, (uintptr_t)__builtin_return_address(0), value_);                  \
            errno = errno_;                                                                                            \
        }                                                                                                              \
        return ret_;                                                                                                   \
    } while (0)

#endif
