"""A program that filters its own system calls while it is watched: nothing is asked of it any more."""

import subprocess

import pytest

import attaching
import helpers
from attaching import enter
from helpers import PYTHON, one_line, unblock, wait_until

# rt_sigpending, which is among what a thread calls for the injector, kills it.
PROGRAM = """
import ctypes, os, select, struct, sys
code = struct.pack("<" + "HBBI" * 4, 0x20, 0, 0, 0, 0x15, 0, 1, 127, 6, 0, 0, 0x80000000, 6, 0, 0, 0x7fff0000)
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]
libc = ctypes.CDLL(None)
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
    def __init__(self):
        self.process = subprocess.Popen([PYTHON, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
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
