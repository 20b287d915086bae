"""A 10 ms ticker beside each call that blocks for half a second, on each event-loop library: with calls moved the ticker goes on, and
the program says the same as alone; in the dry run it says the same, ticks included, and is held up as long. How long the gaps are is for `make bench`
(section tickers): here they are only well below the block. Part of `make check-offload`, not of `make check-servers`.

Seen to fail: without the rule about children (agent/offload/children.c) libev's waitpid says ECHILD.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

import oracle
from tickers import BLOCK_MS, CALLS, log, MODES, moved, PROGRAMS, Tickers

pytestmark = pytest.mark.skipif("UNBLOCK_SOAK" not in os.environ, reason="run by make check-offload")


@pytest.fixture(scope="module")
def tickers(tmp_path_factory):
    them = Tickers(tmp_path_factory.mktemp("tickers"))
    yield them
    them.end()


@pytest.mark.parametrize("library", PROGRAMS)
def test_every_call_on_every_loop(tickers, library):
    with oracle.Sentinel() as sentinel, ThreadPoolExecutor(len(MODES) + 1) as pool:
        alone, *rest = pool.map(lambda mode: tickers.run(library, mode, idle=20), (None, *MODES))
    starved_ms = sum(b - a for a, b in sentinel.late) / 1e6
    for mode, (said, recording) in zip(MODES, rest):
        gaps = {case["case"]: case["max_gap_ms"] for case in said}
        if mode == "dry-run":
            assert log(said) == log(alone[0]) and min(gaps.values()) > BLOCK_MS * 0.9, gaps
            assert not moved(recording)
        else:
            assert log(said, ticks=False) == log(alone[0], ticks=False), mode
            assert min(case["inside"] for case in said) >= 10, (mode, said)
            assert max(gaps.values()) - starved_ms < BLOCK_MS / 2, (mode, gaps, starved_ms)
            assert set(moved(recording)) == set(CALLS.values()), mode
