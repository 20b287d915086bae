"""Offload on sd-event: a ticker beside a source that blocks, and what may happen to a source whose callback is suspended. The whole of it is
run by `make check-offload`, a few cases by `make check`.

Every case says the same as alone, or what it would say if it did not block (EXPECTED). Each rule of agent/offload/sdhost.c was taken out; what failed then: the
heartbeat ("closed") and what is done being noticed at once ("prompt"), before all others ("priority"), our sources being the loop's own ("rearm"), a loop that is gone ("threads"); switching the
source off and on again ("rearm", "direct_once"), once only ("prompt"), holding it ("dropped", "once_more") and letting it go ("dropped", "drop_after"), its turn's times ("now"), what its callback returns
("failure", "failure_exits"), at once where it was driven ("driven"); others of its descriptor ("direct"), edges ("edge"), a dropped source that stays ("drop_before"), what comes after the loop's end ("exit"), the wait before that ("exit", "exit_default"),
the default loop by its other name ("exit_default", "now_default") and that it is not held ("exit_default"); holding the loop ("last" and others), loops inside callbacks, before ("inner", "inner_run") and after
("inner"); what the program says of it meanwhile ("disabled", "enabled"), of what is not running ("oneshot"), of nothing ("enabled"), sd_event_now of another loop and of nothing ("now"). Not so, since something else
catches it: that our sources are off at first, the drain after the loop (nothing is left once sd_event_exit was called), that a loop turned by hand inside another one's callback is not that one ("dispatch_inside" is pinned
without it, too), what a callback that never began is taken to return, and ub_running_gone.
"""

import os

import helpers
import pytest
from offload_hosts import both, check_matrix, check_moved, slow  # noqa: F401

MOVES = ["nanosleep", "io", "defer", "signal", "unlocked", "pipe_read", "recv", "send", "flock", "waitpid", "sem_wait", "fsync", "connect",
         "getaddrinfo"]
# Why it must stay: the pin of the run.
STAYS = {"locked": "lock", "rwlocked": "lock", "handler": "signal", "nested": "nested", "context": "stack", "child": "kind", "post": "kind",
         "edge": "kind"}

# At least so many calls are moved; none: it must stay.
HAZARDS = {"rearm": 3, "oneshot": 1, "once_more": 2, "disabled": 1, "enabled": 1, "dropped": 1, "drop_before": 0, "drop_after": 1, "failure": 1,
           "failure_exits": 1, "exit": 1, "exit_after": 1, "now": 2, "direct": 1, "direct_once": 1, "signal": 2, "priority": 1, "fork": 1,
           "threads": 30, "run": 0, "dispatch": 0, "exit_behind": 1, "prompt": 16, "closed": 3, "driven": 2, "dropped_kept": 1, "inner": 2, "inner_run": 2, "dispatch_inside": 0, "last": 1, "exit_default": 1, "now_default": 1}

# What `make check` has no time for is run by `make check-offload`.
if not os.environ.get("UNBLOCK_SOAK"):
    MOVES, STAYS = ["io"], {}
    HAZARDS = {case: HAZARDS[case] for case in ("rearm", "dropped", "exit", "exit_behind", "last", "exit_default")}

# What others do meanwhile would come after it alone.
EXPECTED = {"once_more": "0 once once end", "disabled": "0 once over off end", "dropped": "0 there destroyed end", "dropped_kept": "0 there end",
            "signal": "0 signal1 signal2 end", "fork": "0 once child over off end"}


@pytest.mark.parametrize("case", [*MOVES, *STAYS])
def test_matrix(tmp_path, request, case):
    check_matrix(tmp_path, request, "offload_sd", case, STAYS.get(case))


@pytest.mark.parametrize("case", HAZARDS)
def test_the_same_as_without(tmp_path, case):
    said, moved, recording = both(tmp_path, helpers.program("hazards_sd"), case)
    assert moved.split() == EXPECTED.get(case, said).split()
    check_moved(recording, HAZARDS[case])
