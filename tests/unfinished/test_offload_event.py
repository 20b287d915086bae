"""Offload on libevent: a ticker beside an event that blocks, and what may happen to an event whose callback is suspended.

Every case says the same as alone, or what it would say if it did not block (EXPECTED). Checked that it can fail: its case
does with each of these taken out: the muting of an event that stays added ("rearm" and "deleted" never end), its adding again
("rearm"), the held event_free ("free"), the wait of another thread ("other_thread").
"""

import json
import os
import subprocess

import helpers
import pytest
from test_offload_eager import SLOW

MOVES = ["nanosleep", "io", "persist", "unlocked", "pipe_read", "recv", "send", "flock", "waitpid", "sem_wait", "fsync",
         "connect", "getaddrinfo"]
STAYS = ["locked", "rwlocked", "handler", "nested", "context"]

PROGRAM = r"""
#include <event2/event.h>
#include <event2/thread.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static struct event_base *base;
static struct event *warm, *victim, *other;
static const char *name;
static int n, p[2], fired, inside, freed;
static char said[512];

static int is(const char *what) { return !strcmp(name, what); }
static void say(const char *what) { strcat(strcat(said, what), " "); }
static void rest(int ms) { struct timespec ts = {ms / 1000, ms % 1000 * 1000000L}; nanosleep(&ts, NULL); }
static void in(event_callback_fn cb, int ms)
{
    struct timeval tv = {ms / 1000, ms % 1000 * 1000};
    event_add(other = evtimer_new(base, cb, NULL), &tv);
}

/* Three bytes, one each time: it has to come again, one at a time, until they are read. */
static void on_rearm(int fd, short what, void *arg)
{
    char c;
    if (inside++) say("INSIDE ITSELF");
    rest(60);
    if (read(fd, &c, 1) != 1) abort();
    inside--;
    if (++fired == 3) { say("three"); event_base_loopexit(base, NULL); }
}
/* Taken out meanwhile: it does not come again. */
static void on_deleted(int fd, short what, void *arg) { fired++; rest(150); say("over"); }
static void on_delete(int fd, short what, void *arg) { event_del(victim); }
static void on_count(int fd, short what, void *arg) { say(fired == 1 ? "once" : "AGAIN"); event_base_loopbreak(base); }
/* Freed meanwhile: not before its callback is over. */
static void on_freed(int fd, short what, void *arg)
{
    rest(150);
    say(event_get_fd(victim) == fd ? "there" : "GONE");
}
static void on_free(int fd, short what, void *arg) { event_free(victim); memset(malloc(128), 0xee, 128); }
static void on_end(int fd, short what, void *arg) { say("end"); event_base_loopbreak(base); }
/* Itself: taken out, or freed, after the call. */
static void on_own(int fd, short what, void *arg) { fired++; rest(80); event_del(victim); }
static void on_own_free(int fd, short what, void *arg) { fired++; rest(80); event_free(victim); }
/* By another thread, which then uses what the callback uses. */
static char *shared;
static void on_shared(int fd, short what, void *arg)
{
    rest(200);
    say(shared ? "used" : "GONE");
    event_del(victim);
}
static void *deleter(void *arg) { usleep(80000); event_del(victim); shared = NULL; return NULL; }
/* The loop returns when callbacks are over. */
static void on_once(int fd, short what, void *arg) { rest(100); fired++; }
/* A timer that stays added. */
static void on_timer(int fd, short what, void *arg)
{
    if (inside++) say("INSIDE ITSELF");
    rest(60);
    inside--;
    if (++fired == 3) { say("timer"); event_base_loopexit(base, NULL); }
}
static void on_fork(int fd, short what, void *arg)
{
    pid_t pid = fork();
    int status;
    if (pid == 0) { event_del(victim); rest(20); _exit(said[0] ? 6 : 5); }
    while (waitpid(pid, &status, 0) < 0) ;
    say(WIFEXITED(status) && WEXITSTATUS(status) >= 5 ? "child" : "NO CHILD");
}
/* One that libevent makes for itself stays where it is. */
static void on_single(int fd, short what, void *arg) { rest(60); say("single"); event_base_loopbreak(base); }

static void add(event_callback_fn cb)
{
    victim = event_new(base, p[0], EV_READ | EV_PERSIST, cb, NULL);
    event_add(victim, NULL);
}

static void on_warm(int fd, short what, void *arg)
{
    struct timeval tv = {0, 20000}, soon = {0, 1000};
    pthread_t thread;

    if (++n < 15) return;
    event_del(warm);
    if (is("rearm")) { if (write(p[1], "abc", 3) != 3) abort(); add(on_rearm); return; }
    if (is("timer")) { event_add(victim = event_new(base, -1, EV_PERSIST, on_timer, NULL), &tv); return; }
    if (is("single")) { event_base_once(base, -1, EV_TIMEOUT, on_single, NULL, &soon); return; }
    if (write(p[1], "a", 1) != 1) abort();
    if (is("deleted")) { add(on_deleted); in(on_delete, 40); in(on_count, 400); }
    if (is("free")) { add(on_freed); in(on_free, 40); in(on_end, 400); }
    if (is("own")) { add(on_own); in(on_count, 300); }
    if (is("own_free")) { add(on_own_free); in(on_count, 300); }
    if (is("once")) add(on_once);
    if (is("fork")) { add(on_deleted); in(on_fork, 40); in(on_delete, 100); in(on_count, 400); }
    if (is("other_thread")) { shared = "x"; add(on_shared); pthread_create(&thread, NULL, deleter, NULL); in(on_end, 500); }
}

int main(int argc, char **argv)
{
    struct timeval each = {0, 2000};

    name = argv[1];
    evthread_use_pthreads();
    base = event_base_new();
    if (pipe(p)) abort();
    event_add(warm = event_new(base, -1, EV_PERSIST, on_warm, NULL), &each);
    if (is("once")) {
        while (n < 15) event_base_loop(base, EVLOOP_ONCE);
        for (int before = fired; fired == before;) { event_base_loop(base, EVLOOP_ONCE); if (fired == before) say("NOT OVER"); }
        say("over");
    } else {
        event_base_dispatch(base);
    }
    puts(said);
    event_base_free(base);
    return 0;
}
"""

