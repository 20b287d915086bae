"""`unblock attach` and `detach`: into a program that already runs, and out again, without its noticing."""

import json
import os
import random
import shutil
import signal
import subprocess
import time

import pytest

import attaching
import helpers
from attaching import Held, Target, attach, enter, leave, nothing_noticed
from helpers import PYTHON, Recording, one_line, program, unblock, wait_until

pytestmark = pytest.mark.beside

SOAK = os.environ.get("UNBLOCK_SOAK") == "1"
LONG = int(os.environ.get("UNBLOCK_CYCLES", 3)) >= 50
CYCLES = 1000 if SOAK else 200 if LONG else 3


def stall(path):
    """Waits for one that is over."""
    wait_until(lambda: any(not s.get("ongoing") for s in Recording(path, torn=True).slow), what="a stall")


# What it does ---------------------------------------------------------------------


def test_stalls_are_seen(tmp_path):
    """In a program that was started without us: call, duration, stack, while it runs as ever."""
    path = tmp_path / "a.jsonl"
    with Target(60) as target:
        target.ready()
        attached = enter(target.pid, path)
        stall(path)
        err = leave(attached)
        said = target.end()
    nothing_noticed(said)
    recording = Recording(path)
    assert recording.of("process")[0]["how"] == "attached"
    assert recording.header["command"][0].endswith("attached")
    slow = next(s for s in recording.slow if not s.get("ongoing"))
    assert slow["cause"] == "call" and slow["call"]["name"] in ("nanosleep", "clock_nanosleep")
    assert slow["duration_ns"] >= 60_000_000
    assert any("on_tick" in stack for stack in recording.functions(slow)), recording.functions(slow)
    assert "recording" in err


def test_everything_is_put_back(tmp_path):
    """After leaving no pointer leads into the agent, no descriptor is left, and a second time adds no mapping."""
    with Target(0) as target:
        target.ready()
        files = attaching.open_files(target.pid)
        leave(enter(target.pid, tmp_path / "a.jsonl"))
        assert attaching.words_into_agent(target.pid, "/attached") == 0
        assert attaching.open_files(target.pid) == files
        assert not attaching.has_arena(target.pid)
        after_one = len(attaching.maps(target.pid))
        attached = enter(target.pid, tmp_path / "b.jsonl")
        assert attaching.words_into_agent(target.pid, "/attached") > 0
        leave(attached)
        for i in range(3):
            leave(enter(target.pid, tmp_path / f"c{i}.jsonl"))
        assert len(attaching.maps(target.pid)) <= after_one + 1  # the thread's part of the arena
        assert attaching.open_files(target.pid) == files
        assert attaching.words_into_agent(target.pid, "/attached") == 0
        nothing_noticed(target.end())


def test_detach_command(tmp_path):
    path = tmp_path / "a.jsonl"
    with Target(60) as target:
        target.ready()
        attached = enter(target.pid, path)
        watchers = unblock("ps").stdout
        assert any(str(target.pid) in line and " attach " in line for line in watchers.splitlines()), watchers
        again = unblock("attach", target.pid)
        assert again.returncode == 125
        assert "watched already" in one_line(again.stderr) and f"detach {target.pid}" in again.stderr
        assert unblock("detach", target.pid).returncode == 0
        assert attached.wait(helpers.PATIENCE) == 0
        attached.communicate()
        wait_until(lambda: not attaching.has_arena(target.pid), what="the agent to leave")
        nothing_noticed(target.end())
    assert Recording(path).end is not None


def test_duration_and_fail_on(tmp_path):
    with Target(60) as target:
        target.ready()
        done = unblock("attach", "--duration", "1s", "--fail-on", "50ms", "-o", tmp_path / "a.jsonl", target.pid)
        assert done.returncode == 1, done.stderr
        assert "failed: the longest stall took" in done.stderr.splitlines()[-1]
        rest = done.stderr.partition("before it is entered\n")[2]
        assert rest and ("epoll_wait" in rest or "nanosleep" in rest), done.stderr
        assert not attaching.has_arena(target.pid)
        nothing_noticed(target.end())


