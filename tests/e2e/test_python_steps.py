"""Steps of asyncio's tasks and its other handles, each timed by itself: on every interpreter and on uvloop.

The program (tests/programs/pysteps.py) writes down what its steps took.
Checked that it can fail: without the hook of PyIter_Send everything is a turn without parts, without that of Context.run
or of PyContext_Enter handles are turns. (Wrong offsets: test_python_layouts.py.)
"""

import json

import pytest

import helpers
import oracle
import pythons

PROGRAM = helpers.ROOT / "tests/programs/pysteps.py"
EVERY = [(v, p) for v in pythons.READ for p in pythons.installed(v) or [None]]
CASES = [("asyncio", v, p) for v, p in EVERY] + [("uvloop", "3.11", helpers.PYTHON)]
SLACK_NS = 1_000_000  # a step is somewhat longer than what the program measures inside it


def line_of(text):
    return next(i for i, line in enumerate(PROGRAM.read_text().splitlines(), 1) if text in line)


def run(tmp_path, python, loop, *args, env=None):
    if not python:
        pytest.skip("no such CPython is installed")
    if loop == "uvloop" and not pythons.ask(python, "import uvloop; print(1)"):
        pytest.skip(f"{python} has no uvloop")
    with oracle.Sentinel() as sentinel:
        done, recording = helpers.record(tmp_path, python, PROGRAM, loop, tmp_path / "truth", *args, threshold="30ms",
                                         env=helpers.clean_environment(**(env or {})), timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads((tmp_path / "truth").read_text()), recording, sentinel


# What handles are given -> the function that is told; a step that is thrown into, where that can be hooked.
HANDLES = {"plain": "plain", "later": "later", "method": ("method", "Server.method"), "readable": "readable",
           "foreign": "foreign"}


def slow_of(recording, sentinel, function, seconds=0.11):
    found = [s for s in recording.slow if s["duration_ns"] > seconds * 1e9 and "callbacks" not in s and
             any(f["function"].endswith(function) for x in s["samples"] if "stack" in x
                 for f in recording.stacks[x["stack"]] if f.get("language") == "python")]
    if not found and sentinel.busy(0, 1 << 62):
        pytest.skip(f"the machine was too busy: nobody looked at {function} for 0.12 s")
    assert len(found) == 1, (function, found)
    return found[0]


@pytest.mark.parametrize("loop,version,python", CASES)
def test_steps(tmp_path, loop, version, python):
    truth, recording, sentinel = run(tmp_path, python, loop)
    assert {line["loop"] for line in recording.of("loop")} == {loop}
    assert recording.of("loop")[0]["identity"] == "task"
    assert recording.of("stats")[-1]["kinds"]["task"]["callbacks"] > 2 * truth["resumed"]

    whole = [s for s in recording.slow if "callbacks" in s and s["callback_count"] > 130]
    assert len(whole) == 1, recording.slow
    parts = {p["callback"]["function"].rsplit(".", 1)[-1]: p for p in whole[0]["callbacks"] if p["kind"] == "task"}
    busy = sentinel.busy(whole[0]["start_ns"], whole[0]["start_ns"] + whole[0]["duration_ns"])
    took = [p["duration_ns"] for p in whole[0]["callbacks"]]
    assert took == sorted(took, reverse=True) and set(parts) >= set(truth["spent"]), parts
    for name, (calls, spent) in truth["spent"].items():
        part, place = parts[name], parts[name]["callback"]
        assert part["count"] == calls and place["file"] == str(PROGRAM), part
        assert place["line"] in (line_of(f"def {name}("), line_of(f"def {name}(") - 1), part
        if not busy:
            assert spent <= part["duration_ns"] <= spent + SLACK_NS * calls, (part, spent)
    assert whole[0]["kind"] == "turn" and whole[0]["callback"] == whole[0]["callbacks"][0]["callback"]
    assert "task" not in whole[0]
    shown = {f["function"].rsplit(".", 1)[-1] for x in whole[0]["samples"] if x.get("python") in ("still", "twice")
             for f in recording.stacks[x["stack"]] if f.get("language") == "python"}
    assert not shown or shown & {"spin", "small", "bigger", "old", "_run_once", "run_forever"}, shown

    step = slow_of(recording, sentinel, "block")
    assert step["kind"] == "task" and step["callback"]["function"] == "block", step
    for shown, functions in HANDLES.items():
        slow = slow_of(recording, sentinel, shown)
        assert slow["kind"] == "callback" and slow["callback"]["function"] in functions, slow
        assert slow["callback"]["file"] == str(PROGRAM) and "task" not in slow, slow
    thrown = slow_of(recording, sentinel, "cancelled")
    assert thrown["kind"] == ("callback" if version == "3.8" else "task"), thrown
    assert thrown["callback"]["function"] == "cancelled" and thrown["task"]["await"][0]["function"] == "cancelled"
    c = [s for s in recording.slow if s["kind"] == "callback" and s["callback"].get("function") == "sleep"]
    assert len(c) == (loop == "asyncio"), c  # uvloop does not say what it calls, and C code has no frame


@pytest.mark.parametrize("how", ["off", "python tasks"])
def test_without(tmp_path, how):
    """Switched off, or where tasks are not the C module's: turns, as before."""
    args, env = ([], {"UNBLOCK_CALLBACKS": "0"}) if how == "off" else (["py"], {})
    _, recording, sentinel = run(tmp_path, helpers.PYTHON, "asyncio", *args, env=env)
    assert recording.of("loop")[0]["identity"] == "turn"
    assert {s["kind"] for s in recording.slow} == {"turn"} and not any("callbacks" in s for s in recording.slow)
    assert slow_of(recording, sentinel, "block")["callback"]["function"] == "block"


def test_report_tells_the_steps(tmp_path):
    _, recording, _ = run(tmp_path, helpers.PYTHON, "asyncio")
    shown = helpers.unblock("report", recording.path).stdout
    assert " steps in one turn, none of them slow by itself; most took:\n" in shown, shown
    assert f"120 x small()  pysteps.py:{line_of('def small(')}  " in shown, shown
