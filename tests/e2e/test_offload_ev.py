"""Offload on libev: a ticker beside a watcher that blocks, and what may happen to a watcher whose callback is suspended. The whole of it is
run by `make check-offload`, a few cases by `make check`.

Every case says the same as alone, or what it would say if it did not block (EXPECTED).
"""

import json
import os

import helpers
import pytest
from offload_hosts import both, check_matrix, check_moved, slow  # noqa: F401

MOVES = ["nanosleep", "io", "periodic", "async", "unlocked", "pipe_read", "recv", "send", "flock", "waitpid", "sem_wait", "fsync", "connect",
         "getaddrinfo"]
# Why it must stay: the pin of the run.
STAYS = {"locked": "lock", "rwlocked": "lock", "handler": "signal", "nested": "nested", "context": "stack", "child": "kind", "idle": "kind",
         "prepare": "kind"}

# At least so many calls are moved; none: it must stay.
HAZARDS = {"rearm": 3, "stopped": 1, "own_before": 1, "own_after": 1, "anew": 2, "repeat": 1, "repeat_stopped": 1, "async": 2, "fed": 1, "invoke": 1,
           "invoke_pending": 0, "once": 1, "direct": 1, "last": 1, "broken": 1, "fork": 1,
           "fork_freed": 1, "fed_own": 1, "fed_timer": 2, "new_callback": 1, "child": 0}

# What `make check` has no time for is run by `make check-offload`.
if not os.environ.get("UNBLOCK_SOAK"):
    MOVES, STAYS = ["io"], {}
    HAZARDS = {case: HAZARDS[case] for case in ("rearm", "stopped", "fed", "fork_freed", "fed_timer", "invoke")}

# What others do meanwhile would come after it alone.
EXPECTED = {"stopped": "once active stopped over end", "anew": "new new", "repeat_stopped": "once", "fork": "there kept end"}


@pytest.mark.parametrize("case", [*MOVES, *STAYS])
def test_matrix(tmp_path, request, case):
    check_matrix(tmp_path, request, "offload_ev", case, STAYS.get(case))


@pytest.mark.parametrize("case", HAZARDS)
def test_the_same_as_without(tmp_path, case):
    said, moved, recording = both(tmp_path, helpers.program("hazards_ev"), case)
    assert moved.split() == EXPECTED.get(case, said).split()
    check_moved(recording, HAZARDS[case])


def test_a_child_that_a_call_waits_for(tmp_path):
    """libev asks for any child as soon as one has ended: those that moved calls wait for are theirs. 14 in 60 came back with ECHILD."""
    many = ",".join(["waitpid"] * 12)
    done, recording = helpers.record(tmp_path, helpers.program("offload_ev"), many, "30", "1", threshold="5ms", options=("--offload=eager",))
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(case["result"], case["errno"]) for case in said] == [(7, 0)] * 12 and recording.end["offload"]["moved"] >= 11, done
