"""What waits for a thread of libuv's own pool: as many pieces, for as long, as the program itself says."""

import json
import shutil
import subprocess
import time

import pytest

import attaching
import helpers
import test_schema

MS = 1000000
THREADS, PIECES = 2, 12


def run(tmp_path, mode, pieces=PIECES, threads=THREADS):
    env = helpers.clean_environment(UV_THREADPOOL_SIZE=str(threads))
    done, recording = helpers.record(tmp_path, helpers.program("pool_uv"), mode, pieces, env=env, options=("-q",))
    assert (done.returncode, done.stderr) == (0, ""), done
    assert not [p for line in recording.lines for p in test_schema.problems(line)]
    last = {line["pid"]: line for line in recording.of("pool")}
    return json.loads(done.stdout), list(last.values()), recording


def warnings(recording):
    return [n for n in recording.of("note") if "UV_THREADPOOL_SIZE" in n["text"]]


@pytest.mark.parametrize("mode", ["work", "fs", "fork"])
def test_waits(tmp_path, mode):
    """The program knows for each piece between which moments it must have begun; all handed in while threads are held."""
    truth, pools, recording = run(tmp_path, mode)
    pool = [p for p in pools if p["waited"]]
    assert len(pool) == 1 and len(pools) == (2 if mode == "fork" else 1), pools
    pool = pool[0]
    assert (pool["kind"], pool["threads"], pool["pieces"], pool["inside"]) == ("libuv", THREADS, truth["pieces"], 0)
    assert pool["waited"] == pool["queued_max"] == sum(n for _, n in pool["waits"]) == PIECES - THREADS
    slack = truth["most_ns"] // 1000  # two clocks
    assert truth["least_ns"] - slack <= pool["wait_ns"] <= truth["most_ns"] + slack, (truth, pool)
    assert truth["longest_least_ns"] - slack <= pool["max_wait_ns"] <= truth["longest_most_ns"] + slack, (truth, pool)
    assert pool["wait_ns"] > pool["waited"] * 59 * MS, "they were handed in before the loop was blocked for 60 ms"
    assert max(upper for upper, _ in pool["waits"]) * 0.75 <= pool["max_wait_ns"] * 1.01
    # The loop was blocked while the pool was full: that is part of the stall's story.
    stall = max((s for s in recording.slow if s["pid"] == pool["pid"]), key=lambda s: s["duration_ns"])
    assert stall["pool"] == {"kind": "libuv", "threads": THREADS, "busy": THREADS, "queued": PIECES - THREADS}, stall
    assert len(warnings(recording)) == 1
    text = helpers.unblock("report", recording.path).stdout
    assert f"{PIECES - THREADS} of {truth['pieces']} pieces of work waited for a thread" in text
    assert f"libuv {THREADS}/{THREADS} busy, {PIECES - THREADS} queued" in text


@pytest.mark.parametrize("mode", ["few", "names"])
def test_nothing_is_told_of_what_did_not_wait(tmp_path, mode):
    """One piece after the other; names, which only half of the threads take up, so that their waits are not known."""
    truth, pools, recording = run(tmp_path, mode)
    (pool,) = pools
    assert (pool["waited"], pool["wait_ns"], pool["max_wait_ns"], pool["waits"]) == (0, 0, 0, [])
    assert (pool["pieces"], pool["inside"]) == (truth["pieces"], 0)
    assert not warnings(recording) and not any("pool" in s for s in recording.slow)
    assert "pieces of work" not in helpers.unblock("report", recording.path).stdout


def test_pieces_taken_back(tmp_path):
    """uv_cancel: what is left of the others' waits is told, never more than there was."""
    _, pools, recording = run(tmp_path, "cancel")
    (pool,) = pools
    end = recording.end["at_ns"] - recording.header["monotonic_ns"]
    assert 0 < pool["waited"] <= PIECES - THREADS and pool["max_wait_ns"] <= end
    assert pool["inside"] == 0 and pool["wait_ns"] <= pool["waited"] * pool["max_wait_ns"]


def test_default_size_and_a_long_queue(tmp_path):
    """Four threads when nothing is set, and hundreds that wait."""
    env = helpers.clean_environment()
    env.pop("UV_THREADPOOL_SIZE", None)
    done, recording = helpers.record(tmp_path, helpers.program("pool_uv"), "fs", 1000, env=env, options=("-q",))
    assert done.returncode == 0
    pool = recording.of("pool")[-1]
    assert (pool["threads"], pool["waited"], pool["pieces"]) == (4, 996, 1001)


