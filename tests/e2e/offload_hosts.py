"""What the tests of offload on each event loop have in common: a program's run with calls moved beside its run alone."""

import json
import subprocess

import helpers
import pytest
from test_offload_eager import SLOW
from test_offload_event import both


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """A resolver and a disk that take their time."""
    folder = tmp_path_factory.mktemp("slow")
    (folder / "slow.c").write_text(SLOW)
    subprocess.run(["cc", "-shared", "-fPIC", folder / "slow.c", "-o", folder / "slow.so"], check=True)
    return {"LD_PRELOAD": str(folder / "slow.so")}


def check_matrix(tmp_path, request, program, case, stays):
    """The same result, errno and order; meanwhile the ticker went on, or not: `stays`, why."""
    env = request.getfixturevalue("slow") if case in ("fsync", "getaddrinfo") else {}
    said, moved, recording = both(tmp_path, helpers.program(program), case, "300", **env)
    alone, truth = json.loads(said), json.loads(moved)
    assert (truth["result"], truth["errno"]) == (alone["result"], alone["errno"])
    assert truth["order"].replace("tick ", "") == alone["order"]
    if stays:
        assert truth["inside"] == 0 and recording.end["offload"]["moved"] == 0
        assert [line["pinned"] for line in recording.of("offload")] == [{stays: 1}]
    else:
        assert recording.end["offload"]["moved"] >= 1 and truth["inside"] >= 5, truth


def check_moved(recording, least):
    """So many calls at least; none: all must have stayed."""
    calls = recording.end["offload"]["moved"]
    assert calls >= least and (calls == 0 or least)
