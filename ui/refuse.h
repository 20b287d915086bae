/*
 * What stands in the way of looking into a process, told to the user: no such
 * process, somebody else's, a zombie, another machine's.
 */
#ifndef UB_UI_REFUSE_H
#define UB_UI_REFUSE_H

#include "../tracer/dump.h"

/* 0 with what is known of it; else it has been said why `unblock COMMAND PID` cannot be done, and what helps. */
int ub_refuse(const char *command, pid_t pid, struct ub_dump_target *ret);

#endif
