"""`unblock attach --offload`: of a running program, what could be moved. Nothing is: that has to be there from its start.

Checked that it can fail: without the mode in what the agent is asked all stalls have no `offload`; without the hooks of locks
(agent/offload/decide.c) "locked" would move; with the count of locks kept from one watch to the next "outlives" is pinned; with the mode kept over a second entry that does not ask for it, it judges there;
without what lies beside the agent's file (tracer/inject.c) Python's sleep is pinned `library`. What is called for the first
time after the entry was not hooked, so "nanosleep" was pinned `call`, until agent/patch_libc.c asked the program for libc's names.
"""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

import attaching
import helpers

pytestmark = pytest.mark.beside

MS = 200
CASES = {"nanosleep": ("would-move", "timer"), "pipe_read": ("would-move", "readiness"), "locked": ("pinned", "lock"),
         "nested": ("pinned", "nested")}


class Blocked:
    """A program of tests/programs that blocks once, when `go` is there."""

    def __init__(self, tmp_path, name, case):
        self.go = tmp_path / "go"
        self.process = subprocess.Popen([helpers.program(name), case, str(MS)], stdout=subprocess.PIPE, text=True,
                                        env={**os.environ, "OFFLOAD_AFTER": str(self.go)})
        helpers.wait_until(lambda: attaching.in_wait(self.process.pid), what="its loop")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def end(self):
        self.go.touch()
        out, _ = self.process.communicate(timeout=helpers.PATIENCE)
        assert self.process.returncode == 0
        return json.loads(out)


def stall(path):
    found = [s for s in helpers.Recording(path).slow if s["duration_ns"] >= MS * 900_000]
    assert len(found) == 1, found
    return found[0]


@pytest.mark.parametrize("name, case", [*(("offload_uv", case) for case in CASES), ("offload_event", "locked"),
                                        ("offload_glib", "nanosleep"), ("offload_ev", "locked")])
def test_what_would_move(tmp_path, name, case):
    path = tmp_path / "a.jsonl"
    with Blocked(tmp_path, name, case) as blocked:
        attached = attaching.enter(blocked.process.pid, path, "--offload")
        truth = blocked.end()
        _, err = attached.communicate(timeout=helpers.PATIENCE)
    assert truth["inside"] == 0, "something moved"
    assert helpers.Recording(path).header["offload"] == "dry-run"
    offload = stall(path)["offload"]
    state, word = CASES[case]
    assert stall(path)["calls"], "a call that the loader has not bound yet is hooked all the same"
    assert (offload["state"], offload["executor" if state == "would-move" else "reason"]) == (state, word), err


def test_again_without(tmp_path):
    """The mode is that of one entry."""
    with Blocked(tmp_path, "offload_uv", "locked") as blocked:
        pid = blocked.process.pid
        for i, options in enumerate((["--offload"], [])):
            path = tmp_path / f"{i}.jsonl"
            attached = attaching.enter(pid, path, *options)
            if options:
                attaching.leave(attached)
        blocked.end()
        attached.communicate(timeout=helpers.PATIENCE)
    assert "offload" not in stall(path) and helpers.Recording(path).header["offload"] == "off"


@pytest.mark.parametrize("kept", [False, True])
def test_lock_that_outlives_a_watch(tmp_path, kept):
    """Taken while one watch lasted, let go after it, unseen: the next one does not count it. In one watch it counts."""
    lock = tmp_path / "go.lock"
    with Blocked(tmp_path, "offload_uv", "nanosleep") as blocked:
        pid, path = blocked.process.pid, tmp_path / "1.jsonl"
        attached = attaching.enter(pid, path if kept else tmp_path / "0.jsonl", "--offload")
        time.sleep(0.3)
        lock.touch()
        time.sleep(0.3)
        if not kept:
            attaching.leave(attached)
            lock.unlink()
            time.sleep(0.1)
            attached = attaching.enter(pid, path, "--offload")
        blocked.end()
        attached.communicate(timeout=helpers.PATIENCE)
    assert stall(path)["offload"].get("reason") == ("lock" if kept else None)


def test_what_moves_is_refused(tmp_path):
    policy = tmp_path / "a.policy"
    policy.write_text("[offload]\nfsync = move\n")
    for mode in ("flagged", "eager", str(policy)):
        done = helpers.unblock("attach", f"--offload={mode}", os.getpid())
        assert done.returncode == 125 and "can be moved only in a program that was started for it" in done.stderr, done
        assert f"unblock run --offload={mode} -- CMD" in done.stderr
    done = helpers.unblock("attach", "--offload=egaer", os.getpid())
    assert done.returncode == 125 and "did you mean eager?" in done.stderr, done


SLEEPER = """
import asyncio, os, sys, time
async def main():
    print("ready", flush=True)
    while not os.path.exists(sys.argv[1]):
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.3)  # until all modules are hooked
    time.sleep(0.2)
asyncio.run(main())
"""


@pytest.mark.skipif(not os.path.exists("/usr/include/python3.11/Python.h"), reason="CPython 3.11's headers are missing")
def test_python(tmp_path):
    path, go = tmp_path / "a.jsonl", tmp_path / "go"
    process = subprocess.Popen(["/usr/bin/python3", "-c", SLEEPER, str(go)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    attached = attaching.enter(process.pid, path, "--offload")
    go.touch()
    process.communicate(timeout=helpers.PATIENCE)
    attached.communicate(timeout=helpers.PATIENCE)
    assert (process.returncode, stall(path)["offload"]["state"]) == (0, "would-move")


def test_unloads_after(tmp_path):
    with attaching.Target(0) as target:
        target.ready()
        attached = attaching.enter(target.pid, tmp_path / "a.jsonl", "--offload")
        attaching.leave(attached, signal.SIGINT)
        done = helpers.unblock("detach", "--unload", target.pid)
        assert done.returncode == 0, done.stderr
        assert "libunblock" not in str(attaching.maps(target.pid))


if __name__ == "__main__":
    sys.exit(pytest.main([__file__]))
