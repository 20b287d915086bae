/*
 * Handles, events and sources that were registered before the process was
 * entered: no hook of ours has seen them, so their callbacks are given thunks
 * where they are. Which loop they belong to is known by the thread that waits in
 * it; the library itself, or its structures, say what there is.
 */
#ifndef UB_AGENT_EXISTING_H
#define UB_AGENT_EXISTING_H

#include "turn.h"

/*
 * The calling thread is about to wait in a loop library's loop, and has just been
 * met: looks for the loop among its registers and the frames that called, and
 * for what is registered with it. Slow path only; leaves errno alone.
 */
void ub_existing_adopt(const struct ub_wait *wait);

/* Copies memory that may not be there (any more). Signal-safe. */
bool ub_existing_read(uint64_t at, void *to, size_t size);

/* `address` lies in a loop library or what comes with it: the callback is one of its own. Signal-safe. */
bool ub_existing_is_librarys(uint64_t address);

#endif
