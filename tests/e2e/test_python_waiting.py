"""Who waited for a blocked asyncio loop: ready tasks, due timers; and executors with more work than workers.

Checked that it can fail: with the test of what a task waits for left out only the two new tasks are counted, with
cancelled timers counted there are eight. If a worker counts as idle whatever it does, nothing is told of the threads, where
less is queued than there are workers; with every worker taken for a busy one something is told in "idle".
"""

import pytest

import helpers
import oracle
import pythons

PROGRAM = helpers.ROOT / "tests/programs/pywaiting.py"
EVERY = [(v, p) for v in pythons.READ for p in pythons.installed(v) or [None]]
CASES = [("asyncio", v, p) for v, p in EVERY] + [("uvloop", "3.11", helpers.PYTHON)]
READY, TIMERS, WORK, WORKERS, QUEUED = 7, 5, 30, 3, 2  # as in the program


@pytest.mark.parametrize("loop,version,python", CASES)
def test_who_waits(tmp_path, loop, version, python):
    if not python:
        pytest.skip("no such CPython is installed")
    if loop == "uvloop" and not pythons.ask(python, "import uvloop; print(1)"):
        pytest.skip(f"{python} has no uvloop")
    with oracle.Sentinel() as sentinel:
        done, recording = helpers.record(tmp_path, python, PROGRAM, loop, threshold="20ms", timeout=60)
    assert done.returncode == 0, done.stderr
    stalls = {}
    for s in recording.slow:
        functions = {f.get("function") for x in s["samples"] if "stack" in x for f in recording.stacks[x["stack"]]}
        for name in ("task", "plain", "threads", "processes"):
            if name + "_block" in functions and s["duration_ns"] > 190_000_000:
                stalls[name] = s
    assert len(stalls) == 4, recording.slow

    for name, own in (("task", 0), ("plain", 1)):  # in "plain" the main task's own timer falls due as well
        waiting = stalls[name]["waiting"]
        begun, lasted = stalls[name]["start_ns"], stalls[name]["duration_ns"]
        if loop == "uvloop":  # its timers are its own, and outside of a task nothing says which loop it is
            assert "timers" not in waiting and waiting.get("tasks") == (READY if name == "task" else None), waiting
            continue
        assert waiting["tasks"] == READY, waiting
        if sentinel.busy(begun - 150_000_000, begun + lasted):
            continue
        assert waiting["timers"] == TIMERS + own, waiting
        assert 80_000_000 < waiting["delay_ns"] <= lasted + 5_000_000, waiting
    assert "tasks" not in stalls["threads"]["waiting"] and "pool" not in stalls["task"], stalls

    pool = stalls["threads"]["pool"]
    assert pool == {"kind": "ThreadPoolExecutor", "workers": WORKERS, "busy": WORKERS, "queued": QUEUED}, pool
    if version == "3.8":  # keeps its tables elsewhere
        return
    pool = stalls["processes"]["pool"]
    assert (pool["kind"], pool["workers"]) == ("ProcessPoolExecutor", 2) and 2 < pool["queued"] < WORK, pool
    report = helpers.unblock("report", recording.path).stdout
    assert f"  pool   ThreadPoolExecutor {WORKERS}/{WORKERS} busy, {QUEUED} queued: max_workers sets its size" in report, report
    assert "  pool   ProcessPoolExecutor of 2 workers, " in report, report
    assert f"{READY} tasks" in report, report
