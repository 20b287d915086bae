"""`unblock attach --children`: a prefork server's workers, those there are and those to come, in one recording."""

import os
import signal
import subprocess

import pytest

import attaching
import helpers
from helpers import PYTHON, Recording, wait_until

pytestmark = pytest.mark.beside

SERVER = """
import os, select, signal, time
def work():
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    ep = select.epoll()
    while True:
        for i in range(10):
            ep.poll(0.005)
        time.sleep(0.06)
def spawn(*_):
    os.fork() or work()
signal.signal(signal.SIGUSR1, spawn)
spawn(), spawn()
print("ready", flush=True)
while True:
    signal.pause()
"""


def stalled(path):
    return {s["pid"] for s in Recording(path, torn=True).slow} if path.exists() and path.stat().st_size else set()


def test_workers(tmp_path):
    """The master has no loop and is left alone; a worker that is forked later is found. All are left at the end."""
    path = tmp_path / "a.jsonl"
    with subprocess.Popen([PYTHON, "-c", SERVER], stdout=subprocess.PIPE, text=True) as master:
        try:
            assert master.stdout.readline() == "ready\n"
            attached = attaching.attach(master.pid, path, "--children")
            first = set(helpers.children(master.pid))
            assert len(first) == 2
            wait_until(lambda: stalled(path) >= first, what="stalls of both workers")
            master.send_signal(signal.SIGUSR1)
            wait_until(lambda: len(helpers.children(master.pid)) == 3, what="the third worker")
            workers = set(helpers.children(master.pid))
            wait_until(lambda: stalled(path) == workers, what="stalls of the third")
            files = {pid: attaching.open_files(pid) for pid in workers}
            err = attaching.leave(attached)
            assert not any(attaching.has_arena(pid) for pid in [*workers, master.pid]), err
            assert not any("socket" in f or "memfd" in f for pid in workers for f in files[pid]), files
            assert all(helpers.process_state(pid) in "RS" for pid in workers)
        finally:
            for pid in [*helpers.children(master.pid), master.pid]:
                os.kill(pid, signal.SIGKILL)
    recording = Recording(path)
    assert len(recording.of("header")) == 1 and recording.end is not None
    assert {p["pid"] for p in recording.of("process")} == workers
    assert err.count("was kept from its work") == 3, err
