"""`unblock dump` of Python programs: frames, tasks with what they await, the GIL, on every interpreter that is here."""

import json
import os
import signal
import subprocess

import pytest

import helpers
import pythons

pytestmark = pytest.mark.beside

# Every line that a test expects carries a mark.
SOURCE = r"""
import asyncio, sys, threading, time

async def numbers():
    while True:
        await asyncio.sleep(600)  # mark: asleep
        yield 1

async def iterate():
    async for number in numbers():  # mark: iterate
        pass

async def inner(event):
    await event.wait()  # mark: inner

async def outer(event):
    await inner(event)  # mark: outer

async def follow(task):
    await task  # mark: follow

def block(mode):
    if mode == "sleep":
        time.sleep(600)  # mark: sleep
    while mode == "spin":
        pass

async def main(mode):
    event = asyncio.Event()
    create = asyncio.get_running_loop().create_task
    tasks = [create(outer(event)), create(iterate())]
    tasks.append(create(follow(tasks[0])))
    for task, name in zip(tasks, ["the outer", "the iterator", "the follower"]):
        task.set_name(name)
    await asyncio.sleep(0.05)
    print("ready", flush=True)
    block(mode)  # mark: call
    await asyncio.gather(*tasks)  # mark: gather

asyncio.run(main(sys.argv[1]))
"""

MARKS = {line.split("# mark: ")[1]: number for number, line in enumerate(SOURCE.splitlines(), 1) if "# mark: " in line}
EVERY = [(v, p) for v in pythons.READ for p in pythons.installed(v) or [None]]


def dump(pid):
    done = helpers.unblock("dump", "--format", "json", pid)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return lines, {line["id"]: line["frames"] for line in lines if line["type"] == "stack"}


def own(frames, script):
    return [(f["function"], f["line"]) for f in frames if f.get("language") == "python" and f["file"] == str(script)]


@pytest.fixture
def program(tmp_path):
    started = []

    def start(python, mode, *options):
        script = tmp_path / "program.py"
        script.write_text(SOURCE)
        process = subprocess.Popen([python, *options, str(script), mode], stdout=subprocess.PIPE, text=True,
                                   env=helpers.clean_environment())
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process.pid, script

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("version,python", EVERY)
@pytest.mark.parametrize("mode", ["sleep", "wait", "spin"])
def test_dump(program, version, python, mode):
    if not python:
        pytest.skip(f"no CPython {version} is installed")
    pid, script = program(python, mode)
    state = {"sleep": "b", "wait": "b", "spin": "r"}[mode]
    if mode != "spin":
        helpers.wait_until(lambda: helpers.process_state(pid) == "S", what="it to block")
    lines, stacks = dump(pid)
    thread = next(line for line in lines if line["type"] == "thread" and line["tid"] == pid)
    frames = own(stacks[thread["stack"]], script)
    assert thread["state"].startswith(state)
    assert thread["python"] in ("still", "twice"), thread
    if mode == "wait":
        assert [f for f, _ in frames] == ["<module>"]
        assert "task" not in thread and thread["gil"] == "released"
    else:
        assert [f for f, _ in frames] == ["block", "main", "<module>"], frames
        assert frames[1][1] == MARKS["call"] and (mode == "spin" or frames[0][1] == MARKS["sleep"]), frames
        assert [p["function"] for p in thread["task"]["await"]] == ["main"]
        assert thread["gil"] == ("held" if mode == "spin" else "released")

    tasks = {line["name"]: line for line in lines if line["type"] == "task"}
    main = tasks.pop(next(name for name in tasks if name.startswith("Task-")))
    assert set(tasks) == {"the outer", "the iterator", "the follower"}

    def chain(task):
        return [(p["function"], p["line"]) for p in task["await"] if p["file"] == str(script)]

    assert chain(tasks["the outer"]) == [("outer", MARKS["outer"]), ("inner", MARKS["inner"])]
    assert chain(tasks["the iterator"]) == [("iterate", MARKS["iterate"]), ("numbers", MARKS["asleep"])]
    assert chain(tasks["the follower"]) == [("follow", MARKS["follow"])]
    assert tasks["the follower"]["waits_for"] == "the outer"
    assert {t["state"] for t in tasks.values()} == {"waiting"}
    assert chain(main) == [("main", MARKS["gather" if mode == "wait" else "call"])]
    assert main["state"] == ("waiting" if mode == "wait" else "running")


def test_dump_text(program):
    pid, _ = program(helpers.PYTHON, "sleep")
    helpers.wait_until(lambda: helpers.process_state(pid) == "S", what="it to block")
    text = helpers.unblock("dump", pid).stdout
    assert f"program.py:{MARKS['sleep']}" in text and 'time.sleep(600)  # mark: sleep' in text
    assert "the follower  task  waiting for the outer" in text
    assert "_PyEval_EvalFrameDefault" not in text


def test_dump_debug_mode(program):
    """`-X dev` uses other allocators and wraps coroutines."""
    pid, script = program(helpers.PYTHON, "sleep", "-X", "dev")
    lines, stacks = dump(pid)
    thread = next(line for line in lines if line["type"] == "thread" and line["tid"] == pid)
    assert own(stacks[thread["stack"]], script)[0] == ("block", MARKS["sleep"])
    assert thread["task"]["await"][0]["line"] == MARKS["call"]


@pytest.mark.parametrize("version", pythons.OTHERS)
def test_other_versions(tmp_path, version):
    """Interpreters whose frames cannot be read: native frames, no harm."""
    pythons_here = pythons.installed(version)
    if not pythons_here:
        pytest.skip(f"no CPython {version} is installed")
    process = subprocess.Popen([pythons_here[0], "-c", "import time; time.sleep(600)"], env=helpers.clean_environment())
    try:
        helpers.wait_until(lambda: helpers.process_state(process.pid) == "S", what="it to block")
        lines, stacks = dump(process.pid)
        functions = [f.get("function", "") for frames in stacks.values() for f in frames]
        assert any("Eval" in f for f in functions), functions
        assert not any(f.get("language") == "python" for frames in stacks.values() for f in frames)
        assert process.poll() is None
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
