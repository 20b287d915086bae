/* Whose a child is that has ended. */
#ifndef UB_AGENT_OFFLOAD_CHILDREN_H
#define UB_AGENT_OFFLOAD_CHILDREN_H

#include <stdbool.h>
#include <sys/types.h>

/*
 * The program asks for children as waitpid(*asked, flags) does. True: none of them has ended. Else *asked is what to
 * ask for instead: not for one that a moved call of this thread waits for; if that has ended, then it is waited for
 * here until the call has it. Leaves errno alone.
 */
bool ub_children_none(pid_t *asked, int flags);

#endif
