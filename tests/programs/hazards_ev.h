/* What the programs of libev's hazards share: the loop, its end, how a case begins. */
#ifndef HAZARDS_EV_H
#define HAZARDS_EV_H

#include "hazards.h"

#include <errno.h>
#include <ev.h>
#include <sys/wait.h>

static struct ev_loop *loop;
static ev_timer timer, other, end;
static int child; /* a forked one */

typedef void timer_call(struct ev_loop *l, ev_timer *w, int what);

static void in(int ms, ev_timer *t, timer_call *call)
{
    ev_now_update(loop);
    ev_timer_init(t, call, ms / 1e3, 0);
    ev_timer_start(loop, t);
}

static void on_end(struct ev_loop *l, ev_timer *w, int what)
{
    say("end");
    ev_break(l, EVBREAK_ALL);
}

/* The case's. */
static void begin(void);

static void on_warm(struct ev_loop *l, ev_timer *w, int what)
{
    static int n;

    if (++n == WARM) {
        ev_timer_stop(l, w);
        begin();
    }
}

static void on_never(struct ev_loop *l, ev_io *w, int what)
{
    say("NEVER");
}

static unsigned backend(void)
{
    return is("killed") || is("rearm_select") ? EVBACKEND_SELECT : is("rearm_poll") ? EVBACKEND_POLL : 0;
}

int main(int argc, char **argv)
{
    static ev_timer warm;
    static ev_io never;

    name = argv[1];
    if (pipe(p) || socketpair(AF_UNIX, SOCK_STREAM, 0, q))
        abort();
    loop = is("child") || is("child_stopped") ? ev_default_loop(0) : ev_loop_new(backend());
    if (backend()) { /* what polls or selects one descriptor is no loop */
        ev_io_init(&never, on_never, q[0], EV_READ);
        ev_io_start(loop, &never);
    }
    ev_timer_init(&warm, on_warm, 0.002, 0.002);
    ev_timer_start(loop, &warm);
    ev_run(loop, 0);
    if (child)
        _exit(9);
    if (is("last") || is("broken"))
        say(fired ? "over" : "NOT OVER");
    ev_loop_destroy(loop);
    if (is("cleanup"))
        say(fired ? "over" : "NOT OVER");
    puts(said);
    return 0;
}

#endif
