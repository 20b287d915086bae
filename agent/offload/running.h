/*
 * Which loop of a library runs in which thread, where its callbacks are not told: known by hooking what runs it.
 */
#ifndef UB_AGENT_RUNNING_H
#define UB_AGENT_RUNNING_H

#include "../../common/base.h"

/* Beside enum ub_loop_library: what a GApplication runs. */
enum { UB_RUNNING_APPLICATION = 0x80, UB_RUNNING_QUIT };

/* This thread's; NULL. Signal-safe. */
void *ub_running_loop(uint32_t library);

/* From now on it is `loop` (NULL: none). Returns what it was. Slow path only. */
void *ub_running_set(uint32_t library, void *loop);

/* It is freed: a thread that left it by a longjmp runs it no more. */
void ub_running_gone(const void *loop);

#endif
