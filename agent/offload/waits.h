/*
 * Waits that keep the loop's thread where they are: for a condition, for a thread to end, at a barrier. While callbacks
 * are suspended that began earlier, these go on meanwhile (drive.h). The hooks are there only where calls move.
 */
#ifndef UB_AGENT_WAITS_H
#define UB_AGENT_WAITS_H

#include "../loops/loop.h"

extern const struct ub_loop_ops ub_waits_libc, ub_waits_glib;

/* In the constructor, before the first module is looked at. Slow path only. */
void ub_waits_start(void);

#endif
