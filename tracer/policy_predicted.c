/* What a policy says beside its rules: the lag of the loop that the dry run had predicted with them. */
#include "policy_impl.h"

#include <stdlib.h>
#include <string.h>

#define DIGITS_MAX 12

bool ub_policy_time(const char *text, double *ret_ns)
{
    static const struct {
        const char *name;
        double ns;
    } unit[] = {{"us", 1e3}, {"ms", 1e6}, {"s", 1e9}};
    size_t digits = strspn(text, "0123456789."), i;

    for (i = 0; i < UB_ARRAY_LEN(unit) && strcmp(unit[i].name, text + digits) != 0; i++)
        ;
    if (digits == 0 || digits > DIGITS_MAX || i == UB_ARRAY_LEN(unit) ||
        memchr(text, '.', digits) != memrchr(text, '.', digits))
        return false;
    *ret_ns = strtod(text, NULL) * unit[i].ns;
    return true;
}

bool ub_policy_set_predicted(struct ub_policy_file *p, const char *key, const char *value)
{
    double ns;

    if (!ub_policy_time(value, &ns))
        return false;
    if (strcmp(key, "p99") == 0)
        p->predicted_p99_ns = (uint64_t)(ns + 0.5);
    else if (strcmp(key, "longest") == 0)
        p->predicted_longest_ns = (uint64_t)(ns + 0.5);
    else
        return false;
    p->predicted = true;
    return true;
}