HAZARDS = {"rearm": 3, "timer": 3, "deleted": 1, "free": 1, "own": 1, "own_free": 1, "once": 1, "fork": 1,
           "other_thread": 1, "single": 0}


# Alone a callback that leaves its byte comes again before anybody can stop it.
EXPECTED = {"deleted": "over once", "free": "there end", "fork": "child over once"}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("event")
    (folder / "slow.c").write_text(SLOW)
    (folder / "hazards.c").write_text(PROGRAM)
    subprocess.run(["cc", "-shared", "-fPIC", folder / "slow.c", "-o", folder / "slow.so"], check=True)
    subprocess.run(["cc", "-g", "-w", folder / "hazards.c", "-o", folder / "hazards", "-levent_core", "-levent_pthreads",
                    "-lpthread"], check=True)
    return folder


def both(tmp_path, *command, **env):
    """What the program says alone, and with its calls moved."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **env}) as alone:
        done, recording = helpers.record(tmp_path, *command, threshold="40ms", options=("--offload=eager",), timeout=60,
                                         env=helpers.clean_environment(UNBLOCK_UNFINISHED="1", **env))
        said = alone.communicate(timeout=60)[0]
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    return said, done.stdout, recording.end["offload"]["moved"]


@pytest.mark.parametrize("case", [*MOVES, *STAYS])
def test_matrix(tmp_path, built, case):
    env = {"LD_PRELOAD": str(built / "slow.so")} if case in ("fsync", "getaddrinfo") else {}
    said, moved, calls = both(tmp_path, helpers.program("offload_event"), case, "300", **env)
    alone, truth = json.loads(said), json.loads(moved)
    assert (truth["result"], truth["errno"]) == (alone["result"], alone["errno"])
    assert truth["order"].replace("tick ", "") == alone["order"]
    if case in STAYS:
        assert truth["inside"] == 0 and calls == 0
    else:
        assert calls >= 1 and truth["inside"] >= 5, truth


@pytest.mark.parametrize("case", HAZARDS)
def test_the_same_as_without(tmp_path, built, case):
    said, moved, calls = both(tmp_path, built / "hazards", case)
    expected = EXPECTED.get(case, said)
    assert sorted(moved.split()) == sorted(expected.split()) if case == "fork" else moved.split() == expected.split()
    assert calls >= HAZARDS[case]
    assert HAZARDS[case] or calls == 0


def test_only_if_asked_for(tmp_path):
    done, recording = helpers.record(tmp_path, helpers.program("offload_event"), "nanosleep", "100", threshold="40ms",
                                     options=("--offload=eager",))
    assert done.returncode == 0 and recording.end["offload"]["moved"] == 0
