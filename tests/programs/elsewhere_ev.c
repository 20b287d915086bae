/* elsewhere.h on libev. */
// libs: -lev
#include "elsewhere.h"

#include <ev.h>

static void on_timer(struct ev_loop *loop, ev_timer *w, int what)
{
    if (turn(w->data))
        ev_timer_stop(loop, w);
}

static void *run_loop(void)
{
    struct ev_loop *loop = ev_loop_new(0);
    ev_timer t;
    int n = 0;

    ev_timer_init(&t, on_timer, 0.001, 0.001);
    t.data = &n;
    ev_timer_start(loop, &t);
    ev_run(loop, 0);
    return loop;
}

static void end_loop(void *loop)
{
    ev_loop_destroy(loop);
}
