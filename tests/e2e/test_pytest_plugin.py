"""The pytest plugin: a test that blocks a loop is named, and the run fails."""

import os
import subprocess

import helpers

LOOP = '''
import asyncio, time

async def turns(n):
    for _ in range(n):
        await asyncio.sleep(0.001)

def run(*steps):
    async def main():
        await turns(60)
        for step in steps:
            await step()
            await turns(5)
    asyncio.run(main())

async def block():
    time.sleep(0.15)

async def fine():
    await asyncio.sleep(0.15)
'''


def pytest_under(tmp_path, tests, *args, command=None, **env):
    (tmp_path / "loop.py").write_text(LOOP)
    (tmp_path / "test_it.py").write_text("from loop import *\n" + tests)
    path = os.pathsep.join([str(helpers.ROOT / "ui/pytest"), str(tmp_path)])
    environment = helpers.clean_environment(PYTHONPATH=path, UNBLOCK_BIN=str(helpers.UNBLOCK), TMPDIR=str(tmp_path), **env)
    command = [*(command or []), helpers.PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "unblock_pytest",
               *args, "test_it.py"]
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)


BAD = "def test_good(): run(fine)\ndef test_bad(): run(block)\ndef test_after(): pass\n"


def test_the_test_is_named(tmp_path):
    done = pytest_under(tmp_path, BAD, "--unblock-fail-on", "80ms")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "3 passed" in done.stdout
    summary = done.stdout[done.stdout.index("blocked event loops"):]
    named = [line for line in summary.splitlines() if line.startswith("BLOCKED")]
    assert len(named) == 1 and named[0].endswith("test_it.py::test_bad"), summary
    assert "clock_nanosleep(" in summary and "unblock report " in summary


def test_nothing_blocks(tmp_path):
    done = pytest_under(tmp_path, "def test_good(): run(fine)\n", "--unblock-fail-on", "80ms")
    assert done.returncode == 0 and "blocked" not in done.stdout, done.stdout + done.stderr
    assert not list(tmp_path.glob("unblock-pytest-*")), "nothing is left behind"


def test_under_a_run_of_ones_own(tmp_path):
    recording = tmp_path / "r.jsonl"
    command = [str(helpers.UNBLOCK), "run", "-q", "-t", "20ms", "-o", str(recording), "--"]
    done = pytest_under(tmp_path, BAD, "--unblock-fail-on", "80ms", "--unblock-recording", str(recording), command=command)
    assert done.returncode == 1 and "test_it.py::test_bad" in done.stdout, done.stdout + done.stderr
    site = helpers.Recording(recording).slow[0]["site"]
    known = tmp_path / "known"
    known.write_text("".join(f"{s['site']}\n" for s in helpers.Recording(recording).slow))
    recording.unlink()
    done = pytest_under(tmp_path, BAD, "--unblock-fail-on", "80ms", "--unblock-recording", str(recording),
                        "--unblock-suppress", str(known), command=command)
    assert done.returncode == 0, (site, done.stdout)


def test_without_the_option_it_does_nothing(tmp_path):
    done = pytest_under(tmp_path, BAD)
    assert done.returncode == 0 and "blocked" not in done.stdout
    done = pytest_under(tmp_path, BAD, "--unblock-fail-on", "soon")
    assert done.returncode != 0 and "100ms" in done.stdout + done.stderr


def test_a_failing_test_stays_the_reason(tmp_path):
    done = pytest_under(tmp_path, BAD + "def test_wrong(): assert 0\n", "--unblock-fail-on", "80ms")
    assert done.returncode == 1 and "1 failed, 3 passed" in done.stdout and "test_it.py::test_bad" in done.stdout