def test_program_ends_first(tmp_path):
    path = tmp_path / "a.jsonl"
    with Target(60) as target:
        target.ready()
        attached = enter(target.pid, path)
        nothing_noticed(target.end())
        assert attached.wait(helpers.PATIENCE) == 0
        attached.communicate()
    assert Recording(path).end is not None


def test_asyncio(tmp_path):
    """A Python program: its coroutine and line are named, its output goes on as ever."""
    script = tmp_path / "ticker.py"
    script.write_text("import asyncio, time\n"
                      "async def ticker():\n"
                      "    for n in range(100000):\n"
                      "        await asyncio.sleep(0.01)\n"
                      "        if n % 20 == 0:\n"
                      "            time.sleep(0.05)\n"
                      "        print(n, flush=True)\n"
                      "asyncio.run(ticker())\n")
    path = tmp_path / "a.jsonl"
    with subprocess.Popen([PYTHON, script], stdout=subprocess.PIPE, text=True) as ticker:
        try:
            assert ticker.stdout.readline() == "0\n"
            attached = enter(ticker.pid, path)
            stall(path)
            leave(attached)
            leave(enter(ticker.pid, tmp_path / "b.jsonl"))
        finally:
            ticker.kill()
        numbers = [int(line) for line in ticker.stdout.read().splitlines()]
    assert numbers == list(range(1, len(numbers) + 1))
    recording = Recording(path)
    assert any("ticker" in stack for stack in recording.functions(recording.slow[0]))


def test_forked_children_are_watched(tmp_path):
    """A child that was forked before stays alone; one that is forked after the entry is watched like its parent."""
    path = tmp_path / "a.jsonl"
    script = ("import os, select, sys, time\n"
              "def loop(n):\n"
              "    ep = select.epoll()\n"
              "    for i in range(n):\n"
              "        ep.poll(0.01)\n"
              "        if os.path.exists(sys.argv[1]) and os.getpid() != first:\n"
              "            time.sleep(0.06)\n"
              "        if os.path.exists(sys.argv[1]) and os.getpid() == first and not kids:\n"
              "            kids.append(os.fork() or loop(40) or os._exit(0))\n"
              "first, kids = os.getpid(), []\n"
              "loop(10000)\n")
    flag = tmp_path / "fork"
    with subprocess.Popen([PYTHON, "-c", script, flag]) as parent:
        try:
            wait_until(lambda: (len(attaching.maps(parent.pid)) > 20), what="python")
            attached = enter(parent.pid, path)
            flag.touch()
            wait_until(lambda: helpers.children(parent.pid), what="the child")
            child = helpers.children(parent.pid)[0]
            wait_until(lambda: f'"pid":{child}' in path.read_text().replace(" ", ""), what="the child's stalls")
            leave(attached)
        finally:
            parent.kill()
            for pid in helpers.children(parent.pid):
                os.kill(pid, signal.SIGKILL)
    assert {s["pid"] for s in Recording(path).slow} == {child}


@pytest.mark.alone
def test_a_stuck_loop_is_shown_and_waited_for(tmp_path):
    """The stall began before: it is told at once, with its call; the agent comes in when it is over."""
    with Target(0, "stuck") as target:
        wait_until(lambda: "nanosleep" in unblock("dump", target.pid).stdout, what="the sleep")
        begun = time.monotonic()
        attached = helpers.start("attach", "-o", tmp_path / "a.jsonl", "-t", "20ms", target.pid)
        for line in attached.stderr:
            if "nanosleep" in line:
                break
        else:
            raise AssertionError("the stall was not shown")
        shown = time.monotonic() - begun
        wait_until(lambda: attaching.has_arena(target.pid), what="the agent to be in")
        attached.send_signal(signal.SIGINT)
        _, err = attached.communicate(timeout=helpers.PATIENCE)
        assert attached.returncode == 0, err
        nothing_noticed(target.end())
    print(f"shown after {shown * 1000:.0f} ms")


