/*
 * When a thread came onto a CPU and left it: side-band records of a perf event
 * that counts nothing. Own processes, no privilege, at perf_event_paranoid <= 2.
 */
#ifndef UB_TRACER_OUTSIDE_SWITCHES_H
#define UB_TRACER_OUTSIDE_SWITCHES_H

#include "../common/base.h"

#include <sys/types.h>

struct ub_switches {
    int fd; /* -1: not allowed, or not asked for */
    uint8_t *map;
    uint64_t off_ns; /* since when it is off the CPU, 0: it is on one, or not known */
    uint64_t on_ns;  /* the first switch onto a CPU after the moment given to ub_switches_read; 0: none */
};

/* 0 or -errno; after an error `ret` is usable, and knows nothing. */
int ub_switches_open(pid_t tid, struct ub_switches *ret);
void ub_switches_close(struct ub_switches *s);

/* Reads what has come. What did not fit the buffer makes off_ns unknown rather than wrong. */
void ub_switches_read(struct ub_switches *s, uint64_t after_ns);

#endif
