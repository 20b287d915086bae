/*
 * offload_uv.c on libev: the same cases, "io", "async" and "periodic": other kinds of watchers; "child", "stat",
 * "idle", "prepare" and "check", which must stay.
 */
// libs: -lev
#define OTHER_LOOP 1
#include "offload_uv.c"

#include <ev.h>

static struct ev_loop *loop;
static int ready[2];

static void on_inner(struct ev_loop *own, ev_timer *w, int what)
{
    sleep_ms();
    ev_break(own, EVBREAK_ALL);
}

static void nested(void)
{
    struct ev_loop *own = ev_loop_new(0);
    ev_timer t;

    ev_timer_init(&t, on_inner, 0.001, 0);
    ev_timer_start(own, &t);
    ev_run(own, 0);
    ev_loop_destroy(own);
}

static void once(void)
{
    if (entered++)
        note("AGAIN ");
    on_block();
}

/* Its descriptor stays ready: it would come again and again, while it is suspended. */
static void on_ready(struct ev_loop *l, ev_io *w, int what)
{
    char c;

    once();
    if (!ev_is_active(w) || read(w->fd, &c, 1) != 1)
        abort();
    ev_io_stop(l, w);
    if (what != EV_READ)
        note(" WRONG");
}

static void on_timer(struct ev_loop *l, ev_timer *w, int what)
{
    once();
}

static void on_periodic(struct ev_loop *l, ev_periodic *w, int what)
{
    once();
}

static void on_async(struct ev_loop *l, ev_async *w, int what)
{
    once();
    ev_async_stop(l, w);
}

static void on_child(struct ev_loop *l, ev_child *w, int what)
{
    once();
    ev_child_stop(l, w);
}

static void on_idle(struct ev_loop *l, ev_idle *w, int what)
{
    ev_idle_stop(l, w);
    once();
}

static void on_prepare(struct ev_loop *l, ev_prepare *w, int what)
{
    ev_prepare_stop(l, w);
    once();
}

static void on_check(struct ev_loop *l, ev_check *w, int what)
{
    ev_check_stop(l, w);
    once();
}

static void on_stat(struct ev_loop *l, ev_stat *w, int what)
{
    ev_stat_stop(l, w);
    once();
    unlink(w->path);
}

static void start_stat(ev_stat *w)
{
    static char path[] = "/tmp/unblock-stat-XXXXXX";
    int fd = mkstemp(path);

    ev_stat_init(w, on_stat, path, 0.1);
    ev_stat_start(loop, w);
    if (write(fd, "x", 1) != 1)
        abort();
    close(fd);
}

static void start(void)
{
    static ev_io io;
    static ev_timer timer;
    static ev_periodic periodic;
    static ev_async async;
    static ev_child child_watcher;
    static ev_idle idle;
    static ev_prepare preparer;
    static ev_check checker;
    static ev_stat file;
    pid_t pid;

    if (is("io")) {
        if (pipe(ready) || write(ready[1], "x", 1) != 1)
            abort();
        ev_io_init(&io, on_ready, ready[0], EV_READ);
        ev_io_start(loop, &io);
    } else if (is("periodic")) {
        ev_periodic_init(&periodic, on_periodic, ev_now(loop) + 0.001, 0, NULL);
        ev_periodic_start(loop, &periodic);
    } else if (is("async")) {
        ev_async_init(&async, on_async);
        ev_async_start(loop, &async);
        ev_async_send(loop, &async);
    } else if (is("child")) {
        pid = fork();
        if (pid == 0)
            _exit(0);
        ev_child_init(&child_watcher, on_child, pid, 0);
        ev_child_start(loop, &child_watcher);
    } else if (is("idle")) {
        ev_idle_init(&idle, on_idle);
        ev_idle_start(loop, &idle);
    } else if (is("prepare")) {
        ev_prepare_init(&preparer, on_prepare);
        ev_prepare_start(loop, &preparer);
    } else if (!strcmp(name, "check")) {
        ev_check_init(&checker, on_check);
        ev_check_start(loop, &checker);
    } else if (!strcmp(name, "stat")) {
        start_stat(&file);
    } else {
        ev_timer_init(&timer, on_timer, 0.001, 0);
        ev_timer_start(loop, &timer);
    }
}

static void stop(void)
{
    ev_break(loop, EVBREAK_ALL);
}

static void on_tick(struct ev_loop *l, ev_timer *w, int what)
{
    tick();
}

static void run(void)
{
    static ev_timer ticker;

    loop = ev_default_loop(0);
    ev_timer_init(&ticker, on_tick, TICK_MS / 1e3, TICK_MS / 1e3);
    ev_timer_start(loop, &ticker);
    ev_run(loop, 0);
    ev_loop_destroy(loop);
}
