/*
 * What may happen to a libev watcher while its callback is suspended: hazards_ev CASE. Prints what happened, in order.
 * Each case says the same whether its calls are moved or not, unless the test says otherwise.
 */
// libs: -lev
#include "hazards.h"

#include <errno.h>
#include <ev.h>
#include <sys/wait.h>

static struct ev_loop *loop;
static ev_io *victim, second;
static ev_timer timer, other, end;
static ev_async async;

typedef void timer_call(struct ev_loop *l, ev_timer *w, int what);

static void in(int ms, ev_timer *t, timer_call *call)
{
    ev_now_update(loop);
    ev_timer_init(t, call, ms / 1e3, 0);
    ev_timer_start(loop, t);
}

static void add_fd(void (*call)(struct ev_loop *l, ev_io *w, int what))
{
    victim = malloc(sizeof(*victim));
    ev_io_init(victim, call, p[0], EV_READ);
    ev_io_start(loop, victim);
}

static void on_end(struct ev_loop *l, ev_timer *w, int what)
{
    say("end");
    ev_break(l, EVBREAK_ALL);
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
    rest(120);
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

/* A timer that repeats fires once for all the times in which it is suspended; not if it is stopped. */
static void on_repeat(struct ev_loop *l, ev_timer *w, int what)
{
    enter();
    fired++;
    rest(fired == 1 ? 150 : 1);
    inside--;
    if (is("repeat") && fired == 3) {
        ev_timer_stop(l, w);
        say("three");
    }
}

static void on_stop_timer(struct ev_loop *l, ev_timer *w, int what)
{
    ev_timer_stop(l, &timer);
}

static void on_count(struct ev_loop *l, ev_timer *w, int what)
{
    say(fired == 1 ? "once" : fired == 2 ? "twice" : "OFTEN");
    ev_break(l, EVBREAK_ALL);
}

/* However often it is sent to meanwhile. */
static void on_async(struct ev_loop *l, ev_async *w, int what)
{
    enter();
    fired++;
    rest(150);
    inside--;
}

static void *sender(void *arg)
{
    for (int i = 0; i < 5; i++) {
        ev_async_send(loop, &async);
        usleep(15000);
    }
    return NULL;
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

/* It may say of it what is not so: a timer that a descriptor's readiness is told of. */
static void on_fed_timer(struct ev_loop *l, ev_timer *w, int what)
{
    enter();
    say(what & EV_READ ? "fed" : "timer");
    rest(60);
    if (++fired == 3)
        ev_timer_stop(l, w);
    inside--;
}

/* What comes of it meanwhile calls the callback that it has by then. */
static void on_new(struct ev_loop *l, ev_timer *w, int what)
{
    say("new");
    if (++fired == 3)
        ev_timer_stop(l, w);
}

static void on_new_callback(struct ev_loop *l, ev_timer *w, int what)
{
    say("old");
    rest(150);
    ev_set_cb(w, on_new);
}

static void on_feed(struct ev_loop *l, ev_timer *w, int what)
{
    ev_feed_event(l, victim, EV_CUSTOM);
}

/* Called by the program itself, or all that is due: over when that returns. */
static void on_invoked(struct ev_loop *l, ev_timer *w, int what)
{
    enter();
    rest(80);
    fired++;
    inside--;
}

static ev_prepare preparer;

static void on_prepare(struct ev_loop *l, ev_timer *w, int what)
{
    ev_prepare_start(l, &preparer);
}

static void on_invoke(struct ev_loop *l, ev_prepare *w, int what)
{
    int before = fired;

    ev_invoke(l, &timer, EV_TIMER);
    say(inside || fired != before + 1 + !before ? "NOT OVER" : "over");
    ev_prepare_stop(l, w);
}

static void on_all(struct ev_loop *l)
{
    int before = fired, count = (int)ev_pending_count(l);

    ev_invoke_pending(l);
    if (count && timer.repeat == 0 && fired == before && inside)
        say("NOT OVER");
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

/* The loop returns when its callbacks are over: nothing else keeps it. */
static void on_last(struct ev_loop *l, ev_timer *w, int what)
{
    if (is("broken"))
        ev_break(l, EVBREAK_ALL);
    rest(100);
    fired++;
}

/* In a forked child the watcher is active as it was. */
static int child;

static void on_kept(struct ev_loop *l, ev_io *w, int what)
{
    if (child)
        _exit(7);
    if (fired++)
        return;
    rest(200);
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

/* A child's end interrupts a sleep: there is a handler. */
static void on_child(struct ev_loop *l, ev_timer *w, int what)
{
    struct timespec ts = {.tv_nsec = 300000000};

    if (fork() == 0) {
        usleep(40000);
        _exit(0);
    }
    say(nanosleep(&ts, NULL) < 0 && errno == EINTR ? "interrupted" : "SLEPT ON");
}

static void begin(void)
{
    pthread_t t;

    if (is("rearm")) {
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
    } else if (is("repeat") || is("repeat_stopped")) {
        ev_timer_init(&timer, on_repeat, 0.001, 0.03);
        ev_timer_start(loop, &timer);
        if (is("repeat"))
            in(600, &end, on_end);
        else
            in(90, &other, on_stop_timer), in(400, &end, on_count);
    } else if (is("async")) {
        ev_async_init(&async, on_async);
        ev_async_start(loop, &async);
        pthread_create(&t, NULL, sender, NULL);
        in(800, &end, on_count);
    } else if (is("fed")) {
        put(p[1], "a");
        add_fd(on_fed);
        in(50, &other, on_feed);
        in(600, &end, on_end);
    } else if (is("fed_own")) {
        put(p[1], "a");
        add_fd(on_fed_own);
        in(600, &end, on_end);
    } else if (is("fed_timer")) {
        ev_timer_init(&timer, on_fed_timer, 0.1, 0.1);
        ev_timer_start(loop, &timer);
        ev_feed_event(loop, &timer, EV_READ);
        in(700, &end, on_end);
    } else if (is("new_callback")) {
        ev_timer_init(&timer, on_new_callback, 0.001, 0.04);
        ev_timer_start(loop, &timer);
        in(700, &end, on_end);
    } else if (is("child")) {
        in(1, &timer, on_child);
        in(600, &end, on_end);
    } else if (is("fork_freed")) {
        put(p[1], "a");
        add_fd(on_kept);
        in(50, &other, on_fork_freed);
        in(900, &end, on_end);
    } else if (is("invoke")) {
        ev_prepare_init(&preparer, on_invoke);
        in(1, &timer, on_invoked);
        in(40, &other, on_prepare);
        in(300, &end, on_end);
    } else if (is("invoke_pending")) {
        ev_set_invoke_pending_cb(loop, on_all);
        in(1, &timer, on_invoked);
        in(300, &end, on_end);
    } else if (is("once")) {
        put(p[1], "a");
        ev_once(loop, p[0], EV_READ, 1.0, on_once, &loop);
        in(300, &end, on_end);
    } else if (is("direct")) {
        put(p[1], "a");
        add_fd(on_direct);
        pthread_create(&t, NULL, peer, NULL);
    } else if (is("last") || is("broken")) {
        in(1, &timer, on_last);
    } else if (is("fork")) {
        put(p[1], "a");
        add_fd(on_kept);
        in(50, &other, on_fork);
        in(900, &end, on_end);
    }
}

static void on_warm(struct ev_loop *l, ev_timer *w, int what)
{
    static int n;

    if (++n == WARM) {
        ev_timer_stop(l, w);
        begin();
    }
}

int main(int argc, char **argv)
{
    static ev_timer warm;

    name = argv[1];
    if (pipe(p) || socketpair(AF_UNIX, SOCK_STREAM, 0, q))
        abort();
    loop = is("child") ? ev_default_loop(0) : ev_loop_new(0);
    ev_timer_init(&warm, on_warm, 0.002, 0.002);
    ev_timer_start(loop, &warm);
    ev_run(loop, 0);
    if (child)
        _exit(9);
    if (is("last") || is("broken"))
        say(fired ? "over" : "NOT OVER");
    ev_loop_destroy(loop);
    puts(said);
    return 0;
}
