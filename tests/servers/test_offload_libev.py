"""Calls moved in a real server on libev: nghttpd reads its files from a slow disk, and answers others meanwhile. Part of `make check-offload`, not of
`make check-servers`.

nghttpd opens a file in the callback of the client's connection, on the thread that serves everybody. In the mode `eager` the first open from
a place stays (whether one is going to block cannot be asked), those after it move. Checked that it can fail: with offload off the others wait for each
slow file.
"""

import os
import threading
import time

import pytest

from test_loop_libev import Nghttpd, SlowNghttpd

pytestmark = pytest.mark.skipif("UNBLOCK_SOAK" not in os.environ, reason="run by make check-offload")

EAGER = ("--offload=eager",)
SLOW_S = 0.4
FILES = 6


def talk(nghttpd):
    said = [nghttpd.get("small"), nghttpd.get("big"), nghttpd.get("none")]
    return said + [nghttpd.get("small", "big") for _ in range(10)]


def test_nghttpd_same_answers(either):
    said = either(Nghttpd, talk, options=EAGER)
    assert said[0] == b"hello\n" and len(said[-1]) == 300_006


def files_from_a_slow_disk(nghttpd):
    """What they were; how long who asked for something else, meanwhile, waited at most."""
    for i in range(FILES):
        (nghttpd.disk.disk / f"late{i}").write_bytes(bytes([i]) * 5000)
    for _ in range(8):
        nghttpd.get("small")
    took, done = [], threading.Event()

    def poll():
        while not done.is_set():
            begun = time.monotonic()
            assert nghttpd.get("small") == b"hello\n"
            took.append(time.monotonic() - begun)

    nghttpd.disk.slow(open=SLOW_S * 1000)
    thread = threading.Thread(target=poll)
    said = [nghttpd.get("late0")]  # the first of its place
    thread.start()
    try:
        said += [nghttpd.get(f"late{i}") for i in range(1, FILES)]
    finally:
        done.set()
        thread.join()
    nghttpd.disk.quick()
    return said, took


def test_nghttpd_answers_while_its_disk_is_slow(server):
    alone, held_up = files_from_a_slow_disk(server(SlowNghttpd, watched=False))
    nghttpd = server(SlowNghttpd, options=EAGER)
    said, took = files_from_a_slow_disk(nghttpd)
    assert said == alone == [bytes([i]) * 5000 for i in range(FILES)]
    # Held up by each of the files; then by none of them.
    assert max(held_up) > SLOW_S * 0.8 and sorted(took)[len(took) * 9 // 10] < SLOW_S / 2, (sorted(held_up)[-5:], sorted(took)[-5:])
    assert len(took) > 4 * len(held_up), (len(took), len(held_up))
    calls = {line["call"]: line["moved"] for line in nghttpd.stop().of("offload")}
    assert calls["open"] >= FILES - 1, calls
