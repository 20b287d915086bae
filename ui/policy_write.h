/*
 * A recording as an offload policy: what blocked, as rules that a person can edit.
 */
#ifndef UB_UI_POLICY_WRITE_H
#define UB_UI_POLICY_WRITE_H

#include "model.h"

struct ub_policy_written {
    uint32_t rules, comments; /* that count, and that only tell why not */
    uint32_t calls;           /* places where calls blocked */
    uint32_t judged;          /* call sites that offload was asked about; 0: the recording was made without */
};

/*
 * `name`: of the recording, for the first line. What moved or would have is a rule; what was pinned is a comment
 * with the reason. Of the kind `calls_only` no more than the rules for calls.
 */
void ub_policy_write(const struct ub_model *m, const char *name, FILE *out, bool calls_only,
                     struct ub_policy_written *ret);

#define UB_POLICY_KEY_MAX 400u

/* For a place that computes: a function to be called elsewhere, or a coroutine that is to yield. */
struct ub_policy_proposal {
    char name[UB_POLICY_KEY_MAX]; /* dotted */
    const char *action; /* "process", "thread", "fork", or how long a slice is; NULL: it stays, and that is all */
    const char *why;
    uint64_t saved_ns; /* of its worst stall, about */
    bool yields;
};
bool ub_policy_propose(const struct ub_site *site, struct ub_policy_proposal *ret);

#endif
