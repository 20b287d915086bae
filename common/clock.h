/*
 * The clock of the fast path. A tick is a TSC cycle where the TSC is known to
 * be constant and non-stop (the watcher decides once and says so in the arena),
 * else a nanosecond of CLOCK_MONOTONIC read through the vDSO.
 *
 * Signal-safe; no system call where the vDSO works.
 */
#ifndef UB_CLOCK_H
#define UB_CLOCK_H

#include "base.h"

#include <time.h>

enum ub_clock {
    UB_CLOCK_VDSO = 1,
    UB_CLOCK_TSC = 2,
};

static inline uint64_t ub_clock_monotonic_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

#if defined(__x86_64__)
#define UB_CLOCK_HAS_TSC 1
static inline uint64_t ub_clock_tsc(void)
{
    return __builtin_ia32_rdtsc();
}
#else
#define UB_CLOCK_HAS_TSC 0
static inline uint64_t ub_clock_tsc(void)
{
    return 0;
}
#endif

/* `clock` is the value the arena carries (enum ub_clock). */
static inline uint64_t ub_clock_ticks(uint32_t clock)
{
    if (UB_CLOCK_HAS_TSC && ub_likely(clock == UB_CLOCK_TSC))
        return ub_clock_tsc();
    return ub_clock_monotonic_ns();
}

#endif
