"""Offload on libev: a ticker beside a watcher that blocks, and what may happen to a watcher whose callback is suspended. The whole of it is
run by `make check-offload`, a few cases by `make check`.

Every case says the same as alone, or what it would say if it did not block (EXPECTED). Each rule of agent/offload/evhost.c was
taken out; what failed then: our watchers' priority ("important"), the heartbeat ("closed") and what is done being noticed at once ("prompt"); that one which is not active, or
muted already, is left alone ("killed", "own_before", "resting"), stopping it, starting it again and that it says it is active ("rearm"), what its own callback fed ("fed_own"); one started anew,
which is muted ("anew", "reused") unless the program feeds it ("fed_anew"); others of its descriptor ("direct"), the callback that it has by then ("new_callback"), a forked child ("fork",
"fork_freed"); what comes of one whose kind is not moved ("fed", "fed_timer"), loops inside callbacks, before and after ("inner"), the drain ("broken"), what the program
invokes itself ("invoke", "invoke_pending"); what it says by ev_io_stop ("stopped", "own_after", "once"), ev_io_start ("anew"), ev_clear_pending ("cleared"), and the six functions that
stop or restart other kinds ("repeat_stopped" ... "signal_stopped"); a loop's end (test_offload_hosts.py). Not so: that what is told of a watcher which libev has stopped does not wait for
others of its descriptor, the reason that is told where ev_run does not run the loop, and ub_running_gone.
"""

import json
import os

import helpers
import pytest
from offload_hosts import both, check_matrix, check_moved, slow  # noqa: F401

MOVES = ["nanosleep", "io", "periodic", "async", "unlocked", "pipe_read", "recv", "send", "flock", "waitpid", "sem_wait", "fsync", "connect",
         "getaddrinfo"]
# Why it must stay: the pin of the run.
STAYS = {"locked": "lock", "rwlocked": "lock", "handler": "signal", "nested": "nested", "context": "stack", "child": "kind", "stat": "kind",
         "idle": "kind", "prepare": "kind", "check": "kind"}

# At least so many calls are moved; none: it must stay.
HAZARDS = {"rearm": 3, "rearm_select": 3, "rearm_poll": 3, "stopped": 1, "own_before": 1, "own_after": 1, "anew": 2, "fed": 1, "fed_own": 1,
           "fed_anew": 1, "cleared": 2, "killed": 1, "resting": 4, "reused": 1, "once": 1, "direct": 1, "fork": 1, "fork_freed": 1}
KINDS = {"repeat": 1, "repeat_stopped": 1, "repeat_again": 1, "once_more": 1, "periodic": 1, "periodic_stopped": 1, "periodic_again": 1, "async": 2,
         "async_stopped": 1, "signal": 1, "signal_stopped": 1, "fed_timer": 2, "new_callback": 1, "child": 0, "child_stopped": 1, "invoke": 1, "invoke_pending": 0,
         "important": 1, "inner": 2, "closed": 1, "prompt": 16, "cleanup": 0, "last": 1, "broken": 1}

# What `make check` has no time for is run by `make check-offload`.
if not os.environ.get("UNBLOCK_SOAK"):
    MOVES, STAYS = ["io"], {}
    HAZARDS = {case: HAZARDS[case] for case in ("rearm", "stopped", "fed", "fed_anew", "fork_freed")}
    KINDS = {case: KINDS[case] for case in ("fed_timer", "invoke", "child_stopped")}

# What others do meanwhile would come after it alone.
EXPECTED = {"stopped": "once active stopped over end", "anew": "new new", "fork": "there kept end", "important": "computed begun important end", "child_stopped": "stopped over end",
            **{f"{kind}_{how}": "once" for kind in ("repeat", "periodic") for how in ("stopped", "again")}, "async_stopped": "once"}


@pytest.mark.parametrize("case", [*MOVES, *STAYS])
def test_matrix(tmp_path, request, case):
    check_matrix(tmp_path, request, "offload_ev", case, STAYS.get(case))


@pytest.mark.parametrize("program, case", [("hazards_ev", case) for case in HAZARDS] + [("hazards_ev_kinds", case) for case in KINDS])
def test_the_same_as_without(tmp_path, program, case):
    said, moved, recording = both(tmp_path, helpers.program(program), case)
    assert moved.split() == EXPECTED.get(case, said).split()
    check_moved(recording, {**HAZARDS, **KINDS}[case])


def test_a_child_that_a_call_waits_for(tmp_path):
    """libev asks for any child as soon as one has ended: those that moved calls wait for are theirs. 14 in 60 came back with ECHILD."""
    many = ",".join(["waitpid"] * 12)
    done, recording = helpers.record(tmp_path, helpers.program("offload_ev"), many, "30", "1", threshold="5ms", options=("--offload=eager",))
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(case["result"], case["errno"]) for case in said] == [(7, 0)] * 12 and recording.end["offload"]["moved"] >= 11, done
