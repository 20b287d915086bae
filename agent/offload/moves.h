/*
 * The calls that may be moved: while offload moves calls, the hooks' originals (real.h) lead to
 * ub_suspend_call first. With offload off they are what they were: nothing costs anything.
 */
#ifndef UB_AGENT_MOVES_H
#define UB_AGENT_MOVES_H

/* In the constructor, after ub_real_resolve. */
void ub_moves_start(void);

#endif
