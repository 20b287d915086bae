/*
 * Which stalls of a recording are looked at: --since --site --loop --thread
 * --cause --min. A filter is a sink that hands on what passes.
 */
#ifndef UB_UI_FILTER_H
#define UB_UI_FILTER_H

#include "../tracer/record.h"
#include "stall.h"

/* As given; NULL and 0: not given. */
struct ub_filter_options {
    const char *since;  /* a time, or a duration: see ub_filter_init */
    const char *site;   /* its first digits */
    const char *loop;   /* "libuv" */
    const char *thread; /* name or tid */
    const char *cause;  /* "call,lock" */
    uint64_t min_ns;
};

struct ub_filter {
    struct ub_filter_options options;
    const struct ub_sink *to;
    struct ub_taker taker_to;
    uint32_t causes;         /* bit for each enum ub_cause */
    int64_t since_ns;        /* wall clock; 0: none */
    uint64_t since_start_ns; /* after the start of the recording; UINT64_MAX: none */

    /* Of the recording being read. */
    int64_t started_ns; /* wall clock; 0: not known */
    uint64_t monotonic_ns;
    uint64_t left_out; /* stalls that did not pass */
};

/*
 * `since`: "+30s" (after the recording began), "10m" (from ten minutes ago),
 * or a time as in wall_time.h. 0 or -EINVAL with `why` (UB_WHY_MAX bytes) filled in.
 */
int ub_filter_init(struct ub_filter *filter, const struct ub_filter_options *options, const struct ub_sink *to,
                   char *why);
struct ub_sink ub_filter_sink(struct ub_filter *filter);
/* For the stalls that `to` takes as figures. */
struct ub_taker ub_filter_taker(struct ub_filter *filter, struct ub_taker to);

/* Whether anything is filtered at all. */
bool ub_filter_is_set(const struct ub_filter *filter);

#endif
