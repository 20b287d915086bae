/*
 * What patch.c and patch_libc.c share: a module as its dynamic section describes it.
 */
#ifndef UB_AGENT_PATCH_IMPL_H
#define UB_AGENT_PATCH_IMPL_H

#include "patch.h"

/*
 * After attaching: the hook that belongs into a slot of this name; NULL: none.
 * `value` is what is in it now, `unbound` that this leads into the module
 * itself: the loader has not bound it yet. Signal-safe.
 */
void *ub_patch_libc_hook(const char *name, uintptr_t value, bool unbound);

/* Whether it is hooked after attaching. Signal-safe. */
bool ub_patch_libc_knows(const char *name);

/* Whether `value` is a function of libc's that is hooked under some name: without a look at names. Signal-safe. */
bool ub_patch_libc_is_function(uintptr_t value);

/* What was there before our hook was, NULL: `value` is no hook of ours. Signal-safe. */
void *ub_patch_libc_original(const char *name, uintptr_t value);

#endif
