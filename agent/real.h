/*
 * The originals of the hooked functions: what the program would have called.
 */
#ifndef UB_AGENT_REAL_H
#define UB_AGENT_REAL_H

#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <time.h>

struct ub_real {
#define UB_HOOK(type, name, params, args) type(*name) params;
#define UB_EXPORT(name)
#include "hooks.def"
#undef UB_EXPORT
#undef UB_HOOK
};

/* Every member is callable at any time: before ub_real_resolve it resolves itself first. */
extern struct ub_real ub_real;
extern long (*ub_real_syscall_pointer)(long nr, ...); /* by itself: calls/syscall.S jumps through it */

/* Fills ub_real with dlsym(RTLD_NEXT): no allocation when the name exists. Called by the constructor. Slow path only.
 */
void ub_real_resolve(void);

#endif
