/*
 * Threads that come and go, one after the other, each with a loop of libuv whose callback blocks: threads_uv COUNT
 *
 * Prints how many mappings the process has after a quarter of them, and after all.
 */
// libs: -luv
#include "measure.h"

#include <pthread.h>
#include <uv.h>

#define WARM 20 /* turns until a loop is known to be one */

static void on_timer(uv_timer_t *t)
{
    static __thread int turns;

    if (++turns < WARM)
        return;
    sleep_ns(3000000);
    if (turns == WARM + 3)
        uv_close((uv_handle_t *)t, NULL);
}

static void *run(void *arg)
{
    uv_loop_t loop;
    uv_timer_t t[2];

    uv_loop_init(&loop);
    for (int i = 0; i < 2; i++) {
        uv_timer_init(&loop, &t[i]);
        uv_timer_start(&t[i], on_timer, 1, 1);
    }
    uv_timer_stop(&t[1]);
    uv_close((uv_handle_t *)&t[1], NULL);
    uv_run(&loop, UV_RUN_DEFAULT);
    if (uv_loop_close(&loop))
        abort();
    return arg;
}

static int lines(const char *path)
{
    FILE *f = fopen(path, "r");
    int n = 0, c;

    while ((c = getc(f)) != EOF)
        n += c == '\n';
    fclose(f);
    return n;
}

int main(int argc, char **argv)
{
    int count = argc > 1 ? atoi(argv[1]) : 40, early = 0;

    for (int i = 0; i < count; i++) {
        pthread_t thread;

        if (i == count / 4)
            early = lines("/proc/self/maps");
        pthread_create(&thread, NULL, run, NULL);
        pthread_join(thread, NULL);
        sleep_ns(20000000); /* its end is noticed */
    }
    printf("{\"early\": %d, \"late\": %d}\n", early, lines("/proc/self/maps"));
    return 0;
}
