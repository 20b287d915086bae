/*
 * The time of a blocking call on a loop's thread. Outside a turn a hook costs
 * one load and a branch; inside, two readings of the clock: how long the call
 * took is then known exactly, without any help of the watcher. (One reading, at
 * the return, would tell only what passed since the call before, the program's
 * own computing included.) `make bench` has the figures.
 */
#ifndef UB_AGENT_TIMING_H
#define UB_AGENT_TIMING_H

#include "../offload/decide.h"
#include "../process.h"
#include "../sample.h"

#include <stdio.h>

/*
 * One that took longer than the thread's floor, or any where the clock is not
 * the TSC. `value`: UB_CALLS_VALUES of them. Slow path only; signal-safe; leaves
 * errno alone.
 */
__attribute__((cold)) void ub_timing_slow(struct ub_thread *t, uint32_t id, uint64_t begun, uint64_t ended,
                                          uintptr_t ra, const uint64_t *value);

/* Likewise a whole call (common/units.h), which is no system call: only what offload says of it is told. */
void ub_timing_unit(struct ub_thread *t, uint32_t id, uint64_t begun, uint64_t ended, uintptr_t ra,
                    const struct ub_verdict *verdict);

/*
 * Memory of the program, which may be gone by now or never was: read by a call
 * that cannot fault. Returns the bytes read; none where the agent makes no calls. Signal-safe.
 */
uint32_t ub_timing_copy(void *to, uint64_t from, size_t size);

/* Ticks, where the thread has no floor. Signal-safe. */
__attribute__((cold)) uint64_t ub_timing_now(void);

/* What this thread has kept of the turn that began at `turn`; NULL: nothing. Signal-safe. */
const struct ub_call_report *ub_timing_report(const struct ub_thread *t, uint64_t turn);

/* The function's name, and that of the system call in which it hangs as a rule; of no whole call. Signal-safe. */
const char *ub_timing_name(uint32_t id);
const char *ub_timing_syscall(uint32_t id);

/* The descriptor of a stream, UINT64_MAX for none. */
uint64_t ub_timing_stream(FILE *stream);

/* A call on the loop's thread that may have brought something, or has closed where it came from. Signal-safe. */
__attribute__((always_inline)) static inline void ub_timing_input(struct ub_thread *t, uint32_t id, uint64_t ended,
                                                                  int32_t fd, intptr_t result)
{
    /* In a forked child the slot is its parent's. */
    if (ub_unlikely(t->generation != ub_process->generation))
        return;
    if (UB_CALL_IS_CLOSE(id))
        id |= UB_INPUT_CLOSED;
    else if (result < 0)
        return;
    ub_inputs_note(&t->cold->inputs, &t->input, t->start, ended, fd, id);
}

/*
 * A thread without a floor, whose clock is not the TSC, begins a call, made from `ra`. Returns the time, in ticks. Slow
 * path only; signal-safe.
 */
__attribute__((cold)) uint64_t ub_timing_begin(const struct ub_thread *t, uintptr_t ra);

/* Where calls may leave the loop (UB_FLOOR_PLACES): what is made now is called from `ra`. Signal-safe. */
void ub_timing_place(const struct ub_thread *t, uintptr_t ra);

/*
 * A call is under way, during which no look's signal may come (common/slot.h): since `begun`. Returns what was under
 * way before: in a signal handler, or on a stack that was left for good. Signal-safe.
 */
__attribute__((always_inline)) static inline uint64_t ub_timing_enter(struct ub_thread *t, uint64_t begun)
{
    struct ub_sample *s = &t->cold->sample;
    uint64_t outer;

    if (ub_unlikely(t->generation != ub_process->generation)) /* in a forked child the slot is its parent's */
        return 0;
    outer = s->call;
    ub_store_relaxed(&s->call, begun);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    if (ub_unlikely(ub_load_relaxed(&s->request)))
        ub_sample_before_call(s);
    return outer;
}

/* It no longer is; or the thread goes on elsewhere meanwhile (`outer` 0), on another stack. Signal-safe. */
__attribute__((always_inline)) static inline void ub_timing_leave(struct ub_thread *t, uint64_t outer)
{
    struct ub_sample *s = &t->cold->sample;

    if (ub_unlikely(t->generation != ub_process->generation))
        return;
    ub_store_relaxed(&s->call, outer);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    if (ub_unlikely(ub_load_relaxed(&s->request) | s->shielded) && outer < t->start)
        ub_sample_after_call(s);
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
    UB_HOOK_TIMED_AT((uintptr_t)__builtin_return_address(0), type, id, call, __VA_ARGS__)

/* Where the hook cannot leave by a jump (a variable argument list): `ra` is what it returns to. */
#define UB_HOOK_TIMED_AT(ra, type, id, call, ...)                                                                      \
    do {                                                                                                               \
        struct ub_thread *t_ = &ub_thread;                                                                             \
        uint32_t floor_ = t_->call_floor;                                                                              \
        uint64_t begun_, outer_ = 0, ended_;                                                                           \
        type ret_;                                                                                                     \
                                                                                                                       \
        if (ub_unlikely(floor_ & UB_FLOOR_PLACES))                                                                     \
            ub_timing_place(t_, (ra));                                                                                 \
        begun_ = ub_likely(floor_) ? ub_clock_tsc() : ub_timing_begin(t_, (ra));                                       \
        __asm__("" : "+r"(floor_)); /* or the compiler makes two calls of one, by the way the time was read */         \
        if (!UB_CALL_IS_MANY(id))                                                                                      \
            outer_ = ub_timing_enter(t_, begun_);                                                                      \
        ret_ = (call);                                                                                                 \
        if (!UB_CALL_IS_MANY(id))                                                                                      \
            ub_timing_leave(t_, outer_);                                                                               \
        ended_ = ub_likely(floor_) ? ub_clock_tsc() : ub_timing_now();                                                 \
        if (UB_CALL_IS_CLOSE(id) || UB_CALL_IS_INPUT(id)) {                                                            \
            const uint64_t of_[] = {__VA_ARGS__};                                                                      \
                                                                                                                       \
            ub_timing_input(t_, (id), ended_, (int32_t)of_[0], (intptr_t)ret_);                                        \
        }                                                                                                              \
        if (ub_unlikely(ended_ - begun_ >= floor_)) {                                                                  \
            int errno_ = errno;                                                                                        \
            const uint64_t value_[UB_CALLS_VALUES] = {__VA_ARGS__};                                                    \
                                                                                                                       \
            ub_timing_slow(t_, (id), begun_, ended_, (ra), value_);                                                    \
            errno = errno_;                                                                                            \
        }                                                                                                              \
        return ret_;                                                                                                   \
    } while (0)

/*
 * Hook and timed part lie side by side: after a system call little of either is
 * left in the caches, and each line that is not touched is time saved: six now,
 * where eleven were, all over the library. Those that are called often share a
 * page or two.
 */
#define UB_HOOK_TEXT       __attribute__((no_reorder, aligned(64), section(".text.calls")))
#define UB_HOOK_TEXT_OFTEN __attribute__((no_reorder, aligned(64), section(".text.hot.calls")))

#endif
