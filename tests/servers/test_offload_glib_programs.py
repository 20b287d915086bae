"""Calls moved in real programs on GLib: dconf-service answers the same, also while its disk is slow; GLib's own tests end as they do alone.
Part of `make check-offload`, not of `make check-servers`.
"""

import os
import sys
from pathlib import Path

import pytest

from lags import DRY_RUN, EAGER, shorter
from test_loop_glib import Dconf, SlowDconf

sys.path.insert(0, str(Path(__file__).parents[1] / "peers"))
import suites  # noqa: E402
from test_suites import compare  # noqa: E402

pytestmark = pytest.mark.skipif("UNBLOCK_SOAK" not in os.environ, reason="run by make check-offload")

SLOW_MS = 400


def talk(dconf):
    said = []
    for i in range(20):
        said += [dconf.dconf("write", "/a/number", str(i)), dconf.dconf("read", "/a/number")]
    said += [dconf.dconf("write", "/a/b/text", "'so'"), dconf.dconf("list", "/a/"), dconf.dconf("dump", "/"),
             dconf.dconf("reset", "-f", "/a/b/"), dconf.dconf("dump", "/")]
    return [*said, (dconf.settings / "dconf" / "user").read_bytes()]


def test_dconf_same_answers(either):
    said = either(Dconf, talk, options=EAGER)
    assert "number=19" in said[-2]


def write_slowly(dconf):
    for i in range(12):
        dconf.dconf("write", "/a/number", str(i))
    dconf.disk.slow(fsync=SLOW_MS)
    for i in range(3):
        dconf.dconf("write", "/a/number", str(100 + i))
    dconf.disk.quick()
    return dconf.dconf("read", "/a/number"), dconf.dconf("dump", "/")


def test_dconf_on_a_slow_disk(server):
    watched = server(SlowDconf, options=DRY_RUN)
    alone = write_slowly(watched)
    dconf = server(SlowDconf, options=EAGER)
    assert write_slowly(dconf) == alone and alone[0] == "102\n"
    recording = dconf.stop()
    calls = {line["call"]: line["moved"] for line in recording.of("offload")}
    assert calls.get("fsync", 0) >= 3, calls
    assert shorter(watched.stop(), recording, SLOW_MS)


def test_glibs_own_tests():
    """All of them, and so the loop, GTask, GIO's streams, D-Bus and applications."""
    if not suites.GLIB.exists():
        pytest.skip("libglib2.0-tests is not installed")
    moving = ("--offload=eager", "--threshold=10ms")
    compare(lambda watched, folder, only=None: suites.glib(watched, folder, only, options=moving), 300,
            lambda suspects: {name.split()[0] for name in suspects})
