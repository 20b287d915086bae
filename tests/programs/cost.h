/*
 * What a callback costs in an event-loop library: cost_LIBRARY COUNT
 *
 * CALLBACKS empty callbacks a round, so that the turn around them hardly counts (sd-event alone runs one a turn).
 * Prints one JSON object:
 *
 *   {"library": , "count": asked for, "check": callbacks that ran while the clock ran, "median_ns": of one,
 *    "rdtsc_ns":, "clock_ns": of one reading of the TSC and of the clock, in this process,
 *    "allocations": calls of malloc and its kin while the clock ran, "allocations_all": since the program began}
 *
 * Allocations are counted by functions of the program's own that stand before libc's: whoever calls malloc in this
 * process, preloaded libraries included, calls these. What a program like this one costs without us is measured by
 * running it without us.
 */
#ifndef COST_H
#define COST_H

#include "measure.h"

#if defined(__x86_64__)
#include <x86intrin.h>
#endif

#define CALLBACKS 100
#define BATCH     10 /* rounds */
#define WARM_UP   50 /* rounds: the loop is a loop before the clock starts */

/* The library's part: makes CALLBACKS callbacks that each call cost_work(), and runs each of them once a round. */
static const char cost_library[];
static void cost_prepare(void);
static void cost_round(void);

/* ---- allocations ---- */

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t size);
void *__libc_memalign(size_t align, size_t size);

static uint64_t allocations;

static void *count_allocation(void *p)
{
    __atomic_fetch_add(&allocations, 1, __ATOMIC_RELAXED);
    return p;
}

void *malloc(size_t size)
{
    return count_allocation(__libc_malloc(size));
}

void *calloc(size_t n, size_t size)
{
    return count_allocation(__libc_calloc(n, size));
}

void *realloc(void *p, size_t size)
{
    return count_allocation(__libc_realloc(p, size));
}

void *memalign(size_t align, size_t size)
{
    return count_allocation(__libc_memalign(align, size));
}

void *aligned_alloc(size_t align, size_t size)
{
    return count_allocation(__libc_memalign(align, size));
}

int posix_memalign(void **p, size_t align, size_t size)
{
    *p = count_allocation(__libc_memalign(align, size));
    return *p ? 0 : ENOMEM;
}

/* ---- time ---- */

static uint64_t cost_done;

static inline void cost_work(void)
{
    cost_done++;
    __asm__ volatile("" ::: "memory");
}

static int cost_ascending(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

static double cost_median(uint64_t *ns, size_t n, double each)
{
    qsort(ns, n, sizeof(*ns), cost_ascending);
    return (double)ns[n / 2] / each;
}

#define COST_READINGS 1000
#define COST_TRIES    101

static double cost_of_tsc(void)
{
#if defined(__x86_64__)
    uint64_t ns[COST_TRIES];

    for (int i = 0; i < COST_TRIES; i++) {
        uint64_t start = now_ns();

        for (int k = 0; k < COST_READINGS; k++) {
            uint64_t tsc = __rdtsc();

            __asm__ volatile("" ::"r"(tsc));
        }
        ns[i] = now_ns() - start;
    }
    return cost_median(ns, COST_TRIES, COST_READINGS);
#else
    return 0;
#endif
}

static double cost_of_clock(void)
{
    uint64_t ns[COST_TRIES];

    for (int i = 0; i < COST_TRIES; i++) {
        uint64_t start = now_ns();

        for (int k = 0; k < COST_READINGS; k++)
            now_ns();
        ns[i] = now_ns() - start;
    }
    return cost_median(ns, COST_TRIES, COST_READINGS);
}

int main(int argc, char **argv)
{
    uint64_t count = argc > 1 ? strtoull(argv[1], NULL, 10) : 1000;
    uint64_t batches = count / (CALLBACKS * BATCH), *ns = calloc(batches + 1, sizeof(*ns)), before, done;
    double tsc = cost_of_tsc(), clock = cost_of_clock();

    if (batches == 0)
        return 99;
    cost_prepare();
    for (int i = 0; i < WARM_UP; i++)
        cost_round();
    cost_done = 0;
    before = allocations;
    for (uint64_t i = 0; i < batches; i++) {
        uint64_t start = now_ns();

        for (int k = 0; k < BATCH; k++)
            cost_round();
        ns[i] = now_ns() - start;
    }
    before = allocations - before;
    done = cost_done;
    printf("{\"library\": \"%s\", \"count\": %llu, \"check\": %llu, \"median_ns\": %.2f, \"rdtsc_ns\": %.2f, "
           "\"clock_ns\": %.2f, \"allocations\": %llu, \"allocations_all\": %llu}\n",
           cost_library, (unsigned long long)count, (unsigned long long)done,
           cost_median(ns, batches, CALLBACKS * BATCH), tsc, clock, (unsigned long long)before,
           (unsigned long long)allocations);
    return 0;
}

#endif