# What the program notices: nothing ---------------------------------------------------


@pytest.mark.parametrize("words", [["raw"], ["malloc", "threads"], ["dlopen"], ["fork"], ["signals"],
                                   ["raw", "malloc", "dlopen", "fork", "signals", "threads"]], ids="-".join)
def test_cycles(tmp_path, words):
    """In and out again and again, beside threads that hold every lock there is."""
    held = Held()
    with Target(0, *words) as target:
        target.ready()
        for i in range(CYCLES):
            held.add(leave(enter(target.pid, tmp_path / f"{i}.jsonl")))
            assert target.process.poll() is None
        said = target.end()
    if "fork" in words:
        said["eintr"] = 0  # a fork on another thread interrupts waits, with us or without
    nothing_noticed(said)
    assert said["ticks"] > 0
    print(f"{'-'.join(words)}: {held}")


@pytest.mark.parametrize("how", ["timeout", "poll"])
def test_timeouts_stay_what_they_are(tmp_path, how):
    """A wait of 200 ms that we interrupt ends after 200 ms: not early, and not 200 ms after the interruption."""
    with Target(0, how) as target:
        target.ready()
        for i in range(4):
            time.sleep(random.uniform(0.1, 0.3))
            leave(enter(target.pid, tmp_path / f"{i}.jsonl"))
        said = target.end()
    nothing_noticed(said)
    print(f"latest {said['late_ms']} ms late")


def test_killed_at_any_moment(tmp_path):
    """SIGKILL of `unblock attach` at random moments of its entering: the program goes on, and can be entered again."""
    rand = random.Random(time.time_ns())
    rounds = 1000 if SOAK else 200 if LONG else 40
    with Target(0, "raw", "two") as target:
        target.ready()
        for i in range(rounds):
            attached = attach(target.pid, tmp_path / f"{i}.jsonl", stderr=subprocess.DEVNULL)
            time.sleep(rand.uniform(0.005, 0.08))
            attached.kill()
            attached.communicate()
            assert target.process.poll() is None, f"round {i}"
        wait_until(lambda: helpers.process_state(target.pid) in ("S", "R"), what="the program to go on")
        leave(enter(target.pid, tmp_path / "last.jsonl"))
        said = target.end()
    # A wait that was interrupted when its injector died answers EINTR, as with any tracer that dies.
    assert said["eintr"] <= rounds / 10, said
    said["eintr"] = 0
    nothing_noticed(said)


def test_killed_while_its_thread_is_at_it(tmp_path):
    """
    SIGKILL of `unblock attach` while a thread of the program waits inside the agent's dlopen (another one's constructor
    takes its time): whoever comes next uses neither that thread's place nor its request, though another loop is to be had.
    """
    library = tmp_path / "slow.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-xc", "-", "-o", library], text=True, check=True,
                   input="#include <unistd.h>\n__attribute__((constructor)) static void slow(void) { usleep(400000); }\n")
    go = tmp_path / "slow.so.go"
    for i in range(30 if SOAK else 2):
        with Target(0, "two", f"load={library}") as target:
            target.ready()
            go.touch()
            wait_until(lambda: any("slow.so" in line[-1] for line in attaching.maps(target.pid)), what="the constructor")
            attached = attach(target.pid, tmp_path / f"{i}a.jsonl", stderr=subprocess.DEVNULL)
            wait_until(lambda: attaching.room(target.pid)[0] == attaching.RUNNING, what="a thread in the room")
            attached.kill()
            attached.communicate()
            inside = attaching.room(target.pid)
            go.unlink()
            leave(enter(target.pid, tmp_path / f"{i}b.jsonl"))
            said = target.end()
        assert inside[0] == attaching.RUNNING, "it was over before the injector was dead"
        said["eintr"] = 0  # as above
        nothing_noticed(said)


