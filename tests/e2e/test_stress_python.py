"""Stress of asyncio with calls moved: 200 tasks do 30 random things each, of 20 kinds, round after round; none of their effects is
lost, doubled or seen half done.

`make check` has a minute of it, shared by asyncio and uvloop, with calls moved, with `--yield` and with both; `make check-offload`
and `make soak` a minute of each, on every interpreter that is here.

Seen to fail without its mend: a finalizer that is run while a step begins to wait, locks of who sleeps below (with --yield), and what
the head of test_offload_python.py says of it.
"""

import os
import random

import helpers
import pythons
import pytest
from test_offload_python import environment

pytestmark = pytest.mark.beside

ALL = "UNBLOCK_SOAK" in os.environ
MINUTE = 60
# Another one each time; that of a round which failed is printed with it, and `UNBLOCK_SEED=` has it again.
SEED = int(os.environ.get("UNBLOCK_SEED") or random.randrange(1_000_000_000))

MODES = {"eager": ["--offload=eager"], "both": ["--offload=eager", "--yield"], "yield": ["--yield"]}


def cases():
    """(interpreter and loop, mode): all of them, or the first interpreter with each mode, and uvloop with calls moved."""
    every = pythons.moving(helpers.AGENT, True)
    found = [(python, mode) for mode in MODES for python in every
             if ALL or python == every[0] or (mode == "eager" and python.endswith(" uvloop"))]
    return found or [pytest.param(None, None, marks=pytest.mark.skip(reason="no headers of CPython 3.11 to 3.13: not built"))]


@pytest.mark.parametrize("python,mode", cases())
def test_stress(tmp_path, python, mode):
    python, *loop = python.split()
    tasks = "200" if ALL or mode != "yield" else "100"  # where no call is moved, each is waited for, one after the other
    seconds = MINUTE if ALL else MINUTE / len(cases())
    print(f"UNBLOCK_SEED={SEED}")
    path = tmp_path / "recording.jsonl"
    process = helpers.start("run", "--force", "-q", "-t", "2ms", "-o", path, *MODES[mode], "--", python, "-X", "dev",
                            helpers.ROOT / "tests/programs/pystress.py", tasks, "30", seconds, SEED,
                            env={**environment(tmp_path), "LOOP": loop[0] if loop else ""})
    printed, said = helpers.finish(process, seconds + 240)
    assert process.returncode == 0, (process.returncode, printed, said[-3000:])
    assert printed == "stress: all as it should be\n"
    assert "Traceback" not in said and "Warning" not in said, said[-3000:]
    recording = helpers.Recording(path)
    if "--offload=eager" in MODES[mode]:
        assert recording.end["offload"]["moved"] > 1000
    if "--yield" in MODES[mode]:
        assert any(line["kind"] == "yield" for line in recording.of("python"))
