/*
 * Two recordings compared, call site by call site, by counts: how often each
 * stalled in its time, and how long.
 */
#ifndef UB_UI_DIFF_H
#define UB_UI_DIFF_H

#include "model.h"

enum ub_change {
    UB_CHANGE_NEW,    /* did not stall before */
    UB_CHANGE_WORSE,  /* more often, or longer, than chance explains */
    UB_CHANGE_BETTER, /* less often, or shorter */
    UB_CHANGE_GONE,   /* stalls no more, and chance does not explain it */
    UB_CHANGE_UNSURE, /* gone or fewer, which may be chance */
    UB_CHANGE_SAME,
    UB_CHANGES,
};

struct ub_site_change {
    const struct ub_site *base, *now; /* one of them may be NULL */
    enum ub_change change;
    bool longer, shorter; /* each stall, not their number */
};

struct ub_diff {
    uint64_t base_ns, now_ns; /* how long was watched */
    struct ub_site_change *site;
    size_t sites;
    size_t count[UB_CHANGES];
};

/* Sites ordered by change, then by time lost. 0 or -ENOMEM. The models must stay. */
int ub_diff_make(const struct ub_model *base, const struct ub_model *now, struct ub_diff *ret);
void ub_diff_clear(struct ub_diff *diff);

/*
 * The probability of seeing at least `b` of `a + b` events in the second span, were they as
 * frequent in both, whose lengths are `base_ns` and `now_ns`.
 */
double ub_diff_chance_of_more(uint64_t a, uint64_t b, double base_ns, double now_ns);

#endif
