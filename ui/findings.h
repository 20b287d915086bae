/*
 * What fails a check: the call sites whose stalls reached a limit, less what is
 * allowed. One list for `check`, `run --fail-on` and the formats that CI reads.
 */
#ifndef UB_UI_FINDINGS_H
#define UB_UI_FINDINGS_H

#include "rules.h"

enum ub_finding_state {
    UB_FINDING_FAILS,
    UB_FINDING_ALLOWED,
    UB_FINDING_EXPIRED,  /* its allowance is over: fails */
    UB_FINDING_TOO_LONG, /* longer than its allowance: fails */
};

struct ub_finding {
    const struct ub_site *site; /* of the model */
    enum ub_finding_state state;
    const struct ub_rule *rule; /* NULL: none fits */
    char *what;                 /* "AOF fsync: fdatasync in flushAppendOnlyFile", escaped */
    char *why;                  /* "fdatasync(7 = /x) 60 ms", escaped */
    const json_t *frame;        /* innermost of the program's own, of the most samples; or NULL */
};

struct ub_findings {
    uint64_t limit_ns;
    struct ub_finding *finding; /* by time lost, most first */
    size_t count, failed;
};

/* `limit_ns` 0: every counted site. `allow` may be NULL. 0 or -ENOMEM. */
int ub_findings_make(const struct ub_model *m, uint64_t limit_ns, struct ub_rules *allow, struct ub_findings *ret);
/* All of them, in another order. */
int ub_findings_make_sorted(const struct ub_model *m, enum ub_sort sort, struct ub_findings *ret);
void ub_findings_clear(struct ub_findings *f);

bool ub_finding_fails(const struct ub_finding *finding);

/* "3 stalls, 702 ms lost, longest 312 ms" */
#define UB_FINDING_FIGURES_MAX 160
const char *ub_finding_figures(const struct ub_finding *finding, char *buf);

#endif
