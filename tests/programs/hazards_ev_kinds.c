/*
 * What may happen to libev's other watchers (hazards_ev.c has those of descriptors), and to the loop, while a callback
 * is suspended: hazards_ev_kinds CASE. As hazards_ev.c.
 */
// libs: -lev
#include "hazards_ev.h"

#include <signal.h>
#include <stdbool.h>

static ev_timer more[2];
static ev_periodic periodic;
static ev_async async;
static ev_signal sig;
static ev_prepare preparer;
static ev_cleanup cleaner;

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

static void on_change(struct ev_loop *l, ev_timer *w, int what)
{
    if (is("repeat_stopped"))
        ev_timer_stop(l, &timer);
    if (is("repeat_again")) {
        timer.repeat = 10;
        ev_timer_again(l, &timer);
    }
    if (is("once_more"))
        ev_timer_start(l, &timer);
    if (is("periodic_stopped"))
        ev_periodic_stop(l, &periodic);
    if (is("periodic_again")) {
        periodic.interval = 1e6;
        ev_periodic_again(l, &periodic);
    }
    if (is("async_stopped"))
        ev_async_stop(l, &async);
    if (is("signal_stopped"))
        ev_signal_stop(l, &sig);
}

static void on_count(struct ev_loop *l, ev_timer *w, int what)
{
    say(fired == 1 ? "once" : fired == 2 ? "twice" : "often");
    ev_break(l, EVBREAK_ALL);
}

