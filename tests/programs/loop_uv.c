/* The stalls of stalls.h in a libuv timer. loop_uv TRUTH [STALLS [ROUNDS [SEED]]] */
// libs: -luv
#include "stalls.h"

#include <uv.h>

static NOINLINE void on_tick(uv_timer_t *timer)
{
    if (stalls_tick(timer->data))
        uv_stop(timer->loop);
}

int main(int argc, char **argv)
{
    struct stalls *s = stalls_new(argc, argv);
    uv_timer_t timer = {.data = s};

    uv_timer_init(uv_default_loop(), &timer);
    uv_timer_start(&timer, on_tick, 2, 2);
    uv_run(uv_default_loop(), UV_RUN_DEFAULT);
    return 0;
}
