"""Offload: what holds on all five loops alike, and is asked of each.

A loop may be destroyed by another thread than the one that ran it (tests/programs/elsewhere.h): what we had for it goes with it. Without
that (hosts.c, ub_suspend_gone looks at the calling thread's hosts only) libuv, libevent and libev fail, in `there` as well as `ended`;
`ended` does without what is kept of ended
threads (ub_suspend_lose), and where their hosts are not used again. libevent's memory grows where our event is not freed. GLib and sd-event tell us, and did not leak.
"""

import json
import os

import helpers
import pytest

LONG = "UNBLOCK_SOAK" in os.environ
LOOPS = ["uv", "event", "ev", "glib", "sd"]


@pytest.mark.parametrize("loop", LOOPS if LONG else ["ev"])
@pytest.mark.parametrize("how", ["there", "ended"])
def test_loops_that_another_thread_destroys(tmp_path, loop, how):
    done, recording = helpers.record(tmp_path, helpers.program(f"elsewhere_{loop}"), how, threshold="1ms", options=("--offload=eager", "-q"), timeout=120)
    said = json.loads(done.stdout)
    assert recording.end["offload"]["moved"] >= 60, recording.end["offload"]
    grown = {what: late - early for what, (early, late) in said.items()}
    assert (grown["descriptors"], grown["allocated"]) == (0, 0) and grown["pages"] < 150, said  # a host has 18
