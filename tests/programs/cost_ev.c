/* The cost of a libev callback: cost.h. */
// flags: -fno-strict-aliasing
// libs: -lev
#include "cost.h"

#include <ev.h>

static const char cost_library[] = "libev";

static NOINLINE void on_cost(struct ev_loop *l, ev_idle *w, int events)
{
    cost_work();
}

static void cost_prepare(void)
{
    static ev_idle idle[CALLBACKS];

    for (int i = 0; i < CALLBACKS; i++) {
        ev_idle_init(&idle[i], on_cost);
        ev_idle_start(ev_default_loop(0), &idle[i]);
    }
}

static void cost_round(void)
{
    ev_run(ev_default_loop(0), EVRUN_NOWAIT);
}
