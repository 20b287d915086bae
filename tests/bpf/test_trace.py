"""`unblock trace` as a command: whom it watches, when it ends, what it says when it cannot."""

import json
import os
import shutil
import signal
import subprocess
import time

import pytest

import helpers
import tracing
from tracing import tracepoints

TICKER = [helpers.PYTHON, "-c", """
import asyncio, os, sys, time
async def main():
    for i in range(int(sys.argv[1])):
        await asyncio.sleep(0.005)
        if i % 20 == 19:
            time.sleep(0.04)
asyncio.run(main())
"""]


@pytest.fixture
def ticker():
    running = []

    def start(count=100000, **popen):
        running.append(subprocess.Popen([*TICKER, str(count)], **popen))
        return running[-1]

    yield start
    for p in running:
        if p.poll() is None:
            p.kill()
        p.wait()


@pytest.fixture
def watch(tmp_path):
    running = []

    def start(*args, **kwargs):
        running.append(tracing.Tracer(tmp_path, *args, **kwargs))
        return running[-1]

    yield start
    for t in running:
        t.end()


FINALISES = """
import asyncio, time
data = [{i: str(i)} for i in range(300000)]
async def main():
    for _ in range(150): await asyncio.sleep(0.01)
asyncio.run(main())
begun = time.monotonic()
while time.monotonic() - begun < 0.3: pass
"""


def test_what_comes_after_the_loop_is_no_stall(watch):
    """Its descriptor is closed: what the program does then, until it is gone, keeps nobody waiting."""
    program = subprocess.Popen([helpers.PYTHON, "-c", FINALISES])
    try:
        time.sleep(0.7)
        t = watch(program.pid, threshold="100ms")
        assert program.wait(timeout=helpers.PATIENCE) == 0
    finally:
        program.kill()
        program.wait()
    recording = t.wait()
    assert [s for s in recording.slow if s.get("ongoing")] == []
    assert recording.of("stats")


def sleeps(recording, pid):
    return [s for s in recording.slow if s["pid"] == pid and s.get("call", {}).get("name") == "clock_nanosleep"]


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_watching_only(ticker, watch, sig):
    target = ticker()
    time.sleep(0.3)
    tracer = watch(target.pid, threshold="20ms")
    time.sleep(1)
    recording = tracer.stop(sig)
    assert target.poll() is None
    assert recording.end is not None and len(sleeps(recording, target.pid)) >= 2
    assert all("exit" not in line for line in recording.of("end"))


def test_it_ends_with_its_process(ticker, watch):
    target = ticker(200)
    tracer = watch(target.pid, threshold="20ms")
    recording = tracer.wait()
    assert target.wait() == 0
    assert len(sleeps(recording, target.pid)) >= 1


def test_duration(ticker, watch):
    target = ticker()
    begun = time.monotonic()
    recording = watch(target.pid, threshold="20ms", options=["--duration", "700ms"]).wait()
    assert 0.6 < time.monotonic() - begun < 10
    assert target.poll() is None and recording.end


def test_options_of_run(ticker, watch, tmp_path):
    """--suppress, --metrics and the control socket (ps, top) are those of `run`."""
    known = tmp_path / "known.txt"
    known.write_text("call:clock_nanosleep   # the ticker's\n")
    target = ticker()
    tracer = watch(target.pid, threshold="20ms",
                   options=["--suppress", known, "--fail-on", "30ms", "--metrics", tmp_path / "m.prom"])

    def status():
        found = [w for w in json.loads(helpers.unblock("ps", "--format", "json").stdout)["watchers"]
                 if w["watcher"] == tracer.process.pid]
        return found[0] if found and found[0]["slow"] >= 3 and found[0]["loops"][0].get("program") else None

    watcher = helpers.wait_until(status, what="stalls in `ps`")
    assert (watcher["mode"], watcher["pid"], watcher["recording"]) == ("trace", target.pid, str(tracer.path))
    shown = next(line.split() for line in helpers.unblock("ps").stdout.splitlines() if str(tracer.path) in line)
    assert shown[0] == str(target.pid) and shown[1].startswith("python3") and shown[2:4] == ["trace", str(tracer.process.pid)]
    assert "clock_nanosleep" in helpers.unblock("top", "--once", str(target.pid)).stdout
    tracer.process.send_signal(signal.SIGINT)
    out, said = tracer.process.communicate(timeout=helpers.PATIENCE)
    recording = helpers.Recording(tracer.path)
    asleep = [s for s in sleeps(recording, target.pid) if s["cause"] == "call" and not s.get("ongoing")]
    assert len(asleep) >= 3
    assert not [line for line in (tracer.said + said).splitlines() if "BLOCKED" in line and "clock_nanosleep" in line]
    others = [s for s in recording.slow if s not in asleep and not s.get("startup") and s["cause"] != "stopped"]
    assert tracer.process.returncode == (1 if any(s["duration_ns"] >= 30e6 for s in others) else 0), said
    assert "unblock_stalls_total" in (tmp_path / "m.prom").read_text()


