"""`unblock attach` and `dump` of what lives in namespaces of its own, as in a container: other numbers, root, network."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

import attaching
import helpers
from attaching import enter, leave, nothing_noticed
from helpers import PYTHON, Recording, one_line, program, unblock, wait_until

pytestmark = [pytest.mark.beside, pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make namespaces")]


class Contained:
    """A command that is process 1 of a PID namespace; `pid` is its number outside."""

    def __init__(self, *command, options=("--mount-proc",)):
        self.outer = subprocess.Popen(["unshare", "-p", "-f", "-n", "-m", *options, *map(str, command)],
                                      stdout=subprocess.PIPE, text=True, env=helpers.clean_environment())
        if self.outer.stdout.readline() != "ready\n":
            pytest.skip("no namespaces here")
        self.pid = helpers.children(self.outer.pid)[0]
        assert Path(f"/proc/{self.pid}/status").read_text().split("NSpid:")[1].split("\n")[0].split()[1:] == ["1"]

    def end(self):
        os.kill(self.pid, signal.SIGTERM)
        return json.loads(self.outer.communicate(timeout=helpers.PATIENCE)[0].splitlines()[-1])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for pid in helpers.children(self.outer.pid):
            os.kill(pid, signal.SIGKILL)
        self.outer.communicate()


def stalls(path):
    if not path.exists() or not path.stat().st_size:
        return []
    return [s for s in Recording(path, torn=True).slow if not s.get("ongoing")]


def stall_in(path, function):
    """One whose stack was had (a starved machine is late for some); None: there is none yet."""
    return next((s for s in stalls(path)
                 if any(function in stack for stack in Recording(path, torn=True).functions(s))), None)


def test_a_container(tmp_path):
    """Its own numbers, network and root, with nothing of ours in it: stalls are named, under the number that it has here."""
    root = tmp_path / "root"
    (root / "proc").mkdir(parents=True)
    root.chmod(0o755)
    needed = subprocess.run(["ldd", program("attached")], capture_output=True, text=True, check=True).stdout
    for file in [word for word in needed.split() if word.startswith("/")]:
        (root / file[1:]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(os.path.realpath(file), root / file[1:])
    shutil.copy(program("attached"), root / "only")
    path = tmp_path / "a.jsonl"
    script = f"mount -t proc proc {root}/proc && exec chroot {root} /only 60"
    with Contained("sh", "-c", script, options=()) as target:
        told = unblock("doctor", target.pid).stdout
        assert "can enter it" in next(line for line in told.splitlines() if " attach " in line), told
        files = attaching.open_files(target.pid)
        attached = enter(target.pid, path)
        wait_until(lambda: stall_in(path, "on_tick"), what="a stall")
        assert any(str(target.pid) in line for line in unblock("ps").stdout.splitlines())
        again = unblock("attach", target.pid)
        assert again.returncode == 125 and f"watched already, by process {attached.pid}" in one_line(again.stderr)
        leave(attached)
        assert not attaching.has_arena(target.pid) and attaching.open_files(target.pid) == files
        nothing_noticed(target.end())
    slow = stall_in(path, "on_tick")
    assert (slow["pid"], slow["tid"]) == (target.pid, target.pid)
    assert {p["pid"] for p in Recording(path).of("process")} == {target.pid}


def test_after_a_watcher_that_was_killed(tmp_path):
    """The agent cannot know who watches from outside of its namespace; the next one who comes can."""
    with Contained(program("attached"), 0) as target:
        attached = enter(target.pid, tmp_path / "a.jsonl")
        attached.kill()
        attached.communicate()
        assert attaching.has_arena(target.pid)
        leave(enter(target.pid, tmp_path / "b.jsonl"))
        assert not attaching.has_arena(target.pid)
        nothing_noticed(target.end())


PYTHON_PROGRAM = """
import asyncio, threading, time
go = threading.Event()
threading.Thread(target=go.wait, daemon=True).start()
def in_the_way():
    time.sleep(0.06)
async def main():
    print("ready", flush=True)
    while True:
        await asyncio.sleep(0.005)
        in_the_way()
