/*
 * What may happen to a descriptor's watcher of libev while its callback is suspended: hazards_ev CASE. Prints what
 * happened, in order. Each case says the same whether its calls are moved or not, unless the test says otherwise.
 */
// libs: -lev
#include "hazards_ev.h"

static ev_io *victim, second;

static void add_fd(void (*call)(struct ev_loop *l, ev_io *w, int what))
{
    victim = malloc(sizeof(*victim));
    ev_io_init(victim, call, p[0], EV_READ);
    ev_io_start(loop, victim);
}

/* Three bytes, one each time: it has to come again, one at a time, until they are read. */
static void on_rearm(struct ev_loop *l, ev_io *w, int what)
{
    enter();
    rest_quietly(60);
    if (!ev_is_active(w))
        say("NOT ACTIVE");
    get(w->fd);
    inside--;
    if (++fired == 3) {
        say("three");
        ev_break(l, EVBREAK_ALL);
    }
}

/* Stopped meanwhile, and freed: it does not come again. */
static void on_stopped(struct ev_loop *l, ev_io *w, int what)
{
    say(fired++ ? "AGAIN" : "once");
    rest(150);
    say("over");
}

static void on_stop(struct ev_loop *l, ev_timer *w, int what)
{
    say(ev_is_active(victim) ? "active" : "NOT ACTIVE");
    ev_io_stop(l, victim);
    say(ev_is_active(victim) ? "STILL ACTIVE" : "stopped");
    memset(victim, 0xee, sizeof(*victim));
    free(victim);
}

/* By itself, before its call or after it. */
static void on_own(struct ev_loop *l, ev_io *w, int what)
{
    fired++;
    if (is("own_after"))
        rest(100);
    ev_io_stop(l, w);
    memset(w, 0xee, sizeof(*w));
    if (is("own_before"))
        rest(100);
    for (size_t i = 0; i < sizeof(*w); i++) {
        if (((unsigned char *)w)[i] != 0xee)
            say("WRITTEN");
    }
    free(w);
    say(fired == 1 ? "once" : "AGAIN");
}

/* Stopped and started anew with another descriptor by another callback: comes of that when the first is over. */
static void on_anew(struct ev_loop *l, ev_io *w, int what)
{
    enter();
    rest_quietly(120);
    say(w->fd == q[0] ? "new" : "OLD");
    inside--;
    if (fired++) {
        get(q[0]);
        ev_break(l, EVBREAK_ALL);
    }
}

static void on_change(struct ev_loop *l, ev_timer *w, int what)
{
    ev_io_stop(l, victim);
    ev_io_set(victim, q[0], EV_READ);
    ev_io_start(l, victim);
}

/* Fed by the program: once more. */
static void on_fed(struct ev_loop *l, ev_io *w, int what)
{
    enter();
    say(what & EV_CUSTOM ? "fed" : "ready");
    if (!(what & EV_CUSTOM))
        get(w->fd);
    rest(100);
    inside--;
}

/* By itself, before it is suspended. */
static void on_fed_own(struct ev_loop *l, ev_io *w, int what)
{
    int ready = !(what & EV_CUSTOM);

    enter();
    say(ready ? "ready" : "fed");
    if (ready)
        ev_feed_event(l, w, EV_CUSTOM);
    rest(100);
    if (ready)
        get(w->fd);
    inside--;
}

static void on_feed(struct ev_loop *l, ev_timer *w, int what)
{
    ev_feed_event(l, victim, EV_CUSTOM);
}

/* Stopped and started anew meanwhile, and fed: it comes once more, though there is nothing to be read. */
static void on_fed_anew(struct ev_loop *l, ev_io *w, int what)
{
    enter();
    say(what == EV_READ ? fired ? "fed" : "ready" : "WRONG");
    if (!fired++)
        get(w->fd);
    rest(100);
    inside--;
}

static void on_feed_anew(struct ev_loop *l, ev_timer *w, int what)
{
    ev_io_stop(l, victim);
    ev_io_start(l, victim);
    ev_feed_event(l, victim, EV_READ);
}

/* Its descriptor is none: libev has stopped it by then, and it may be gone at once. */
static void on_killed(struct ev_loop *l, ev_io *w, int what)
{
    say(what & EV_ERROR && !ev_is_active(w) ? "killed" : "WRONG");
    memset(w, 0xee, sizeof(*w));
    rest(60);
    for (size_t i = 0; i < sizeof(*w); i++) {
        if (((unsigned char *)w)[i] != 0xee)
            say("WRITTEN");
    }
    free(w);
}

static void on_lose(struct ev_loop *l, ev_timer *w, int what)
{
    close(p[0]);
}

/* Left more than once: the loop still counts it as one. */
static void on_resting(struct ev_loop *l, ev_io *w, int what)
{
    for (int i = 0; i < 4; i++)
        rest(50);
    ev_io_stop(l, w);
    say("rested");
}

/* A timer that is over before its callback is: another callback makes a descriptor's watcher in its place. */
static union {
    ev_timer timer;
    ev_io io;
} place;

static void on_over(struct ev_loop *l, ev_timer *w, int what)
{
    rest_quietly(200);
    say("over");
}

static void on_ready(struct ev_loop *l, ev_io *w, int what)
{
    say(ev_is_active(w) ? "ready" : "NOT ACTIVE");
    get(w->fd);
}

