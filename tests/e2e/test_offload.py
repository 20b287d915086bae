"""Offload, the dry run: nothing moves, and each slow call is told what would become of it, or what keeps it.

programs/offload_uv.c has one callback that blocks in one way. Checked that it can fail: with each rule of
agent/offload/decide.c and locks.c taken out (the lock count, the scan for a signal frame, the stack's bounds, the
nesting, the table of kinds) the case that is for it says "would-move".
"""

import json
import subprocess

import pytest

import helpers
import oracle

MOVES = {"nanosleep": "timer", "unlocked": "timer", "pipe_read": "readiness", "recv": "readiness", "flock": "wait",
         "waitpid": "wait"}
STAYS = {"sem_wait": "call", "locked": "lock", "rwlocked": "lock", "handler": "signal", "context": "stack",
         "nested": "nested", "prepare": "kind", "close": "kind"}
MS = 200


def run(tmp_path, case, *options, threshold="50ms"):
    with oracle.Sentinel() as sentinel:
        done, recording = helpers.record(tmp_path, helpers.program("offload_uv"), case, MS, threshold=threshold,
                                         options=options)
    assert done.returncode == 0, done.stderr
    truth = json.loads(done.stdout)
    found = [s for s in recording.slow if s["duration_ns"] >= MS * 1_000_000 and s.get("offload")]
    if len(found) != 1 and any(sentinel.busy(s["start_ns"], s["start_ns"] + s["duration_ns"]) for s in recording.slow):
        pytest.skip("the machine was too busy")
    return truth, recording, found


@pytest.mark.parametrize("case", [*MOVES, *STAYS])
def test_dry_run(tmp_path, case):
    truth, recording, found = run(tmp_path, case, "--offload")
    assert recording.header["offload"] == "dry-run"
    assert truth["inside"] == 0, "something moved"
    assert len(found) == 1, recording.slow
    offload = found[0]["offload"]
    sites = [line for line in recording.of("offload") if line["site"] == found[0]["site"]]
    assert len(sites) == 1 and sites[0]["moved"] == 0
    if case in MOVES:
        assert (offload["state"], offload["executor"]) == ("would-move", MOVES[case])
        assert MS * 1_000_000 <= offload["saved_ns"] + 5_000_000 <= found[0]["duration_ns"] + 5_000_000
        assert sites[0]["would_move"] == 1 and sites[0]["saved_ns"] >= offload["saved_ns"]
    else:
        assert (offload["state"], offload["reason"]) == ("pinned", STAYS[case])
        assert sites[0]["pinned"] == {STAYS[case]: 1} and sites[0]["pinned_ns"] == found[0]["duration_ns"]
        pins = [pin for pin in recording.end["offload"]["pins"] if pin["reason"] == STAYS[case]]
        assert sum(pin["count"] for pin in pins) == sum(line.get("pinned", {}).get(STAYS[case], 0) for line in recording.of("offload")), pins
        assert sum(pin["total_ns"] for pin in pins) >= sites[0]["pinned_ns"]


def test_where_the_lock_was_taken(tmp_path):
    _, recording, found = run(tmp_path, "locked", "--offload")
    lock = found[0]["offload"]["lock"]
    assert lock["function"] == "take_the_lock" and lock["file"].endswith("offload_uv.c")
    assert recording.end["offload"]["pins"] == [{"reason": "lock", "count": 1, "total_ns": found[0]["duration_ns"], "lock": lock}]
    metrics = helpers.unblock("report", "--format", "prometheus", recording.path).stdout
    assert f'unblock_offload_pinned_total{{reason="lock",lock="offload_uv.c:{lock["line"]} take_the_lock()"}} 1\n' in metrics
    text = helpers.unblock("report", recording.path).stdout
    assert f"pinned: a lock is held, taken at offload_uv.c:{lock['line']} in take_the_lock()" in text
    assert "0 stalls would have moved; 1 pinned (lock 1)" in text


def test_words(tmp_path):
    """Live text and verdict."""
    done, recording = helpers.record(tmp_path, helpers.program("offload_uv"), "pipe_read", MS, threshold="50ms",
                                     options=("--offload=dry-run", "--live=full"))
    found = [s for s in recording.slow if s.get("offload")]
    assert "  move   would move (waits for the descriptor beside the loop), saves " in done.stderr, (done.stderr, found)
    assert "offload dry run: 1 stall would have moved from 1 call site, " in done.stderr


def test_off(tmp_path):
    """Without the option nothing is judged, and the locks are not even hooked."""
    for options in ((), ("--offload=off",)):
        _, recording, found = run(tmp_path, "locked", *options)
        assert recording.header["offload"] == "off"
        assert not found and not recording.of("offload")


def test_wrong_mode(tmp_path):
    done = helpers.unblock("run", "--offload=eagre", "--", "true")
    assert done.returncode == 125
    assert "--offload: 'eagre' is none of off, dry-run, flagged, eager" in helpers.one_line(done.stderr)


def test_the_mode_is_no_argument(tmp_path):
    """`--offload CMD` starts CMD."""
    done = helpers.unblock("run", "-q", "-o", tmp_path / "r.jsonl", "--offload", "echo", "hello")
    assert (done.returncode, done.stdout) == (0, "hello\n"), done.stderr