def test_what_a_killed_one_has_left(tmp_path):
    """Asked, but the thread was never sent; or sent, and a fork has left it behind: neither is waited for."""
    with Target(0) as target:
        target.ready()
        leave(enter(target.pid, tmp_path / "a.jsonl"))
        for state, tid in ((attaching.ASKED, target.pid), (attaching.RUNNING, 4194303)):
            last, number, _ = attaching.room(target.pid)
            assert last == attaching.DONE
            attaching.set_room(target.pid, state, number + 1, tid)
            leave(enter(target.pid, tmp_path / f"{tid}.jsonl"))
            assert attaching.room(target.pid)[1] > number + 1
        # One that is at it is waited for.
        attaching.set_room(target.pid, attaching.RUNNING, 1000, target.pid)
        waits = unblock("attach", "--duration", "300ms", "-o", tmp_path / "c.jsonl", target.pid)
        assert waits.returncode == 125 and "within --duration" in waits.stderr, waits.stderr
        assert attaching.room(target.pid) == (attaching.RUNNING, 1000, target.pid)
        nothing_noticed(target.end())


def test_killed_leaves_no_descriptor(tmp_path):
    """Killed while it enters: the arena's descriptor, open until somebody takes the arena, is closed all the same."""
    rand = random.Random(time.time_ns())
    with Target(0) as target:
        target.ready()
        files = attaching.open_files(target.pid)
        for i in range(200 if SOAK else 10):
            attached = attach(target.pid, tmp_path / f"{i}.jsonl", stderr=subprocess.DEVNULL)
            time.sleep(rand.uniform(0.01, 0.06))
            attached.kill()
            attached.communicate()
        wait_until(lambda: attaching.open_files(target.pid) == files, what="the descriptor to be closed")
        said = target.end()
    said["eintr"] = 0  # as above
    nothing_noticed(said)


# What cannot be entered ----------------------------------------------------------------


def refused(*args, **kwargs):
    done = unblock("attach", *args, **kwargs)
    assert done.returncode == 125, done.stderr
    return one_line(done.stderr)


def refused_as_told(pid):
    """doctor has said so beforehand."""
    told = next(line for line in unblock("doctor", pid).stdout.splitlines() if " attach " in line)
    assert "cannot be entered" in told, told
    return refused(pid)


def test_wrong_use():
    assert "no process named" in refused()
    assert "one PID at a time" in refused("1", "2")
    assert "not a process number" in refused("redis")
    assert "there is no process" in refused("4194303")
    assert unblock("detach").returncode == 2
    assert "there is no process" in one_line(unblock("detach", "4194303").stderr)


def test_not_watched():
    with Target(0) as target:
        target.ready()
        done = unblock("detach", target.pid)
        assert done.returncode == 2
        assert "not watched" in one_line(done.stderr)
        nothing_noticed(target.end())


def built(tmp_path, *compiler):
    """A program that only sleeps, started."""
    (tmp_path / "sleeper.c").write_text("#include <unistd.h>\nint main(void) { write(1, \"x\", 1); for (;;) sleep(100); }\n")
    subprocess.run([*compiler, tmp_path / "sleeper.c", "-o", tmp_path / "sleeper"], check=True)
    sleeper = subprocess.Popen([tmp_path / "sleeper"], stdout=subprocess.PIPE)
    assert sleeper.stdout.read(1) == b"x"
    return sleeper


@pytest.mark.parametrize("compiler, why", [(["gcc", "-static"], "statically linked"),
                                           (["musl-gcc"], "another C library than glibc"),
                                           (["gcc", "-m32"], "not an x86-64 program")], ids=["static", "musl", "32bit"])
def test_program_of_another_kind(tmp_path, compiler, why):
    if not shutil.which(compiler[0]):
        pytest.skip(f"{compiler[0]} is not installed")
    try:
        sleeper = built(tmp_path, *compiler)
    except subprocess.CalledProcessError:
        pytest.skip(f"{' '.join(compiler)} does not work here")
    try:
        assert why in refused_as_told(sleeper.pid)
    finally:
        sleeper.kill()
        sleeper.communicate()


