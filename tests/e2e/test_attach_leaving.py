"""Leaving a program with many modules: their slots are put back some at a time, each at another wait of its loop."""

import os
import signal
import subprocess

import pytest

import attaching
import helpers
from attaching import enter, leave
from helpers import PYTHON, wait_until

pytestmark = pytest.mark.beside

CALLS = "read write poll select nanosleep usleep sleep fsync open close connect accept send recv".split()
PROGRAM = """
import ctypes, os, select, signal, sys
libraries = [ctypes.CDLL(f"{sys.argv[1]}/m{i}.so") for i in range(120)]
ep = select.epoll()
forks = 0
signal.signal(signal.SIGUSR1, lambda *_: globals().update(forks=8))
print("ready", flush=True)
while True:
    ep.poll(0.005 if sys.argv[2] == "busy" else -1)
    if forks > 0:
        forks -= 1
        os.fork() or globals().update(forks=0)
"""


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    """120 files of one library that calls what is hooked, each with pages of its own that have to be opened."""
    folder = tmp_path_factory.mktemp("modules")
    source = "".join(f"int {name}();\n" for name in CALLS) + "int f(void) { return " + \
        " + ".join(f"{name}()" for name in CALLS) + "; }\n"
    subprocess.run(["gcc", "-shared", "-fPIC", "-fno-builtin", "-Wl,-z,now", "-xc", "-", "-o", folder / "m0.so"], text=True,
                   check=True, input=source)
    for i in range(1, 120):
        (folder / f"m{i}.so").write_bytes((folder / "m0.so").read_bytes())
    return folder


class Loaded:
    def __init__(self, modules, how):
        self.process = subprocess.Popen([PYTHON, "-c", PROGRAM, modules, how], stdout=subprocess.PIPE, text=True,
                                        start_new_session=True)
        self.pid = self.process.pid
        assert self.process.stdout.readline() == "ready\n"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.killpg(self.pid, signal.SIGKILL)
        self.process.communicate()


def slots_of_ours(pid):
    """Of all modules, in what they may write or could when they were loaded."""
    return attaching.words_into_agent(pid, ".so")


def test_by_several_requests(modules, tmp_path):
    """An idle loop is asked again and again, until all is put back."""
    with Loaded(modules, "idle") as target:
        wait_until(lambda: attaching.in_wait(target.pid), what="the wait")
        attached = enter(target.pid, tmp_path / "a.jsonl")
        assert slots_of_ours(target.pid) > 120 * len(CALLS) / 2
        wait_until(lambda: attaching.room(target.pid)[0] == attaching.DONE, what="the entering to be over")
        before = attaching.room(target.pid)[1]
        err = leave(attached)
        assert attaching.room(target.pid)[1] - before >= 3, err
        assert slots_of_ours(target.pid) == 0 and not attaching.has_arena(target.pid)
        leave(enter(target.pid, tmp_path / "b.jsonl"))
        assert slots_of_ours(target.pid) == 0


def test_forks_meanwhile(modules, tmp_path):
    """Children that are forked before, while and after their parent is left have nothing of ours in their slots in the end."""
    with Loaded(modules, "busy") as target:
        attached = enter(target.pid, tmp_path / "a.jsonl")
        os.kill(target.pid, signal.SIGUSR1)
        wait_until(lambda: len(helpers.children(target.pid)) >= 2, what="children")
        leave(attached)
        wait_until(lambda: len(helpers.children(target.pid)) == 8, what="the last child")
        for pid in [target.pid, *helpers.children(target.pid)]:
            wait_until(lambda pid=pid: not attaching.has_arena(pid), what=f"process {pid} to be left")
            assert slots_of_ours(pid) == 0, pid
