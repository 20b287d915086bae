"""`unblock trace` where there is no BPF: own processes through /proc, with a line that says what is not seen."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import jsonschema
import pytest

import helpers
import oracle
import tracing

pytestmark = pytest.mark.without_bpf

SCHEMA = jsonschema.Draft7Validator(json.loads((helpers.ROOT / "ui/recording.schema.json").read_text()))
SLEEPS = "nanosleep,usleep,poll,pipe_read,flock,tcp_recv,waitpid,sem_wait,mutex,cond_wait"
QUARTER_NS = oracle.THRESHOLD_MS * 1_000_000 // 4

TICKER = """
import asyncio, time
async def main():
    for i in range(100000):
        await asyncio.sleep(0.01)
        if i % 10 == 9:
            time.sleep(0.1)
asyncio.run(main())
"""


def without(what="capabilities"):
    return {"env": helpers.clean_environment(UNBLOCK_BPF_WITHOUT=what)}


def warning(said):
    """The one line that it begins with."""
    lines = [line for line in said.splitlines() if line.startswith("unblock trace:") and "reduced view" in line]
    assert len(lines) == 1, said
    return lines[0]


def judge(stall, slow, recording, program):
    if stall["stall"] == "cpu":
        assert not [s for s in slow if s["duration_ns"] > stall["duration_ns"] // 2], slow
        return
    assert len(slow) == 1, (stall, slow)
    short = stall["duration_ns"] - slow[0]["duration_ns"]
    # The truth begins before the call sleeps, and ends after.
    assert -2_000_000 - stall["noise_ns"] <= short <= 2 * QUARTER_NS + 5_000_000 + stall["noise_ns"], (stall, slow[0])
    assert slow[0]["cause"] in stall["cause"].split("|"), (stall, slow[0])
    assert slow[0].get("call", {}).get("name") in stall["call"].split("|"), (stall, slow[0])
    own = [oracle.own_frames(recording.stacks[s["stack"]], program) for s in slow[0]["samples"] if "stack" in s]
    assert own and all(frames and frames[0] == stall["function"] for frames in own), (stall, own)


@pytest.mark.parametrize("exact", [True, False], ids=["perf", "proc"])
@pytest.mark.parametrize("loop", ["epoll", "poll", "libuv"])
def test_sleeping_stalls(tmp_path, tracer, loop, exact):
    """Each call that sleeps is found with its call, callback and stack; computing is not, and nothing else is told."""
    program, *kind = {"epoll": ("loop_bare", "epoll"), "poll": ("loop_bare", "poll"), "libuv": ("loop_uv",)}[loop]
    with oracle.Sentinel() as sentinel:
        traced = tracer(helpers.program(program), *kind, tmp_path / "truth", SLEEPS + ",cpu", 2, 1,
                        tracer=without("capabilities" if exact else "capabilities,switches"))
        status, _, err, recording = traced.wait()
    assert status == 0, err
    said = warning(traced.tracer.said)
    if exact and "quarter" in said:
        pytest.skip("perf events are not allowed here")
    assert ("quarter" in said) == (not exact), said
    for line in recording.lines:
        errors = [e.message for e in SCHEMA.iter_errors(line)]
        assert not errors, (errors, line)
    assert recording.header["source"] == "proc" and not recording.of("stats")
    assert [n for n in recording.of("note") if n["text"] in said]
    truth = oracle.Truth(tmp_path / "truth")
    assert truth.undisturbed, truth.summaries
    excused, begun = [], truth.stalls[0]["start_ns"]
    for stall in truth.stalls:
        slow = oracle.find(stall, recording)
        if not slow and kind == ["poll"] and stall["start_ns"] - begun < 1_000_000_000:
            continue  # it takes eight sleeps to be taken for a loop
        try:
            judge(stall, slow, recording, program)
        except AssertionError:
            starved = stall["delay_ns"] > oracle.DELAY_SHARE * stall["duration_ns"]  # as the program says itself
            if not starved and not sentinel.busy(*oracle.span(stall, slow)):
                raise
            excused.append(stall["stall"])
    if len(excused) > len(truth.stalls) // 2:
        pytest.skip(f"the machine is too busy to judge: {excused}")


@pytest.mark.parametrize("missing,words", [("capabilities", "CAP_BPF"), ("btf", "CONFIG_DEBUG_INFO_BTF")])
def test_why(tmp_path, missing, words):
    """What is missing is said in the same line, and in the recording; no text on standard output."""
    target = subprocess.Popen(["sleep", "60"])
    try:
        done = helpers.unblock("trace", "--duration", "200ms", "-o", tmp_path / "r.jsonl", target.pid, **without(missing))
        assert target.poll() is None
    finally:
        target.kill()
        target.wait()
    assert done.returncode == 0 and done.stdout == ""
    assert words in warning(done.stderr)
    assert any(words in note["text"] for note in helpers.Recording(tmp_path / "r.jsonl").of("note"))


def test_children_and_end(tmp_path):
    """A child that comes later is watched with --children; the end of all is the end of the watching."""
    parent = subprocess.Popen([helpers.PYTHON, "-c", "import subprocess, sys, time\ntime.sleep(0.5)\n"
                               "c = subprocess.Popen([sys.executable, '-c', sys.argv[1]])\nprint(c.pid, flush=True)\n"
                               "time.sleep(4)\nc.kill()\nc.wait()", TICKER], stdout=subprocess.PIPE, text=True)
    try:
        tracer = tracing.Tracer(tmp_path, parent.pid, threshold="20ms", options=["--children"], **without())
        child = int(parent.stdout.readline())
        recording = tracer.wait()
        assert parent.wait() == 0
    finally:
        parent.kill()
        parent.communicate()
    assert [s for s in recording.slow if s["pid"] == child and s["call"]["name"] == "clock_nanosleep"], recording.slow


@pytest.fixture
def nobody():
    """A command that runs as nobody, and a copy of unblock that it may execute."""
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("root and setpriv are needed to give privilege up")
    folder = Path(tempfile.mkdtemp(prefix="unblock-test-"))
    folder.chmod(0o755)
    shutil.copy(helpers.UNBLOCK, folder / "unblock")
    yield folder / "unblock", ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    shutil.rmtree(folder)


def trace_as(nobody, target, tmp_path, *options):
    unblock, as_nobody = nobody
    return subprocess.run([*as_nobody, unblock, "trace", "-t", "20ms", "--duration", "1500ms", "-o", "-", *options, str(target)],
                          capture_output=True, text=True, timeout=helpers.PATIENCE, cwd="/")


def test_own_process_without_privilege(nobody, tmp_path):
    """A user's own process: the stalls, and the line."""
    target = subprocess.Popen([*nobody[1], helpers.PYTHON, "-c", TICKER], cwd="/")
    try:
        time.sleep(0.5)
        done = trace_as(nobody, target.pid, tmp_path)
    finally:
        target.kill()
        target.wait()
    assert done.returncode == 0 and "CAP_BPF" in warning(done.stderr), done.stderr
    slow = [line for line in map(json.loads, done.stdout.splitlines()) if line["type"] == "slow"]
    assert [s for s in slow if s["call"]["name"] == "clock_nanosleep" and s["duration_ns"] > 90_000_000], done.stdout


def test_somebody_elses_without_privilege(nobody, tmp_path):
    """Another user's process: one line, 125, and no recording."""
    target = subprocess.Popen([helpers.PYTHON, "-c", TICKER])
    try:
        done = trace_as(nobody, target.pid, tmp_path)
        assert target.poll() is None
    finally:
        target.kill()
        target.wait()
    line = helpers.one_line(done.stderr)
    assert done.returncode == 125 and "CAP_BPF" in line and "not yours" in line, done.stderr
    assert done.stdout == ""


def test_a_signal_ends_it(tmp_path):
    target = subprocess.Popen([helpers.PYTHON, "-c", TICKER])
    try:
        tracer = tracing.Tracer(tmp_path, target.pid, threshold="20ms", **without())
        time.sleep(1)
        recording = tracer.stop(signal.SIGTERM)
        assert target.poll() is None and recording.end
    finally:
        target.kill()
        target.wait()
