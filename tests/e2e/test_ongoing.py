"""Stalls that do not end: shown while they last, recorded as ongoing, kept when somebody is killed."""

import json
import os
import signal
import subprocess
import time

import pytest

import helpers
import oracle


def lines_of(path, kind):
    """Whole lines of one type that a growing recording holds now."""
    if not path.exists():
        return []
    text = path.read_text()
    out = []
    for line in text[:text.rfind("\n") + 1].splitlines():
        entry = json.loads(line)
        if entry["type"] == kind:
            out.append(entry)
    return out


class Stalled:
    """loop_bare under `unblock run`, with a stall of `ms` milliseconds in it."""

    def __init__(self, folder, stall, ms, command=None):
        self.truth = folder / "truth"
        self.path = folder / "r.jsonl"
        self.live = folder / "live"
        with open(self.live, "w") as live:
            self.process = helpers.start("run", "-t", "20ms", "-o", self.path, "--",
                                         *(command or [helpers.program("loop_bare"), "epoll", self.truth,
                                                       f"{stall}@{ms}"]), stderr=live)

    def slow(self):
        return lines_of(self.path, "slow")

    def shown(self):
        return [line for line in self.live.read_text().splitlines() if "BLOCKED" in line]

    def wait_shown(self):
        helpers.wait_until(lambda: self.shown() and self.slow(), what="the live line and the record of the stall")

    def target(self):
        return self.slow()[0]["pid"]

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def stalled(tmp_path):
    started = []

    def go(*args, **kwargs):
        started.append(Stalled(tmp_path, *args, **kwargs))
        return started[-1]

    yield go
    for s in started:
        pids = {line["pid"] for line in s.slow()}
        s.kill()
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


@pytest.mark.parametrize("stall", ["nanosleep", "cpu"])
def test_shown_while_it_lasts_then_replaced(stalled, stall):
    s = stalled(stall, 2500)
    s.wait_shown()
    assert not oracle.Truth(s.truth).stalls, "the stall was already over when it was first shown"
    first = s.slow()[0]
    assert first["ongoing"] is True
    assert 20_000_000 <= first["duration_ns"] < 2_500_000_000

    # And again after a second, with the time so far.
    helpers.wait_until(lambda: any(line["duration_ns"] >= 1_000_000_000 for line in s.slow()), what="the record at 1 s")
    assert not oracle.Truth(s.truth).stalls, "the record at 1 s came after the end"
    assert s.process.wait(helpers.PATIENCE) == 0

    recording = helpers.Recording(s.path)
    stall_ns = oracle.Truth(s.truth).stalls[0]["duration_ns"]
    same = [line for line in recording.of("slow") if line["id"] == first["id"] and line["pid"] == first["pid"]]
    assert [bool(line.get("ongoing")) for line in same] == [True] * (len(same) - 1) + [False]
    assert [line["duration_ns"] for line in same] == sorted(line["duration_ns"] for line in same)
    assert abs(same[-1]["duration_ns"] - stall_ns) < 5_000_000
    truth = oracle.Truth(s.truth).stalls[0]
    assert not oracle.compare_one(truth, oracle.find(truth, recording)[0], recording, "loop_bare")
    assert recording.end["slow"] == 1


def test_target_killed_in_the_middle(stalled):
    s = stalled("nanosleep", 60000)
    s.wait_shown()
    pid, start_ns = s.target(), s.slow()[0]["start_ns"]
    time.sleep(0.3)
    killed_ns = time.monotonic_ns()
    os.kill(pid, signal.SIGKILL)
    assert s.process.wait(helpers.PATIENCE) == -signal.SIGKILL, "the fatal signal is the child's"

    recording = helpers.Recording(s.path)
    assert recording.end["signal"] in (signal.SIGKILL, "KILL", "SIGKILL")
    assert len(recording.slow) == 1
    stall = recording.slow[0]
    assert stall["cause"] == "call" and stall["call"]["name"] in ("nanosleep", "clock_nanosleep")
    assert abs(stall["duration_ns"] - (killed_ns - start_ns)) < 50_000_000, "the time from its start to the kill"
    assert any("stall_nanosleep" in stack for stack in recording.functions(stall))
    assert recording.end["slow"] == 1


def test_watcher_killed(tmp_path, stalled):
    """The program goes on, with all the stalls that still come, and ends as it would."""
    status = tmp_path / "status"
    script = '"$@"; echo $? >"$STATUS"'
    os.environ["STATUS"] = str(status)
    try:
        s = stalled(None, 0, command=["/bin/sh", "-c", script, "sh", helpers.program("loop_bare"), "epoll",
                                      tmp_path / "truth", "nanosleep@300,all"])
    finally:
        del os.environ["STATUS"]
    s.wait_shown()
    s.process.kill()
    s.process.wait()
    helpers.wait_until(status.exists, timeout=60, what="the end of the program")
    helpers.wait_until(lambda: status.read_text().strip(), what="its status")
    assert status.read_text().strip() == "0"
    truth = oracle.Truth(tmp_path / "truth")
    assert len([t for t in truth.stalls if not t["retry"]]) + len(truth.skipped) == 1 + len(oracle.table())
    assert truth.undisturbed
    # What was written before is still a recording.
    recording = helpers.Recording(s.path, torn=True)
    assert recording.slow and recording.end is None


def test_stalled_forever_then_interrupted(stalled):
    """Ctrl-C reaches the program; it dies of it, and the recording says so."""
    s = stalled("nanosleep", 60000)
    s.wait_shown()
    os.kill(s.target(), signal.SIGINT)
    assert s.process.wait(helpers.PATIENCE) == -signal.SIGINT
    recording = helpers.Recording(s.path)
    assert recording.end["signal"] in (signal.SIGINT, "INT", "SIGINT")
    assert len(recording.slow) == 1


def test_report_of_a_cut_recording(tmp_path, stalled):
    """unblock itself was killed: its recording, torn line and all, can be read."""
    s = stalled("nanosleep", 1500)
    s.wait_shown()
    s.process.kill()
    s.process.wait()
    with open(s.path, "a") as f:
        f.write('{"type": "slow", "id": 99, "pi')
    done = subprocess.run([str(helpers.UNBLOCK), "report", str(s.path)], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert "stall_nanosleep" in done.stdout
