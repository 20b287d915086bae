"""The gate on the fast path: instructions that the agent adds to one turn, counted by callgrind.

Instruction counts do not jitter, so the gate is tight where a time could not be. To change it: look at what
`pytest -s tests/e2e/test_instructions.py` prints, and put the new number below together with the reason for it.
A number that went down is to be lowered here too: that is what keeps the next change honest.

Checked that it can fail: with one more clock reading in the hook, both gates fail.
"""

import json
import re
import shutil

import pytest

import helpers

pytestmark = pytest.mark.beside

# Instructions the agent may add: to a turn of a loop, and to a wait call that is no loop's.
# 12 of a turn's came with callbacks that are timed by themselves: a turn's segments, and a look whether the loader
# has brought another loop library; 2 with the floor of blocking calls, copied into the thread's own line (which saves
# each call two others); 1 with what a stall kept waiting, counted after one. 2 of the other's: inside a turn such a wait
# is a blocking call, whose time is taken.
LIMIT = {"turn": 120, "offloop": 35}
LEAST = {"turn": 30, "offloop": 3}
SLACK = 3  # the doorbell, a bucket of the histogram met for the first time
LITTLE, MUCH = 4000, 14000


def instructions(tmp_path, mode, count, watched):
    """Instructions that `turns MODE COUNT` executes, by callgrind."""
    command = [shutil.which("valgrind"), "--tool=callgrind", f"--callgrind-out-file={tmp_path}/callgrind.out",
               helpers.program("turns"), mode, count]
    if watched:
        done, _ = helpers.record(tmp_path, *command, threshold="10s", timeout=120)
    else:
        done = helpers.subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=120,
                                      env=helpers.clean_environment(), check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["check"] == count
    return int(re.search(r"Collected : (\d+)", done.stderr)[1])


@pytest.mark.parametrize("mode", LIMIT)
def test_instructions(tmp_path, mode):
    if not shutil.which("valgrind"):
        pytest.skip("valgrind is not installed")
    per_call = {}
    for watched in (False, True):
        few = instructions(tmp_path, mode, LITTLE, watched)
        many = instructions(tmp_path, mode, MUCH, watched)
        per_call[watched] = (many - few) / (MUCH - LITTLE)
    added = per_call[True] - per_call[False]
    print(f"\n{mode}: {per_call[False]:.1f} instructions alone, the agent adds {added:.1f}, limit {LIMIT[mode]}")
    assert added > LEAST[mode], "so few: it was a dormant agent that we counted"
    assert added <= LIMIT[mode] + SLACK
