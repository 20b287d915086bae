"""asyncio's steps that block, with their calls moved: `--offload=eager`, unfinished and not offered."""

import os
import subprocess

import helpers
import oracle
import pythons
import pytest

PROGRAM = helpers.ROOT / "tests" / "programs" / "pyoffload.py"
OBJECTS = helpers.AGENT.parent

# How many calls are moved at least, and the longest that the ticker may be kept waiting, in ms: half of what it is alone.
MOVES = {"states": (16, 1200), "recv": (1, 150), "one_socket": (3, 150), "raises": (2, 100), "cancel": (1, 150),
         "generators": (6, 180), "deep": (5, 250)}
STAYS = ["rlock", "importing", "alarm"]


def interpreters():
    found = [path for minor in ("3.11", "3.12") if (OBJECTS / f"python{minor}.so").exists()
             for path in pythons.installed(minor)[:1]]
    return found or [pytest.param(None, marks=pytest.mark.skip(reason="no headers of CPython 3.11 or 3.12: not built"))]


def environment(tmp_path):
    (tmp_path / "slow_module.py").write_text("import time\ntime.sleep(0.2)\nVALUE = 7\n")
    return helpers.clean_environment(UNBLOCK_UNFINISHED="1", PYTHONPATH=str(tmp_path), PYTHONDONTWRITEBYTECODE="1")


def both(tmp_path, python, *case):
    env = environment(tmp_path)
    alone = subprocess.run([python, PROGRAM, *case], capture_output=True, text=True, env=env, timeout=90, check=False)
    assert alone.returncode == 0, alone.stderr
    with oracle.Sentinel() as sentinel:
        done, recording = helpers.record(tmp_path, python, "-X", "dev", PROGRAM, *case, threshold="50ms",
                                         options=("--offload=eager", "-q"), env=env, timeout=90)
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    assert done.stdout == alone.stdout
    starved = sum(b - a for a, b in sentinel.late)
    return recording.end["offload"]["moved"], done.stderr, starved


@pytest.mark.parametrize("python", interpreters())
@pytest.mark.parametrize("case", MOVES)
def test_moves(tmp_path, python, case):
    least, most_ms = MOVES[case]
    moved, stderr, starved = both(tmp_path, python, case)
    assert moved >= least, stderr
    gap = int(stderr.split()[-1])
    assert gap < most_ms or starved > 50_000_000, gap


@pytest.mark.parametrize("python", interpreters())
@pytest.mark.parametrize("case", STAYS)
def test_stays(tmp_path, python, case):
    moved, stderr, _ = both(tmp_path, python, case)
    assert moved == 0, stderr


@pytest.mark.parametrize("python", interpreters())
def test_stress(tmp_path, python):
    size = ("200", "30") if os.environ.get("UNBLOCK_SOAK") else ("30", "6")
    env = environment(tmp_path)
    done, recording = helpers.record(tmp_path, python, "-X", "dev", PROGRAM, "stress", *size, threshold="50ms",
                                     options=("--offload=eager", "-q"), env=env, timeout=180)
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    assert done.stdout == f"stress {int(size[0]) * int(size[1])}\n"
    assert recording.end["offload"]["moved"] > 0
