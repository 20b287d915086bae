"""Who waited for a blocked asyncio loop: ready tasks, due timers; and executors with more work than workers.

Checked that it can fail: with the test of what a task waits for left out only the two new tasks are counted, with
cancelled timers counted there are eight. If a worker counts as idle whatever it does, nothing is told of the threads, where
less is queued than there are workers; with every worker taken for a busy one something is told in "idle".
"""

import json

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


CLIENTS, WAITED = 5, 3
SOCKETS = r"""
import asyncio, json, pathlib, socket, sys, time

async def handle(reader, writer):
    while await reader.read(100):
        pass
    writer.close()

async def block(clients):
    for c in clients:
        c.send(b"x")
    time.sleep(0.1)

async def main(recording):
    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    clients = [socket.create_connection(server.sockets[0].getsockname()) for _ in range(%d)]
    for _ in range(40):
        await asyncio.sleep(0.002)
    await asyncio.ensure_future(block(clients[1:1 + %d]))
    print(json.dumps([c.getsockname()[1] for c in clients]))
    for _ in range(500):  # who is at the other end is looked up when the stall is explained
        await asyncio.sleep(0.02)
        if "then_read" in recording.read_text():
            break

if sys.argv[1] == "uvloop":
    import uvloop
    uvloop.install()
asyncio.run(main(pathlib.Path(sys.argv[2])))
""" % (CLIENTS, WAITED)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_which_connections_waited(tmp_path, loop):
    """Checked that it can fail: without the turn's beginning in the agent's record no socket is told."""
    if loop == "uvloop" and not pythons.ask(helpers.PYTHON, "import uvloop; print(1)"):
        pytest.skip(f"{helpers.PYTHON} has no uvloop")
    script = tmp_path / "sockets.py"
    script.write_text(SOCKETS)
    with oracle.Sentinel() as sentinel:
        done, recording = helpers.record(tmp_path, helpers.PYTHON, script, loop, tmp_path / "r0.jsonl", threshold="50ms", timeout=60)
    assert done.returncode == 0, done.stderr
    ports = json.loads(done.stdout)
    slow, = [s for s in recording.slow if s["callback"].get("function") == "block"]
    end, waiting = slow["start_ns"] + slow["duration_ns"], slow["waiting"]
    if "became_ready" not in waiting and sentinel.busy(end - 50_000_000, end + 100_000_000):
        pytest.skip("the machine was too busy: the end of the stall was written before the loop had come round")
    assert set(waiting["then_read"]) == {f"socket 127.0.0.1:{p}" for p in ports[1:1 + WAITED]}, (waiting, ports)
    assert waiting["became_ready"] >= WAITED, waiting
    told = helpers.unblock("report", recording.path).stdout.split("; then read: ")[1].splitlines()[0]
    assert all(f"127.0.0.1:{p}" in told for p in ports[1:1 + WAITED]), told
