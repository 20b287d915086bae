#include "offload_choice.h"

#include "input.h"
#include "options.h"
#include "policy_write.h"
#include "say.h"

#include "../common/offload.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static const char *const modes[] = {"off", "dry-run", "flagged", "eager", NULL}; /* enum ub_offload_mode */

static void tell(void *self, const char *path, uint32_t line, const char *what)
{
    if (line)
        ub_say(self, "%s:%u: %s", path, line, what);
    else
        ub_say(self, "%s: %s", path, what);
}

static void tell_unfollowed(const char *command, const struct ub_policy_file *policy, enum ub_policy_section section,
                            const char *what)
{
    for (uint32_t i = 0; i < policy->count; i++) {
        if (policy->rule[i].section == section) {
            ub_say(command, "%s:%u: %s", policy->path, policy->rule[i].line, what);
            return;
        }
    }
}

static int choose_file(const char *command, const char *path, struct ub_offload_choice *ret, char *why)
{
    struct ub_policy_file *policy = calloc(1, sizeof(*policy));

    if (!policy || ub_policy_read(path, tell, (void *)command, policy) < 0) {
        free(policy);
        snprintf(why, UB_WHY_MAX, "--offload: the policy %.200s cannot be used", path);
        return -EINVAL;
    }
    tell_unfollowed(command, policy, UB_POLICY_PYTHON, "rules of [python] are checked, and not followed yet");
    if (strcmp(command, "run") != 0)
        tell_unfollowed(command, policy, UB_POLICY_YIELD, "rules of [yield] are followed from a program's start only");
    *ret = (struct ub_offload_choice){UB_OFFLOAD_POLICY, policy};
    return 0;
}

/* The first character that is no space: of a recording an object's. */
static bool is_recording(const char *path)
{
    FILE *f = fopen(path, "re");
    int c = EOF;

    while (f && (c = getc(f)) != EOF && strchr(" \t\r\n", c))
        ;
    if (f)
        fclose(f);
    return c == '{';
}

/* The places that it knows, as rules. */
static int choose_recording(const char *command, char *path, struct ub_offload_choice *ret, char *why)
{
    struct ub_input in = {.command = command};
    struct ub_policy_file *policy = calloc(1, sizeof(*policy));
    struct ub_policy_written told = {0};
    char name[64];
    int fd = memfd_create("unblock-policy", MFD_CLOEXEC), r = -ENOMEM;
    FILE *f = fd >= 0 ? fdopen(fd, "w") : NULL;

    snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
    if (policy && f && (r = ub_input_read(&in, &path, 1)) == 0) {
        ub_policy_write(in.model, path, f, true, &told);
        fflush(f);
        r = ub_policy_read(name, tell, (void *)command, policy);
    }
    ub_input_clear(&in);
    if (f)
        fclose(f);
    if (r < 0) {
        free(policy);
        snprintf(why, UB_WHY_MAX, "--offload: the recording %.200s cannot be used", path);
        return -EINVAL;
    }
    free(policy->path);
    policy->path = strdup(path);
    if (told.rules == 0)
        ub_say(command, "%s knows of no call that moved or would have: as --offload=flagged", path);
    *ret = (struct ub_offload_choice){UB_OFFLOAD_FLAGGED, policy};
    return 0;
}

int ub_offload_choose(const char *command, const char *text, struct ub_offload_choice *ret, char *why)
{
    const char *nearest;

    *ret = (struct ub_offload_choice){UB_OFFLOAD_OFF, NULL};
    for (uint32_t i = 0; modes[i]; i++) {
        if (!text || strcmp(text, modes[i]) == 0) {
            ret->mode = i;
            return 0;
        }
    }
    if (is_recording(text))
        return choose_recording(command, (char *)text, ret, why);
    if (access(text, F_OK) == 0)
        return choose_file(command, text, ret, why);
    nearest = strchr(text, '/') ? NULL : ub_nearest(text, modes);
    snprintf(why, UB_WHY_MAX,
             "--offload: '%.200s' is none of off, dry-run, flagged, eager, and there is no such file%s%s%s", text,
             nearest ? ": did you mean " : "", nearest ? nearest : "", nearest ? "?" : "");
    return -EINVAL;
}

int ub_offload_yield_rules(const struct ub_policy_file *policy, char *ret, size_t size, uint64_t *slice_ns)
{
    static const enum ub_policy_section order[] = {UB_POLICY_EXCEPT, UB_POLICY_YIELD}; /* exceptions are stronger */
    uint64_t shortest = 0;
    size_t n = 0;

    *ret = '\0';
    for (uint32_t pass = 0; policy && pass < 2; pass++) {
        for (uint32_t i = 0; i < policy->count; i++) {
            const struct ub_policy_rule *rule = &policy->rule[i];
            bool yields = rule->action == UB_POLICY_GIVE_WAY;
            int written;

            if (rule->section != order[pass] || !rule->place || rule->call)
                continue;
            written = snprintf(ret + n, size - n, "%s %" PRIu64 " %s\n", yields ? "yield" : "except",
                               yields ? rule->period_ns : 0, rule->place);
            if (written < 0 || (size_t)written >= size - n)
                return -E2BIG;
            n += (size_t)written;
            if (yields && (shortest == 0 || rule->period_ns < shortest))
                shortest = rule->period_ns;
        }
    }
    if (shortest)
        *slice_ns = shortest;
    else if (*slice_ns == 0)
        *ret = '\0';
    return 0;
}

void ub_offload_choice_clear(struct ub_offload_choice *c)
{
    if (c->policy)
        ub_policy_clear(c->policy);
    free(c->policy);
    c->policy = NULL;
}