def test_the_process_may_be_killed(ticker, watch):
    target = ticker()
    tracer = watch(target.pid, threshold="20ms")
    time.sleep(0.5)
    target.kill()
    assert tracer.wait().end


def test_the_tracer_may_be_killed(ticker, watch):
    """SIGKILL leaves no program behind in the kernel, and the process does not notice."""
    target = ticker()
    tracer = watch(target.pid, threshold="20ms")
    time.sleep(0.3)
    tracer.process.kill()
    tracer.process.communicate()
    time.sleep(0.1)
    assert target.poll() is None
    recording = helpers.Recording(tracer.path, torn=True)
    assert recording.header["source"] == "bpf"
    again = watch(target.pid, threshold="20ms", options=["--duration", "500ms"]).wait()
    assert sleeps(again, target.pid)


def test_children(watch, tmp_path):
    """With --children those that live and those to come; without it neither."""
    script = tmp_path / "parent.py"
    script.write_text("import subprocess, sys, time\n"
                      "one = subprocess.Popen(sys.argv[1:])\ntime.sleep(1.2)\ntwo = subprocess.Popen(sys.argv[1:])\n"
                      "print(one.pid, two.pid, flush=True)\none.wait(); two.wait()\n")
    for follow in (True, False):
        parent = subprocess.Popen([helpers.PYTHON, str(script), *TICKER, "200"], stdout=subprocess.PIPE, text=True)
        try:
            helpers.wait_until(lambda: helpers.children(parent.pid), what="the first child")
            tracer = watch(parent.pid, threshold="20ms", options=["--children"] if follow else [])
            one, two = map(int, parent.stdout.readline().split())
            parent.wait()
            recording = tracer.wait()
        finally:
            parent.kill()
            parent.communicate()
        assert bool(sleeps(recording, one)) == follow, recording.slow
        assert bool(sleeps(recording, two)) == follow, recording.slow


def test_threads(tracer, tmp_path):
    """Every thread that runs a loop is one of its own."""
    traced = tracer(helpers.PYTHON, "-c", """
import asyncio, threading, time
async def main():
    for i in range(60):
        await asyncio.sleep(0.005)
        if i % 20 == 19:
            time.sleep(0.04)
threads = [threading.Thread(target=lambda: asyncio.run(main())) for _ in range(3)]
[t.start() for t in threads]
[t.join() for t in threads]
""", threshold="20ms")
    status, _, err, recording = traced.wait()
    assert status == 0, err
    assert len({s["tid"] for s in sleeps(recording, traced.pid)}) == 3
    assert len({(loop["pid"], loop["tid"]) for loop in recording.of("loop")}) == 3


def test_a_hang_is_told_while_it_lasts(watch, tmp_path):
    """The stall is in the recording before it is over, with its stack, and stays there when the process is killed."""
    target = subprocess.Popen([helpers.PYTHON, "-c", """
import asyncio, os, sys, time
async def main():
    while not os.path.exists(sys.argv[1]):
        await asyncio.sleep(0.005)
    await asyncio.sleep(0.1)
    time.sleep(300)
asyncio.run(main())
""", str(tmp_path / "go")])
    try:
        time.sleep(0.2)
        tracer = watch(target.pid, threshold="50ms")
        (tmp_path / "go").touch()

        def ongoing():
            return [s for s in helpers.Recording(tracer.path, torn=True).slow if s.get("ongoing")]

        slow = helpers.wait_until(ongoing, what="the hang to be told")[0]
        assert slow["call"]["name"] == "clock_nanosleep" and slow["samples"][0]["proof"] == "still"
    finally:
        target.kill()
        target.wait()
    assert tracer.wait().slow[-1]["ongoing"]


def test_doze(watch):
    """
    While a loop sleeps, nobody's system calls are looked at; what ends its sleep is found as exactly as ever.

    A bare loop: asyncio makes two turns of the end of a sleep, and the second is seen as ever if the tracer is quick.
    """
    target = subprocess.Popen([helpers.PYTHON, "-c", """
import select, time
ep = select.epoll()
for i in range(30):
    ep.poll(0.02)
for i in range(2):
    ep.poll(3.5)
    start = time.monotonic_ns()
    time.sleep(0.06)
    print(start, time.monotonic_ns(), flush=True)
ep.poll(0.5)
"""], stdout=subprocess.PIPE, text=True)
    try:
        time.sleep(0.2)
        tracer = watch(target.pid, threshold="20ms")
        assert "sys_enter" in tracepoints(tracer.process.pid)
        helpers.wait_until(lambda: "sys_enter" not in tracepoints(tracer.process.pid), what="the doze")
        assert "sched_switch" in tracepoints(tracer.process.pid)
        dozed = time.monotonic_ns()
        helpers.wait_until(lambda: "sys_enter" in tracepoints(tracer.process.pid), what="its end")
        out = target.communicate(timeout=helpers.PATIENCE)[0]
    finally:
        target.kill()
        target.communicate()
    recording = tracer.wait()
    stalls = []
    for start, end in (map(int, line.split()) for line in out.splitlines()):
        slow = [s for s in recording.slow if s["start_ns"] <= start and s["start_ns"] + s["duration_ns"] >= end]
        assert len(slow) == 1 and slow[0]["call"]["name"] == "clock_nanosleep", (start, end, recording.slow)
        assert slow[0]["runqueue_ns"] > 10_000_000 or slow[0]["duration_ns"] - (end - start) < 10_000_000, slow
        stalls.append(slow[0])
    ended = next(s for s in stalls if s["start_ns"] > dozed)
    assert "ready" not in ended.get("waiting", {}), ended  # nobody saw that wait return
    assert all(s.get("waiting", {}).get("ready", 0) == 0 for s in stalls), stalls  # no descriptor was ever ready


