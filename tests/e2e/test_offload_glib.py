"""Offload on GLib: a ticker beside a source that blocks, and what may happen to a source whose callback is suspended. The whole of it is
run by `make check-offload`, a few cases by `make check`.

Every case says the same as alone, or what it would say if it did not block (EXPECTED). Checked that it can fail; its case does with each of
these taken out of agent/offload/glibhost.c, glibcalls.c or giohost.c: blocking the source anew ("idle", "custom") and ending that ("rearm"), "keep it" ("rearm", "timeout"), holding the source ("finalized") and its data ("removed", "replaced", "thread_destroys"), what the callback
returns ("return"), a timeout's time ("timeout", "seconds"), the drain ("quit", "iteration"), what runs ("current", "return"), the turn's time ("task"),
the thread's default context ("pushed", "work"), sources that may recurse ("recurse"), before all others ("priority"), a forked child's
sources ("fork_loop"), the end of one that was driven before who drives it goes on, and what is forgotten of it then ("driven"), no data for what never begins
("behind_removed"), holding an application ("app_release") and its quitting ("app_quit").
"""

import os

import helpers
import pytest
from offload_hosts import both, check_matrix, check_moved, slow  # noqa: F401

MOVES = ["nanosleep", "io", "channel", "idle", "child", "signal", "unlocked", "pipe_read", "recv", "send", "flock", "waitpid", "sem_wait",
         "fsync", "connect", "getaddrinfo"]
# Why it must stay: the pin of the run.
STAYS = {"locked": "lock", "rwlocked": "lock", "handler": "signal", "nested": "nested", "context": "stack", "pushed": "lock", "recurse": "kind"}

# At least so many calls are moved.
HAZARDS = {"rearm": 3, "removed": 1, "thread_destroys": 1, "replaced": 1, "return": 1, "own": 1, "idle": 1, "by_data": 1, "timeout": 1,
           "seconds": 1, "custom": 1, "finalized": 1, "parent": 0, "current": 1, "task": 1, "work": 1, "quit": 1, "iteration": 1, "inner": 1, "younger": 1,
           "direct": 1, "priority": 1, "threads": 3, "attached": 1, "queue": 1, "default": 1, "driven": 1, "behind_removed": 1, "fork_loop": 1, "exit": 0,
           "app_quit": 1, "app_release": 1, "by_hand": 0}

# What `make check` has no time for is run by `make check-offload`.
if not os.environ.get("UNBLOCK_SOAK"):
    MOVES, STAYS = ["io"], {}
    HAZARDS = {case: HAZARDS[case] for case in ("rearm", "removed", "task", "driven", "app_quit")}

# Alone a callback that leaves its byte comes again before anybody can remove it; and nothing happens while one blocks.
EXPECTED = {"removed": "over notify once", "replaced": "over notify other", "by_data": "found over end", "attached": "meanwhile end",
            "app_release": "meanwhile over shutdown", "app_quit": "meanwhile over shutdown", "behind_removed": "notify removed sent end"}
# What callbacks run in between is what offload changes: the order of words may differ, the words may not.
FREE = {"fork_loop"}


@pytest.mark.parametrize("case", [*MOVES, *STAYS])
def test_matrix(tmp_path, request, case):
    check_matrix(tmp_path, request, "offload_glib", case, STAYS.get(case))


@pytest.mark.parametrize("case", HAZARDS)
def test_the_same_as_without(tmp_path, case):
    said, moved, recording = both(tmp_path, helpers.program("hazards_glib"), case, status=3 if case == "exit" else 0)
    expected = EXPECTED.get(case, said)
    assert sorted(moved.split()) == sorted(expected.split()) if case in FREE else moved.split() == expected.split()
    check_moved(recording, HAZARDS[case])
