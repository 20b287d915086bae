/* The cost of a libevent callback: cost.h. */
// libs: -levent
#include "cost.h"

#include <event2/event.h>

static const char cost_library[] = "libevent";
static struct event_base *base;
static struct event *events[CALLBACKS];

static NOINLINE void on_cost(evutil_socket_t fd, short what, void *arg)
{
    cost_work();
}

static void cost_prepare(void)
{
    struct timeval far = {.tv_sec = 100000};

    base = event_base_new();
    for (int i = 0; i < CALLBACKS; i++) {
        events[i] = event_new(base, -1, EV_PERSIST, on_cost, NULL);
        event_add(events[i], &far);
    }
}

static void cost_round(void)
{
    for (int i = 0; i < CALLBACKS; i++)
        event_active(events[i], EV_TIMEOUT, 0);
    event_base_loop(base, EVLOOP_NONBLOCK);
}
