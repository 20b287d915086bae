"""A program that filters its own system calls while it is watched: nothing is asked of it any more."""

import os
import select
import subprocess

import pytest

import attaching
import helpers
from attaching import enter
from helpers import PYTHON, one_line, unblock, wait_until

pytestmark = pytest.mark.beside

# rt_sigpending, which is among what a thread calls for the injector, kills it.
PROGRAM = """
import ctypes, os, select, struct, sys
code = struct.pack("<" + "HBBI" * 4, 0x20, 0, 0, 0, 0x15, 0, 1, 127, 6, 0, 0, 0x80000000, 6, 0, 0, 0x7fff0000)
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]
libc = ctypes.CDLL(None)
if sys.argv[1:]:
    os.setgroups(range(1000000000, 1000000000 + int(sys.argv[1])))
poll = select.epoll()
poll.register(0, select.EPOLLIN)
print("ready", flush=True)
while True:
    poll.poll()
    line = sys.stdin.readline()
    if line == "filter\\n":
        assert libc.prctl(38, 1, 0, 0, 0) == 0
        assert libc.prctl(22, 2, ctypes.byref(Program(4, code))) == 0
    if not line:
        break
    print("done", flush=True)
"""


class Filtered:
    def __init__(self, groups=""):
        self.process = subprocess.Popen([PYTHON, "-c", PROGRAM, *groups.split()], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        bufsize=1, env=helpers.clean_environment())
        self.pid = self.process.pid
        assert self.process.stdout.readline() == "ready\n"

    def say(self, line):
        self.process.stdin.write(line + "\n")
        assert self.process.stdout.readline() == "done\n"
        wait_until(lambda: attaching.in_wait(self.pid), what="its wait")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()


@pytest.mark.parametrize("how", ["leave", "detach", "unload"])
def test_a_filter_has_come_meanwhile(tmp_path, how):
    with Filtered() as program:
        attached = enter(program.pid, tmp_path / "a.jsonl")
        program.say("nothing")
        program.say("filter")
        if how == "leave":
            attached.terminate()
        elif how == "detach":
            unblock("detach", program.pid)
        else:
            done = unblock("detach", "--unload", program.pid)
            assert done.returncode == 1 and "seccomp filter" in one_line(done.stderr), done.stderr
        _, err = attached.communicate(timeout=helpers.PATIENCE)
        assert attached.returncode == 0, err
        assert program.process.poll() is None, "it was killed for what it was asked"
        program.say("nothing")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may have groups at will")
def test_a_filter_behind_many_groups(tmp_path):
    """Their numbers stand before it in /proc/PID/status: 400 of ten digits are more than a page."""
    with Filtered(groups="400") as program:
        program.say("filter")
        done = unblock("attach", "--duration", "1s", "-o", tmp_path / "a.jsonl", program.pid)
        assert done.returncode != 0 and "seccomp" in done.stderr, done.stderr
        assert program.process.poll() is None, "it was killed for what it was asked"
        program.say("nothing")


LONG_CALL = """
import os, select, sys, time
poll = select.epoll()
poll.register(0, select.EPOLLIN)
print("ready", flush=True)
sleep = float(sys.argv[1])
while sleep:
    for i in range(50):
        os.getppid()
    for line in open("/proc/self/status"):
        if line.startswith("TracerPid:") and int(line.split()[1]):
            begun = time.monotonic()
            time.sleep(sleep)
            print(time.monotonic() - begun, flush=True)
            sleep = 0
while poll.poll(0.01) == []:
    pass
"""


@pytest.mark.alone
def test_a_long_call_of_a_thread_that_is_followed(tmp_path):
    """Busy, it is followed from call to call; whoever follows waits for the end of this one, and lets it go then."""
    with subprocess.Popen([PYTHON, "-c", LONG_CALL, "6"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                          env=helpers.clean_environment()) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            attached = attaching.attach(process.pid, tmp_path / "a.jsonl")
            assert select.select([process.stdout], [], [], 30)[0], "it stands still"
            slept = float(process.stdout.readline())
            assert 6 <= slept < 8, slept
            wait_until(lambda: attaching.is_watched(attached, tmp_path / "a.jsonl", process.pid), what="the agent to be in")
            attaching.leave(attached)
            process.stdin.close()
            assert process.wait(timeout=helpers.PATIENCE) == 0
        finally:
            process.kill()
