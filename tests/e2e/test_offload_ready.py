"""What waits for a descriptor or a child takes no thread: the loop's own epoll waits, and then the call is made
(tests/programs/ready_uv.c, pyready.py). Every program says the same as alone, with one thread in the executor, or none.

Seen to fail: with a thread for each call (all but `error`), without the look at what broke a socket (broken), without the way that is
made for dup2 (over), with descriptors that close_range takes (closes), without a limit to vain attempts (error), without time limits (limits), with a
wait for what a socket has no room for left to the kernel (sends).
"""

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor

import helpers
import pythons
import pytest

# Threads of the executor that may be made; the CPU time, in ms, that no wait comes near unless it turns.
CASES = {"many": 0, "kinds": 1, "children": 0, "reaped": 0, "limits": 0, "sends": 0, "broken": 0, "same": 0, "over": 0, "closes": 0, "error": 1}


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """Of each case, alone and with calls moved; they wait nearly all of the time, and run at once."""
    base = tmp_path_factory.mktemp("ready")

    def both(case):
        program, folder = helpers.program("ready_uv"), base / case
        folder.mkdir()
        alone = subprocess.run([program, case], capture_output=True, text=True, timeout=60)
        moved, recording = helpers.record(folder, program, case, threshold="1ms", options=("--offload=eager", "-q"), timeout=60,
                                          env=helpers.clean_environment(UNBLOCK_POOL="1"))
        return alone, moved, recording

    with ThreadPoolExecutor(4) as pool:
        return dict(zip(CASES, pool.map(both, CASES)))


@pytest.mark.parametrize("case", CASES)
def test_the_same_as_without_and_no_thread(said, case):
    alone, moved, recording = said[case]
    truth, offload = json.loads(moved.stderr.splitlines()[-1]), recording.end["offload"]
    assert (moved.returncode, moved.stdout) == (alone.returncode, alone.stdout), case
    assert offload["threads"] <= CASES[case], offload
    assert offload["moved"] >= (200 if case == "many" else 1), offload
    assert truth["threads"] <= 2 + CASES[case], truth  # the program's own two
    assert truth["cpu_ms"] < 250, truth  # a wait that turned would take all of its 300 ms


@pytest.mark.parametrize("python", pythons.moving(helpers.AGENT, False) or [pytest.param(None, marks=pytest.mark.skip(
    reason="no headers of CPython 3.11 to 3.13: not built"))])
def test_steps_take_no_thread(tmp_path, python):
    command = [python, helpers.ROOT / "tests/programs/pyready.py"]
    alone = subprocess.run(command, capture_output=True, text=True, timeout=60)
    moved, recording = helpers.record(tmp_path, *command, threshold="1ms", options=("--offload=eager", "-q"), timeout=60,
                                      env=helpers.clean_environment(UNBLOCK_POOL="1"))
    assert moved.returncode == 0 and json.loads(moved.stdout) == json.loads(alone.stdout), moved.stderr
    assert recording.end["offload"]["moved"] >= 200, recording.end
    assert recording.end["offload"]["threads"] == 0, recording.end
    assert json.loads(moved.stderr.splitlines()[-1])["threads"] <= 2
