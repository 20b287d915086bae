/*
 * What --offload and `unblock offload` are told: a mode, or a file with a policy.
 */
#ifndef UB_UI_OFFLOAD_CHOICE_H
#define UB_UI_OFFLOAD_CHOICE_H

#include "../tracer/policy_file.h"

struct ub_offload_choice {
    uint32_t mode;                 /* enum ub_offload_mode */
    struct ub_policy_file *policy; /* owned; NULL: none */
};

/*
 * `text` NULL: off. What is wrong with the lines of a policy is told as COMMAND's.
 * 0, or -EINVAL with `why` (UB_WHY_MAX bytes).
 */
int ub_offload_choose(const char *command, const char *text, struct ub_offload_choice *ret, char *why);

/*
 * The rules of [python], [yield] and [except] for the agent (common/python_table.h), and the shortest slice among them.
 * Empty where there is no function to be called elsewhere, no rule of [yield], and `*slice_ns` (what --yield says; 0:
 * nothing) is 0. -E2BIG: too many.
 */
int ub_offload_python_rules(const struct ub_policy_file *policy, char *ret, size_t size, uint64_t *slice_ns);

void ub_offload_choice_clear(struct ub_offload_choice *c);

#endif
