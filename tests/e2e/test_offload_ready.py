"""What waits for a descriptor or a child takes no thread: the loop's own epoll waits, and then the call is made
(tests/programs/ready_uv.c, pyready.py). Every program says the same as alone, with one thread in the executor, or none.

Seen to fail: with a thread for each call, without time limits (limits, which then never ended), without the look at what broke a socket
(broken), without the way that is made for dup2 (over), with descriptors that close_range takes (closes), without a limit to vain attempts
(error), with an errno that is an attempt's (kinds), with a callback counted beside itself (children), with a step's sleep forgotten for another one's time limit
(pyready.py), without a look every 50 ms (shut, traced: these never ended), with a number closed that the program had taken (kept, taken), without a look at
those that it took (taken).
"""

import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor

import helpers
import pythons
import pytest

pytestmark = pytest.mark.beside

# Threads of the executor that may be made; the CPU time, in ms, that no wait comes near unless it turns.
CASES = {"many": 0, "kinds": 1, "children": 0, "reaped": 0, "limits": 0, "sends": 0, "broken": 0, "same": 0, "over": 0, "closes": 0, "error": 1, "shut": 0, "traced": 0,
         "taken": 1, "kept": 1}
if "UNBLOCK_SOAK" in os.environ:
    CASES["long"] = 0  # longer than it takes until figures are recorded


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """Of each case, alone and with calls moved; they wait nearly all of the time, and run at once."""
    base = tmp_path_factory.mktemp("ready")

    def both(case):
        program, folder = helpers.program("ready_uv"), base / case
        folder.mkdir()
        alone = subprocess.run([program, case], capture_output=True, text=True, timeout=60)
        moved, recording = helpers.record(folder, program, case, threshold="1ms", options=("--offload=eager", "-q"), timeout=60,
                                          env=helpers.clean_environment(UNBLOCK_POOL="1"))
        return alone, moved, recording

    with ThreadPoolExecutor(4) as pool:
        return dict(zip(CASES, pool.map(both, CASES)))


@pytest.mark.alone
@pytest.mark.parametrize("case", CASES)
def test_the_same_as_without_and_no_thread(said, case):
    alone, moved, recording = said[case]
    truth, offload = json.loads(moved.stderr.splitlines()[-1]), recording.end["offload"]
    assert (moved.returncode, moved.stdout) == (alone.returncode, alone.stdout), case
    assert offload["threads"] == CASES[case], offload
    assert offload["moved"] >= (200 if case == "many" else 1), offload
    assert truth["threads"] <= 2 + CASES[case], truth  # the program's own two
    if case == "children":  # of any two the one sees the other begin, and one sees the other go on
        sites = [line for line in recording.of("offload") if line["call"] == "waitpid"]
        assert sum(line["beside"] for line in sites) == offload["beside"] == offload["moved"] * (offload["moved"] - 1), sites
        assert max(line["beside_max"] for line in sites) >= 49 and offload["moved"] == 50, sites
    if case == "long":
        assert max(line["away"] for line in recording.of("executor")) == 1, recording.of("executor")
    assert truth["cpu_ms"] < 250, truth  # a wait that turned would take all of its 300 ms


def test_a_child_that_goes_on_in_the_loop_is_not_told_of_its_parents_calls(tmp_path):
    """Seen to fail with the parent's registrations left in the child's inbox: the loop then turned without end."""
    done, recording = helpers.record(tmp_path, helpers.program("ready_uv"), "daemon", threshold="1ms", options=("--offload=eager", "-q"), timeout=30)
    assert recording.end["offload"]["moved"] >= 1, recording.end
    assert done.stdout == "few turns\n"


PYTHONS = pythons.moving(helpers.AGENT, False) or [pytest.param(None, marks=pytest.mark.skip(reason="no headers of CPython 3.11 to 3.13: not built"))]


@pytest.mark.parametrize("python", PYTHONS)
def test_steps_take_no_thread(tmp_path, python):
    command = [python, helpers.ROOT / "tests/programs/pyready.py"]
    alone = subprocess.run(command, capture_output=True, text=True, timeout=60)
    moved, recording = helpers.record(tmp_path, *command, threshold="1ms", options=("--offload=eager", "-q"), timeout=60,
                                      env=helpers.clean_environment(UNBLOCK_POOL="1"))
    assert moved.returncode == 0 and json.loads(moved.stdout) == json.loads(alone.stdout), moved.stderr
    assert recording.end["offload"]["moved"] >= 200, recording.end
    assert recording.end["offload"]["threads"] == 0, recording.end
    assert json.loads(moved.stderr.splitlines()[-1])["threads"] <= 2


