"""Offload on libevent: a ticker beside an event that blocks, and what may happen to an event whose callback is suspended.
The whole of it is run by `make check-offload`, a few cases by `make check`.

Every case says the same as alone, or what it would say if it did not block (EXPECTED). Checked that it can fail: its case
does with each of these taken out: the muting of an event that stays added ("rearm" and "deleted" never end), its adding again
("rearm"), the held event_free ("free"), the wait of another thread ("other_thread").
"""

import os
import subprocess

import pytest
from offload_hosts import both, check_matrix, slow  # noqa: F401

MOVES = ["nanosleep", "io", "persist", "unlocked", "pipe_read", "recv", "send", "flock", "waitpid", "sem_wait", "fsync",
         "connect", "getaddrinfo"]
# Why it must stay: the pin of the run.
STAYS = {"locked": "lock", "rwlocked": "lock", "handler": "signal", "nested": "nested", "context": "stack"}

PROGRAM = r"""
#include <event2/buffer.h>
#include <event2/event.h>
#include <event2/event_compat.h>
#include <event2/event_struct.h>
#include <event2/http.h>
#include <event2/thread.h>
#include <arpa/inet.h>
#include <pthread.h>
#include <sys/time.h>
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
static void on_end(int fd, short what, void *arg);
static void on_once(int fd, short what, void *arg) { if (!is("once")) in(on_end, 30); rest(100); fired++; }
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
/* One that libevent makes for itself, and frees when its callback returns. */
static void on_single(int fd, short what, void *arg) { rest(60); say(arg == &base ? "single" : "GONE"); event_base_loopbreak(base); }
/* In a forked child the event is added as it was. */
static int child;
static void on_kept(int fd, short what, void *arg)
{
    if (child) _exit(7);
    if (fired++) return;
    rest(150);
    say("kept");
}
static void on_kept_end(int fd, short what, void *arg) { if (child) _exit(8); event_base_loopbreak(base); }
static void on_fork_loop(int fd, short what, void *arg)
{
    int status;
    pid_t pid = fork();
    if (pid == 0) { child = 1; event_reinit(base); return; }
    while (waitpid(pid, &status, 0) < 0) ;
    say(WEXITSTATUS(status) == 7 ? "there" : "NOT THERE");
    event_del(victim);
}
/* Its time goes on, and is as long as ever the next time. */
static int rest_ms(void)
{
    struct timeval now, until = {0, 0};
    gettimeofday(&now, NULL);
    if (!(event_pending(victim, EV_TIMEOUT, &until) & EV_TIMEOUT)) return -1;
    return (until.tv_sec - now.tv_sec) * 1000 + (until.tv_usec - now.tv_usec) / 1000;
}
static void on_timed(int fd, short what, void *arg)
{
    char c, text[64];
    say(what & EV_TIMEOUT ? "timeout" : "read");
    if (what & EV_READ && read(fd, &c, 1) != 1) abort();
    sprintf(text, "%ld", (long)victim->ev_.ev_io.ev_timeout.tv_usec / 1000);
    say(text);
    if (fired++ == 0) {
        rest(100);
        say(event_pending(victim, EV_READ, NULL) & EV_READ ? "pending" : "NOT PENDING");
        say(rest_ms() <= 110 ? "soon" : "LATE");
    } else if (fired == 3) {
        event_base_loopbreak(base);
    }
}
/* What is there, while it is suspended. */
static int counted;
static int count_one(const struct event_base *b, const struct event *e, void *data)
{
    counted++;
    return 0;
}
static void on_seen(int fd, short what, void *arg)
{
    char c;
    if (read(fd, &c, 1) != 1) abort();
    rest(150);
    say(event_base_get_running_event(base) == victim ? "running" : "OTHER RUNS");
}
static void on_look(int fd, short what, void *arg)
{
    char text[64];
    event_base_foreach_event(base, count_one, NULL);
    sprintf(text, "%d %d", event_base_get_num_events(base, EVENT_BASE_COUNT_ADDED), counted);
    said[sizeof(said) / 2] = 0;
    strcpy(said + sizeof(said) / 2, text);
    in(on_end, 300);
}
/* In the program's own memory: made anew, or gone. */
static struct event own;
static void on_anew(int fd, short what, void *arg) { say(inside ? "INSIDE" : "anew"); event_base_loopbreak(base); }
static void on_assigned(int fd, short what, void *arg) { inside++; rest(120); inside--; }
static void on_assign(int fd, short what, void *arg)
{
    struct timeval tv = {0, 10000};
    event_del(&own);
    event_assign(&own, base, -1, 0, on_anew, NULL);
    event_add(&own, &tv);
}
static struct event *mine;
static void wipe(void) { memset(mine, 0xee, sizeof(*mine)); free(mine); }
static void on_wiped(int fd, short what, void *arg) { rest(120); say("wiped"); }
static void on_wipe(int fd, short what, void *arg) { wipe(); }
static void on_own_wipe(int fd, short what, void *arg) { event_del(mine); wipe(); rest(120); say("own wiped"); }
static void add_mine(event_callback_fn cb, short kinds)
{
    struct timeval tv = {0, 1000};
    event_assign(mine = malloc(sizeof(*mine)), base, kinds & EV_READ ? p[0] : -1, kinds, cb, NULL);
    event_add(mine, kinds & EV_READ ? NULL : &tv);
}
/* In a forked child it is taken out and its memory used for something else. */
static void on_untouched(int fd, short what, void *arg)
{
    for (unsigned i = 0; i < sizeof(*mine); i++) if (((unsigned char *)mine)[i] != 0xee) _exit(8);
    _exit(7);
}
static void on_fork_freed(int fd, short what, void *arg)
{
    int status;
    pid_t pid = fork();
    if (pid == 0) { alarm(5); event_reinit(base); event_del(mine); memset(mine, 0xee, sizeof(*mine)); in(on_untouched, 300); return; }
    while (waitpid(pid, &status, 0) < 0) ;
    say(WIFEXITED(status) && WEXITSTATUS(status) == 7 ? "untouched" : "WRITTEN");
    event_del(mine);
}
/* Added again by another callback, while its byte is not read yet: it is no more when that is done. */
static void on_oneshot(int fd, short what, void *arg)
{
    char c;
    if (fired++) { say("AGAIN"); return; }
    rest(120);
    if (read(fd, &c, 1) != 1) abort();
}
static void on_readd(int fd, short what, void *arg) { event_add(victim, NULL); }
/* Activated by the program: once more, when it is over. */
static void on_activated(int fd, short what, void *arg) { if (inside++) say("INSIDE ITSELF"); rest(fired++ ? 1 : 120); inside--; }
static void on_activate(int fd, short what, void *arg) { event_active(victim, EV_READ, 1); }
static void on_twice(int fd, short what, void *arg) { say(fired == 2 ? "twice" : "NOT TWICE"); event_base_loopbreak(base); }
/* More important events keep the loop busy. */
static int busy, ended;
static void on_busy(int fd, short what, void *arg) { struct timeval now = {0, 0}; rest(1); if (++busy < 400) event_add(other, &now); else ended = 1; }
static void on_meek(int fd, short what, void *arg)
{
    struct timeval now = {0, 0};
    event_priority_set(other = evtimer_new(base, on_busy, NULL), 0);
    event_add(other, &now);
    rest(100);
    say(ended ? "AFTER" : "before");
}
/* A callback goes on to what another event will be told of: that one has to wait. */
static int q[2];
static struct event *second;
static void on_second(int fd, short what, void *arg) { char c; say(inside ? "TWO AT ONCE" : "ready"); if (read(fd, &c, 1) != 1) abort(); event_del(second); event_base_loopbreak(base); }
static void on_direct(int fd, short what, void *arg)
{
    char c;
    inside++;
    event_add(second = event_new(base, q[0], EV_READ | EV_PERSIST, on_second, NULL), NULL);
    for (int i = 0; i < 3; i++) if (read(q[0], &c, 1) != 1) abort();
    inside--;
    event_del(victim);
    say("read");
}
static void *feeder(void *arg) { for (int i = 0; i < 4; i++) { usleep(80000); if (write(q[1], "x", 1) != 1) abort(); } return NULL; }
/* A request: its client goes, it is answered before it is over, its server is freed. */
static struct evhttp *http;
static int port, answered;
static void on_free_http(int fd, short what, void *arg) { evhttp_free(http); say("freed"); }
static void on_request(struct evhttp_request *req, void *arg)
{
    const char *uri = evhttp_request_get_uri(req);
    say("request");
    if (is("http_free")) in(on_free_http, 40);
    if (is("http_answered")) evhttp_send_reply(req, 200, "OK", NULL);
    rest(150);
    say(evhttp_request_get_connection(req) ? "connection" : "LOST");
    say(evhttp_request_get_uri(req) == uri ? uri : "GONE");
    if (!is("http_answered")) evhttp_send_reply(req, 200, "OK", NULL);
}
static void *client(void *arg)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    const char *get = "GET /x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    char text[1024];
    int s = socket(AF_INET, SOCK_STREAM, 0), got = 0, r;
    if (connect(s, (void *)&at, sizeof(at)) || write(s, get, strlen(get)) != (int)strlen(get)) abort();
    if (!is("http_gone")) while ((r = read(s, text, sizeof(text))) > 0) got += r;
    else usleep(50000);
    close(s);
    answered = got > 0;
    return NULL;
}

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
    if (is("single")) { event_base_once(base, -1, EV_TIMEOUT, on_single, &base, &soon); return; }
    if (is("priority")) { in(on_end, 800); event_priority_set(victim = evtimer_new(base, on_meek, NULL), 1); event_add(victim, &soon); return; }
    if (is("assigned")) { event_assign(&own, base, -1, EV_PERSIST, on_assigned, NULL); event_add(&own, &soon); in(on_assign, 60); return; }
    if (is("wiped")) { add_mine(on_wiped, 0); in(on_wipe, 60); in(on_end, 300); return; }
    if (is("direct")) { if (pipe(q) || write(p[1], "a", 1) != 1) abort(); pthread_create(&thread, NULL, feeder, NULL); add(on_direct); return; }
    if (!strncmp(name, "http", 4)) {
        struct evhttp_bound_socket *bound;
        struct sockaddr_in at;
        socklen_t len = sizeof(at);
        http = evhttp_new(base);
        evhttp_set_gencb(http, on_request, NULL);
        bound = evhttp_bind_socket_with_handle(http, "127.0.0.1", 0);
        getsockname(evhttp_bound_socket_get_fd(bound), (void *)&at, &len);
        port = ntohs(at.sin_port);
        pthread_create(&thread, NULL, client, NULL);
        in(on_end, 500);
        return;
    }
    if (write(p[1], "a", 1) != 1) abort();
    if (is("deleted")) { add(on_deleted); in(on_delete, 40); in(on_count, 400); }
    if (is("free")) { add(on_freed); in(on_free, 40); in(on_end, 400); }
    if (is("own")) { add(on_own); in(on_count, 300); }
    if (is("own_free")) { add(on_own_free); in(on_count, 300); }
    if (is("once") || is("dispatch") || is("loop")) add(on_once);
    if (is("fork_loop")) { add(on_kept); in(on_fork_loop, 40); in(on_kept_end, 1200); }
    if (is("fork_freed")) { add_mine(on_kept, EV_READ | EV_PERSIST); in(on_fork_freed, 40); in(on_kept_end, 1200); }
    if (is("timed")) { struct timeval each = {0, 200000}; event_add(victim = event_new(base, p[0], EV_READ | EV_PERSIST, on_timed, NULL), &each); }
    if (is("look")) { add(on_seen); in(on_look, 60); }
    if (is("own_wiped")) { add_mine(on_own_wipe, EV_READ | EV_PERSIST); in(on_end, 300); }
    if (is("oneshot")) { event_add(victim = event_new(base, p[0], EV_READ, on_oneshot, NULL), NULL); in(on_readd, 60); in(on_count, 300); }
    if (is("activated")) { event_add(victim = event_new(base, p[0], EV_READ, on_activated, NULL), NULL); in(on_activate, 60); in(on_twice, 400); }
    if (is("fork")) { add(on_deleted); in(on_fork, 40); in(on_delete, 100); in(on_count, 400); }
    if (is("other_thread")) { shared = "x"; add(on_shared); pthread_create(&thread, NULL, deleter, NULL); in(on_end, 500); }
}

int main(int argc, char **argv)
{
    struct timeval each = {0, 2000};

    name = argv[1];
    evthread_use_pthreads();
    base = is("dispatch") || is("loop") ? event_init() : event_base_new();
    if (is("priority")) event_base_priority_init(base, 3);
    if (pipe(p)) abort();
    event_add(warm = event_new(base, -1, EV_PERSIST, on_warm, NULL), &each);
    if (is("once")) {
        while (n < 15) event_base_loop(base, EVLOOP_ONCE);
        for (int before = fired; fired == before;) { event_base_loop(base, EVLOOP_ONCE); if (fired == before) say("NOT OVER"); }
        say("over");
    } else if (is("dispatch") || is("loop")) {
        if (is("loop")) { while (n < 15) event_loop(EVLOOP_ONCE); event_loop(0); } else event_dispatch();
        say(fired ? "over" : "NOT OVER");
    } else {
        event_base_dispatch(base);
    }
    puts(said);
    if (said[sizeof(said) / 2]) puts(said + sizeof(said) / 2);
    if (!strncmp(name, "http", 4) && !is("http_free")) puts(answered ? "answered" : "not answered");
    event_base_free(base);
    return 0;
}
"""

