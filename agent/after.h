/*
 * What a stall kept waiting. Nobody can tell while it lasts without touching the
 * loop's descriptors, so it is seen when it is over: timers that run before the
 * loop has come round once were due, and descriptors that its next wait reports
 * at once were ready. Each callback that was late so is counted by its kind, too,
 * with the time since the stall began: the stall made it no later than that. Only after a stall: otherwise it costs one
 * look at a flag that is read anyhow.
 */
#ifndef UB_AGENT_AFTER_H
#define UB_AGENT_AFTER_H

#include "process.h"

/* Before the record of a stall is handed over, and after it. Slow path only; signal-safe. */
void ub_after_before(struct ub_thread *t, const struct ub_record *record);
void ub_after_stall(struct ub_thread *t, const struct ub_record *record);

/* While UB_SLOT_AFTER is set: a callback begins, a turn ends. Slow path only; signal-safe. */
void ub_after_callback(struct ub_thread *t, const struct ub_callback *c, uint64_t now);
void ub_after_turn(struct ub_thread *t, uint64_t now);

#endif
