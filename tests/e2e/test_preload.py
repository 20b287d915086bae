"""LD_PRELOAD alone, without `unblock run`: the agent starts a helper watcher that the program cannot notice."""

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

import helpers
from helpers import AGENT, PYTHON, UNBLOCK, Recording, clean_environment, process_state, wait_until

pytestmark = pytest.mark.beside

LOOP = """
import asyncio, os, sys, time
async def main():
    for i in range(int(sys.argv[1])):
        await asyncio.sleep(0.002)
        if i % 20 == 19:
            time.sleep(0.06)
asyncio.run(main())
"""


def environment(tmp_path, **more):
    more.setdefault("UNBLOCK_OUTPUT", str(tmp_path / "r-%p.jsonl"))
    more.setdefault("UNBLOCK_THRESHOLD", "20ms")
    more.setdefault("LD_PRELOAD", str(AGENT))
    more.setdefault("HOME", str(tmp_path))
    return clean_environment(**{k: v for k, v in more.items() if v is not None})


def helpers_of(folder):
    """Helpers whose recordings go to `folder`: processes of `unblock __watch` with that in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if b"\0__watch" in (entry / "cmdline").read_bytes() and str(folder).encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            pass
    return found


def all_ended(folder):
    wait_until(lambda: not helpers_of(folder), what="the helpers to end")


def recordings(folder, torn=False):
    """With `torn` also those that are still being written."""
    return [Recording(p, torn) for p in sorted(Path(folder).glob("r-*.jsonl")) if not torn or b"\n" in p.read_bytes()]


def run(tmp_path, *argv, env=None, **popen):
    popen.setdefault("stdin", subprocess.DEVNULL)
    popen.setdefault("timeout", helpers.PATIENCE)
    return subprocess.run([str(a) for a in argv], env=env or environment(tmp_path), capture_output=True, **popen)


def start(tmp_path, *argv, env=None, **popen):
    popen.setdefault("stdin", subprocess.DEVNULL)
    popen.setdefault("stdout", subprocess.PIPE)
    return subprocess.Popen([str(a) for a in argv], env=env or environment(tmp_path), **popen)


@pytest.fixture(autouse=True)
def nothing_left(tmp_path):
    yield
    all_ended(tmp_path)


# What it does --------------------------------------------------------------


def test_stalls_are_recorded(tmp_path):
    done = run(tmp_path, PYTHON, "-c", LOOP, 100)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    all_ended(tmp_path)
    (r,) = recordings(tmp_path)
    assert r.header["threshold_ns"] == 20_000_000 and r.header["command"][0] == PYTHON
    stalls = [s for s in r.slow if s["duration_ns"] > 55_000_000]
    assert len(stalls) >= 3, "5 were made, the first one or two while the helper started"
    assert all(s["call"]["name"] == "clock_nanosleep" for s in stalls)
    assert all("stack" in sample for s in stalls for sample in s["samples"])
    assert r.end["slow"] >= 3 and stat.S_IMODE(r.path.stat().st_mode) == 0o600


def test_a_program_without_a_loop_gets_no_helper(tmp_path):
    for command in (["true"], ["sh", "-c", "for i in 1 2 3; do /bin/echo $i; done"], [PYTHON, "-c", "print(1)"]):
        assert run(tmp_path, *command).returncode == 0
        assert not helpers_of(tmp_path)
    assert not recordings(tmp_path)


def test_off(tmp_path):
    assert run(tmp_path, PYTHON, "-c", LOOP, 40, env=environment(tmp_path, UNBLOCK="0")).returncode == 0
    assert not recordings(tmp_path) and not helpers_of(tmp_path)


def test_wrong_values_are_noted_and_harm_nobody(tmp_path):
    env = environment(tmp_path, UNBLOCK_THRESHOLD="50", UNBLOCK_MAX_SIZE="-1", UNBLOCK_LIVE="loud", UNBLOCK_TRESHOLD="1ms")
    done = run(tmp_path, PYTHON, "-c", LOOP, 40, env=env)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    all_ended(tmp_path)
    (r,) = recordings(tmp_path)
    notes = "\n".join(n["text"] for n in r.of("note"))
    for word in ("UNBLOCK_THRESHOLD: ", "UNBLOCK_MAX_SIZE: ", "UNBLOCK_LIVE: ", "did you mean UNBLOCK_THRESHOLD?"):
        assert word in notes, notes
    assert r.header["threshold_ns"] == 50_000_000


def test_live_text_only_when_asked(tmp_path):
    done = run(tmp_path, PYTHON, "-c", LOOP, 100, env=environment(tmp_path, UNBLOCK_LIVE="line"))
    assert b"unblock: BLOCKED" in done.stderr and done.stdout == b""


def test_recording_on_standard_output_when_asked(tmp_path):
    done = run(tmp_path, PYTHON, "-c", LOOP, 100, env=environment(tmp_path, UNBLOCK_OUTPUT="-"))
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[0]["type"] == "header" and lines[-1]["type"] == "end"


def test_relative_output_is_the_programs_folder(tmp_path):
    run(tmp_path, PYTHON, "-c", LOOP, 40, env=environment(tmp_path, UNBLOCK_OUTPUT="r-%p.jsonl", X=str(tmp_path)), cwd=tmp_path)
    wait_until(lambda: recordings(tmp_path) and recordings(tmp_path)[0].end, what="the end of the recording")


def test_default_folder(tmp_path):
    """Not root's: /var/log would be everybody's."""
    state = tmp_path / "state"
    env = environment(tmp_path, UNBLOCK_OUTPUT=None, XDG_STATE_HOME=str(state))
    user = {"user": 65534, "group": 65534, "extra_groups": []} if os.getuid() == 0 else {}
    helpers.let_in(tmp_path)
    tmp_path.chmod(0o777)
    if subprocess.run([UNBLOCK, "--version"], capture_output=True, **user).returncode != 0:
        pytest.skip("the build is not executable for nobody")
    assert run(tmp_path, PYTHON, "-c", LOOP, 100, env=env, **user).returncode == 0
    wait_until(lambda: not helpers_of(state), what="the helper to end")
    (path,) = (state / "unblock").glob("unblock-python3-*.jsonl")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert Recording(path).end["slow"] >= 3
    # A short program in which nothing was found leaves no file.
    quiet = LOOP.replace("time.sleep(0.06)", "pass")
    assert run(tmp_path, PYTHON, "-c", quiet, 60, env=env, **user).returncode == 0
    wait_until(lambda: not helpers_of(state), what="the helper to end")
    assert len(list((state / "unblock").iterdir())) == 1


@pytest.mark.parametrize("output", ["/proc/none/r.jsonl", "/dev/full"])
def test_recording_that_cannot_be_written(tmp_path, output):
    env = environment(tmp_path, UNBLOCK_OUTPUT=output)
    done = run(tmp_path, PYTHON, "-c", LOOP, 60, env=env)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


# What the helper holds ------------------------------------------------------


def test_the_helper_holds_nothing_of_the_programs(tmp_path):
    read, write = os.pipe()
    os.set_inheritable(write, True)
    p = start(tmp_path, PYTHON, "-c", LOOP, 2000, cwd=tmp_path, pass_fds=(write,))
    (helper,) = wait_until(lambda: helpers_of(tmp_path), what="the helper")
    wait_until(lambda: recordings(tmp_path, torn=True), what="the recording")
    os.close(write)
    mine, its = Path(f"/proc/{p.pid}"), Path(f"/proc/{helper}")
    held = set()
    for f in (its / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # open for a moment only
            held.add(os.readlink(f))
    assert held
    assert not {os.readlink(f) for f in (mine / "fd").iterdir()} & held - {"/dev/null"}
    assert os.readlink(its / "cwd") == "/"
    assert os.getsid(helper) == helper and os.getpgid(helper) == helper
    assert b"LD_PRELOAD" not in (its / "environ").read_bytes()
    p.send_signal(signal.SIGKILL)
    p.wait()
    assert os.read(read, 1) == b"", "nobody else holds the pipe"
    os.close(read)


def test_end_of_a_killed_program_is_recorded(tmp_path):
    p = start(tmp_path, PYTHON, "-c", LOOP, 5000)
    wait_until(lambda: any(r.slow for r in recordings(tmp_path, torn=True)), what="a stall")
    p.kill()
    p.wait()
    all_ended(tmp_path)
    (r,) = recordings(tmp_path)
    assert r.end and r.end["slow"] >= 1


def test_killed_helper(tmp_path):
    """The program goes on; it is watched no longer."""
    p = start(tmp_path, PYTHON, "-c", LOOP + "print('done')", 400)
    (helper,) = wait_until(lambda: helpers_of(tmp_path), what="the helper")
    os.kill(helper, signal.SIGKILL)
    out, _ = p.communicate(timeout=helpers.PATIENCE)
    assert (p.returncode, out) == (0, b"done\n")


def test_stopped_helper(tmp_path):
    p = start(tmp_path, PYTHON, "-c", LOOP + "print('done')", 200)
    (helper,) = wait_until(lambda: helpers_of(tmp_path), what="the helper")
    os.kill(helper, signal.SIGSTOP)
    out, _ = p.communicate(timeout=helpers.PATIENCE)
    assert (p.returncode, out) == (0, b"done\n")
    os.kill(helper, signal.SIGCONT)
    all_ended(tmp_path)
    assert recordings(tmp_path)[0].end


# One a tree ------------------------------------------------------------------

FORKS = """
import os, select, sys, time
def loop(turns):
    ep = select.epoll()
    r, w = os.pipe()
    ep.register(r)
    for i in range(turns):
        ep.poll(0.002)
        if i % 30 == 29:
            time.sleep(0.06)
