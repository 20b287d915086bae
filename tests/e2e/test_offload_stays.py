"""Calls that do not block stay where they are, made by the very look at whether they would (tests/programs/stays_uv.c): the same as without, to the
byte, the errno and the signal.

Seen to fail with each of these taken out: the kind of a number forgotten at close, fclose, dup2 and close_range, freopen, and when these are called through
syscall() (a short read of a file that is not in memory), a number that is no socket any more asked about again, no kind kept from a child of vfork, a
connection that begins with what is sent left to the call itself (TCP_FASTOPEN_CONNECT: EINPROGRESS), sockets that are ready from some bytes on asked about (SO_RCVLOWAT, set before and after), a reset connection's error given to the
program (it came with EPIPE and SIGPIPE)."""

import subprocess

import helpers
import pytest


@pytest.mark.parametrize("mode", ("eager", "flagged"))
def test_what_does_not_block_says_the_same(tmp_path, mode):
    command = [helpers.program("stays_uv"), tmp_path]
    alone = subprocess.run(command, capture_output=True, text=True, timeout=60)
    done, recording = helpers.record(tmp_path, *command, threshold="1ms", options=(f"--offload={mode}", "-q"), timeout=60)
    assert (done.returncode, done.stdout) == (alone.returncode, alone.stdout)
    assert recording.end["offload"]["moved"] >= (mode == "eager"), recording.end["offload"]  # what came later
    if int(alone.stderr) >= 1 << 20:
        pytest.skip(f"{tmp_path} keeps its files in memory: reads there are never short, and numbers that became a file's prove nothing")