HAZARDS = {"rearm": 3, "timer": 3, "deleted": 1, "free": 1, "own": 1, "own_free": 1, "once": 1, "fork": 1,
           "other_thread": 1, "single": 1, "dispatch": 1, "loop": 1, "fork_loop": 1, "timed": 1, "look": 1, "assigned": 1,
           "wiped": 1, "own_wiped": 1, "oneshot": 1, "activated": 1, "priority": 1, "direct": 1, "http": 1, "http_gone": 1,
           "http_answered": 1, "http_free": 1, "fork_freed": 1}

# What `make check` has no time for is run by `make check-offload`.
if not os.environ.get("UNBLOCK_SOAK"):
    MOVES, STAYS = ["nanosleep", "persist"], {}
    HAZARDS = {case: HAZARDS[case] for case in ("rearm", "dispatch", "direct", "http_gone")}


# Alone a callback that leaves its byte comes again before anybody can stop it.
EXPECTED = {"deleted": "over once", "free": "there end", "fork": "child over once"}
# What callbacks run in between is what offload changes: the order of words may differ, the words may not.
FREE = {"fork", "fork_loop", "fork_freed", "dispatch", "loop"}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("event")
    (folder / "hazards.c").write_text(PROGRAM)
    subprocess.run(["cc", "-g", "-w", folder / "hazards.c", "-o", folder / "hazards", "-levent", "-levent_pthreads",
                    "-lpthread"], check=True)
    return folder


@pytest.mark.parametrize("case", [*MOVES, *STAYS])
def test_matrix(tmp_path, request, case):
    check_matrix(tmp_path, request, "offload_event", case, STAYS.get(case))


@pytest.mark.parametrize("case", HAZARDS)
def test_the_same_as_without(tmp_path, built, case):
    said, moved, recording = both(tmp_path, built / "hazards", case)
    expected = EXPECTED.get(case, said)
    assert sorted(moved.split()) == sorted(expected.split()) if case in FREE else moved.split() == expected.split()
    assert recording.end["offload"]["moved"] >= HAZARDS[case]
