/*
 * System calls for the agent itself (common/raw.h), and our stand-in for
 * libc's syscall().
 */
#ifndef UB_AGENT_RAW_H
#define UB_AGENT_RAW_H

#include "../common/raw.h"

/*
 * Like libc's syscall(), errno included. It leaves the call's number at
 * -8(%rsp), where the sampling handler finds it when the kernel answers EINTR
 * at ub_raw_syscall_return. Signal-safe.
 */
long ub_raw_syscall(long nr, ...);
extern const char ub_raw_syscall_return[];

#endif
