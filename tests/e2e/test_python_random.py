"""Hundreds of tasks doing random things under -X dev: nothing goes wrong in the program, and no line is wrong.

Every sample is judged by what the program wrote down: the task and the function that ran at that moment. Every
frame's line must be a line of that very function. `make soak` runs it for a minute.
"""

import ast
import json
import os
import subprocess

import pytest

import helpers
import pythons

pytestmark = pytest.mark.beside

PROGRAM = helpers.ROOT / "tests/programs/pyrandom.py"
SECONDS = 60 if os.environ.get("UNBLOCK_SOAK") else 5

CASES = [("asyncio", v, p) for v in pythons.READ[-3:] for p in pythons.of(v) or [None]]
CASES.append(("uvloop", "3.11", helpers.PYTHON))


def functions():
    """{name: (first line, last line)}"""
    tree = ast.parse(PROGRAM.read_text())
    spans = {node.name: (node.lineno, node.end_lineno) for node in ast.walk(tree)
             if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
    spans["<module>"] = (1, len(PROGRAM.read_text().splitlines()))
    return spans


def truth_at(truth, ns):
    return next((t for t in truth if t["start_ns"] <= ns <= t["end_ns"]), None)


def wrong_lines(frames, spans):
    wrong = []
    for f in frames:
        name = f["function"].rsplit(".", 1)[-1]
        if name in spans and not spans[name][0] <= f.get("line", 0) <= spans[name][1]:
            wrong.append(f)
    return wrong


@pytest.mark.parametrize("loop,version,python", CASES)
def test_random_operations(tmp_path, loop, version, python):
    if not python or (loop == "uvloop" and not pythons.ask(python, "import uvloop; print(1)")):
        pytest.skip(f"no CPython {version} with {loop} is installed")
    done, recording = helpers.record(tmp_path, python, "-X", "dev", PROGRAM, loop, tmp_path / "truth", SECONDS,
                                     threshold="10ms", timeout=SECONDS + 60)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr and "ResourceWarning" not in done.stderr, done.stderr[-3000:]
    truth = [json.loads(line) for line in (tmp_path / "truth").read_text().splitlines()]
    assert truth.pop()["checked"] > 200
    spans = functions()
    judged, excused, wrong = 0, 0, []
    for slow in recording.slow:
        for sample in slow["samples"]:
            if sample.get("python") not in ("still", "twice"):
                continue
            frames = [f for f in recording.stacks[sample["stack"]]
                      if f.get("language") == "python" and f["file"] == str(PROGRAM)]
            wrong += wrong_lines(frames, spans)
            # Within half a millisecond of an edge the moment of a sample and the program's own clock may differ.
            now = slow["start_ns"] + sample["at_ns"]
            true, before = truth_at(truth, now + 500_000), truth_at(truth, now - 500_000)
            if not true or true != before:
                continue
            # Kept from the CPU the program reads its clock late: it is in its own book-keeping by then, for milliseconds.
            if 5 * slow.get("runqueue_ns", 0) > slow["duration_ns"]:
                excused += 1
                continue
            names = [f["function"] for f in frames]
            # Without a CPU it has left the function and not read its clock yet.
            if names[:1] == ["block"] and slow.get("runqueue_ns", 0) > true["end_ns"] - now:
                excused += 1
                continue
            judged += 1
            if true["function"] not in names:
                wrong.append((true, now, names, sample, slow.get("gil"), slow.get("runqueue_ns")))
        if slow.get("task") and not slow["task"]["name"].startswith(("worker ", "Task-")):
            wrong.append(slow["task"])
    assert not wrong, "\n".join(map(str, wrong[:5]))
    if judged < 10 <= judged + excused:
        pytest.skip(f"the machine was too busy: {excused} samples of {judged + excused} excused")
    assert judged >= 10, f"only {judged} samples could be judged"


SLOW_FSYNC = r"""
#include <time.h>
#include <unistd.h>
#include <sys/syscall.h>
static int slowly(long nr, int fd)
{
    struct timespec t = {0, 4000000};
    syscall(SYS_nanosleep, &t, 0);
    return (int)syscall(nr, fd);
}
int fsync(int fd) { return slowly(SYS_fsync, fd); }
int fdatasync(int fd) { return slowly(SYS_fdatasync, fd); }
"""


def test_two_threads_on_one_sqlite_connection(tmp_path):
    """sqlite3 holds a mutex of its own while another thread has the GIL and wants it: who takes the GIL there, deadlocks.

    With a slow fsync it is held nearly always when somebody looks: the loop was met both in fsync, and waiting for
    the mutex that the other thread has in its fsync.
    """
    (tmp_path / "slow.c").write_text(SLOW_FSYNC)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "slow.so", tmp_path / "slow.c"], check=True)
    script = tmp_path / "two.py"
    script.write_text(r"""
import asyncio, os, sqlite3, sys, threading, time
db = sqlite3.connect(sys.argv[1], check_same_thread=False, isolation_level=None)
db.execute("pragma synchronous = extra")
db.execute("pragma journal_mode = delete")
db.execute("create table t (a)")
stop = threading.Event()
def write():
    while not stop.is_set():
        try:
            db.execute("insert into t values (1)")
        except sqlite3.OperationalError:
            pass
async def main():
    other = threading.Thread(target=write)
    other.start()
    for i in range(20):
        await asyncio.sleep(0.001)
        for _ in range(2):
            db.execute("insert into t values (2)")
    stop.set()
    other.join()
    print("done", db.execute("select count(*) from t").fetchone()[0] > 40)
asyncio.run(main())
""")
    done, recording = helpers.record(tmp_path, helpers.PYTHON, script, tmp_path / "db", threshold="1ms", timeout=90,
                                     env=helpers.clean_environment(LD_PRELOAD=str(tmp_path / "slow.so")))
    assert done.returncode == 0 and done.stdout == "done True\n", (done.stdout, done.stderr)
    samples = [(s, recording.stacks[x["stack"]]) for s in recording.slow for x in s["samples"] if "stack" in x]
    in_fsync = [s for s, frames in samples if any(f.get("function") in ("fsync", "fdatasync") for f in frames)]
    in_mutex = [s for s, frames in samples if any("pthread_mutex_lock" in f.get("function", "") for f in frames)]
    assert len(in_fsync) > 10 and len(in_mutex) > 10, (len(in_fsync), len(in_mutex), len(samples))
    assert all(s["gil"]["released"] for s in in_fsync if s.get("gil")), in_fsync


