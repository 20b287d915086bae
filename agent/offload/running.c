#include "running.h"

#include "../raw.h"

#define LOOPS_MAX 64u

/* An entry is its thread's own. */
static struct {
    uint64_t key; /* thread and library; 0: free */
    void *loop;
} running[LOOPS_MAX];

static uint64_t key_of(uint32_t library)
{
    return (uint64_t)library << 32 | (uint64_t)ub_raw0(SYS_gettid);
}

/* The number of its entry; LOOPS_MAX: none. */
static uint32_t find(uint64_t key)
{
    uint32_t i = 0;

    while (i < LOOPS_MAX && ub_load_relaxed(&running[i].key) != key)
        i++;
    return i;
}

void *ub_running_loop(uint32_t library)
{
    uint32_t i = find(key_of(library));

    return i < LOOPS_MAX ? ub_load_relaxed(&running[i].loop) : NULL;
}

void *ub_running_set(uint32_t library, void *loop)
{
    uint64_t key = key_of(library);
    uint32_t i = find(key);
    void *outer;

    if (i < LOOPS_MAX) {
        outer = ub_load_relaxed(&running[i].loop);
        ub_store_relaxed(&running[i].loop, loop);
        if (!loop)
            ub_store_relaxed(&running[i].key, 0);
        return outer;
    }
    for (i = 0; loop && i < LOOPS_MAX; i++) {
        uint64_t nobody = 0;

        if (__atomic_compare_exchange_n(&running[i].key, &nobody, key, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
            ub_store_relaxed(&running[i].loop, loop);
            break;
        }
    }
    return NULL;
}

void ub_running_gone(const void *loop)
{
    for (uint32_t i = 0; i < LOOPS_MAX; i++) {
        if (ub_load_relaxed(&running[i].loop) == loop)
            ub_store_relaxed(&running[i].loop, NULL);
    }
}