"""


def test_fork_before_the_first_loop(tmp_path):
    """The parent never loops, and all children start at the same moment: one helper."""
    script = FORKS + """
children = []
for i in range(6):
    pid = os.fork()
    if pid == 0:
        loop(300)
        os._exit(0)
    children.append(pid)
for pid in children:
    assert os.waitpid(pid, 0)[1] == 0
try:
    os.waitpid(-1, 0)
    print("somebody else")
except ChildProcessError:
    pass
"""
    p = start(tmp_path, PYTHON, "-c", script)
    wait_until(lambda: helpers_of(tmp_path), what="the helper")
    time.sleep(0.3)
    assert len(helpers_of(tmp_path)) == 1
    assert p.communicate(timeout=helpers.PATIENCE)[0] == b"" and p.returncode == 0
    all_ended(tmp_path)
    (r,) = recordings(tmp_path)
    assert len({s["pid"] for s in r.slow}) == 6


def test_fork_after_the_first_loop_and_daemonize(tmp_path):
    """The first process ends at once; its grandchild goes on with a loop and is still watched."""
    script = FORKS + """
loop(60)
if os.fork():
    os._exit(0)
os.setsid()
if os.fork():
    os._exit(0)
time.sleep(0.3)
loop(300)
open(sys.argv[1], "w").write(str(os.getpid()))
"""
    assert run(tmp_path, PYTHON, "-c", script, tmp_path / "pid").returncode == 0
    wait_until((tmp_path / "pid").exists, what="the daemon")
    all_ended(tmp_path)
    (r,) = recordings(tmp_path)
    daemon = int((tmp_path / "pid").read_text())
    assert [s for s in r.slow if s["pid"] == daemon]


def test_exec_into_another_program(tmp_path):
    """What a watched process executes is watched again, by a helper of its own or the same."""
    script = FORKS + "loop(100); os.execv(sys.argv[1], sys.argv[1:])"
    done = run(tmp_path, PYTHON, "-c", script, PYTHON, "-c", FORKS + "loop(300); print('done')")
    assert done.stdout == b"done\n"
    all_ended(tmp_path)
    assert sum(len(r.slow) for r in recordings(tmp_path)) >= 5, "the file of the first helper may still be in its hands: then the second one has its own"


def test_threads_that_loop_at_once(tmp_path):
    script = FORKS + """
