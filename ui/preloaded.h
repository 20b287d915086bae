/*
 * Processes into which the agent was loaded by LD_PRELOAD alone and that nobody
 * watches: found by their maps, asked by the page that their tree shares.
 */
#ifndef UB_UI_PRELOADED_H
#define UB_UI_PRELOADED_H

#include "../common/tree.h"

#include <sys/types.h>

struct ub_preloaded {
    pid_t pid;
    char program[32]; /* the process's name, as it is: escape it */
    enum ub_tree_state state;
    enum ub_tree_reason reason;
    int error;
    uint64_t written, lost; /* UB_TREE_ALONE */
    int write_error;        /* of the first that was lost */
};

/* 1 with what is known, 0: the agent is not in it, or it is watched; -errno: it cannot be looked at. */
int ub_preloaded_look(pid_t pid, struct ub_preloaded *ret);

/* In words: what happened, and what to do. For `buf` of UB_PRELOADED_WHY bytes. */
#define UB_PRELOADED_WHY 512
void ub_preloaded_why(const struct ub_preloaded *p, char *buf);

#endif
