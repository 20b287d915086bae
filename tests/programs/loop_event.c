/* The stalls of stalls.h in a persistent libevent timer. loop_event TRUTH [STALLS [ROUNDS [SEED]]] */
// libs: -levent
#include "stalls.h"

#include <event2/event.h>

static struct event_base *base;

static NOINLINE void on_tick(evutil_socket_t fd, short what, void *arg)
{
    if (stalls_tick(arg))
        event_base_loopbreak(base);
}

int main(int argc, char **argv)
{
    struct stalls *s = stalls_new(argc, argv);
    struct timeval tick = {.tv_usec = STALLS_TICK_NS / 1000};

    base = event_base_new();
    event_add(event_new(base, -1, EV_PERSIST, on_tick, s), &tick);
    event_base_dispatch(base);
    return 0;
}
