/*
 * Thunks: functions that stand in for a program's callbacks. A static array of
 * entries of 16 bytes (thunk_entry.S), no code is ever written at run time. An entry
 * belongs to a callback function and a shape, not to a handle: nothing need be
 * freed, the arguments arrive intact, and a program that reads a handle's
 * callback and calls it still works.
 */
#ifndef UB_AGENT_THUNK_H
#define UB_AGENT_THUNK_H

#include "span.h"

#define UB_THUNKS 4096u /* thunk_entry.S has the number, too */

/*
 * What to give the library in place of `function`; `function` itself when it is
 * NULL, a thunk already, or no entry is left (which is counted). `shape` must live for ever.
 * Signal-safe; leaves errno alone.
 */
void *ub_thunk(void *function, const struct ub_shape *shape);

/* The program's function behind what may be a thunk. Signal-safe. */
void *ub_thunk_original(void *function);

#endif