@pytest.mark.parametrize("python", PYTHONS)
def test_a_number_that_another_thread_takes(tmp_path, python):
    """The step's own descriptor is as it was: so is what it gets, and the loop goes on being told of others."""
    done, recording = helpers.record(tmp_path, python, helpers.ROOT / "tests/programs/pyready.py", "taken", threshold="1ms",
                                     options=("--offload=eager", "-q"), timeout=60)
    assert json.loads(done.stdout) == "tmore", done.stderr
    assert recording.end["offload"]["moved"] >= 2, recording.end


def test_what_is_away_is_shown(tmp_path):
    """Of a run that goes on; when it is over nothing is."""
    path = tmp_path / "now.jsonl"
    _, recording = helpers.record(tmp_path, helpers.program("ready_uv"), "same", threshold="1ms", options=("--offload=eager", "-q"))
    lines = [line for line in recording.lines if line["type"] in ("header", "process")]
    lines.append({"type": "executor", "moved": 5, "saved_ns": 7, "wait_ns": 1, "stack_bytes": 4096, "threads": 1, "queued_max": 2, "beside": 9, "away": 3,
                  "queued": 1, "busy_ns": 1_200_000_000, "pins": [
                      {"reason": "kind", "count": 1, "total_ns": 20_000_000},
                      {"reason": "lock", "count": 2, "total_ns": 600_000_000, "lock": {"function": "txn\u202e", "file": "/srv/db.c", "line": 70}},
                      {"reason": "x\"\n\x1b", "count": 1, "total_ns": 3_000_000}, {"reason": "eintr", "count": 1, "total_ns": 2_000_000}]})
    first = {**lines[-1], "threads": 0, "stack_bytes": 0, "beside": 0}  # asyncio's: no thread, no stack that was measured, nothing back yet
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines[:-1], first]))
    assert "executor: 3 away now; " in helpers.unblock("top", "--once", path).stdout
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    top = helpers.unblock("top", "--once", path).stdout
    assert ("executor: 3 away now; 1 thread, busy 1.2 s, 2 calls queued at most (1 now); 1 ns of waiting for a thread or the loop; "
            "stacks up to 4 kB; 9 callbacks ran meanwhile\n") in top, top
    pins = top[top.index("pinned: "):].splitlines()[0]
    assert pins.startswith("pinned: 2 (lock, taken at db.c:70 txn") and "600 ms; 1 (kind) 20 ms; 1 (x" in pins and pins.endswith("and 1 more"), top
    metrics = helpers.unblock("report", "--format", "prometheus", path).stdout
    for line in ("unblock_offload_away 3", "unblock_offload_queued 1", "unblock_offload_busy_seconds_total 1.200000000",
                 'unblock_offload_pinned_total{reason="kind",lock=""} 1', 'unblock_offload_pinned_seconds_total{reason="kind",lock=""} 0.020000000'):
        assert f"{line}\n" in metrics, metrics
    assert 'unblock_offload_pinned_total{reason="lock",lock="db.c:70 txn' in metrics
    assert not set("\u202e\x1b") & set(top + metrics)
    text = helpers.unblock("report", recording.path).stdout
    assert f"; meanwhile {recording.end['offload']['beside']} callbacks ran, " in text and "away now" not in text, text
    assert "unblock_offload_away 0\n" in helpers.unblock("report", "--format", "prometheus", recording.path).stdout


def test_places_of_locks_are_bounded(tmp_path):
    """Labels are memory: however many there are in however many runs, no series comes twice and their sum stays."""
    header = json.dumps({"type": "header", "schema": "unblock-recording", "version": 1, "tool": "t", "started": "2025-11-21T03:05:12Z", "monotonic_ns": 1,
                         "host": "h", "command": ["c"], "threshold_ns": 1, "source": "agent", "offload": "eager"})
    paths = []
    for run in range(3):
        line = {"type": "executor", "moved": 0, "saved_ns": 0, "pins": [
            {"reason": "lock", "count": 2, "total_ns": 1000, "lock": {"function": f"f{i + run}", "file": "/a.c", "line": i + run}} for i in range(400)]}
        paths.append(tmp_path / f"{run}.jsonl")
        paths[-1].write_text(header.replace("03:05", f"0{run}:05") + "\n" + json.dumps(line) + "\n")
    metrics = helpers.unblock("report", "--format", "prometheus", *paths).stdout
    series = [line.rsplit(" ", 1) for line in metrics.splitlines() if line.startswith("unblock_offload_pinned_total{")]
    assert len(series) == len({s for s, _ in series}) == 100 and sum(int(n) for _, n in series) == 3 * 400 * 2