static void on_periodic(struct ev_loop *l, ev_periodic *w, int what)
{
    enter();
    rest(fired++ ? 1 : 150);
    inside--;
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

/* Called by the program itself, or all that is due: over when that returns. */
static void on_invoked(struct ev_loop *l, ev_timer *w, int what)
{
    enter();
    rest(80);
    fired++;
    inside--;
}

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

/* The loop returns when its callbacks are over: nothing else keeps it. */
static void on_last(struct ev_loop *l, ev_timer *w, int what)
{
    if (is("broken"))
        ev_break(l, EVBREAK_ALL);
    rest(100);
    fired++;
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

static pid_t stopped;

/* It is waited for until its end, however long it is stopped before. */
static void on_stopped(struct ev_loop *l, ev_timer *w, int what)
{
    int status = 0;
    pid_t pid;

    stopped = fork();
    if (stopped == 0) {
        if (fork() == 0) {
            rest(400);
            kill(getppid(), SIGCONT);
            _exit(0);
        }
        rest(50);
        raise(SIGSTOP);
        _exit(3);
    }
    pid = waitpid(stopped, &status, 0);
    say(pid == stopped && WIFEXITED(status) && WEXITSTATUS(status) == 3 ? "over" : "NOT OVER");
}

static void on_look(struct ev_loop *l, ev_timer *w, int what)
{
    char path[32], text[64] = "";
    FILE *f;

    snprintf(path, sizeof(path), "/proc/%d/stat", stopped);
    f = fopen(path, "r");
    if (f && fgets(text, sizeof(text), f) && strstr(text, ") T"))
        say("stopped");
    if (f)
        fclose(f);
}

/* There is a handler, so it may not sleep; it comes once for all that come meanwhile. */
static void on_signal(struct ev_loop *l, ev_signal *w, int what)
{
    enter();
    get(p[0]);
    fired++;
    inside--;
}

static void on_kill(struct ev_loop *l, ev_timer *w, int what)
{
    kill(getpid(), SIGUSR2);
}

static void *giver(void *arg)
{
    usleep(150000);
    put(p[1], "ab");
    return arg;
}

/* What has begun goes on before more important ones that have not. */
static void on_sleep(struct ev_loop *l, ev_timer *w, int what)
{
    rest(100);
    say("begun");
}

static void on_compute(struct ev_loop *l, ev_timer *w, int what)
{
    for (long until = cpu_us() + 60000; cpu_us() < until;)
        ;
    say("computed");
}

static void on_important(struct ev_loop *l, ev_timer *w, int what)
{
    say("important");
}

/* A loop inside a callback: what began before is over by then; afterwards the outer one goes on as before. */
static void on_before(struct ev_loop *l, ev_timer *w, int what)
{
    rest(100);
    fired++;
    say("before");
}

static void on_turn(struct ev_loop *l, ev_timer *w, int what)
{
    say(fired ? "after" : "TOO EARLY");
}

static void on_inner(struct ev_loop *l, ev_timer *w, int what)
{
    struct ev_loop *own = ev_loop_new(0);
    ev_timer t;

    ev_timer_init(&t, on_turn, 0, 0);
    ev_timer_start(own, &t);
    ev_run(own, 0);
    ev_loop_destroy(own);
}

/* What is done goes on at once, not at the next heartbeat: that would take twice the time. */
static void on_asking(struct ev_loop *l, ev_timer *w, int what)
{
    ask_and_wait();
    say("prompt");
}

/* The program closes all that it does not know. */
static void on_close(struct ev_loop *l, ev_timer *w, int what)
{
    if (close_range(64, ~0u, 0))
        abort();
}

/* Called by what destroys the loop. */
static void on_cleanup(struct ev_loop *l, ev_cleanup *w, int what)
{
    rest(60);
    fired++;
}

static void start_timer(timer_call *call, double after, double repeat)
{
    ev_timer_init(&timer, call, after, repeat);
    ev_timer_start(loop, &timer);
}

static bool starts(const char *with)
{
    return !strncmp(name, with, strlen(with));
}

static void begin_kind(void)
{
    pthread_t t;

    if (is("once_more")) {
        start_timer(on_repeat, 0.001, 0);
    } else if (starts("repeat")) {
        start_timer(on_repeat, 0.001, 0.03);
    } else if (starts("periodic")) {
        ev_periodic_init(&periodic, on_periodic, ev_now(loop) + 0.001, is("periodic") ? 0.2 : 0.03, NULL);
        ev_periodic_start(loop, &periodic);
    } else if (starts("async")) {
        ev_async_init(&async, on_async);
        ev_async_start(loop, &async);
        pthread_create(&t, NULL, sender, NULL);
    } else if (starts("signal")) {
        ev_signal_init(&sig, on_signal, SIGUSR2);
        ev_signal_start(loop, &sig);
        kill(getpid(), SIGUSR2);
        in(30, &more[0], on_kill);
        in(60, &more[1], on_kill);
        pthread_create(&t, NULL, giver, NULL);
    }
    if (!is("repeat"))
        in(90, &other, on_change);
    in(is("repeat") ? 600 : 450, &end, is("repeat") ? on_end : on_count);
}

static void begin(void)
{
    pthread_t t;

    if (is("fed_timer")) {
        start_timer(on_fed_timer, 0.1, 0.1);
        ev_feed_event(loop, &timer, EV_READ);
        in(700, &end, on_end);
    } else if (is("new_callback")) {
        start_timer(on_new_callback, 0.001, 0.04);
        in(700, &end, on_end);
    } else if (is("child")) {
        in(1, &timer, on_child);
        in(600, &end, on_end);
    } else if (is("child_stopped")) {
        in(1, &timer, on_stopped);
        in(200, &other, on_look);
        in(700, &end, on_end);
    } else if (is("invoke")) {
        ev_prepare_init(&preparer, on_invoke);
        in(1, &timer, on_invoked);
        in(40, &other, on_prepare);
        in(300, &end, on_end);
    } else if (is("invoke_pending")) {
        ev_set_invoke_pending_cb(loop, on_all);
        in(1, &timer, on_invoked);
        in(300, &end, on_end);
    } else if (is("last") || is("broken")) {
        in(1, &timer, on_last);
    } else if (is("important")) {
        in(1, &timer, on_sleep);
        in(70, &other, on_compute);
        in(120, &more[0], on_important);
        ev_timer_stop(loop, &more[0]);
        ev_set_priority(&more[0], 1);
        ev_timer_start(loop, &more[0]);
        in(400, &end, on_end);
    } else if (is("inner")) {
        in(1, &timer, on_before);
        in(40, &other, on_inner);
        in(250, &more[0], on_sleep);
        in(500, &end, on_end);
    } else if (is("closed")) {
        in(1, &timer, on_sleep);
        in(40, &other, on_close);
        in(400, &end, on_end);
    } else if (is("prompt")) {
        in(1, &timer, on_asking);
        pthread_create(&t, NULL, answerer, NULL);
        in(660, &end, on_end);
    } else if (is("cleanup")) {
        ev_cleanup_init(&cleaner, on_cleanup);
        ev_cleanup_start(loop, &cleaner);
    } else {
        begin_kind();
    }
}
