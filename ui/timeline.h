/*
 * Every counted stall with its moment, for what shows them over time: HTML and
 * the trace formats. 32 bytes each, at most UB_TIMELINE_MAX; of more, the longest
 * are kept and the others are counted.
 */
#ifndef UB_UI_TIMELINE_H
#define UB_UI_TIMELINE_H

#include "model.h"

#define UB_TIMELINE_MAX ((size_t)2 << 20)

struct ub_timeline_stall {
    int64_t at_ns; /* wall clock, ns since the epoch; of a recording without one: its monotonic clock */
    uint64_t duration_ns;
    const struct ub_site *site; /* its class tells whether it counts */
    uint32_t loop;              /* index into `loop` */
    bool ongoing, nested;
    uint8_t cause; /* enum ub_cause */
};

/* A thread with a loop, of one run. */
struct ub_timeline_loop {
    uint32_t run;
    uint64_t pid, tid;
    char kind[24], thread[32];
    const char *program; /* of the site of its first stall; may be NULL */
};

struct ub_timeline {
    struct ub_timeline_stall *stall;
    size_t count, size;
    struct ub_timeline_loop *loop;
    uint32_t loops;
    uint64_t left_out;    /* the shortest, for want of room */
    uint64_t left_out_ns; /* together; all that were left out were shorter than shortest_ns */
    uint64_t shortest_ns;
    struct ub_timeline_key *key; /* finds a loop */
};

/* Before the first line is read: from then on the model tells `t` of every stall that is over. */
void ub_timeline_follow(struct ub_timeline *t, struct ub_model *m);
/* When all has been read: also those that were not over; sorted by loop and moment. */
void ub_timeline_finish(struct ub_timeline *t, struct ub_model *m);
void ub_timeline_clear(struct ub_timeline *t);

/* What is to be added to a run's monotonic clock to get the wall clock. False where its header does not tell. */
bool ub_timeline_offset(const struct ub_run *run, int64_t *ret_ns);

#endif