def test_stopped_program():
    with Target(0) as target:
        target.ready()
        os.kill(target.pid, signal.SIGSTOP)
        wait_until(lambda: helpers.process_state(target.pid) == "T", what="the stop")
        assert "kill -CONT" in refused_as_told(target.pid)
        os.kill(target.pid, signal.SIGCONT)
        time.sleep(0.1)
        said = target.end()
    said["eintr"] = 0  # being stopped and continued interrupts a wait
    nothing_noticed(said)


def test_traced_program():
    strace = shutil.which("strace")
    if not strace:
        pytest.skip("strace is not installed")
    with Target(0) as target:
        target.ready()
        with subprocess.Popen([strace, "-o", "/dev/null", "-p", str(target.pid)], stderr=subprocess.DEVNULL) as tracer:
            wait_until(lambda: f"TracerPid:\t{tracer.pid}" in open(f"/proc/{target.pid}/status").read(), what="strace")
            assert f"process {tracer.pid} traces it" in refused_as_told(target.pid)
            tracer.terminate()


def test_filtered_program():
    with subprocess.Popen([PYTHON, "-c", "import ctypes, time\n"
                           "libc = ctypes.CDLL(None)\n"
                           "libc.prctl(38, 1, 0, 0, 0)\n"
                           "class P(ctypes.Structure): _fields_ = [('n', ctypes.c_ushort), ('f', ctypes.c_void_p)]\n"
                           "allow = (ctypes.c_ubyte * 8)(6, 0, 0, 0, 0, 0, 0xff, 0x7f)\n"
                           "assert libc.prctl(22, 2, ctypes.byref(P(1, ctypes.addressof(allow)))) == 0\n"
                           "print('ready', flush=True)\n"
                           "time.sleep(100)\n"], stdout=subprocess.PIPE, text=True) as filtered:
        try:
            assert filtered.stdout.readline() == "ready\n"
            assert "seccomp filter" in refused_as_told(filtered.pid)
        finally:
            filtered.kill()


def test_another_users_program(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    with Target(0) as target:
        target.ready()
        done = subprocess.run([helpers.UNBLOCK, "attach", "-o", "/dev/null", str(target.pid)], capture_output=True, text=True,
                              preexec_fn=lambda: (os.setgroups([]), os.setgid(65534), os.setuid(65534)),
                              env=helpers.clean_environment(), timeout=helpers.PATIENCE)
        assert done.returncode == 125
        assert "belongs to user root: sudo unblock attach" in one_line(done.stderr)
        nothing_noticed(target.end())


def test_root_enters_another_users_program(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    path = tmp_path / "a.jsonl"
    with Target(60, preexec_fn=lambda: (os.setgroups([]), os.setgid(65534), os.setuid(65534))) as target:
        target.ready()
        attached = enter(target.pid, path)
        stall(path)
        leave(attached)
        nothing_noticed(target.end())
    recording = Recording(path)
    assert any("on_tick" in stack for stack in recording.functions(recording.slow[0]))


@pytest.mark.parametrize("kind", ["mount", "user"])
def test_another_namespace(tmp_path, kind):
    """Its file is one that only it sees (a tmpfs of its own): the agent comes in through memory, names come through its root."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to make namespaces")
    place = tmp_path / "hidden"
    place.mkdir()
    script = f"mount -t tmpfs none {place} && cp {program('attached')} {place}/only && exec {place}/only 60"
    command = ["unshare", "-m", *(["-r"] if kind == "user" else []), "sh", "-c", script]
    path = tmp_path / "a.jsonl"
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=helpers.clean_environment()) as target:
        try:
            assert target.stdout.readline() == "ready\n"
            assert not (place / "only").exists()
            attached = enter(target.pid, path)
            stall(path)
            leave(attached)
            target.terminate()
            nothing_noticed(json.loads(target.communicate(timeout=helpers.PATIENCE)[0].splitlines()[-1]))
        finally:
            target.kill()
    recording = Recording(path)
    assert any("on_tick" in stack for stack in recording.functions(recording.slow[0])), recording.functions(recording.slow[0])
