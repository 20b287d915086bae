/*
 * Ticks of the agents' clock (common/clock.h) to CLOCK_MONOTONIC nanoseconds.
 * The TSC is compared with the system's clock at the start and again from time
 * to time; the longer the base, the better the slope (a start of 2 ms gives
 * some 20 ppm, a second 0.1 ppm).
 *
 * Process-wide. ub_ticks_start once, before any thread; ub_ticks_adjust from
 * one thread; the others from any thread.
 */
#ifndef UB_TRACER_TICKS_H
#define UB_TRACER_TICKS_H

#include "../common/clock.h"

/* Chooses the clock and measures it. Takes about 2 ms with the TSC. */
void ub_ticks_start(void);

/* Likewise, with a clock (enum ub_clock) that an agent has chosen by the same rules. */
void ub_ticks_start_as(uint32_t clock);

/* enum ub_clock: the TSC only where it is constant, non-stop and the kernel itself trusts it. */
uint32_t ub_ticks_clock(void);

void ub_ticks_adjust(void);

uint64_t ub_ticks_now(void);
uint64_t ub_ticks_to_ns(uint64_t ticks);      /* a moment */
uint64_t ub_ticks_span_to_ns(uint64_t ticks); /* a duration */
uint64_t ub_ticks_from_span_ns(uint64_t ns);  /* a duration */

#endif
