"""A blocking call that was over before anybody looked: the thread itself has kept its Python frames.

The call takes less than the threshold, what follows it computes: every look comes too late for the call, whose line
nothing from outside can tell any more. Checked that it can fail: without what the thread keeps the line is missing.
"""

import subprocess

import pytest

import helpers
import pythons

SOURCE = r"""
import asyncio, sys, time

def rest():
    time.sleep(0.2)  # mark: rest

def compute():
    end = time.monotonic() + 0.1
    while time.monotonic() < end:
        pass

async def step():
    rest()  # mark: step
    compute()

async def main():
    for _ in range(40):
        await asyncio.sleep(0.002)
    await asyncio.ensure_future(step())
    for _ in range(5):
        await asyncio.sleep(0.002)

if sys.argv[1] == "uvloop":
    import uvloop
    uvloop.install()
asyncio.run(main())
"""

MARKS = {line.split("# mark: ")[1]: number for number, line in enumerate(SOURCE.splitlines(), 1) if "# mark: " in line}
EVERY = [(v, p) for v in pythons.READ for p in pythons.installed(v) or [None]]
CASES = [("asyncio", v, p) for v, p in EVERY] + [("uvloop", "3.11", helpers.PYTHON)]


@pytest.mark.parametrize("loop,version,python", CASES)
def test_line_of_a_call_that_is_over(tmp_path, loop, version, python):
    if not python:
        pytest.skip(f"no CPython {version} is installed")
    if loop == "uvloop" and not pythons.ask(python, "import uvloop; print(1)"):
        pytest.skip(f"{python} has no uvloop")
    script = tmp_path / "finished.py"
    script.write_text(SOURCE)
    done, recording = helpers.record(tmp_path, python, script, loop, threshold="230ms")
    assert done.returncode == 0, done.stderr
    slow = [s for s in recording.slow if s["duration_ns"] > 290_000_000 and s["callback"].get("function", "").endswith("step")]
    assert len(slow) == 1, recording.slow
    if any(s["state"] == "blocked" and s["proof"] != "self" for s in slow[0]["samples"] if "stack" in s):
        pytest.skip("the machine was too busy: the sleep itself outlasted the threshold")
    own = [s for s in slow[0]["samples"] if s.get("proof") == "self"]
    assert len(own) == 1 and own[0]["python"] == "still", slow[0]["samples"]
    frames = [(f["function"].rsplit(".", 1)[-1], f.get("line")) for f in recording.stacks[own[0]["stack"]]
              if f.get("language") == "python" and f["file"] == str(script)]
    assert frames[:2] == [("rest", MARKS["rest"]), ("step", MARKS["step"])], frames


ENDING = r"""
import asyncio, threading, time

async def main():
    for _ in range(40):
        await asyncio.sleep(0.002)
    while True:
        time.sleep(0.12)
        await asyncio.sleep(0)

threading.Thread(target=lambda: asyncio.run(main()), daemon=True).start()
time.sleep(0.5)
"""

# Runs when the interpreter has ended and freed what it had of the daemon thread, which is still in its call.
LATE_END = r"""
#include <time.h>
__attribute__((destructor)) static void end(void)
{
    struct timespec t = {0, 300000000};
    clock_nanosleep(CLOCK_MONOTONIC, 0, &t, 0);
}
"""


@pytest.mark.parametrize("version", ["3.8", "3.11", "3.13"])
def test_call_that_outlasts_the_interpreter(tmp_path, version):
    if not pythons.installed(version):
        pytest.skip(f"no CPython {version} is installed")
    (tmp_path / "late.c").write_text(LATE_END)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "late.so", tmp_path / "late.c"], check=True)
    done, recording = helpers.record(tmp_path, pythons.installed(version)[0], "-c", ENDING, threshold="20ms",
                                     env=helpers.clean_environment(LD_PRELOAD=str(tmp_path / "late.so")))
    assert done.returncode == 0, done.stderr
    assert all(line.startswith("unblock: ") for line in done.stderr.splitlines()), done.stderr  # nothing of Python's
    assert recording.end["exit"] == 0 and any(s["duration_ns"] > 110_000_000 for s in recording.slow), recording.slow