asyncio.run(main())
"""


def test_python(tmp_path):
    """Threads, tasks and lines of a Python program, whose structures hold the numbers of its own namespace."""
    path = tmp_path / "a.jsonl"
    with Contained(PYTHON, "-c", PYTHON_PROGRAM) as target:
        wait_until(lambda: "in_the_way" in unblock("dump", target.pid).stdout, what="the frames of its main thread")
        said = unblock("dump", target.pid).stdout
        assert said.count("threading.py") >= 1, said  # the other thread's frames
        attached = enter(target.pid, path)
        wait_until(lambda: stall_in(path, "in_the_way"), what="a stall")
        leave(attached)
    assert stall_in(path, "in_the_way")["pid"] == target.pid


WORKERS = """
import os, select, time
def work():
    ep = select.epoll()
    while True:
        for i in range(10):
            ep.poll(0.005)
        time.sleep(0.06)
for i in range(2):
    os.fork() or work()
print("ready", flush=True)
while True:
    time.sleep(100)
"""


def test_workers(tmp_path):
    """The arena of one goes to the other, although names of sockets mean nothing in another network."""
    path = tmp_path / "a.jsonl"
    with Contained(PYTHON, "-c", WORKERS) as master:
        workers = set(helpers.children(master.pid))
        assert len(workers) == 2
        attached = attaching.attach(master.pid, path, "--children")
        wait_until(lambda: {s["pid"] for s in stalls(path)} >= workers, what="stalls of both workers")
        files = {pid: attaching.open_files(pid) for pid in workers}
        leave(attached)
        assert not any(attaching.has_arena(pid) for pid in [*workers, master.pid])
        assert not any("socket" in f or "memfd" in f for pid in workers for f in files[pid]), files
    recording = Recording(path)
    assert {s["pid"] for s in recording.slow} == {p["pid"] for p in recording.of("process")} == workers


def test_memory_files_are_no_code_in_there(tmp_path):
    """Who may not look into its PID namespace (test_attach_refused.py: who may) learns of vm.memfd_noexec there when it is met."""
    setting = "/proc/sys/vm/memfd_noexec"
    if not os.path.exists(setting):
        pytest.skip("a kernel without vm.memfd_noexec")
    with Contained("sh", "-c", f"echo 2 > {setting}; exec {program('attached')}") as target:
        done = subprocess.run(["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin", helpers.UNBLOCK, "attach",
                               "-o", tmp_path / "a.jsonl", "--live", "none", str(target.pid)], capture_output=True, text=True,
                              env=helpers.clean_environment(), timeout=helpers.PATIENCE, check=False)
        assert done.returncode == 125, done.stderr
        said = one_line(done.stderr)
        assert "goes on as before" in said and "memfd_noexec" in said, said
        assert not attaching.agent_ranges(target.pid) and not attaching.has_arena(target.pid)
        nothing_noticed(target.end())


NESTING = """
import ctypes, os, select, sys, time
print("ready", flush=True)
ep = select.epoll()
while not os.path.exists(sys.argv[1]):
    ep.poll(0.01)
assert ctypes.CDLL(None).unshare(0x20000000) == 0
if os.fork() == 0:
    for i in range(150):
        ep.poll(0.001)
        if i % 15 == 0:
            time.sleep(0.06)
    open(sys.argv[2], "w").close()
    os._exit(0)
while True:
    ep.poll(0.01)
"""


def test_a_namespace_within(tmp_path):
    """What it forks into one more namespace would be taken for itself by its number: that one is left alone."""
    path, go, done = tmp_path / "a.jsonl", tmp_path / "go", tmp_path / "done"
    with Contained(PYTHON, "-c", NESTING, go, done) as target:
        attached = attaching.attach(target.pid, path, "-t", "50ms")
        wait_until(lambda: attaching.is_watched(attached, path, target.pid), what="the agent to be in")
        go.touch()
        wait_until(done.exists, what="the stalls of the child")
        leave(attached)
    assert len(Recording(path).slow) < 5, "10 are the child's; a starved machine may hold up its parent, too"
