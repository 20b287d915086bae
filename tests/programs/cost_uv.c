/* The cost of a libuv callback: cost.h. */
// libs: -luv
#include "cost.h"

#include <uv.h>

static const char cost_library[] = "libuv";

static NOINLINE void on_cost(uv_idle_t *h)
{
    cost_work();
}

static void cost_prepare(void)
{
    static uv_idle_t idle[CALLBACKS];

    for (int i = 0; i < CALLBACKS; i++) {
        uv_idle_init(uv_default_loop(), &idle[i]);
        uv_idle_start(&idle[i], on_cost);
    }
}

static void cost_round(void)
{
    uv_run(uv_default_loop(), UV_RUN_NOWAIT);
}
