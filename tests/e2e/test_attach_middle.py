"""What else may happen while `unblock attach` is at it: the program has no memory or descriptors left, or executes another one."""

import os
import random
import resource
import subprocess
import time
from pathlib import Path

import pytest

import attaching
import helpers
from attaching import Target, enter, leave, nothing_noticed
from helpers import PYTHON, one_line, unblock

pytestmark = pytest.mark.beside


LONG = os.environ.get("UNBLOCK_SOAK") == "1" or int(os.environ.get("UNBLOCK_CYCLES", 3)) >= 50
EXECS = 40 if LONG else 8


def size_of_memory(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * 4096


@pytest.mark.parametrize("limit, value", [(resource.RLIMIT_NOFILE, lambda pid: len(os.listdir(f"/proc/{pid}/fd"))),
                                          (resource.RLIMIT_DATA, lambda pid: 4096), (resource.RLIMIT_FSIZE, lambda pid: 4096)],
                         ids=["descriptors", "memory", "size of files"])
def test_nothing_is_left(tmp_path, limit, value):
    """It is told, the program goes on as before; with the limit gone it is entered."""
    with Target(0) as target:
        target.ready()
        files, before = attaching.open_files(target.pid), resource.prlimit(target.pid, limit)
        resource.prlimit(target.pid, limit, (value(target.pid), before[1]))
        done = unblock("attach", "-o", tmp_path / "a.jsonl", "--live", "none", target.pid)
        assert done.returncode == 125 and "goes on as before" in one_line(done.stderr), done.stderr
        assert not attaching.has_arena(target.pid) and attaching.open_files(target.pid) == files
        resource.prlimit(target.pid, limit, before)
        leave(enter(target.pid, tmp_path / "b.jsonl"))
        nothing_noticed(target.end())


def test_no_address_space_is_left(tmp_path):
    """Its limit says so, and nothing is tried; doctor has said so before."""
    with Target(0) as target:
        target.ready()
        before = resource.prlimit(target.pid, resource.RLIMIT_AS)
        resource.prlimit(target.pid, resource.RLIMIT_AS, (size_of_memory(target.pid), before[1]))
        assert "has used up its address space (ulimit -v)" in unblock("doctor", target.pid).stdout
        done = unblock("attach", "-o", tmp_path / "a.jsonl", "--live", "none", target.pid)
        assert done.returncode == 125 and "prlimit" in one_line(done.stderr), done.stderr
        resource.prlimit(target.pid, resource.RLIMIT_AS, before)
        leave(enter(target.pid, tmp_path / "b.jsonl"))
        nothing_noticed(target.end())


EXECUTES = """
import os, select, sys
n = int(sys.argv[1])
print(n, flush=True)
if n == int(sys.argv[3]):
    sys.exit(0)
ep = select.epoll()
for i in range(10):
    ep.poll(0.004)
os.execv(sys.executable, [sys.executable, "-c", sys.argv[2], str(n + 1), *sys.argv[2:]])
"""


def test_executes_another_program_meanwhile(tmp_path):
    """Again and again, at any moment of the entering: each program runs to its end and into the next one."""
    rand = random.Random(time.time_ns())
    with subprocess.Popen([PYTHON, "-c", EXECUTES, "0", EXECUTES, str(EXECS)], stdout=subprocess.PIPE, text=True,
                          env=helpers.clean_environment()) as target:
        statuses = set()
        for i in range(EXECS):
            if target.poll() is not None:
                break
            done = unblock("attach", "-q", "--live", "none", "--duration", "30ms", "-o", tmp_path / f"{i}.jsonl", target.pid)
            statuses.add(done.returncode)
            time.sleep(rand.uniform(0, 0.02))
        out = target.communicate(timeout=helpers.PATIENCE)[0]
    assert target.returncode == 0, (target.returncode, out)
    assert [int(line) for line in out.split()] == list(range(EXECS + 1))
    assert statuses <= {0, 125}, statuses
