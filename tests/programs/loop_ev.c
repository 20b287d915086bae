/* The stalls of stalls.h in a libev timer. loop_ev TRUTH [STALLS [ROUNDS [SEED]]] */
// libs: -lev
#include "stalls.h"

#include <ev.h>

static NOINLINE void on_tick(struct ev_loop *loop, ev_timer *timer, int events)
{
    if (stalls_tick(timer->data))
        ev_break(loop, EVBREAK_ALL);
}

int main(int argc, char **argv)
{
    struct stalls *s = stalls_new(argc, argv);
    struct ev_loop *loop = ev_default_loop(0);
    ev_timer timer;

    ev_timer_init(&timer, on_tick, 0.002, 0.002);
    timer.data = s;
    ev_timer_start(loop, &timer);
    ev_run(loop, 0);
    return 0;
}
