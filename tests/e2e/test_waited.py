"""What a stall kept waiting: descriptors that were ready and timers that were due when the loop came round.

In each program a timer of 2 ms runs until, in its 50th call, it makes some pipes readable and sleeps for 60 ms;
other timers become due meanwhile. Checked that it can fail: without the record of agent/after.c nothing is told;
with callbacks counted however long the loop slept before them, the later ones count as delayed, too.
"""

import json
import subprocess

import pytest

import helpers
import oracle

PIPES, TIMERS = 3, 4
COMMON = r"""
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#define PIPES 3
#define TIMERS 4
static int pipes[PIPES][2], calls, served, timed;
static void make_pipes(void) { for (int i = 0; i < PIPES; i++) if (pipe(pipes[i])) _exit(1); }
static void serve(int fd) { char c; served += read(fd, &c, 1) == 1; }
/* True: now it ends. */
__attribute__((noinline)) static int on_tick(int waiting)
{
    if (++calls == 50) {
        for (int i = 0; waiting && i < PIPES; i++)
            if (write(pipes[i][1], "x", 1) != 1) _exit(1);
        nanosleep(&(struct timespec){0, 60000000}, NULL);
    }
    return calls == 120;
}
static int said(void) { printf("{\"served\": %d, \"timed\": %d}\n", served, timed); return 0; }
"""
PROGRAMS = {
    "libuv": ("-luv", r"""
#include <uv.h>
static uv_timer_t other[TIMERS];
static uv_poll_t poll_of[PIPES];
static int waiting;
static void on_other(uv_timer_t *t) { timed++; }
static void on_poll(uv_poll_t *p, int status, int events) { serve(pipes[(int)(p - poll_of)][0]); }
static void tick(uv_timer_t *t)
{
    for (int i = 0; waiting && calls == 48 && i < TIMERS; i++)
        uv_timer_start(&other[i], on_other, 20 + i, 0);
    if (on_tick(waiting))
        uv_stop(t->loop);
}
int main(int argc, char **argv)
{
    uv_timer_t t;
    waiting = argc > 1;
    make_pipes();
    uv_timer_init(uv_default_loop(), &t);
    for (int i = 0; i < TIMERS; i++) uv_timer_init(uv_default_loop(), &other[i]);
    for (int i = 0; i < PIPES; i++) {
        uv_poll_init(uv_default_loop(), &poll_of[i], pipes[i][0]);
        uv_poll_start(&poll_of[i], UV_READABLE, on_poll);
    }
    uv_timer_start(&t, tick, 2, 2);
    uv_run(uv_default_loop(), UV_RUN_DEFAULT);
    return said();
}
"""),
    "libevent": ("-levent", r"""
#include <event2/event.h>
static struct event_base *base;
static struct event *other[TIMERS];
static int waiting;
static void on_other(int fd, short what, void *data) { timed++; }
static void on_pipe(int fd, short what, void *data) { serve(fd); }
static void tick(int fd, short what, void *data)
{
    for (int i = 0; waiting && calls == 48 && i < TIMERS; i++)
        event_add(other[i], &(struct timeval){0, 20000 + i * 1000});
    if (on_tick(waiting))
        event_base_loopbreak(base);
}
int main(int argc, char **argv)
{
    waiting = argc > 1;
    make_pipes();
    base = event_base_new();
    for (int i = 0; i < TIMERS; i++) other[i] = evtimer_new(base, on_other, &other[i]);
    for (int i = 0; i < PIPES; i++)
        event_add(event_new(base, pipes[i][0], EV_READ | EV_PERSIST, on_pipe, NULL), NULL);
    event_add(event_new(base, -1, EV_PERSIST, tick, NULL), &(struct timeval){0, 2000});
    event_base_dispatch(base);
    return said();
}
"""),
    "libev": ("-lev", r"""
#include <ev.h>
static ev_timer other[TIMERS];
static ev_io io[PIPES];
static int waiting;
static void on_other(struct ev_loop *l, ev_timer *t, int e) { timed++; }
static void on_pipe(struct ev_loop *l, ev_io *w, int e) { serve(w->fd); }
static void tick(struct ev_loop *l, ev_timer *t, int e)
{
    for (int i = 0; waiting && calls == 48 && i < TIMERS; i++) {
        ev_timer_init(&other[i], on_other, 0.02 + i * 0.001, 0);
        ev_timer_start(l, &other[i]);
    }
    if (on_tick(waiting))
        ev_break(l, EVBREAK_ALL);
}
int main(int argc, char **argv)
{
    ev_timer t;
    waiting = argc > 1;
    make_pipes();
    for (int i = 0; i < PIPES; i++) {
        ev_io_init(&io[i], on_pipe, pipes[i][0], EV_READ);
        ev_io_start(EV_DEFAULT_ & io[i]);
    }
    ev_timer_init(&t, tick, 0.002, 0.002);
    ev_timer_start(EV_DEFAULT_ & t);
    ev_run(EV_DEFAULT_ 0);
    return said();
}
"""),
    "glib": ("$(pkg-config --cflags --libs glib-2.0)", r"""
#include <glib.h>
#include <glib-unix.h>
static GMainLoop *loop;
static int waiting;
static gboolean on_other(gpointer p) { timed++; return FALSE; }
static gboolean on_pipe(int fd, GIOCondition c, gpointer p) { serve(fd); return TRUE; }
static gboolean tick(gpointer p)
{
    for (int i = 0; waiting && calls == 48 && i < TIMERS; i++)
        g_timeout_add(20 + i, on_other, NULL);
    if (on_tick(waiting))
        g_main_loop_quit(loop);
    return TRUE;
}
int main(int argc, char **argv)
{
    waiting = argc > 1;
    make_pipes();
    loop = g_main_loop_new(NULL, FALSE);
    for (int i = 0; i < PIPES; i++) g_unix_fd_add(pipes[i][0], G_IO_IN, on_pipe, NULL);
    g_timeout_add(2, tick, NULL);
    g_main_loop_run(loop);
    return said();
}
"""),
    "sd-event": ("-lsystemd", r"""
#include <systemd/sd-event.h>
static sd_event *event;
static int waiting;
static int on_other(sd_event_source *s, uint64_t usec, void *p) { timed++; return 0; }
static int on_pipe(sd_event_source *s, int fd, uint32_t events, void *p) { serve(fd); return 0; }
static int tick(sd_event_source *s, uint64_t usec, void *p)
{
    for (int i = 0; waiting && calls == 48 && i < TIMERS; i++)
        sd_event_add_time_relative(event, NULL, CLOCK_MONOTONIC, 20000 + i * 1000, 100, on_other, NULL);
    if (on_tick(waiting))
        return sd_event_exit(event, 0);
    sd_event_source_set_time_relative(s, 2000); /* from when the loop last looked at the clock */
    if (calls == 50 && !waiting) { /* both run later than the stall was over, and nothing has made them late */
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        uint64_t now = t.tv_sec * 1000000ull + t.tv_nsec / 1000;
        sd_event_add_time(event, NULL, CLOCK_MONOTONIC, now + 2000, 100, on_other, NULL);
        sd_event_source_set_time(s, now + 6000);
    }
    return sd_event_source_set_enabled(s, SD_EVENT_ONESHOT);
}
int main(int argc, char **argv)
{
    waiting = argc > 1;
    make_pipes();
    sd_event_default(&event);
    for (int i = 0; i < PIPES; i++) sd_event_add_io(event, NULL, pipes[i][0], 1, on_pipe, NULL);
    sd_event_add_time_relative(event, NULL, CLOCK_MONOTONIC, 2000, 100, tick, NULL);
    sd_event_loop(event);
    return said();
}
"""),
    "turn": ("", r"""
#include <sys/epoll.h>
#include <sys/timerfd.h>
int main(int argc, char **argv)
{
    struct epoll_event got[8];
    int ep = epoll_create1(0), t = timerfd_create(CLOCK_MONOTONIC, 0), waiting = argc > 1, over = 0;
    make_pipes();
    for (int i = 0; i <= PIPES; i++) {
        struct epoll_event e = {.events = EPOLLIN, .data.fd = i < PIPES ? pipes[i][0] : t};
        epoll_ctl(ep, EPOLL_CTL_ADD, e.data.fd, &e);
    }
    timerfd_settime(t, 0, &(struct itimerspec){{0, 2000000}, {0, 2000000}}, NULL);
    while (!over) {
        int n = epoll_wait(ep, got, 8, -1);
        for (int i = 0; i < n; i++) {
            char buf[8];
            if (got[i].data.fd != t) serve(got[i].data.fd);
            else if (read(t, buf, 8) == 8) over = on_tick(waiting);
        }
    }
    return said();
}
"""),
}


