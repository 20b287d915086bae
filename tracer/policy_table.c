#include "policy_table.h"

#include "timed_calls.h"

#include "../common/units.h"

#include <string.h>

static bool is_of(const struct ub_policy_rule *rule, enum ub_policy_section section, const char *call)
{
    return rule->section == section && ub_policy_fits_call(rule, call);
}

/* A rule with a lane or a limit has to be told to the place, too. */
static bool is_plain(const struct ub_policy_rule *rule)
{
    return !rule->place && rule->action == UB_POLICY_MOVE && rule->lane == UB_EXECUTOR_NONE && rule->limit == 0;
}

static enum ub_policy_verdict of_call(const struct ub_policy_file *p, const char *call)
{
    enum ub_policy_verdict some = UB_POLICY_ALLOW;
    bool any = false;

    if (!call || !ub_policy_may_move(call))
        return UB_POLICY_DENY;
    for (uint32_t i = 0; i < p->count; i++) {
        if (is_of(&p->rule[i], UB_POLICY_EXCEPT, call))
            some = UB_POLICY_WATCH;
    }
    for (uint32_t i = 0; i < p->count; i++) {
        if (!is_of(&p->rule[i], UB_POLICY_OFFLOAD, call))
            continue;
        any = true;
        if (!is_plain(&p->rule[i]))
            some = UB_POLICY_WATCH;
        if (!p->rule[i].place)
            return some;
    }
    return any ? UB_POLICY_WATCH : UB_POLICY_DENY; /* from places without a rule it stays */
}

void ub_policy_compile(const struct ub_policy_file *p, uint8_t ret[UB_POLICY_CALLS])
{
    memset(ret, UB_POLICY_DENY, UB_POLICY_CALLS);
    for (uint32_t id = 0; id < UB_UNITS_END; id++)
        ret[id] = (uint8_t)of_call(p, ub_moved_call_name(id));
}

static bool fits_any(const struct ub_policy_rule *rule, const struct ub_policy_names *names, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        if (ub_policy_fits_place(rule, &names[i]))
            return true;
    }
    return !rule->place;
}

const struct ub_policy_rule *ub_policy_judge(struct ub_policy_file *p, const char *call,
                                             const struct ub_policy_names *names, uint32_t count)
{
    static const enum ub_policy_section order[] = {UB_POLICY_EXCEPT, UB_POLICY_OFFLOAD};

    for (uint32_t k = 0; k < UB_ARRAY_LEN(order); k++) {
        for (uint32_t i = 0; i < p->count; i++) {
            struct ub_policy_rule *rule = &p->rule[i];

            if (is_of(rule, order[k], call) && fits_any(rule, names, count)) {
                rule->fitted++;
                return rule;
            }
        }
    }
    return NULL;
}
