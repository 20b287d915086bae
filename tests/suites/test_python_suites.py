"""CPython's own tests with calls moved (`--offload=eager`): the same results as without, but for those that explained.json has, each by a
documented semantic.

test_asyncio as it is. The others run in one step of a task, beside a ticker: their own thread has no loop, and nothing would move.
A test that differs runs again by itself, both ways: what differs twice is ours. A crash or a hang is, at once.
"""

import fnmatch
import functools
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

import helpers
import pythons

HERE = Path(__file__).resolve().parent
EXPLAINED = json.loads((HERE / "explained.json").read_text())
INSIDE = ["test_threading", "test_queue", "test_contextlib", "test_logging", "test_sqlite3", "test_subprocess", "test_ssl"]
PATIENCE = 120  # without the end of a test
TESTS = "import test, os; print(test.__path__[0] if os.path.exists(test.__path__[0] + '/test_queue.py') else '')"


@functools.lru_cache(None)
def folder_of(python):
    return pythons.ask(python, TESTS)


def interpreters():
    """Of each version with an object of ours those whose tests are here: Debian's lack test_sqlite3, so there may be two."""
    return [path for minor in ("3.11", "3.12", "3.13") if (helpers.AGENT.parent / f"python{minor}.so").exists()
            for path in pythons.installed(minor) if folder_of(path)]


def cases():
    found = {}
    for python in interpreters():
        inside = [(python, "inside", f"test.{name}") for name in INSIDE
                  if list(Path(folder_of(python)).glob(f"{name}*"))]
        asyncio = [(python, "plain", f"test.test_asyncio.{file.stem}")
                   for file in sorted(Path(folder_of(python), "test_asyncio").glob("test_*.py")) if "windows" not in file.stem]
        for case in inside + asyncio:
            minor = pythons.ask(python, "import sys; print(sys.version_info[1])")
            found.setdefault((minor, *case[1:]), case)  # once a version
    return list(found.values()) or [pytest.param(None, None, None, marks=pytest.mark.skip(
        reason="no CPython 3.11 to 3.13 with its tests (libpython3.11-testsuite), or its headers were not there to build for it"))]


class Run:
    """Tests in a process, alone or with calls moved, to its end."""

    def __init__(self, folder, python, how, names, moved):
        folder.mkdir(exist_ok=True)
        self.told, self.path = folder / "outcomes", folder / "run.jsonl"
        for path in self.told, self.path:
            path.unlink(missing_ok=True)
        command = [python, HERE / "runner.py", self.told, how, *names]
        if moved:
            command = [helpers.UNBLOCK, "run", "-q", "--force", "-t", "50ms", "-o", self.path, "--offload=eager", "--", *command]
        self.said = open(folder / "said", "w+", errors="replace")
        self.process = subprocess.Popen([str(c) for c in command], cwd=folder, stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=self.said, start_new_session=True,
                                        env=helpers.clean_environment(PYTHONDONTWRITEBYTECODE="1"),
                                        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))

    def finish(self):
        """{test: outcome}; who is in the midst of one when the process ends has `crashed`, or `hangs`."""
        last, size, end = time.monotonic(), 0, "crashed"
        while self.process.poll() is None:
            time.sleep(0.1)
            now = self.told.stat().st_size if self.told.exists() else 0
            if now != size:
                last, size = time.monotonic(), now
            if time.monotonic() - last > PATIENCE:
                end = "hangs"
                break
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        found, running = {}, "the end"
        for what, test in map(json.loads, self.told.read_text().splitlines() if self.told.exists() else ()):
            if what == "begins":
                running = test
            elif what == "ends":
                running = "the end"
            elif what == "done":
                running = None
            elif found.get(test, "ok") == "ok":
                found[test] = what
        if end == "hangs" or running:
            found[running or "the exit"] = end
        self.said.seek(0)
        self.said = self.said.read()
        return found


def both(folder, python, how, names):
    runs = [Run(folder / side, python, how, names, side == "moved") for side in ("alone", "moved")]
    return [run.finish() for run in runs], runs[1]


@pytest.mark.parametrize("python,how,module", cases())
def test_same_results(tmp_path, python, how, module):
    (alone, moved), run = both(tmp_path, python, how, [module])
    assert sum(word == "ok" for word in alone.values()) > 0, alone
    ours, explained = {}, 0
    for test in sorted(t for t in alone.keys() | moved.keys() if alone.get(t) != moved.get(t)):
        words = alone.get(test), moved.get(test)
        if any(fnmatch.fnmatchcase(test, pattern) for pattern in EXPLAINED) and words[1] not in ("crashed", "hangs"):
            explained += 1
            continue
        if words[1] not in ("crashed", "hangs", None) and words[0] is not None:
            again = [side.get(test) for side in both(tmp_path, python, how, [test])[0]]
            if again[0] == again[1]:
                continue
        ours[test] = words
    assert not ours, f"{len(ours)} differ: {dict(list(ours.items())[:10])}\n{run.said[-3000:]}"
    calls = helpers.Recording(run.path).end["offload"]["moved"]
    print(f"{module} on {python}: {len(alone)} tests, {calls} calls moved, {explained} explained")
