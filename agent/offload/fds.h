/*
 * What the program does to numbers of descriptors that a moved call still uses: dup2, dup3, close_range, closefrom
 * (close is in moves.c). The call comes first, as it would have without us: else it acted on another file.
 */
#ifndef UB_AGENT_FDS_H
#define UB_AGENT_FDS_H

#include "../loops/loop.h"

/* Hooked only where offload moves calls. */
extern const struct ub_loop_ops ub_offload_libc;

#endif
