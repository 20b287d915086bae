/*
 * GOT patching: the calls of loop-library functions, module by module.
 *
 * Only pointers that the loader has settled are touched: in the constructor all
 * of them are; a module that came later is known to be complete when
 * _dl_find_object knows it. All of it happens inside dl_iterate_phdr, so that no
 * module is unmapped under our hands. That takes a lock of the loader for some
 * microseconds, once when modules were loaded; no wait takes it otherwise.
 */
#ifndef UB_AGENT_PATCH_H
#define UB_AGENT_PATCH_H

#include "../common/base.h"

/* In the constructor. Slow path only. */
void ub_patch_start(void);

/*
 * Beforehand, for a process that is about to be entered: reads the names of slots that are bound lazily, until
 * CLOCK_MONOTONIC `until_ns`. True: it knows all of them (or somebody else is at it). Slow path only.
 */
bool ub_patch_learn(uint64_t until_ns);

/*
 * Attached: not in the constructor, but until CLOCK_MONOTONIC `until_ns` only; the rest is done by
 * ub_patch_attach_more(). `libc`: its names are hooked in the slots, too (they must have been prepared); else they are
 * bound to us already. True: all of it is done (or somebody else is at it). Slow path only.
 */
bool ub_patch_attach(bool libc, uint64_t until_ns);
bool ub_patch_attach_more(uint64_t until_ns);

/* Finds libc's functions by `libc`, a handle of it, and `program`, one of the main program. Once. Slow path only. */
void ub_patch_libc_prepare(void *libc, void *program);

/*
 * Puts back what was in the slots: the first time (`first`) and from then on until CLOCK_MONOTONIC `until_ns`. True:
 * all of it is done, or it is given up since another thread seems to be at it for ever (a fork may have left it so):
 * those hooks do nothing. Slow path only.
 */
bool ub_patch_detach(bool first, uint64_t until_ns);

/*
 * Entered late, and callbacks are timed: what was registered before us is to be looked for (loops/existing.h).
 * Signal-safe.
 */
extern bool ub_patch_is_late;

/* The loop library, and the copy of it, that `address` lies in. False: none. Signal-safe. */
bool ub_patch_library_at(uintptr_t address, uint32_t *ret_loop, uint32_t *ret_copy);

/* Looks for modules that came since. Slow path only; not in signal handlers. */
__attribute__((cold)) void ub_patch_again(void);

/* The loader's count of modules, as far as it can be read without a lock; else a constant. */
extern const uint32_t *ub_patch_modules;
extern uint32_t ub_patch_seen;

/* A runtime is in the process that keeps track of its thread's stack: no callback is left in its midst. */
extern bool ub_patch_runtime;

/* Py_IsInitialized of a CPython that the program was started with, and need not use: a plugin's; NULL. */
extern int (*ub_patch_python)(void);

static inline bool ub_patch_has_runtime(void)
{
    return ub_patch_runtime || (ub_patch_python && ub_patch_python());
}

/* Likewise for steps of asyncio's tasks: something beside the interpreter itself. */
extern bool ub_patch_stacks;

/* One load and a comparison. Signal-safe but for the modules that it finds. */
__attribute__((always_inline)) static inline void ub_patch_check(void)
{
    if (ub_unlikely(ub_load_relaxed(ub_patch_modules) != ub_load_relaxed(&ub_patch_seen)))
        ub_patch_again();
}

/*
 * Writes a pointer in a module's data (or in memory of no module). False: it is
 * read-only for good, or has become so and must stay (a seccomp filter). Slow path only.
 */
bool ub_patch_pointer(void **at, void *value);

#endif
