/*
 * A policy's rules as the agents ask for them (common/policy.h): what is said of a call from anywhere,
 * and of a place by its names.
 */
#ifndef UB_TRACER_POLICY_TABLE_H
#define UB_TRACER_POLICY_TABLE_H

#include "policy_file.h"

#include "../common/policy.h"

/* Of each call: never, always, or depending on the place. */
void ub_policy_compile(const struct ub_policy_file *p, uint8_t ret[UB_POLICY_CALLS]);

/* The rule for a call from a place, known by any of `names`; counted. NULL: none, it stays. */
const struct ub_policy_rule *ub_policy_judge(struct ub_policy_file *p, const char *call,
                                             const struct ub_policy_names *names, uint32_t count);

#endif
