/* Shared by the files that read policies (policy_file.c, policy_names.c). */
#ifndef UB_TRACER_POLICY_IMPL_H
#define UB_TRACER_POLICY_IMPL_H

#include "nearest.h"
#include "policy_file.h"

/* Whether there is any call that the rule's `call` fits, and one that may move. */
bool ub_policy_any_call(const struct ub_policy_rule *rule, bool *ret_movable);
const char *ub_policy_nearest_call(const char *call);

/* Between file and function of a place; NULL: it names no file. */
const char *ub_policy_colon(const char *place);

/* Between name and action of a rule's line; NULL: there is none. */
char *ub_policy_equals(char *text);

/* Whether the second rule fits nothing that the first, which comes before it, does not. */
bool ub_policy_covers(const struct ub_policy_rule *first, const struct ub_policy_rule *rule);

/* "5ms", "0.2ms", "300us", "2s". */
bool ub_policy_time(const char *text, double *ret_ns);

/* A line of [predicted]; false: it is none. */
bool ub_policy_set_predicted(struct ub_policy_file *p, const char *key, const char *value);

#endif
