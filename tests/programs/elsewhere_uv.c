/* elsewhere.h on libuv. */
// libs: -luv
#include "elsewhere.h"

#include <uv.h>

static void on_timer(uv_timer_t *t)
{
    if (turn(t->data))
        uv_close((uv_handle_t *)t, NULL);
}

static void *run_loop(void)
{
    uv_loop_t *loop = malloc(sizeof(*loop));
    int n = 0;
    uv_timer_t t = {.data = &n};

    uv_loop_init(loop);
    uv_timer_init(loop, &t);
    uv_timer_start(&t, on_timer, 1, 1);
    uv_run(loop, UV_RUN_DEFAULT);
    return loop;
}

static void end_loop(void *loop)
{
    if (uv_loop_close(loop))
        abort();
    free(loop);
}
