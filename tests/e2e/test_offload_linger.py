"""Where a step was left, its loop goes on watching for us a moment, for the next one: nothing of that is found by the program afterwards
(tests/programs/pylinger.py).

Seen to fail: with a loop that is watched without end (later), that its stop does not let go of (stopped), that a fork does not (forked); with a stop of the program's own taken away
(its own stop), with the descriptors not looked at that the program has taken (it hung), with loops that are gone kept in the few places there are (moved)."""

import subprocess

import helpers
import pythons
import pytest

PYTHONS = pythons.moving(helpers.AGENT, False) or [pytest.param(None, marks=pytest.mark.skip(reason="no headers of CPython 3.11 to 3.13: not built"))]


@pytest.mark.parametrize("python", PYTHONS)
def test_nothing_is_left_in_the_loop(tmp_path, python):
    command = [python, helpers.ROOT / "tests/programs/pylinger.py"]
    alone = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    done, recording = helpers.record(tmp_path, *command, threshold="10ms", options=("--offload=eager", "-q"), timeout=60)
    assert done.returncode == alone.wait(60) == 0, done.stderr
    assert done.stdout == alone.stdout.read()
    assert done.stderr.splitlines()[-1] == "[True]", done.stderr  # it was watched just after a step was left
    assert recording.end["offload"]["moved"] >= 32, recording.end["offload"]  # twenty of them in loops that break off
