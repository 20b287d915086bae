"""Suspended callbacks of GLib's sources, where other threads destroy these, where one waits behind another, where an application
ends by itself. Run by `make check-offload`.

Seen to fail: with sources left that have others inside ("destroys" crashes), with the callback's data read after GLib has let go of it
("destroys": it is freed inside of the callback), with those that wait behind another driven, too ("behind" never ends), with such an application
held ("application").
"""

import os
import subprocess

import helpers
import pytest

pytestmark = pytest.mark.skipif("UNBLOCK_SOAK" not in os.environ, reason="make check-offload")


@pytest.mark.parametrize("case", ["destroys", "behind", "application"])
def test_the_same_as_without(tmp_path, case):
    command = (helpers.program("races_glib"), case)
    alone = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    done, recording = helpers.record(tmp_path, *command, threshold="1ms", options=("--offload=eager",), timeout=60,
                                     env=helpers.clean_environment())
    assert (done.returncode, done.stdout) == (0, alone), done.stderr
    assert recording.end["offload"]["moved"] > 0 or case == "application"
