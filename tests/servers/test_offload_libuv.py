"""Calls moved in a real server on libuv: named writes the journal of a zone to a disk that is slow to sync, and answers meanwhile. Part of
`make check-offload`, not of `make check-servers`.

An update is answered when its journal is on the disk; who asks for something else waits for that, too, with a single thread (-n 1).
Seen to fail: with fsync not taken for a call that blocks (block.c, ub_block_expected), queries wait for 800 ms both times.
"""

import os
import socket
import struct

import pytest

from lags import DRY_RUN, EAGER, meanwhile, shorter
from test_loop_libuv import Named

pytestmark = pytest.mark.skipif("UNBLOCK_SOAK" not in os.environ, reason="run by make check-offload")

SLOW_MS = 400


def update_slowly(named):
    query = struct.pack(">HHHHHH", 7, 0x100, 1, 0, 0, 0) + b"\3www\7example\4test\0\0\1\0\1"

    def ask():
        s.sendto(query, ("127.0.0.1", named.port))
        assert len(s.recv(4096)) > len(query)

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(30)
        for _ in range(20):
            ask()
        named.update("update add first.example.test 60 A 192.0.2.8")  # the journal is made
        named.disk.slow(fsync=SLOW_MS)
        said, took = meanwhile(ask, lambda: [named.update(f"update add n{i}.example.test 60 A 192.0.2.{10 + i}") for i in range(4)])
    named.disk.quick()
    return [*said, named.dig("+tcp", "example.test", "AXFR")], took


def test_named_answers_while_it_writes_its_journal(server):
    watched = server(Named, options=DRY_RUN)
    alone, held_up = update_slowly(watched)
    named = server(Named, options=EAGER)
    with_us, took = update_slowly(named)
    assert with_us == alone and with_us[-1].count("192.0.2.1") == 4, with_us
    assert max(held_up) > SLOW_MS / 1000 * 0.9 and sorted(took)[len(took) * 9 // 10] < SLOW_MS / 2000, (max(held_up), sorted(took)[-5:])
    recording = named.stop()
    calls = {line["call"]: line["moved"] for line in recording.of("offload")}
    assert calls.get("fsync", 0) >= 4, calls
    assert shorter(watched.stop(), recording, SLOW_MS)
