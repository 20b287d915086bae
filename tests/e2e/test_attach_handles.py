"""What a program registered before it was entered: its callbacks are timed and named as if it had been started with us.

The programs of test_callbacks.py, which know the truth about their stalls, are started alone; they are entered while
their loop turns (libevent's twice), and only then told to stall. Checked that it can fail: without the look
for what is there (ub_existing_adopt) the kinds of libuv, libevent and GLib's own tables are "turn".
"""

import importlib.util
import os
import subprocess
import time

import pytest

import attaching
import helpers
import oracle
import test_callbacks
from helpers import PYTHON, Recording, program, wait_until

pytestmark = pytest.mark.beside

# Told as turns, as nothing says what was given to these; the stack names the function.
UNSEEN = {"libevent": ["on_query", "on_request"],
          "sd-event": ["on_time", "on_io", "on_signal", "on_inotify", "on_defer", "on_post"]}
LIBRARIES = {library: (*row, UNSEEN.get(library, [])) for library, row in test_callbacks.LIBRARIES.items()}
if os.environ.get("UNBLOCK_SOAK") != "1":  # its watchers are met as ever, when they are due
    del LIBRARIES["libev"]
WITH_FD = {"on_poll", "on_read", "on_connection", "on_udp", "on_io", "on_accept", "on_channel", "on_fd"}


def run_entered(tmp_path, name):
    go, path = tmp_path / "go", tmp_path / "a.jsonl"
    env = helpers.clean_environment(STALLS_AFTER=str(go), STALLS_MS="14")
    with subprocess.Popen([program(name), tmp_path / "truth", "nanosleep"], env=env, stderr=subprocess.PIPE) as target:
        try:
            wait_until(lambda: attaching.in_wait(target.pid), what="the loop")
            if name == "callbacks_event":
                attaching.leave(attaching.enter(target.pid, tmp_path / "first.jsonl"))
            attached = attaching.enter(target.pid, path, "-t", f"{oracle.THRESHOLD_MS}ms")
            go.touch()
            _, err = target.communicate(timeout=helpers.PATIENCE)
            assert target.returncode == 0, err  # among others, what it looks for by function is found
            attached.communicate(timeout=helpers.PATIENCE)
        finally:
            if target.poll() is None:
                target.kill()
    return oracle.Truth(tmp_path / "truth"), Recording(path)


def longest(stall, recording):
    return max(oracle.find(stall, recording), key=lambda s: s["duration_ns"], default=None)


@pytest.mark.parametrize("library", LIBRARIES)
def test_old_handles(tmp_path, library):
    """All have their function and kind, those of a descriptor that too; but for sources of sd-event and what libevent's
    http, dns and evbuffers were given (agent/README.md): turns, of which the stack tells the function where one was
    taken (how good those are is test_callbacks.py's affair)."""
    name, kinds, unseen = LIBRARIES[library]
    truth, recording = run_entered(tmp_path, name)
    assert len(truth.stalls) == kinds
    for stall in truth.stalls:
        function, kind = stall["callback"], "turn" if stall["callback"] in unseen else stall["kind"]
        if function == "on_change":  # of an evbuffer, runs inside the ticker's
            function, kind = "on_tick", "timer"
        slow = longest(stall, recording)
        assert slow and slow["kind"] == kind, (stall, slow)
        if kind != "turn" or slow["samples"]:
            assert slow["callback"].get("function") == function, (stall, slow)
        assert kind == "turn" or slow["loop"] == library, slow
        assert kind == "turn" or "fd" in slow["callback"] or function not in WITH_FD, slow


PYTHON_PROGRAM = """
import asyncio, os, sys, time
async def ticker():
    while True:
        await asyncio.sleep(0.005)
def on_readable():
    if not os.read(0, 1):
        os._exit(0)
    time.sleep(0.06)
async def main():
    asyncio.get_running_loop().add_reader(0, on_readable)
    print("ready", flush=True)
    await ticker()
if sys.argv[1] == "uvloop":
    import uvloop
    uvloop.install()
asyncio.run(main())
"""


def is_seen(target, path):
    """The first ones may come before the loop is known as one; uvloop's are named by their stacks alone."""
    target.stdin.write(b"x")
    target.stdin.flush()
    time.sleep(0.1)
    return any(s["kind"] == "callback" and s["callback"].get("function") == "on_readable"
               for s in Recording(path, torn=True).slow)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_old_readers_of_python(tmp_path, loop):
    if loop == "uvloop" and not importlib.util.find_spec("uvloop"):
        pytest.skip("uvloop is not installed")
    path = tmp_path / "a.jsonl"
    with subprocess.Popen([PYTHON, "-c", PYTHON_PROGRAM, loop], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as target:
        try:
            assert target.stdout.readline() == b"ready\n"
            attached = attaching.enter(target.pid, path)
            wait_until(lambda: is_seen(target, path), what="the reader's stall")
            attaching.leave(attached)
            target.stdin.close()
            assert target.wait(helpers.PATIENCE) == 0
        finally:
            if target.poll() is None:
                target.kill()
