/* Each stall of the list in a libev watcher of each kind. callbacks_ev TRUTH [STALLS [ROUNDS [SEED]]] */
// flags: -fno-strict-aliasing
// libs: -lev
#include "stalls.h"

#include <ev.h>

static struct ev_loop *loop;
static struct stalls *s;
static ev_io io;
static ev_signal sig;
static ev_idle idle;
static ev_prepare prepare;
static ev_check check;
static ev_async async;
static ev_child child;
static ev_periodic periodic;
static ev_stat stat_watcher;
static ev_timer timer;
static ev_fork forked;
static ev_cleanup cleanup;
static char watched[512];
static int io_pipe[2];

static NOINLINE void on_io(struct ev_loop *l, ev_io *w, int events)
{
    char c;

    if (read(w->fd, &c, 1) != 1)
        die("io pipe");
    stalls_here(s, "io");
}

static NOINLINE void on_signal(struct ev_loop *l, ev_signal *w, int events)
{
    stalls_here(s, "signal");
}

static NOINLINE void on_idle(struct ev_loop *l, ev_idle *w, int events)
{
    ev_idle_stop(l, w);
    stalls_here(s, "idle");
}

static NOINLINE void on_prepare(struct ev_loop *l, ev_prepare *w, int events)
{
    ev_prepare_stop(l, w);
    stalls_here(s, "prepare");
}

static NOINLINE void on_check(struct ev_loop *l, ev_check *w, int events)
{
    ev_check_stop(l, w);
    stalls_here(s, "check");
}

static NOINLINE void on_async(struct ev_loop *l, ev_async *w, int events)
{
    stalls_here(s, "async");
}

static NOINLINE void on_child(struct ev_loop *l, ev_child *w, int events)
{
    ev_child_stop(l, w);
    stalls_here(s, "child");
}

static NOINLINE void on_stat(struct ev_loop *l, ev_stat *w, int events)
{
    stalls_here(s, "fs_poll");
}

static NOINLINE void on_timer(struct ev_loop *l, ev_timer *w, int events)
{
    stalls_here(s, "on_timer");
}

static NOINLINE void on_fork(struct ev_loop *l, ev_fork *w, int events)
{
    stalls_here(s, "on_fork");
}

static NOINLINE void on_cleanup(struct ev_loop *l, ev_cleanup *w, int events)
{
    stalls_here(s, "on_cleanup");
}

static void kick_io(struct stalls *s_)
{
    if (write(io_pipe[1], "x", 1) != 1)
        die("io pipe");
}

static void kick_signal(struct stalls *s_)
{
    kill(getpid(), SIGHUP);
}

static void kick_idle(struct stalls *s_)
{
    ev_idle_start(loop, &idle);
}

static void kick_prepare(struct stalls *s_)
{
    ev_prepare_start(loop, &prepare);
}

static void kick_check(struct stalls *s_)
{
    ev_check_start(loop, &check);
}

static void kick_async(struct stalls *s_)
{
    ev_async_send(loop, &async);
}

static void kick_child(struct stalls *s_)
{
    pid_t pid = fork();

    if (pid == 0)
        _exit(0);
    ev_child_init(&child, on_child, pid, 0);
    ev_child_start(loop, &child);
}

static void kick_file(struct stalls *s_)
{
    FILE *f = fopen(watched, "ae");

    fputs("x", f);
    fclose(f);
}

static void kick_timer(struct stalls *s_)
{
    ev_timer_init(&timer, on_timer, 0., 0.);
    ev_timer_start(loop, &timer);
}

/* Callbacks of another loop, inside the ticker's: ours would close its inotify descriptor, which takes up to 0.1 s. */
static void kick_fork(struct stalls *s_)
{
    struct ev_loop *other = ev_loop_new(0);

    ev_fork_init(&forked, on_fork);
    ev_fork_start(other, &forked);
    ev_loop_fork(other);
    ev_run(other, EVRUN_NOWAIT);
    ev_loop_destroy(other);
}

static void kick_cleanup(struct stalls *s_)
{
    struct ev_loop *other = ev_loop_new(0);

    ev_cleanup_init(&cleanup, on_cleanup);
    ev_cleanup_start(other, &cleanup);
    ev_loop_destroy(other);
}

static const struct stalls_kind kinds[] = {
    {"timer", "on_tick", NULL},         {"timer", "on_timer", kick_timer},
    {"callback", "on_fork", kick_fork}, {"callback", "on_cleanup", kick_cleanup},
    {"io", "on_io", kick_io},           {"signal", "on_signal", kick_signal},
    {"idle", "on_idle", kick_idle},     {"prepare", "on_prepare", kick_prepare},
    {"check", "on_check", kick_check},  {"async", "on_async", kick_async},
    {"child", "on_child", kick_child},  {"fs_poll", "on_stat", kick_file},
};

static NOINLINE void on_tick(struct ev_loop *l, ev_periodic *w, int events)
{
    if (stalls_tick(s))
        ev_break(l, EVBREAK_ALL);
}

int main(int argc, char **argv)
{
    s = stalls_new(argc, argv);
    stalls_kinds(s, kinds, sizeof(kinds) / sizeof(kinds[0]));
    if (pipe2(io_pipe, O_CLOEXEC | O_NONBLOCK))
        die("pipes");
    loop = ev_default_loop(0);
    ev_io_init(&io, on_io, io_pipe[0], EV_READ);
    ev_io_start(loop, &io);
    ev_signal_init(&sig, on_signal, SIGHUP);
    ev_signal_start(loop, &sig);
    ev_async_init(&async, on_async);
    ev_async_start(loop, &async);
    ev_idle_init(&idle, on_idle);
    ev_prepare_init(&prepare, on_prepare);
    ev_check_init(&check, on_check);
    snprintf(watched, sizeof(watched), "%s/watched", s->dir);
    kick_file(s);
    ev_stat_init(&stat_watcher, on_stat, watched, 0.01);
    ev_stat_start(loop, &stat_watcher);
    ev_periodic_init(&periodic, on_tick, 0., STALLS_TICK_NS / 1e9, NULL);
    ev_periodic_start(loop, &periodic);
    ev_run(loop, 0);
    return 0;
}