NODE = """
const crypto = require('crypto');
let turns = 0, begun = 0, done = 0, rounds = 0;
function job() { begun++; crypto.pbkdf2('x', 'y', 200000, 64, 'sha512', () => { if (++done == begun && turns >= 63) again(); }); }
function block(ms) { const end = Date.now() + ms; while (Date.now() < end) ; }
function again() { if (++rounds < 4) { for (let i = 0; i < 10; i++) job(); setTimeout(block, 5, 300); } }  // looked at several times
function step() {
  turns++;
  if (turns == 40) { block(150); }           // nobody is in the pool
  if (turns == 60) { job(); job(); }         // two of four are
  if (turns == 61) { block(150); }
  if (turns < 63) { setTimeout(step, 5); }         // a turn of the loop each
  else if (done == begun) { again(); }
}
step();
process.on('exit', () => console.log(begun, done));
"""


def test_a_pool_inside_the_program(tmp_path):
    """node has a libuv of its own: its pool is read from outside, and told of only where work waited in it. (When the watcher has found
    it: it is filled three times.)"""
    node = shutil.which("node")
    if not node or b"uv__work_submit" not in subprocess.run(["nm", node], capture_output=True).stdout:
        pytest.skip("no node whose file has symbols")
    done, recording = helpers.record(tmp_path, node, "-e", NODE, threshold="60ms", options=("-q",))
    assert (done.returncode, done.stdout) == (0, "32 32\n"), done
    assert not [p for line in recording.lines for p in test_schema.problems(line)]
    slow = sorted((s for s in recording.slow if not s.get("startup")), key=lambda s: s["start_ns"])
    told = [(s["duration_ns"] // MS, s.get("pool"), len(s["samples"])) for s in slow]
    full = next((s for s in slow if "pool" in s), None)
    assert full, told
    # The first two blocks, with nobody and with half of the threads in the pool, were told without it.
    assert len([s for s in slow[:slow.index(full)] if s["duration_ns"] > 140 * MS]) >= 2, told
    assert {k: full["pool"][k] for k in ("kind", "threads", "busy")} == {"kind": "libuv", "threads": 4, "busy": 4}
    assert 1 <= full["pool"]["queued"] <= 8


def test_switched_off(tmp_path):
    env = helpers.clean_environment(UNBLOCK_CALLBACKS="0", UV_THREADPOOL_SIZE="2")
    done, recording = helpers.record(tmp_path, helpers.program("pool_uv"), "work", PIECES, env=env, options=("-q",))
    assert done.returncode == 0 and not recording.of("pool")


BUSY = r"""
#include <stdio.h>
#include <unistd.h>
#include <uv.h>
static int left;
static void on_work(uv_work_t *w) { usleep(15000); (void)w; }
static void on_done(uv_work_t *w, int status) { left--; (void)w; (void)status; }
static void on_timer(uv_timer_t *t) {
    if (left > 4) return;  /* never empty: whoever comes, comes in the middle */
    for (int i = 0; i < 8; i++) {
        uv_work_t *w = malloc(sizeof(*w));
        left++;
        uv_queue_work(t->loop, w, on_work, on_done);
    }
}
int main(void) {
    uv_timer_t t;
    uv_timer_init(uv_default_loop(), &t);
    uv_timer_start(&t, on_timer, 5, 5);
    puts("ready");
    fflush(stdout);
    return uv_run(uv_default_loop(), UV_RUN_DEFAULT);
}
"""


def test_entered_again_and_again_while_work_is_about(tmp_path):
    """What was handed in when nobody watched, or for the watch before, ends in this one: it is not taken for this one's own."""
    binary = tmp_path / "busy"
    subprocess.run(["gcc", "-include", "stdlib.h", "-xc", "-", "-o", binary, "-luv"], input=BUSY, text=True, check=True)
    with subprocess.Popen([binary], stdout=subprocess.PIPE, text=True,
                          env=helpers.clean_environment(UV_THREADPOOL_SIZE="2")) as target:
        try:
            assert target.stdout.readline() == "ready\n"
            seen = 0
            for i in range(8):
                begun = time.monotonic_ns()
                attached = attaching.enter(target.pid, tmp_path / f"{i}.jsonl")
                time.sleep(0.3)
                attaching.leave(attached)
                elapsed = time.monotonic_ns() - begun
                for pool in helpers.Recording(tmp_path / f"{i}.jsonl").of("pool")[-1:]:
                    assert (pool["pid"], pool["threads"]) == (target.pid, 2), pool
                    # Read while it works, so not all in one moment.
                    assert abs(pool["waited"] - sum(n for _, n in pool["waits"])) <= 2, pool
                    assert pool["waited"] <= pool["pieces"] + 2, pool
                    assert pool["inside"] <= 24 and pool["queued_max"] <= 24, pool
                    assert pool["max_wait_ns"] <= elapsed + 10 * MS, pool
                    seen += pool["waited"] > 0
                if seen == 2:
                    break
            assert seen == 2
        finally:
            target.kill()
