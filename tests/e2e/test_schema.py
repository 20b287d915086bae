"""The JSON Schema of recordings: right lines pass, broken ones do not."""

import copy
import json

import jsonschema
import pytest

import helpers

pytestmark = pytest.mark.beside

SCHEMA = json.loads((helpers.ROOT / "ui/recording.schema.json").read_text())
SAMPLE = [json.loads(line) for line in (helpers.ROOT / "tests/data/sample.jsonl").read_text().splitlines()]
VALIDATOR = jsonschema.Draft7Validator(SCHEMA)

REQUIRED = {
    "header": ["schema", "version", "tool", "started", "monotonic_ns", "host", "command", "threshold_ns", "source"],
    "process": ["pid", "exe"],
    "loop": ["pid", "tid", "loop"],
    "stack": ["id", "frames"],
    "slow": ["id", "pid", "tid", "loop", "kind", "callback", "start_ns", "duration_ns", "threshold_ns", "cause",
             "samples", "site"],
    "stats": ["pid", "tid", "loop", "callbacks", "total_ns", "max_ns"],
    "thread": ["pid", "tid", "stack"],
    "offload": ["site", "call", "moved", "saved_ns"],
    "python": ["kind", "function", "count"],
    "executor": ["moved", "saved_ns"],
    "lint": ["pid", "tid", "lint", "callback"],
    "note": ["level", "text"],
    "end": ["slow", "lost"],
}

# Types that the sample has no line of.
MORE = [
    {"type": "thread", "pid": 1, "tid": 1, "name": "x", "state": "blocked", "stack": 1, "in_state_ns": 5,
     "call": {"name": "futex", "args": "0x1"}},
    {"type": "offload", "site": "ab", "call": "fsync", "moved": 3, "saved_ns": 1, "pinned": {"lock": 2}},
    {"type": "python", "kind": "held", "function": "app.f", "place": "app.py:3", "text": "sorted", "count": 1, "ns": 5},
    {"type": "executor", "moved": 0, "saved_ns": 0, "functions": [{"function": "app.f", "place": "fork", "count": 2, "ns": 9, "longest_ns": 5}]},
    {"type": "lint", "pid": 1, "tid": 1, "lint": "sleep0", "callback": {"function": "f"}, "count": 3, "total_ns": 9},
]


def first(kind):
    return copy.deepcopy(next(line for line in SAMPLE + MORE if line["type"] == kind))


def problems(line):
    return [error.message for error in VALIDATOR.iter_errors(line)]


def test_the_schema_is_one():
    jsonschema.Draft7Validator.check_schema(SCHEMA)


def test_the_sample_is_valid():
    for number, line in enumerate(SAMPLE + MORE, 1):
        assert not problems(line), f"line {number}"


@pytest.mark.parametrize("kind,field", [(kind, field) for kind in REQUIRED for field in REQUIRED[kind]])
def test_required_fields(kind, field):
    line = first(kind)
    del line[field]
    assert problems(line)


@pytest.mark.parametrize("kind", REQUIRED)
def test_no_field_takes_any_type(kind):
    """Every field of the line, replaced by an object that nobody means, or by null."""
    line = first(kind)
    for field in line:
        for wrong in ({"nobody": "means this"}, None):
            if wrong is not None and field in ("callback", "waiting", "pinned"):
                continue  # objects, of which unknown fields are allowed
            assert problems({**line, field: wrong}), field


@pytest.mark.parametrize("kind", REQUIRED)
def test_unknown_fields_are_allowed(kind):
    assert not problems({**first(kind), "of a later version": [1]})


BROKEN = [
    ("header", {"version": 2}),
    ("header", {"started": "yesterday"}),
    ("header", {"source": "guess"}),
    ("process", {"pid": 0}),
    ("process", {"args": "a b"}),
    ("loop", {"loop": "tokio"}),
    ("stack", {"frames": [{"function": 1}]}),
    ("stack", {"frames": [{"line": 0}]}),
    ("stack", {"frames": [{"language": "cobol"}]}),
    ("slow", {"duration_ns": 1.5}),
    ("slow", {"duration_ns": -1}),
    ("slow", {"cause": "bad luck"}),
    ("slow", {"kind": "cron"}),
    ("slow", {"site": ""}),
    ("slow", {"call": {"args": "7"}}),
    ("slow", {"samples": [{"at_ns": 1}]}),
    ("slow", {"samples": [{"at_ns": 1, "state": "dreaming"}]}),
    ("slow", {"samples": [{"at_ns": 1, "state": "blocked", "stack": 1}]}),
    ("slow", {"samples": [{"at_ns": 1, "state": "blocked", "stack": 1, "proof": "trust me"}]}),
    ("slow", {"repeats": 3}),
    ("stats", {"histogram": [[1, 2, 3]]}),
    ("stats", {"histogram": {"1": 2}}),
    ("note", {"level": "shout"}),
    ("end", {"lost": {"ring": 0}}),
    ("end", {"exit": 0, "signal": 9}),
    ("end", {"type": "finish"}),
]


@pytest.mark.parametrize("kind,change", BROKEN)
def test_broken_lines(kind, change):
    line = {**first(kind), **change}
    assert problems(line), line


def test_a_dump_has_no_threshold():
    header = first("header")
    del header["threshold_ns"]
    header["source"] = "dump"
    assert not problems(header)


def test_a_thread_without_stack_says_why():
    thread = first("thread")
    del thread["stack"]
    thread["error"] = "permission denied"
    assert not problems(thread)


def test_a_real_recording(tmp_path):
    _, recording = helpers.record(tmp_path, helpers.program("loop_bare"), "epoll", tmp_path / "truth",
                                  "nanosleep@40,cpu@40")
    assert recording.slow, "nothing was recorded that could be judged"
    for line in recording.lines:
        assert not problems(line), line


def test_a_real_dump(tmp_path):
    path = tmp_path / "dump.jsonl"
    target = helpers.start("run", "--live", "none", "-o", tmp_path / "r.jsonl", "--", "sleep", "30")
    try:
        done = helpers.unblock("dump", target.pid, "-o", path)
        assert done.returncode in (0, 1), done.stderr
    finally:
        target.terminate()
        target.communicate()
    lines = helpers.Recording(path).lines
    assert any(line["type"] == "thread" for line in lines)
    for line in lines:
        assert not problems(line), line
