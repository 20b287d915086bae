"""Habits that cost: sleep(0) too often and too seldom, coroutines that nobody runs. On every interpreter and on uvloop.

Checked that it can fail: without the comparison with None there are no sleep0 lines; without the state's comparison every
coroutine counts as one that never ran; with another version's state none does.
"""

import json

import pytest

import helpers
import pythons

PROGRAM = helpers.ROOT / "tests/programs/pylints.py"
EVERY = [("asyncio", v, p) for v in pythons.READ for p in pythons.installed(v) or [None]]
CASES = EVERY + [("uvloop", "3.11", helpers.PYTHON)]


def line_of(text):
    return next(i for i, line in enumerate(PROGRAM.read_text().splitlines(), 1) if text in line)


@pytest.mark.parametrize("loop,version,python", CASES)
def test_lints(tmp_path, loop, version, python):
    if not python:
        pytest.skip(f"no CPython {version} is installed")
    if loop == "uvloop" and not pythons.ask(python, "import uvloop; print(1)"):
        pytest.skip(f"{python} has no uvloop")
    done, recording = helpers.record(tmp_path, python, PROGRAM, loop, threshold="30ms")
    assert done.returncode == 0, done.stderr
    lints = {}
    for line in recording.of("lint"):  # the last one counts
        assert line["callback"]["file"] == str(PROGRAM), line
        lints[line["lint"], line["callback"]["function"]] = line

    yields = {f: line for (lint, f), line in lints.items() if lint == "sleep0"}
    assert set(yields) == {"often", "sometimes"}, lints  # of `seldom` it is told with its stalls
    assert yields["often"]["count"] == 1500 and yields["sometimes"]["count"] == 100, yields
    assert yields["sometimes"]["total_ns"] >= 100 * 300_000 and yields["often"]["max_ns"] > 0, yields
    seldom = [s for s in recording.slow if s["callback"].get("function") == "seldom"]
    counts = [s["yields"]["count"] for s in seldom]  # so far, when the record was read
    assert counts == sorted(counts) and all(i <= n <= 4 for i, n in enumerate(counts, 1)), counts

    never = {f: line.get("at") for (lint, f), line in lints.items() if lint == "never-awaited"}
    assert set(never) == {"forgotten", "called"} | ({"given"} if loop == "asyncio" else set()), lints
    assert (never["forgotten"]["function"], never["forgotten"]["line"]) == ("main", line_of("    forgotten()")), never
    # Who let go of these is the loop, or whoever holds the future last.
    assert never["called"] is None or never["called"]["file"] != str(PROGRAM), never

    shown = [line for line in helpers.unblock("report", recording.path).stdout.splitlines() if line.startswith("lint  ")]
    assert sum(" often() gave way by sleep(0) 1,500 times" in s or " often() gave way by sleep(0) 1500 times" in s
               for s in shown) == 1, shown
    assert not any("sometimes()" in s for s in shown), shown
    here = [s for s in shown if f"pylints.py:{line_of('    forgotten()')}  main() let go of a coroutine that never ran" in s]
    assert len(here) == 1 and f"forgotten() (pylints.py:{line_of('def forgotten')})" in here[0], shown
    assert len(shown) == 1 + len(never), shown


def test_a_step_that_gives_way_too_seldom(tmp_path):
    _, recording = helpers.record(tmp_path, helpers.PYTHON, PROGRAM, "asyncio", threshold="30ms")
    lines = [json.loads(line) for line in recording.path.read_text().splitlines()]
    for line in lines:
        if line["type"] == "slow":
            line["cause"] = "cpu"  # on a full machine the longest one has waited for a CPU, and that is what is said then
    path = tmp_path / "cpu.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    shown = helpers.unblock("report", path).stdout
    if not any(f.get("function") == "seldom" for frames in recording.stacks.values() for f in frames):
        pytest.skip("the machine was too busy: nobody looked at seldom()")
    assert f"pylints.py:{line_of('    spin(0.05)')}: sleep(0) (" in shown, shown
    assert "lets the loop run between such steps only: more often, or" in shown