def test_pid_namespace(watch, tmp_path):
    """A process in a PID namespace of its own is watched by the number that we see."""
    if not shutil.which("unshare") or os.geteuid() != 0:
        pytest.skip("unshare as root is needed")
    outer = subprocess.Popen(["unshare", "--pid", "--fork", "--kill-child", *TICKER, "100000"])
    try:
        inner = helpers.wait_until(lambda: helpers.children(outer.pid), what="the process")[0]
        time.sleep(0.3)
        recording = watch(inner, threshold="20ms", options=["--duration", "1s"]).wait()
        assert sleeps(recording, inner), recording.slow
    finally:
        outer.kill()
        outer.wait()


def test_inside_a_pid_namespace(tmp_path):
    """A tracer in a PID namespace watches by the numbers of that, and records those."""
    if not shutil.which("unshare") or os.geteuid() != 0:
        pytest.skip("unshare as root is needed")
    path = tmp_path / "inside.jsonl"
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c",
         'recording=$1 unblock=$2; shift 2; "$@" & sleep 0.5; '
         '"$unblock" trace -t 20ms --duration 2s -o "$recording" $!; status=$?; echo $!; kill $!; exit $status',
         "sh", path, helpers.UNBLOCK, *TICKER, "100000"],
        capture_output=True, text=True, timeout=helpers.PATIENCE, env=helpers.clean_environment())
    assert done.returncode == 0, done.stderr
    recording = helpers.Recording(path)
    assert int(done.stdout) < 20 and recording.header["source"] == "bpf", done.stdout
    found = sleeps(recording, int(done.stdout))
    assert found and any(s["samples"] for s in found), recording.slow  # a tracer without a CPU comes too late for some


def cgroup_root():
    for path in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup"):
        if os.path.exists(path + "/cgroup.procs") and os.access(path, os.W_OK):
            return path
    return None


def test_cgroup(ticker, watch):
    """Who is in it and who comes later."""
    root = cgroup_root()
    if not root:
        pytest.skip("no control groups that could be written to")
    group = f"{root}/unblock-test-{os.getpid()}"
    try:
        os.makedirs(group + "/below")
    except OSError as error:
        pytest.skip(f"no control group can be made: {error}")
    try:
        first, second = ticker(), ticker()
        open(group + "/below/cgroup.procs", "w").write(str(first.pid))
        tracer = watch("--cgroup", group, threshold="20ms")
        time.sleep(0.5)
        open(group + "/cgroup.procs", "w").write(str(second.pid))
        time.sleep(3)
        recording = tracer.stop()
        assert sleeps(recording, first.pid) and sleeps(recording, second.pid)
    finally:
        first.kill(), second.kill()
        first.wait(), second.wait()
        time.sleep(0.1)
        os.rmdir(group + "/below")
        os.rmdir(group)


# What it says when it cannot. The reduced view without BPF: test_reduced.py.


@pytest.mark.without_bpf
@pytest.mark.parametrize("args,words", [
    ([], "no process named"),
    (["zzz"], "not a process number"),
    (["999999999"], "no process"),
    (["2"], "thread of the kernel"),
    (["--cgroup", "nowhere/at/all"], "no control group"),
    (["-t", "5", "1"], "unit"),
])
def test_wrong_use(args, words):
    done = helpers.unblock("trace", *args)
    assert done.returncode == 125
    assert words in helpers.one_line(done.stderr)


@pytest.mark.without_bpf
def test_run_goes_on_without_it(tmp_path):
    """`run --bpf` where there is no BPF: a warning, and the program is watched by the agent."""
    path = tmp_path / "r.jsonl"
    done = helpers.unblock("run", "--bpf", "-t", "20ms", "-o", path, "--", *TICKER, "50",
                           env=helpers.clean_environment(UNBLOCK_BPF_WITHOUT="btf"))
    assert done.returncode == 0 and "without --bpf" in done.stderr
    recording = helpers.Recording(path)
    assert recording.header["source"] == "agent" and recording.slow
