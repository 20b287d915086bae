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
    static int made;
    bool ours = made++ % 2;
    uv_loop_t *loop = ours ? malloc(sizeof(*loop)) : uv_loop_new();
    int n = 0;
    uv_timer_t t = {.data = &n};

    if (ours)
        uv_loop_init(loop);
    loop->data = ours ? loop : NULL;
    uv_timer_init(loop, &t);
    uv_timer_start(&t, on_timer, 1, 1);
    uv_run(loop, UV_RUN_DEFAULT);
    return loop;
}

/* Half of them are libuv's own memory: uv_loop_delete closes them inside of libuv. */
static void end_loop(void *of)
{
    uv_loop_t *loop = of;

    if (!loop->data) {
        uv_loop_delete(loop);
        return;
    }
    if (uv_loop_close(loop))
        abort();
    free(loop);
}
