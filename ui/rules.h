/*
 * Lists of stalls that are known: --suppress (never shown, never counted) and
 * --allow (shown, but no failure). One a line, all of its words must fit:
 *
 *     7f3a91c2                                until 2026-12-31   # ticket 123
 *     call:fdatasync function:flush* program:redis-server  max 200ms
 *
 * A word is a site (or at least its first 6 digits) or KEY:PATTERN with KEY
 * call, function (any of the stack), program, module, thread or loop and a PATTERN
 * as of the shell. `until` is the last day (UTC) on which the line holds.
 */
#ifndef UB_UI_RULES_H
#define UB_UI_RULES_H

#include "model.h"

struct ub_rule {
    char *text; /* as written, without its comment */
    uint32_t line;
    char until[12]; /* "2026-12-31", or "" */
    uint64_t max_ns;
    bool expired;
    bool used; /* fitted something, ever: set by ub_rules_find */
    struct ub_rule_word *word;
    uint32_t words;
};

struct ub_rules {
    char *path;
    struct ub_rule *rule;
    uint32_t count;
};

/* Today is `now` (seconds since the epoch). 0, or -errno with `why` (UB_WHY_MAX bytes). */
int ub_rules_read(const char *path, int64_t now, struct ub_rules *ret, char *why);
void ub_rules_clear(struct ub_rules *rules);

/* The first line that fits the site, one that has not expired before one that has; NULL: none. `rules` may be empty. */
const struct ub_rule *ub_rules_find(struct ub_rules *rules, const struct ub_site *site);

/* Takes what fits out of the verdict of a model that has read all. */
void ub_rules_suppress(struct ub_rules *rules, struct ub_model *m);

/* Whether a line that has not expired fits the stall of this record. */
bool ub_rules_fit_record(struct ub_rules *rules, const struct ub_model *m, const json_t *slow);

/* The option --suppress; `target` is a const char *. */
#define UB_OPTION_SUPPRESS(target)                                                                                     \
    {                                                                                                                  \
        .name = "suppress", .kind = UB_OPTION_TEXT, .value = (target), .argument = "FILE",                             \
        .help = "do not show or count the stalls that FILE lists", .env = "UNBLOCK_SUPPRESS"                           \
    }

#endif