def run(tmp_path, library, *args):
    libs, source = PROGRAMS[library]
    (tmp_path / "waited.c").write_text(COMMON + source)
    subprocess.run(f"cc -D_GNU_SOURCE -O1 -g -o {tmp_path}/waited {tmp_path}/waited.c {libs}", shell=True, check=True)
    with oracle.Sentinel() as sentinel:
        done, recording = helpers.record(tmp_path, tmp_path / "waited", *args, threshold="20ms")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said == ({"served": PIPES, "timed": TIMERS if library != "turn" else 0} if args else
                    {"served": 0, "timed": int(library == "sd-event")})
    slow = [s for s in recording.slow if s["duration_ns"] > 55_000_000]
    assert len(slow) == 1 and slow[0]["loop"] == library, recording.slow
    over = slow[0]["start_ns"] + slow[0]["duration_ns"]
    if sentinel.busy(over - 1_000_000, over + 20_000_000):
        pytest.skip("the machine starved the program when its stall was just over")
    return slow[0]


def check_delays(tmp_path, library, slow, waiting):
    """`stats` has the same by kind of callback: those that the stall made late, and the report shows them."""
    recording = helpers.Recording(tmp_path / "r0.jsonl")
    kinds = recording.of("stats")[-1].get("kinds", {})
    if library == "turn":
        assert not kinds
        return
    if len(recording.slow) > 1:
        pytest.skip("the machine made a stall of its own, which has victims, too")
    late = {name: kind["delayed"] for name, kind in kinds.items() if "delayed" in kind}
    assert {name: d["callbacks"] for name, d in late.items()} == {"timer": TIMERS, "io": PIPES}, kinds
    for d in late.values():
        assert slow["duration_ns"] <= d["max_ns"] <= waiting["delay_ns"] + 10_000_000, (d, slow)
        assert d["callbacks"] * slow["duration_ns"] <= d["total_ns"] <= d["callbacks"] * d["max_ns"]
        assert sum(n for _, n in d["histogram"]) == d["callbacks"]
    rows = [line for line in helpers.unblock("report", tmp_path / "r0.jsonl").stdout.splitlines()]
    head = next(i for i, line in enumerate(rows) if line.startswith("callbacks "))
    told = [line.split() for line in rows[head + 1:head + 3]]
    for name, count in (("timer", TIMERS), ("io", PIPES)):
        words = next(w for w in told if name in w)
        # ... count, time, p50, p99, max (a number and a unit each); delayed, p50, max
        assert words[-5] == str(count) and words[-1] == "ms", words
    report = json.loads(helpers.unblock("report", "--format", "json", tmp_path / "r0.jsonl").stdout)
    assert report["loops"][0]["kinds"]["io"]["delayed"]["callbacks"] == PIPES, report["loops"]