import threading
threads = [threading.Thread(target=loop, args=(300,)) for _ in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
"""
    assert run(tmp_path, PYTHON, "-c", script).returncode == 0
    all_ended(tmp_path)
    (r,) = recordings(tmp_path)
    assert len({s["tid"] for s in r.slow}) == 4


# Without a helper ------------------------------------------------------------------


def unshared(*argv):
    """As pid 1 of a PID namespace of its own."""
    return ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", *argv]


def may_unshare():
    return subprocess.run(unshared("true"), capture_output=True).returncode == 0


def only_finished(tmp_path, word):
    """What the agent wrote itself: the right stalls, a note with the reason, no stacks; valid by the schema."""
    import jsonschema
    schema = json.loads((helpers.ROOT / "ui" / "recording.schema.json").read_text())
    (r,) = recordings(tmp_path)
    for line in r.lines:
        jsonschema.validate(line, schema)
    assert len([s for s in r.slow if 59_000_000 < s["duration_ns"] < 200_000_000]) >= 3
    (note,) = r.of("note")
    assert word in note["text"] and "without stack" in note["text"]
    assert stat.S_IMODE(r.path.stat().st_mode) == 0o600
    report = helpers.unblock("report", r.path)
    assert report.returncode == 0 and word in report.stdout, report.stdout
    return r


def test_as_pid_1(tmp_path):
    """It would be the helper's parent: no helper, wait() sees nobody, finished stalls are recorded."""
    if not may_unshare():
        pytest.skip("no new PID namespace here")
    script = LOOP + """
try:
    print(os.waitpid(-1, 0))
except ChildProcessError:
    print("nobody", os.getpid())
"""
    done = run(tmp_path, *unshared(PYTHON, "-c", script, 100))
    assert done.stdout == b"nobody 1\n", done
    r = only_finished(tmp_path, "the program is pid 1")
    assert {s["pid"] for s in r.slow} == {1}


def test_child_of_a_preloaded_pid_1(tmp_path):
    """The orphan would be inherited by pid 1, which is as much a program of its user's."""
    if not may_unshare():
        pytest.skip("no new PID namespace here")
    script = "import subprocess, sys, os; p = subprocess.run(sys.argv[1:]);\ntry: print(os.waitpid(-1, 0))\nexcept ChildProcessError: print('nobody')"
    done = run(tmp_path, *unshared(PYTHON, "-c", script, PYTHON, "-c", LOOP, "100"))
    assert done.stdout == b"nobody\n", done
    only_finished(tmp_path, "pid 1 of the container")


def test_subreaper(tmp_path):
    script = "import ctypes; ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)\n" + LOOP + """
try:
    print(os.waitpid(-1, 0))
except ChildProcessError:
    print("nobody")
"""
    assert run(tmp_path, PYTHON, "-c", script, 100).stdout == b"nobody\n"
    only_finished(tmp_path, "adopts orphans")


def test_helper_that_cannot_be_executed(tmp_path):
    """Silent, no zombie, and prefork children write to the same file."""
    script = FORKS + """
for i in range(3):
    if os.fork() == 0:
        loop(150)
        os._exit(0)
loop(150)
for i in range(3):
    os.wait()
"""
    env = environment(tmp_path, UNBLOCK_HELPER="/nowhere/unblock")
    done = run(tmp_path, PYTHON, "-c", script, env=env)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert sum(len(r.slow) for r in recordings(tmp_path)) >= 12


def test_alone_it_rotates_and_bears_a_full_disk(tmp_path):
    env = environment(tmp_path, UNBLOCK_HELPER="/nowhere/unblock", UNBLOCK_MAX_SIZE="64k", UNBLOCK_THRESHOLD="100us",
                      UNBLOCK_OUTPUT=str(tmp_path / "r-x.jsonl"))
    script = FORKS.replace("i % 30 == 29", "True").replace("0.06", "0.0003") + "loop(900)"
    assert run(tmp_path, PYTHON, "-c", script, env=env).returncode == 0
    parts = sorted(tmp_path.glob("r-x.jsonl*"))
    assert len(parts) >= 2
    slow = 0
    for part in parts:
        assert part.stat().st_size < (64 << 10) + 8192
        slow += len(Recording(part).slow)  # each begins with a header
    assert slow > 800
    env["UNBLOCK_OUTPUT"] = "/proc/r.jsonl"
    done = run(tmp_path, PYTHON, "-c", script, env=env)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize("limit", ["-n 4", "-f 100", "-f 0", "-u 1"])
def test_tight_limits(tmp_path, limit):
    """No descriptor, no file that large, no process: the program does not notice, whatever becomes of the watching."""
    env = environment(tmp_path)
    # CPython needs some descriptors to start; the limit comes after that.
    which, value = {"-n": ("NOFILE", 8), "-f": ("FSIZE", int(limit.split()[1]) * 1024), "-u": ("NPROC", 1)}[limit[:2]]
    script = f"import asyncio, resource; resource.setrlimit(resource.RLIMIT_{which}, ({value}, {value}))\n" + LOOP
    done = run(tmp_path, PYTHON, "-c", script, 60, env=env)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_run_says_who_changed_the_user_before_exec(tmp_path):
    """`unblock run -- setpriv ...` as root: the program cannot reach root's memory, and a note says so."""
    if os.geteuid() != 0 or not os.path.exists("/usr/bin/setpriv"):
        pytest.skip("takes root and setpriv")
    done, r = helpers.record(tmp_path, "setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", PYTHON, "-c",
                             LOOP, 200)
    assert done.returncode == 0
    (note,) = [n for n in r.of("note") if "change of user" in n["text"]]
    assert "python3" in note["text"] and "setpriv" in note["text"]
    assert not r.slow
    # The other way round it works.
    done = helpers.unblock("run", "-q", "-o", "-", "-t", "20ms", "--", PYTHON, "-c", LOOP, "100", user=65534, group=65534,
                           extra_groups=[], cwd="/")
    assert '"type":"slow"' in done.stdout and "change of user" not in done.stdout