static void on_reuse(struct ev_loop *l, ev_timer *w, int what)
{
    ev_io_init(&place.io, on_ready, p[0], EV_READ);
    ev_io_start(l, &place.io);
}

/* What is due of it is dropped; it stays active, and comes again. */
static void on_cleared(struct ev_loop *l, ev_io *w, int what)
{
    enter();
    say(what & EV_CUSTOM ? "FED" : "ready");
    rest(100);
    get(w->fd);
    inside--;
    if (++fired == 2)
        ev_io_stop(l, w);
}

static void on_clear(struct ev_loop *l, ev_timer *w, int what)
{
    ev_clear_pending(l, victim);
}

/* One that libev makes for itself, and frees before it calls. */
static void on_once(int what, void *arg)
{
    rest(60);
    say(arg == &loop && what == EV_READ ? "single" : "WRONG");
}

/* A callback goes on to what another watcher will be told of: that one has to wait. */
static void on_second(struct ev_loop *l, ev_io *w, int what)
{
    say(inside ? "TWO AT ONCE" : "ready");
    get(w->fd);
    ev_break(l, EVBREAK_ALL);
}

static void on_direct(struct ev_loop *l, ev_io *w, int what)
{
    inside++;
    ev_io_stop(l, w);
    ev_io_init(&second, on_second, q[0], EV_READ);
    ev_io_start(l, &second);
    send_much();
    inside--;
    say("sent");
}

/* In a forked child the watcher is active as it was. */
static void on_kept(struct ev_loop *l, ev_io *w, int what)
{
    if (child)
        _exit(7);
    if (fired++)
        return;
    rest(is("fork") ? 500 : 200);
    ev_io_stop(l, w);
    say("kept");
}

static void on_fork(struct ev_loop *l, ev_timer *w, int what)
{
    int status;
    pid_t pid = fork();

    if (pid == 0) {
        child = 1;
        alarm(5);
        ev_loop_fork(l);
        return;
    }
    while (waitpid(pid, &status, 0) < 0)
        ;
    say(WIFEXITED(status) && WEXITSTATUS(status) == 7 ? "there" : "NOT THERE");
}

/* There it is stopped and freed at once. */
static void on_untouched(struct ev_loop *l, ev_timer *w, int what)
{
    for (size_t i = 0; i < sizeof(*victim); i++) {
        if (((unsigned char *)victim)[i] != 0xee)
            _exit(8);
    }
    _exit(7);
}

static void on_fork_freed(struct ev_loop *l, ev_timer *w, int what)
{
    int status;
    pid_t pid = fork();

    if (pid == 0) {
        child = 1;
        alarm(5);
        ev_io_stop(l, victim);
        memset(victim, 0xee, sizeof(*victim));
        ev_loop_fork(l);
        ev_timer_stop(l, &end);
        in(300, &timer, on_untouched);
        return;
    }
    while (waitpid(pid, &status, 0) < 0)
        ;
    say(WIFEXITED(status) && WEXITSTATUS(status) == 7 ? "untouched" : "WRITTEN, OR NO LOOP");
}

static void begin(void)
{
    pthread_t t;

    if (is("rearm") || is("rearm_select") || is("rearm_poll")) {
        put(p[1], "abc");
        add_fd(on_rearm);
    } else if (is("stopped")) {
        put(p[1], "a");
        add_fd(on_stopped);
        in(50, &other, on_stop);
        in(500, &end, on_end);
    } else if (is("own_before") || is("own_after")) {
        put(p[1], "a");
        add_fd(on_own);
        in(300, &end, on_end);
    } else if (is("anew")) {
        put(p[1], "a");
        put(q[1], "b");
        add_fd(on_anew);
        in(50, &other, on_change);
    } else if (is("fed")) {
        put(p[1], "a");
        add_fd(on_fed);
        in(50, &other, on_feed);
        in(600, &end, on_end);
    } else if (is("fed_anew")) {
        put(p[1], "a");
        add_fd(on_fed_anew);
        in(50, &other, on_feed_anew);
        in(600, &end, on_end);
    } else if (is("resting")) {
        put(p[1], "a");
        add_fd(on_resting);
        in(500, &end, on_end);
    } else if (is("reused")) {
        put(p[1], "ab");
        in(1, &place.timer, on_over);
        in(50, &other, on_reuse);
        in(400, &end, on_end);
    } else if (is("cleared")) {
        put(p[1], "ab");
        add_fd(on_cleared);
        in(30, &timer, on_feed);
        in(60, &other, on_clear);
        in(600, &end, on_end);
    } else if (is("killed")) {
        add_fd(on_killed);
        in(20, &other, on_lose);
        in(300, &end, on_end);
    } else if (is("fed_own")) {
        put(p[1], "a");
        add_fd(on_fed_own);
        in(600, &end, on_end);
    } else if (is("fork_freed")) {
        put(p[1], "a");
        add_fd(on_kept);
        in(50, &other, on_fork_freed);
        in(1200, &end, on_end);
    } else if (is("once")) {
        put(p[1], "a");
        ev_once(loop, p[0], EV_READ, 1.0, on_once, &loop);
        in(300, &end, on_end);
    } else if (is("direct")) {
        put(p[1], "a");
        add_fd(on_direct);
        pthread_create(&t, NULL, peer, NULL);
    } else if (is("fork")) {
        put(p[1], "a");
        add_fd(on_kept);
        in(50, &other, on_fork);
        in(1200, &end, on_end);
    }
}