@pytest.mark.parametrize("library", PROGRAMS)
def test_what_waited(tmp_path, library):
    slow = run(tmp_path, library, "waiting")
    waiting = slow["waiting"]
    # sd-event and the bare loop have their timers in descriptors; a bare loop's are not known to be timers.
    assert waiting["became_ready"] == PIPES + (library in ("sd-event", "turn")), waiting
    assert waiting.get("timers") == (None if library == "turn" else TIMERS), waiting
    # The timers were due 16 ms after the stall's beginning at the earliest; all waited for its end at the most.
    assert slow["duration_ns"] <= waiting["delay_ns"] <= slow["duration_ns"] + 10_000_000, slow
    check_delays(tmp_path, library, slow, waiting)
    text = helpers.unblock("report", tmp_path / "r0.jsonl").stdout
    assert f"{waiting['became_ready']} descriptors" in text and "waited, up to 6" in text, text
    assert library == "turn" or f"{TIMERS} timers" in text, text
    assert library == "turn" or f"  {library} timer tick()\n" in text, text  # the call site's last line


@pytest.mark.parametrize("library", ["libuv", "glib", "sd-event"])
def test_nothing_waited(tmp_path, library):
    """But for the timer itself, which is late (libuv, GLib); with sd-event not even that, and the loop sleeps first."""
    slow = run(tmp_path, library)
    kinds = helpers.Recording(tmp_path / "r0.jsonl").of("stats")[-1]["kinds"]
    assert not any("delayed" in kind for kind in kinds.values()), kinds
    assert slow["waiting"].get("became_ready", 0) == 0 and slow["waiting"].get("timers", 0) == 0, slow
    assert "delay_ns" not in slow["waiting"], slow
