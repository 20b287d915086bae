/* elsewhere.h on libevent. */
// libs: -levent_core -levent_pthreads
#include "elsewhere.h"

#include <event2/event.h>
#include <event2/thread.h>

static struct event *event;

static void *allocate(size_t size)
{
    void *new = malloc(size);

    __atomic_fetch_add(&allocated, new != NULL, __ATOMIC_RELAXED);
    return new;
}

static void *reallocate(void *old, size_t size)
{
    void *new = realloc(old, size);

    __atomic_fetch_add(&allocated, !old && new, __ATOMIC_RELAXED);
    return new;
}

static void release(void *old)
{
    __atomic_fetch_sub(&allocated, old != NULL, __ATOMIC_RELAXED);
    free(old);
}

static void on_timer(int fd, short what, void *n)
{
    if (turn(n))
        event_free(event);
}

static void *run_loop(void)
{
    struct event_base *base;
    struct timeval tv = {.tv_usec = 1000};
    int n = 0;

    event_set_mem_functions(allocate, reallocate, release);
    evthread_use_pthreads();
    base = event_base_new();
    event = event_new(base, -1, EV_PERSIST, on_timer, &n);
    event_add(event, &tv);
    event_base_dispatch(base);
    return base;
}

static void end_loop(void *base)
{
    event_base_free(base);
}
