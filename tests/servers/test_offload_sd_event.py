"""Calls moved in real programs on sd-event: systemd-import syncs an image to a slow disk; systemd-socket-proxyd and systemd-journal-remote answer the same
as alone. Part of `make check-offload`, not of `make check-servers`.

journal-remote turns its loop by sd_event_run: what it waits for stays (`kind`), and its journal has every entry.
"""

import base64
import os
import random
import re
import subprocess

import pytest

import helpers
from servers import SlowDisk
from test_loop_sd_event import JournalRemote, Proxy, SlowJournalRemote

pytestmark = pytest.mark.skipif("UNBLOCK_SOAK" not in os.environ, reason="run by make check-offload")

EAGER = ("--offload=eager",)
ENTRIES, BYTES = 12, 1_000_000  # the journal grows by eight megabytes at a time
IMPORT = "/lib/systemd/systemd-import"
SYNC_MS = 400


def test_socket_proxyd(either):
    said = either(Proxy, lambda proxy: [proxy.get("blob" if i % 3 else "none") for i in range(30)], options=EAGER)
    assert said[1].endswith(Proxy.content) and b"404" in said[0]


def test_journal_remote_same_answers(either):
    said = either(JournalRemote, lambda remote: [*(remote.send(i * 20, 20) for i in range(5)), remote.browse(), remote.entries()], options=EAGER)
    assert len(said[-1]) == 100


def test_journal_remote_on_a_slow_disk(server):
    noise = random.Random(9)
    remote = server(SlowJournalRemote, options=EAGER)
    remote.disk.slow(fallocate=100)
    sent = [base64.b64encode(noise.randbytes(BYTES * 3 // 4)).decode() for _ in range(ENTRIES)]
    for i, text in enumerate(sent):
        remote.send(i, 1, text)
    remote.disk.quick()
    assert [message for message, _ in remote.entries()] == [f"entry {i}{text}" for i, text in enumerate(sent)]
    stayed = [line for line in remote.stop().of("offload") if line["call"] == "fallocate"]
    assert stayed and all(line["moved"] == 0 and set(line["pinned"]) == {"kind"} for line in stayed), stayed


@pytest.fixture
def disk(tmp_path):
    made = SlowDisk(tmp_path)
    yield made
    made.end()


def test_import_on_a_slow_disk(tmp_path, disk):
    """The image is synced in the callback that has read its end."""
    if not os.path.exists(IMPORT):
        pytest.skip("systemd-import is not installed (systemd-container)")
    image = tmp_path / "image.raw"
    image.write_bytes(random.Random(10).randbytes(3_000_000))
    disk.slow(fsync=SYNC_MS)
    command = [IMPORT, f"--image-root={disk.path}", "raw", image]
    alone = subprocess.run([*command, "alone"], capture_output=True, text=True, timeout=60, check=True)
    done, recording = helpers.record(tmp_path, *command, "moved", threshold="20ms", options=(*EAGER, "-q"), timeout=60)
    # How far it is it says each second or so.
    said = [re.sub(r"(?m)^(Wrote|Imported|Got) [0-9].*\n", "", text) for text in (done.stderr.replace("'moved'", "'alone'"), alone.stderr)]
    assert done.returncode == 0 and said[0] == said[1], (done.stderr, alone.stderr)
    assert (disk.disk / "moved.raw").read_bytes() == (disk.disk / "alone.raw").read_bytes() == image.read_bytes()
    synced = [line for line in recording.of("offload") if line["call"] == "fsync" and line["moved"]]
    assert synced and synced[0]["longest_ns"] >= SYNC_MS * 1_000_000, recording.of("offload")
