/*
 * May this call leave the loop's thread? The order is that of README.md: where are
 * we, what does this thread hold, which call is it. Whatever is not known to be right
 * stays where it is, with a reason.
 */
#ifndef UB_AGENT_DECIDE_H
#define UB_AGENT_DECIDE_H

#include "../process.h"

struct ub_verdict {
    uint8_t pin;      /* enum ub_pin; UB_PIN_MOVABLE: it may */
    uint8_t executor; /* enum ub_executor, if it may */
    uint64_t lock;    /* UB_PIN_LOCK: where the lock was taken, 0: not known */
};

/* enum ub_offload_mode: what this process was started for. */
extern uint32_t ub_offload_mode;

/* False: steps of asyncio's tasks run on stacks of their own, but no call moves (the mode says EAGER then). */
extern bool ub_offload_moves;

/* What holds now: where calls may move, the watcher can switch that. Signal-safe. */
static inline uint32_t ub_offload_now(void)
{
    const struct ub_arena *arena = ub_process->arena;

    return ub_offload_moves && arena ? ub_load_relaxed(&arena->h.offload) : ub_offload_mode;
}

/* In the constructor, before ub_patch_start. `steps`: those of asyncio's tasks run on stacks of their own. Slow path
 * only. */
void ub_offload_start(uint32_t mode, bool steps);

/* Entering: OFF or DRY_RUN, while no hook is set. Where the program was started with a mode that moves calls, that one
 * stays. */
void ub_offload_attach(uint32_t mode);

/*
 * The verdict on call `id` with the values that common/calls.def names, made from where `sp` points, which
 * blocks or has just done so. Slow path only; signal-safe; leaves errno alone.
 */
/* `end`: the callback's own frame, on the stack that `sp` is on; 0: the level says where. */
void ub_decide(const struct ub_thread *t, uint32_t id, const uint64_t *value, uintptr_t sp, uintptr_t end,
               struct ub_verdict *ret);

/* Whether a signal is meant to end this call: then nothing else may be done while it lasts. Slow path only. */
bool ub_decide_is_interrupted(uint32_t id, const uint64_t *value);

/* Whether callbacks like this are ever moved. */
struct ub_shape;
bool ub_decide_shape_moves(const struct ub_shape *shape);

/* Whether this call is, whatever its arguments. */
bool ub_decide_call_moves(uint32_t id);

/* Whether it may make sockets, in the network of the thread that makes it: names are asked for, and what whole units
 * (common/units.h) do is not known. */
bool ub_decide_makes_sockets(uint32_t id);

#endif
