/*
 * Names and arguments of the calls that a thread has timed itself
 * (common/calls.h), with what the agent copied of them.
 */
#ifndef UB_TRACER_TIMED_CALLS_H
#define UB_TRACER_TIMED_CALLS_H

#include "../common/calls.h"
#include "../common/units.h"

/* The function's name: "getaddrinfo". NULL when there is no such number. */
const char *ub_timed_call_name(uint32_t id);

/* Likewise, of all calls that may move: also sem_wait and those of common/units.h. */
const char *ub_moved_call_name(uint32_t id);

/* The number of the system call that it hangs in as a rule, -1 when not known. */
int64_t ub_timed_call_syscall(uint32_t id);

/* What the agent has not looked at is still the pointer that the program gave: the time or descriptor is not known. */
void ub_timed_call_forget_pointers(struct ub_timed_call *call);

/* Its descriptor, or -1; `ret_link` is what that was a link to ("" when not known), cut at UB_CALLS_TEXT. */
int ub_timed_call_fd(const struct ub_timed_call *call, char ret_link[UB_CALLS_TEXT + 1]);

/* The arguments as a person wants them, like ub_syscall_format. */
void ub_timed_call_format(const struct ub_timed_call *call, char *buf, size_t size);

#endif
