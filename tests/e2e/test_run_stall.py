"""What the options of `run` do to a program that does stall: verdict, --fail-on, --redact, --duration, live text."""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from helpers import Recording, clean_environment, program, start, unblock, wait_until


def stalling(ms=150):
    """A loop that sleeps `ms` milliseconds in one callback."""
    return [program("loop_bare"), "epoll", "truth", f"nanosleep@{ms}"]


def test_fail_on(workdir):
    done = unblock("run", "-q", "-t", "20ms", "--fail-on", "100ms", "--", *stalling())
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("unblock run: failed: the longest stall took 15") and line.endswith("--fail-on is 100 ms: exit 1")
    done = unblock("run", "-t", "20ms", "--fail-on", "100ms", "--", *stalling())
    assert done.returncode == 1 and "--fail-on is 100 ms: exit 1" in done.stderr.splitlines()[-1]


def test_fail_on_that_is_not_reached(workdir):
    done = unblock("run", "-q", "-t", "20ms", "--fail-on", "2s", "--", *stalling())
    assert (done.returncode, done.stderr) == (0, "")


def test_fail_on_lowers_the_default_threshold(workdir):
    """50 ms by default: a stall of 30 would be missed."""
    done = unblock("run", "-q", "-o", "r.jsonl", "--fail-on", "25ms", "--", *stalling(30))
    assert done.returncode == 1
    assert Recording("r.jsonl").header["threshold_ns"] == 25_000_000


def test_fail_on_leaves_the_programs_failure_alone(workdir):
    command = " ".join(stalling()) + "; exit 7"
    done = unblock("run", "-q", "-t", "20ms", "--fail-on", "100ms", "--", "sh", "-c", command)
    assert done.returncode == 7
    assert "the program failed by itself" in done.stderr.splitlines()[-1]
    done = unblock("run", "-q", "-t", "20ms", "--fail-on", "100ms", "--", "sh", "-c", " ".join(stalling()) + "; kill -TERM $$")
    assert done.returncode == -15


def test_fail_on_does_not_pass_what_was_not_watched(workdir):
    built = subprocess.run(["gcc", "-static", "-x", "c", "-", "-o", "static"], input="int main(void) { return 0; }", text=True)
    if built.returncode != 0:
        pytest.skip("no static libc")
    done = unblock("run", "-q", "--fail-on", "100ms", "--", "./static")
    assert "--fail-on could not be checked" in done.stderr


def test_children_are_watched_too(workdir):
    command = " ".join(stalling()) + " & wait"
    unblock("run", "-q", "-t", "20ms", "-o", "r.jsonl", "--", "sh", "-c", command)
    recording = Recording("r.jsonl")
    (slow,) = recording.slow
    assert slow["pid"] != json.loads(Path("truth").read_text().splitlines()[0])["pid"] or slow["duration_ns"] > 140e6
    assert slow["call"]["name"] == "clock_nanosleep"


def test_quiet_and_live_text(workdir):
    assert unblock("run", "-q", "-t", "20ms", "--", *stalling()).stderr == ""
    done = unblock("run", "--live=none", "-t", "20ms", "--", *stalling())
    assert "BLOCKED" not in done.stderr and "1 stall" in done.stderr
    done = unblock("run", "--live=line", "-t", "20ms", "--", *stalling())
    assert sum("BLOCKED" in line for line in done.stderr.splitlines()) == 1
    done = unblock("run", "--live=full", "-t", "20ms", "--", *stalling())
    assert "\n  why " in done.stderr and "\n  where " in done.stderr
    done = unblock("run", "-t", "20ms", "--", *stalling(), env=clean_environment(UNBLOCK_LIVE="full"))
    assert "\n  why " in done.stderr


def test_redact(workdir):
    unblock("run", "-q", "--redact", "-t", "20ms", "-o", "r.jsonl", "--", *stalling())
    text = Path("r.jsonl").read_text()
    recording = Recording("r.jsonl")
    assert len(recording.slow) == 1
    assert "nanosleep@150" not in text and str(workdir) not in text and "150 ms" not in text


def test_secrets_in_the_command_are_masked(workdir):
    unblock("run", "-q", "-t", "20ms", "-o", "r.jsonl", "--", "sh", "-c", " ".join(stalling()), "--password=hunter2",
            "--token", "s3cret", "https://me:pw@host/")
    text = Path("r.jsonl").read_text()
    assert "--password=***" in text
    for secret in ("hunter2", "s3cret", "me:pw"):
        assert secret not in text


def test_duration_ends_before_the_stall(workdir):
    """Nothing that happens after it is recorded, and the program is not disturbed."""
    script = f"sleep 0.5; {' '.join(stalling())}; exit 6"
    done = unblock("run", "--duration", "200ms", "-t", "20ms", "-o", "r.jsonl", "--", "sh", "-c", script)
    assert done.returncode == 6
    assert Path("truth").exists()
    recording = Recording("r.jsonl")
    assert recording.slow == [] and recording.lines[-1]["type"] == "end"


def test_duration_in_the_middle_of_a_loop(workdir):
    """The agent goes to sleep under a running loop; the recording is complete while the program still runs."""
    started = time.monotonic()
    popen = start("run", "-q", "--duration", "1s", "-t", "20ms", "-o", "r.jsonl", "--", program("loop_bare"), "epoll", "truth",
                  "nanosleep@150", "40", text=True)
    try:
        wait_until(lambda: Path("r.jsonl").exists() and '"type":"end"' in Path("r.jsonl").read_text(), what="the recording to end")
        assert time.monotonic() - started < 5
        recorded = len(Recording("r.jsonl").slow)
        assert popen.poll() is None, "the program goes on"
        assert popen.wait(60) == 0
    finally:
        popen.kill()
    truth = [json.loads(line) for line in Path("truth").read_text().splitlines()]
    stalls = [t for t in truth if "stall" in t]
    assert 1 <= recorded < len(stalls) == 40
    assert [t for t in truth if "summary" in t][0]["interrupted"] == 0


def test_append_keeps_both_runs(workdir):
    for _ in range(2):
        unblock("run", "-q", "--append", "-t", "20ms", "-o", "r.jsonl", "--", *stalling())
        os.remove("truth")
    text = unblock("report", "r.jsonl").stdout
    assert "2" in text and Path("r.jsonl").read_text().count('"type":"header"') == 2


def test_rotation(workdir):
    done = unblock("run", "-q", "--max-size", "64k", "-t", "20ms", "-o", "r.jsonl", "--", program("loop_bare"), "epoll", "truth",
                   "nanosleep@25", "60")
    assert done.returncode == 0
    parts = sorted(Path(".").glob("r.jsonl*"))
    if len(parts) > 1:
        for part in parts:
            assert part.stat().st_size < 80_000
            Recording(part)
