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
    if (strcmp(command, "run") != 0) {
        tell_unfollowed(
            command, policy, UB_POLICY_PYTHON,
            "rules of [python] are followed from a program's start only: those hold that it was started with");
        tell_unfollowed(command, policy, UB_POLICY_YIELD, "rules of [yield] are followed from a program's start only");
    }
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

/* As common/python_table.h has it. */
static int put_rule(const struct ub_policy_rule *rule, char *ret, size_t size)
{
    static const char *const words[] = {
        [UB_POLICY_INLINE] = "inline",   [UB_POLICY_MOVE] = "inline", [UB_POLICY_THREAD] = "thread",
        [UB_POLICY_PROCESS] = "process", [UB_POLICY_FORK] = "fork",   [UB_POLICY_GIVE_WAY] = "yield"};
    const char *word = rule->section == UB_POLICY_EXCEPT ? "except" : words[rule->action];
    uint64_t number = rule->action == UB_POLICY_GIVE_WAY ? rule->period_ns : rule->workers;
    int n = snprintf(ret, size, "%s %" PRIu64 " %s\n", word, number, rule->place);

    return n < 0 || (size_t)n >= size ? -E2BIG : n;
}

int ub_offload_python_rules(const struct ub_policy_file *policy, char *ret, size_t size, uint64_t *slice_ns)
{
    /* exceptions are stronger */
    static const enum ub_policy_section order[] = {UB_POLICY_EXCEPT, UB_POLICY_YIELD, UB_POLICY_PYTHON};
    uint64_t shortest = 0;
    bool functions = false;
    size_t n = 0;

    *ret = '\0';
    for (uint32_t pass = 0; policy && pass < UB_ARRAY_LEN(order); pass++) {
        for (uint32_t i = 0; i < policy->count; i++) {
            const struct ub_policy_rule *rule = &policy->rule[i];
            int written;

            if (rule->section != order[pass] || !rule->place || rule->call)
                continue;
            written = put_rule(rule, ret + n, size - n);
            if (written < 0)
                return -E2BIG;
            n += (size_t)written;
            functions |= rule->section == UB_POLICY_PYTHON && rule->action != UB_POLICY_INLINE;
            if (rule->section == UB_POLICY_YIELD && (shortest == 0 || rule->period_ns < shortest))
                shortest = rule->period_ns;
        }
    }
    if (shortest)
        *slice_ns = shortest;
    else if (*slice_ns == 0 && !functions)
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
