/*
 * LD_PRELOAD alone: how the processes of a tree come to one helper watcher.
 * See common/tree.h.
 */
#ifndef UB_AGENT_TREE_H
#define UB_AGENT_TREE_H

#include "arena.h"

/* The constructor: nobody watches this program, but its first loop is to be. False: nothing can be done here. */
bool ub_tree_prepare(char *const *environment, bool filtered);

/*
 * The first loop is there: joins the tree's helper, or starts it. NULL: not
 * now (another process is just starting it), or with *ret_never never. Slow path only; signal-safe.
 */
struct ub_arena *ub_tree_join(pid_t *ret_watcher, bool *ret_never);

/* The page itself, or NULL: this process was not prepared. */
struct ub_tree *ub_tree(void);

#endif
