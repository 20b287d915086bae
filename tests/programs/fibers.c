/*
 * What fibers cost: fibers COUNT
 *
 *   switch  from one stack to another
 *   enter   a callback on a fiber that never suspends, more than the same called directly
 *   fresh   the same where each has a stack that no one has used yet
 *
 * Prints {"count": , "switch_ns": , "enter_ns": , "fresh_ns": , "check": }: medians of batches.
 */
// agent: offload/fiber.o offload/fiber_x86_64.o
#include "measure.h"

#include "../../agent/offload/fiber.h"

#include <string.h>

#define BATCH 1000

static struct ub_fiber_pool pool = {.size = 8 << 20, .head = sizeof(struct ub_fiber)};
static struct ub_fiber *other;
static uint64_t work;

static uint64_t forever(uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f)
{
    for (;;) {
        work++;
        ub_fiber_suspend(other);
    }
    return 0;
}

static NOINLINE uint64_t callback(uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f)
{
    work++;
    __asm__ volatile("" ::: "memory");
    return a;
}

static ub_fiber_function *volatile called = callback;
static struct ub_fiber_exceptions exceptions;

static void switches(void)
{
    for (int i = 0; i < BATCH; i++)
        ub_fiber_resume(other, &exceptions);
}

static void direct(void)
{
    for (uint64_t i = 0; i < BATCH; i++)
        work += called(0, i, 0, 0, 0, 0);
}

static void enters(void)
{
    for (uint64_t i = 0; i < BATCH; i++) {
        struct ub_fiber *f = ub_fiber_take(&pool);

        ub_fiber_start(f, called, (const uint64_t[UB_FIBER_WORDS]){0, i});
        if (ub_fiber_resume(f, &exceptions) != UB_FIBER_DONE)
            exit(1);
        work += f->result;
        ub_fiber_give(&pool, f);
    }
}

static void fresh(void)
{
    struct ub_fiber *f[100];

    for (int i = 0; i < 100; i++) {
        f[i] = ub_fiber_take(&pool);
        ub_fiber_start(f[i], called, (const uint64_t[UB_FIBER_WORDS]){0});
        ub_fiber_resume(f[i], &exceptions);
    }
    for (int i = 0; i < 100; i++)
        ub_fiber_give(&pool, f[i]);
    ub_fiber_pool_free(&pool);
}

static int ascending(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

/* Median of the batches, of one of `each` things in a batch. */
static double measure(void (*run)(void), uint64_t batches, double each)
{
    uint64_t *ns = calloc(batches, sizeof(*ns)), start;
    double median;

    for (uint64_t i = 0; i < batches; i++) {
        start = now_ns();
        run();
        ns[i] = now_ns() - start;
    }
    qsort(ns, batches, sizeof(*ns), ascending);
    median = (double)ns[batches / 2] / each;
    free(ns);
    return median;
}

int main(int argc, char **argv)
{
    uint64_t count = argc > 1 ? strtoull(argv[1], NULL, 10) : 1000000, batches = count / BATCH + 1;
    double switch_ns, enter_ns, direct_ns, fresh_ns;

    other = ub_fiber_take(&pool);
    ub_fiber_start(other, forever, (const uint64_t[UB_FIBER_WORDS]){0});
    switch_ns = measure(switches, batches, 2.0 * BATCH);
    if (work != batches * BATCH)
        exit(1);
    ub_fiber_give(&pool, other);
    direct_ns = measure(direct, batches, BATCH);
    enter_ns = measure(enters, batches, BATCH) - direct_ns;
    fresh_ns = measure(fresh, 20, 100);
    if (work != 3 * batches * BATCH + 20 * 100)
        exit(1);
    printf("{\"count\": %llu, \"switch_ns\": %.2f, \"enter_ns\": %.2f, \"fresh_ns\": %.0f, \"check\": %llu}\n",
           (unsigned long long)(batches * BATCH), switch_ns, enter_ns, fresh_ns, (unsigned long long)work);
    return 0;
}