LOCKS = r"""
#include <glib.h>
#include <pthread.h>
#include <threads.h>
#include <mutex>
#include <shared_mutex>
#include <cstring>
#include <ctime>
#include <uv.h>
static const char *how;
static uv_timer_t t;
static std::mutex m;
static std::shared_mutex sm;
static pthread_mutex_t recursive = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
static pthread_spinlock_t spin;
static mtx_t c11;
static GMutex gm;
static GRecMutex grm;
static GRWLock grw;
static int n;
static void block() { timespec ts = {0, 120000000}; nanosleep(&ts, nullptr); }
static void on_timer(uv_timer_t *)
{
    if (++n == 20) {
        if (!strcmp(how, "std")) { std::lock_guard<std::mutex> l(m); block(); }
        if (!strcmp(how, "shared")) { std::shared_lock<std::shared_mutex> l(sm); block(); }
        if (!strcmp(how, "twice")) { // still held after one unlock
            pthread_mutex_lock(&recursive); pthread_mutex_trylock(&recursive); pthread_mutex_unlock(&recursive);
            block(); pthread_mutex_unlock(&recursive); }
        if (!strcmp(how, "spin")) { pthread_spin_lock(&spin); block(); pthread_spin_unlock(&spin); }
        if (!strcmp(how, "c11")) { mtx_lock(&c11); block(); mtx_unlock(&c11); }
        if (!strcmp(how, "glib")) { g_mutex_lock(&gm); block(); g_mutex_unlock(&gm); }
        if (!strcmp(how, "glib_rec")) { g_rec_mutex_lock(&grm); block(); g_rec_mutex_unlock(&grm); }
        if (!strcmp(how, "glib_rw")) { g_rw_lock_reader_lock(&grw); block(); g_rw_lock_reader_unlock(&grw); }
        if (!strcmp(how, "order")) { // released in another order than taken
            pthread_mutex_lock(&recursive); m.lock(); pthread_mutex_unlock(&recursive); block(); m.unlock(); }
        if (!strcmp(how, "busy")) { m.try_lock(); pthread_mutex_trylock(m.native_handle()); m.unlock(); block(); }
    }
    if (n == 40) uv_stop(t.loop);
}
int main(int, char **argv)
{
    how = argv[1];
    pthread_spin_init(&spin, 0);
    mtx_init(&c11, mtx_plain);
    uv_timer_init(uv_default_loop(), &t);
    uv_timer_start(&t, on_timer, 5, 5);
    return uv_run(uv_default_loop(), UV_RUN_DEFAULT) ? 0 : 1;
}
"""


@pytest.fixture(scope="module")
def locks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("locks")
    (folder / "locks.cc").write_text(LOCKS)
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "glib-2.0"], capture_output=True, text=True, check=False)
    built = subprocess.run(["g++", "-std=c++17", "-O1", "-g", folder / "locks.cc", "-o", folder / "locks", "-luv",
                            *flags.stdout.split()], capture_output=True, text=True, check=False)
    if built.returncode != 0:
        pytest.skip(f"cannot be built here: {built.stderr[:200]}")
    return folder / "locks"


@pytest.mark.parametrize("how,held", [("std", True), ("shared", True), ("twice", True), ("spin", True), ("c11", True),
                                      ("glib", True), ("glib_rec", True), ("glib_rw", True), ("order", True),
                                      ("busy", False)])
def test_kinds_of_locks(tmp_path, locks, how, held):
    done, recording = helpers.record(tmp_path, locks, how, threshold="50ms", options=("--offload",))
    assert done.returncode == 0, done.stderr
    found = [s for s in recording.slow if s["duration_ns"] >= 120_000_000 and s.get("offload")]
    assert len(found) == 1, recording.slow
    assert found[0]["offload"].get("reason") == ("lock" if held else None), found[0]["offload"]


OTHER = r"""
#include <signal.h>
#include <time.h>
#include <uv.h>
static int n;
void lua_newstate(void) {}
static void on_signal(int sig) {}
static void on_timer(uv_timer_t *t)
{
    struct timespec ts = {0, 120000000};
    if (++n == 20) nanosleep(&ts, NULL);
    if (n == 40) uv_stop(t->loop);
}
int main(int argc, char **argv)
{
    uv_timer_t t;
    struct sigaction act = {.sa_handler = on_signal};
    if (argc > 1) sigaction(SIGUSR2, &act, NULL);
    uv_timer_init(uv_default_loop(), &t);
    uv_timer_start(&t, on_timer, 5, 5);
    return !uv_run(uv_default_loop(), UV_RUN_DEFAULT);
}
"""


@pytest.mark.parametrize("reason,flags,args", [("runtime", ["-rdynamic"], []), ("eintr", [], ["x"]), (None, [], [])])
def test_whole_program(tmp_path, reason, flags, args):
    """An interpreter in the process; a handler that interrupts calls; neither."""
    (tmp_path / "other.c").write_text(OTHER)
    subprocess.run(["cc", "-g", tmp_path / "other.c", "-o", tmp_path / "other", "-luv", *flags], check=True)
    done, recording = helpers.record(tmp_path, tmp_path / "other", *args, threshold="50ms", options=("--offload",))
    assert done.returncode == 0, done.stderr
    found = [s for s in recording.slow if s["duration_ns"] >= 120_000_000 and s.get("offload")]
    assert [s["offload"].get("reason") for s in found] == [reason], recording.slow
