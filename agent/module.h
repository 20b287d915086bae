/*
 * Which shared object an address belongs to, without the loader's lock:
 * _dl_find_object (glibc 2.35) is wait-free. On an older glibc nothing is
 * known, and callers take the cautious answer.
 */
#ifndef UB_AGENT_MODULE_H
#define UB_AGENT_MODULE_H

#include "../common/base.h"

/* The loader's name of the object ("" for the executable), or NULL. Signal-safe. */
const char *ub_module_name(const void *address);

/* Signal-safe. */
bool ub_module_is_libc(const void *address);

/* In this library. Signal-safe. */
bool ub_module_is_own(uintptr_t address);

/* Loaded by an injector, out of a memory file (common/attach.h). Slow path only. */
bool ub_module_is_injected(const void *address);

/* The object is an event-loop library: a wait in it is a loop's even when it waits for one descriptor. Signal-safe. */
bool ub_module_is_loop_library(const void *address);

#endif
