/*
 * The figures of a `slow` line that totals are made of. They come from the JSON
 * object (ub_stall_read) or, for most lines of a large recording, straight from
 * the text (recording_scan.c), which is some ten times faster.
 *
 * Strings are borrowed from the record or the line and not terminated.
 */
#ifndef UB_UI_STALL_H
#define UB_UI_STALL_H

#include "json_get.h"

struct ub_slice {
    const char *text; /* NULL: not there */
    size_t len;
};

/* A sample 1x, 2x, 4x ... the threshold into the stall: an hour of 100 us ones is 26. */
#define UB_STALL_SAMPLES_MAX 64

struct ub_stall_sample {
    int64_t stack;
    bool has_stack, unproven, incomplete;
};

struct ub_stall {
    uint64_t id, pid, tid; /* 0 where they are missing */
    bool has_id, has_pid;
    uint64_t start_ns, duration_ns;
    uint64_t repeats, repeats_ns, repeats_max_ns; /* further stalls that got no line of their own */
    bool ongoing, startup, nested;                /* nested: a turn or callback that contains it counts */
    bool unclear;                                 /* perhaps several turns, each below the threshold */
    struct ub_slice site, loop, thread, cause;
    uint32_t samples, samples_beyond; /* beyond: did not fit, their stacks are not looked at */
    struct ub_stall_sample sample[UB_STALL_SAMPLES_MAX];
};

/* False when there is no duration: then it is no stall. Every other field may be missing. */
bool ub_stall_read(const json_t *slow, struct ub_stall *ret);

/* A `stats` line whose figures are looked at only if no later one takes its place. */
struct ub_stats_line {
    uint64_t pid, tid, callbacks, max_ns;
    uint64_t at_ns; /* 0: not there */
    struct ub_slice loop;
    uint32_t shape; /* which fields it has: equal shapes say the same things */
    struct ub_slice text;
};

/*
 * Lines that were read from their text. The taker says whether that was enough,
 * else it gets the JSON object. `stats` may be NULL.
 */
struct ub_taker {
    bool (*stall)(void *self, const struct ub_stall *stall);
    bool (*stats)(void *self, const struct ub_stats_line *stats);
    void *self;
};

static inline bool ub_slice_is(struct ub_slice s, const char *word)
{
    return s.text && strlen(word) == s.len && memcmp(s.text, word, s.len) == 0;
}

#endif
