/*
 * What a watcher is told: one table for the flags of `run` and for the
 * UNBLOCK_* variables, which also reach the helper that an agent started.
 */
#ifndef UB_UI_SETTINGS_H
#define UB_UI_SETTINGS_H

#include "options.h"

struct ub_settings {
    uint64_t threshold_ns, fail_on_ns, duration_ns, max_size;
    const char *output;   /* NULL: the default name */
    const char *metrics;  /* a file, a loopback port or a socket, metrics.h; or NULL */
    const char *suppress; /* a list of stalls, rules.h; or NULL */
    bool threshold_given, force, append, quiet, redact, verbose, live_given;
    int live; /* enum ub_live, see text.h */
    int colour;
};

/* What holds where nothing is said. */
void ub_settings_init(struct ub_settings *s);

#define UB_SETTINGS_MAX 32

/* Fills `ret` (UB_SETTINGS_MAX entries), each pointing into `s`. Returns how many. */
uint32_t ub_settings_options(struct ub_settings *s, struct ub_option *ret);

#endif
