"""SIGKILL and SIGSTOP of the watcher or the target at random moments: the other side does the right thing each time.

200 moments in `make check`, 1,000 in `make soak`.
"""

import os
import random
import signal
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import helpers
from helpers import AGENT, UNBLOCK, Recording, clean_environment, process_state, program, wait_until
from test_preload import all_ended, helpers_of

pytestmark = pytest.mark.beside

MOMENTS = 1000 if os.environ.get("UNBLOCK_SOAK") else 200
AT_ONCE = 8
TURNS = 120
MEMORY_KB = 100_000


def peak_kb(pid):
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return int(next((line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")), 0))


class Round:
    """One program and its watcher; `victim` gets a signal after a random delay."""

    def __init__(self, folder, seed):
        self.random = random.Random(seed)
        self.seed = seed
        self.folder = folder / f"round-{seed}-"
        self.folder.mkdir()
        self.mode = self.random.choice(["run", "preload"])
        self.victim = self.random.choice(["watcher", "target"])
        self.signal = self.random.choice([signal.SIGKILL, signal.SIGSTOP])
        self.path = self.folder / "r.jsonl"
        self.helper = None

    def begin(self):
        command = [program("survivor"), str(TURNS)]
        env = clean_environment()
        if self.mode == "run":
            command = [str(UNBLOCK), "run", "-q", "-t", "2ms", "-o", str(self.path), "--", *command]
        else:
            env = clean_environment(LD_PRELOAD=str(AGENT), UNBLOCK_THRESHOLD="2ms", UNBLOCK_OUTPUT=str(self.path))
        self.process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                        stdin=subprocess.DEVNULL, cwd=self.folder)

    def pids(self):
        """(target, watcher), None for what is not there (yet)."""
        if self.mode == "preload":
            found = helpers_of(self.folder)
            return self.process.pid, found[0] if found else None
        found = helpers.children(self.process.pid)
        return (found[0] if found else None), self.process.pid

    def strike(self):
        if self.mode == "preload" and self.victim == "watcher":
            wait_until(lambda: self.pids()[1] or self.process.poll() is not None, what="the helper", interval=0.001)
        time.sleep(self.random.uniform(0, 0.15))
        self.target, self.watcher = self.pids()
        pid = self.target if self.victim == "target" else self.watcher
        if pid is None or self.process.poll() is not None:
            return "too early or too late"
        if self.watcher:
            assert peak_kb(self.watcher) < MEMORY_KB
        try:
            os.kill(pid, self.signal)
            if self.signal == signal.SIGSTOP:
                time.sleep(self.random.uniform(0, 0.1))
                os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            return "too early or too late"
        return f"{self.mode} {self.victim} {self.signal.name}"

    def end(self):
        out, err = self.process.communicate(timeout=helpers.PATIENCE)
        return self.process.returncode, out, err

    def check(self, what):
        status, out, err = self.end()
        whole = (0, f"done {TURNS}\n".encode(), b"")
        if self.signal == signal.SIGSTOP or what.startswith("too"):
            assert (status, out, err) == whole, "nothing but time was lost"
        elif self.victim == "target":
            assert (status, err) == (-signal.SIGKILL, b"")
        elif self.mode == "preload":
            assert (status, out, err) == whole, "the program goes on without its helper"
        else:
            # `unblock run` itself was killed: the program goes on to its end, or had not been executed yet.
            assert status == -signal.SIGKILL
            if self.target:
                wait_until(lambda: process_state(self.target) in (None, "Z"), what="the program's own end")
                assert out in (whole[1], b"")
        all_ended(self.folder)
        self.check_recording(what)

    def check_recording(self, what):
        """Readable always; with an end unless its writer was killed."""
        if not self.path.exists():
            assert self.mode == "preload" or self.victim == "watcher"
            return
        killed = self.victim == "watcher" and self.signal == signal.SIGKILL and not what.startswith("too")
        if killed:
            if b"\n" in self.path.read_bytes():
                Recording(self.path, torn=True)
            return
        r = Recording(self.path)
        assert r.end, "the watcher wrote the end"
        if self.mode == "run" and self.victim == "target" and self.signal == signal.SIGKILL and not what.startswith("too"):
            assert r.end["signal"] == signal.SIGKILL

    def play(self):
        self.begin()
        try:
            what = self.strike()
            self.check(what)
        except BaseException as error:
            raise AssertionError(f"seed {self.seed}: {self.mode}, {self.signal.name} to the {self.victim}: {error}") from error
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self.process.stdout.close()
            self.process.stderr.close()
        return what


def test_any_moment(tmp_path):
    first = int(os.environ.get("UNBLOCK_SEED", random.SystemRandom().randrange(10**6) * 1000))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        done = Counter(pool.map(lambda i: Round(tmp_path, first + i).play(), range(MOMENTS)))
    hit = sum(n for what, n in done.items() if not what.startswith("too"))
    assert hit >= MOMENTS * 0.6, done
    assert len([what for what in done if not what.startswith("too")]) == 8, f"all cases were tried: {done}"
    all_ended(tmp_path)


def test_memory_stays_bounded_while_the_watcher_is_stopped(tmp_path):
    """What happens meanwhile stays in the arena, which does not grow; afterwards it catches up and counts what was lost."""
    path = tmp_path / "r-1.jsonl"
    env = clean_environment(LD_PRELOAD=str(AGENT), UNBLOCK_THRESHOLD="1ms", UNBLOCK_OUTPUT=str(path))
    p = subprocess.Popen([program("survivor"), "3000"], env=env, stdout=subprocess.PIPE)
    (helper,) = wait_until(lambda: helpers_of(tmp_path), what="the helper")
    wait_until(lambda: path.exists() and b'"slow"' in path.read_bytes(), what="a stall")
    os.kill(helper, signal.SIGSTOP)
    before = peak_kb(helper)
    time.sleep(2)
    os.kill(helper, signal.SIGCONT)
    out, _ = p.communicate(timeout=helpers.PATIENCE)
    assert out == b"done 3000\n"
    wait_until(lambda: not helpers_of(tmp_path), what="the helper's end")
    r = Recording(path)
    assert r.end["lost"]["ring"] > 0, "more stalls than a ring has room for"
    assert before < MEMORY_KB