def test_threads_with_their_own_loops_and_subinterpreters(tmp_path):
    script = tmp_path / "many.py"
    script.write_text(r"""
import asyncio, threading, time
try:
    import _xxsubinterpreters as interpreters
except ImportError:
    interpreters = None

def in_thread(name):
    async def blocked():
        for _ in range(20):
            await asyncio.sleep(0.001)
        for _ in range(5):
            time.sleep(0.05)
            await asyncio.sleep(0.001)
    async def main():
        task = asyncio.get_running_loop().create_task(blocked())
        task.set_name(name)
        await task
    asyncio.run(main())

async def main():
    for _ in range(20):
        await asyncio.sleep(0.001)
    if interpreters:
        other = interpreters.create()
        interpreters.run_string(other, "import time; time.sleep(0.05)")
        interpreters.destroy(other)

threads = [threading.Thread(target=in_thread, args=(f"task of thread {i}",)) for i in range(4)]
for t in threads:
    t.start()
asyncio.run(main())
for t in threads:
    t.join()
""")
    done, recording = helpers.record(tmp_path, helpers.PYTHON, script, threshold="10ms", timeout=60)
    assert done.returncode == 0, done.stderr
    seen = {}
    for slow in recording.slow:
        if slow.get("task", {}).get("name", "").startswith("task of"):
            seen.setdefault(slow["tid"], set()).add(slow["task"]["name"])
    assert len(seen) == 4 and all(len(names) == 1 for names in seen.values()), seen
    assert len(set.union(*seen.values())) == 4, seen


@pytest.mark.parametrize("version", pythons.OTHERS)
def test_other_versions_are_watched_without_python_frames(tmp_path, version):
    here = pythons.installed(version)
    if not here:
        pytest.skip(f"no CPython {version} is installed")
    source = """
import select, time, os
r, w = os.pipe(); r2, w2 = os.pipe()
for i in range(30):
    select.select([r, r2], [], [], 0.002)
time.sleep(0.1)
select.select([r, r2], [], [], 0.002)
"""
    done, recording = helpers.record(tmp_path, here[0], "-c", source, threshold="20ms")
    assert done.returncode == 0, done.stderr
    slow = [s for s in recording.slow if s["cause"] == "call"]
    assert len(slow) == 1 and 95_000_000 < slow[0]["duration_ns"] < 2_000_000_000, recording.slow
    notes = [n["text"] for n in recording.of("note") if "Python" in n["text"]]
    assert len(notes) == 1 and version in notes[0], recording.of("note")
    assert not any(f.get("language") == "python" for frames in recording.stacks.values() for f in frames)


def test_a_virtual_environment(tmp_path):
    """The interpreter is a symbolic link elsewhere; what is installed in it is not the program's own."""
    made = subprocess.run([helpers.PYTHON, "-m", "venv", "--without-pip", tmp_path / "venv"], capture_output=True)
    if made.returncode:
        pytest.skip("python3-venv is not installed")
    site = next((tmp_path / "venv").glob("lib/python3*/site-packages"))
    (site / "slowlib.py").write_text("import time\ndef call():\n    time.sleep(0.1)\n")
    script = tmp_path / "app.py"
    script.write_text("""
import asyncio, slowlib
async def handler():
    slowlib.call()
async def main():
    for _ in range(20):
        await asyncio.sleep(0.001)
    await handler()
asyncio.run(main())
""")
    done, recording = helpers.record(tmp_path, tmp_path / "venv/bin/python", script, threshold="20ms")
    assert done.returncode == 0, done.stderr
    slow = next(s for s in recording.slow if not s.get("startup"))
    assert slow["callback"]["function"] == "main" and slow["callback"]["line"] == 8, slow
    report = helpers.unblock("report", recording.path).stdout
    assert "app.py:4: await asyncio.to_thread(slowlib.call, ...)" in report, report
    assert "slowlib.py:3" in report
