/*
 * No watcher can be had (the program is pid 1 or adopts orphans, or the helper
 * cannot be executed): the agent itself writes a line for each stall that has
 * ended. No stack, no call, no cause; a note in the recording says so.
 */
#ifndef UB_AGENT_ALONE_H
#define UB_AGENT_ALONE_H

#include "../common/arena.h"
#include "../common/tree.h"

/* Reads the variables and settles the file's name. False: there is no place for a recording. Slow path only. */
bool ub_alone_prepare(void);

/* An arena for this process, with its threshold. NULL: no memory. Slow path only; signal-safe. */
struct ub_arena *ub_alone_arena(void);

/*
 * A loop turn over the threshold has ended. Opens the file, writes, closes it:
 * no descriptor is kept. Slow path only; signal-safe; leaves errno alone.
 */
void ub_alone_record(struct ub_tree *tree, const struct ub_arena *arena, const struct ub_record *record);

#endif
