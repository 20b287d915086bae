/*
 * What all formats of metrics (Prometheus, OTLP) tell alike.
 */
#ifndef UB_UI_FIGURES_H
#define UB_UI_FIGURES_H

#include "findings.h"

/* Names of enum ub_stall_class. */
extern const char *const ub_figures_class[UB_STALL_CLASSES];

/* Upper edges of the histogram of turns; the last one has 0 ns. */
struct ub_figures_edge {
    uint64_t ns;
    const char *seconds;
};
extern const struct ub_figures_edge ub_figures_edge[];

/* Turns of at most so long. A bucket of the recording counts where its mean is. */
uint64_t ub_figures_count_up_to(const struct ub_distribution *d, uint64_t ns);

/* What could not be recorded, by kind; the list of kinds ends with NULL. Sums of all runs. */
extern const char *const ub_figures_loss[];
uint64_t ub_figures_lost(const struct ub_model *m, const char *loss);

/*
 * What was moved off the loops, all runs together; threads, queued and stack_bytes are the most of any run. False:
 * nowhere was it to be. queued_now: where a run goes on, calls that wait for a thread.
 */
struct ub_figures_offload {
    uint64_t moved, saved_ns, wait_ns, busy_ns;
    uint64_t threads, queued, stack_bytes, beside, away, queued_now;
};
bool ub_figures_offload(const struct ub_model *m, struct ub_figures_offload *ret);

/* Functions that were called elsewhere, as in `executor` lines, all runs together, the longest away first. To the
 * caller. */
json_t *ub_figures_functions(const struct ub_model *m);

/*
 * What kept stalls on their loops, all runs together: [{reason, lock, count, total_ns}], the longest first. lock: where
 * it was taken, "db.c:70 txn_begin()", or "" when not known; not escaped. At most UB_FIGURES_PINS_MAX, the last of them
 * for all others, without reason ("other"). The caller owns it.
 */
#define UB_FIGURES_PINS_MAX 100
json_t *ub_figures_pins(const struct ub_model *m);

/* Labels are memory in everything that takes them: the worst sites, the rest is in the totals. */
#define UB_FIGURES_SITES_MAX 200

#endif
