"""Others who are at the same process at the same moment: a second `unblock`, of another user perhaps, and whoever stops it."""

import os
import random
import signal
import subprocess
import time

import pytest

import attaching
import helpers
from attaching import Target, attach, enter, leave, nothing_noticed
from helpers import one_line, unblock, wait_until

pytestmark = pytest.mark.beside

LONG = os.environ.get("UNBLOCK_SOAK") == "1" or int(os.environ.get("UNBLOCK_CYCLES", 3)) >= 50
ROUNDS = 50 if LONG else 4


def nobody():
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)


def lost(attached):
    """Ended without having been in, with a reason."""
    err = attached.stderr.read()
    assert attached.returncode == 125, err
    # "traces it": the other one was kept from its CPU for long while it held a thread.
    assert any(why in one_line(err) for why in ("watched already", "another unblock is just entering or leaving it",
                                                "traces it")), err


def both(target, first, second, paths):
    """One of them gets in, or none that met the other; never both."""
    running = [first, second]
    wait_until(lambda: any(a.poll() is not None for a in running), what="one of them to lose")
    for a in [a for a in running if a.poll() is not None]:
        lost(a)
        running.remove(a)
    for a in running:
        wait_until(lambda a=a: a.poll() is not None or attaching.is_watched(a, paths[a], target.pid), what="the other to be in")
        if a.poll() is None:
            leave(a)
        else:
            lost(a)
    return len(running)


@pytest.mark.parametrize("users", ["same", "two"])
def test_two_at_the_same_moment(tmp_path, open_folder, users):
    if users == "two" and os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    other = {"preexec_fn": nobody, "cwd": "/"} if users == "two" else {}
    entered = 0
    with Target(0, **other) as target:
        target.ready()
        for i in range(ROUNDS):
            own, others = tmp_path / f"{i}a.jsonl", open_folder / f"{i}b.jsonl"
            first, second = attach(target.pid, own), attach(target.pid, others, **other)
            entered += both(target, first, second, {first: own, second: others})
            wait_until(lambda: not attaching.has_arena(target.pid), what="the agent to be out")
        said = target.end()
    nothing_noticed(said)
    assert entered > 0


@pytest.mark.parametrize("when", ["as it comes in", "once it is in"])
def test_detached_right_after_attaching(tmp_path, when):
    """While GOTs are still being written, or as soon as the watch has begun: both end with 0, and nothing is left."""
    with Target(0) as target:
        target.ready()
        files = attaching.open_files(target.pid)
        for i in range(ROUNDS):
            path = tmp_path / f"{i}.jsonl"
            attached = attach(target.pid, path) if when == "as it comes in" else enter(target.pid, path)
            wait_until(lambda: attaching.has_arena(target.pid), what="the arena", interval=0.0005)
            done = unblock("detach", target.pid)
            _, err = attached.communicate(timeout=helpers.PATIENCE)
            assert (done.returncode, done.stderr, attached.returncode) == (0, "", 0), (done.stderr, err)
            assert attaching.words_into_agent(target.pid, "/attached") == 0 and not attaching.has_arena(target.pid)
            assert helpers.Recording(path).end is not None
        assert attaching.open_files(target.pid) == files
        nothing_noticed(target.end())


def test_entering_leaving_and_looking_at_once(tmp_path):
    """In any order: each comes to an end with a status that it documents, and the program can be entered afterwards."""
    rand = random.Random(time.time_ns())
    with Target(0) as target:
        target.ready()
        for i in range(ROUNDS):
            attached = attach(target.pid, tmp_path / f"{i}.jsonl", "--duration", "300ms")
            others = []
            for command in rand.sample(["detach", "dump", "detach", "dump"], 4):
                time.sleep(rand.uniform(0, 0.03))
                others.append(helpers.start(command, target.pid, stdout=subprocess.DEVNULL))
            for other in [*others, attached]:
                _, err = other.communicate(timeout=helpers.PATIENCE)
                allowed = {"dump": (0,), "detach": (0, 1, 2), "attach": (0, 125)}[str(other.args[1])]
                assert other.returncode in allowed, (other.args, err)
        wait_until(lambda: not attaching.has_arena(target.pid), what="the agent to be out")
        leave(enter(target.pid, tmp_path / "last.jsonl"))
        nothing_noticed(target.end())


def test_stopped_meanwhile(tmp_path):
    """By a signal, at any moment of the entering: it stays stopped until somebody continues it, and is entered then."""
    rand = random.Random(time.time_ns())
    with Target(0) as target:
        target.ready()
        for i in range(ROUNDS):
            path = tmp_path / f"{i}.jsonl"
            attached = attach(target.pid, path)
            time.sleep(rand.uniform(0, 0.06))
            os.kill(target.pid, signal.SIGSTOP)
            wait_until(lambda: helpers.process_state(target.pid) in "Tt", what="the stop")
            time.sleep(0.2)  # a tracer that lets go of it wakes it for some microseconds, to stop again
            wait_until(lambda: helpers.process_state(target.pid) == "T", what="it to be stopped still")
            if attached.poll() is not None:  # it was stopped before it could be looked at
                assert attached.returncode == 125 and "kill -CONT" in one_line(attached.stderr.read())
                os.kill(target.pid, signal.SIGCONT)
                continue
            os.kill(target.pid, signal.SIGCONT)
            wait_until(lambda: attaching.is_watched(attached, path, target.pid), what="the agent to be in")
            leave(attached)
            assert helpers.process_state(target.pid) in "SRD"
        said = target.end()
    said["eintr"] = 0  # being stopped and continued interrupts a wait
    nothing_noticed(said)


def test_stopped_by_a_debugger_before(tmp_path):
    """Stopped and left alone by its own shell (Ctrl-Z): refused, with the line that mends it; still stopped."""
    with Target(0) as target:
        target.ready()
        os.kill(target.pid, signal.SIGSTOP)
        wait_until(lambda: helpers.process_state(target.pid) == "T", what="the stop")
        done = unblock("attach", "-o", tmp_path / "a.jsonl", target.pid)
        assert done.returncode == 125 and "kill -CONT" in one_line(done.stderr)
        assert helpers.process_state(target.pid) == "T"
        os.kill(target.pid, signal.SIGCONT)
        leave(enter(target.pid, tmp_path / "b.jsonl"))
        said = target.end()
    said["eintr"] = 0
    nothing_noticed(said)
