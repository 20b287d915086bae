"""Recordings come from strangers: whatever is in them, a report says what is wrong, in bounded memory."""

import json
import resource
import subprocess
import sys

import pytest

import helpers

pytestmark = pytest.mark.beside

HEADER = {"type": "header", "schema": "unblock-recording", "version": 1, "tool": "t", "started": "2025-11-21T03:05:12Z",
          "monotonic_ns": 1000, "host": "h", "command": ["prog"], "threshold_ns": 20000000, "source": "agent"}
SLOW = {"type": "slow", "id": 1, "pid": 42, "tid": 42, "thread": "prog", "loop": "turn", "kind": "turn",
        "callback": {"function": "cb"}, "start_ns": 5000, "duration_ns": 30000000, "threshold_ns": 20000000,
        "cause": "cpu", "samples": [{"at_ns": 1, "stack": 1, "state": "running", "proof": "still", "complete": True}],
        "site": "5e5a1007"}
END = {"type": "end", "exit": 0, "slow": 1, "lost": {"ring": 0, "rate_limited": 0, "torn": 0}}
EVIL = "\x1b]0;owned\x07\x1b[2J\u202egnp.exe\u0085\r\n</script><script>alert(1)</script>"


def recording(path, *lines):
    with open(path, "wb") as f:
        for line in (HEADER, *lines):
            f.write(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n")
    return path


def report(path, *args, limit_mb=None):
    """With a limit on memory far below what the file holds."""
    def limit():
        if limit_mb:
            resource.setrlimit(resource.RLIMIT_AS, (limit_mb << 20, limit_mb << 20))
    return subprocess.run([str(helpers.UNBLOCK), "report", *args, str(path)], capture_output=True, text=True,
                          env=helpers.clean_environment(), preexec_fn=limit, timeout=helpers.PATIENCE)


def stalls(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["verdict"]["stalls"]


def test_line_of_ten_megabytes(tmp_path):
    huge = {**SLOW, "id": 2, "callback": {"function": "x" * (10 << 20)}}
    path = recording(tmp_path / "r", SLOW, huge, {**SLOW, "id": 3}, END)
    done = report(path, "--format", "json")
    assert stalls(done) == 2
    assert json.loads(done.stdout)["files"][0]["skipped"] == 1
    assert "1 line could not be read" in report(path).stdout


def test_line_without_end_is_bounded(tmp_path):
    path = tmp_path / "r"
    with open(recording(path, SLOW), "ab") as f:
        f.truncate(400 << 20)  # a hole: 400 MB of zeros in one line
    assert "1 stall" in report(path, limit_mb=100).stdout


def test_only_zeros_are_refused_at_once():
    with open("/dev/zero", "rb") as zero:
        done = helpers.unblock("report", "-", stdin=zero)
    assert done.returncode == 2 and "no recording" in helpers.one_line(done.stderr)


def test_many_sites_are_bounded(tmp_path):
    lines = [json.dumps({**SLOW, "id": i, "site": f"{i:08x}", "samples": []}).encode() + b"\n" for i in range(40000)]
    done = report(recording(tmp_path / "r", *lines, END), "--format", "json", limit_mb=400)
    assert stalls(done) == 40000
    assert json.loads(done.stdout)["dropped"]["sites"] > 0
    assert "call sites" in report(tmp_path / "r").stdout


@pytest.mark.parametrize("value", [None, True, -1, 1.5, "x", [], {}, [[]], 10**30, "\u0000"],
                         ids=lambda v: repr(v)[:12])
def test_wrong_types(tmp_path, value):
    """Every field of a stall in turn."""
    lines = [{**SLOW, "id": i, field: value} for i, field in enumerate(SLOW) if field != "type"]
    done = report(recording(tmp_path / "r", {"type": "stack", "id": 1, "frames": [{"function": "f"}, value]}, *lines, END))
    assert done.returncode == 0, done.stderr
    assert "Sanitizer" not in done.stderr


@pytest.mark.parametrize("value", [None, -1, "x", [], {}, [{}], [[]]], ids=repr)
def test_wrong_types_of_moved_calls(tmp_path, value):
    """Every field of a place of moved calls in turn, and of what ran meanwhile."""
    place = {"function": "f", "file": "a.c", "line": 3}
    meanwhile = {**place, "kind": "timer", "count": 2}
    moved = {"type": "offload", "site": "5e5a1007", "call": "read", "caller": place, "callback": place, "moved": 2, "saved_ns": 5, "longest_ns": 5,
             "wait_ns": 1, "beside": 3, "beside_max": 2, "first": 0, "first_ns": 0, "meanwhile": [meanwhile], "meanwhile_others": 1}
    lines = [{**moved, field: value} for field in moved if field != "type"]
    lines += [{**moved, "meanwhile": [{**meanwhile, field: value}]} for field in meanwhile]
    end = {**END, "offload": {"moved": 2, "saved_ns": 5, "wait_ns": 1, "beside": 3}}
    path = tmp_path / "r"
    path.write_text("".join(json.dumps(line) + "\n" for line in ({**HEADER, "offload": "eager"}, *lines, end)))
    done = report(path)
    assert done.returncode == 0 and "Sanitizer" not in done.stderr, done
    assert "read in f() (a.c:3): 2 moved" in done.stdout, done.stdout
    assert report(path, "--format", "html").returncode == 0


@pytest.mark.parametrize("depth", [100, 3000, 100000])
def test_deep_nesting(tmp_path, depth):
    deep = json.dumps(SLOW)[:-1].encode() + b', "deep": ' + b"[" * depth + b"]" * depth + b"}\n"
    done = report(recording(tmp_path / "r", SLOW, deep, END), "--format", "json")
    assert stalls(done) == (2 if depth == 100 else 1)


def test_invalid_utf8(tmp_path):
    bad = json.dumps(SLOW).encode().replace(b'"prog"', b'"pr\xff\xfeog"') + b"\n"
    done = report(recording(tmp_path / "r", SLOW, bad, END))
    assert "1 stall," in done.stdout and "1 line could not be read" in done.stdout


def test_names_never_reach_a_terminal_raw(tmp_path):
    frames = [{"function": EVIL, "file": "/" + EVIL, "line": 3, "module": EVIL}]
    done = report(recording(
        tmp_path / "r", {"type": "process", "pid": 42, "exe": EVIL, "args": [EVIL]},
        {"type": "loop", "pid": 42, "tid": 42, "loop": EVIL}, {"type": "stack", "id": 1, "frames": frames},
        {**SLOW, "thread": EVIL, "site": EVIL, "loop": EVIL, "callback": {"function": EVIL},
         "call": {"name": EVIL, "args": EVIL, "fd": 1, "fd_path": EVIL}, "cause": "call",
         "pool": {"kind": EVIL}, "waiting": {"ready": 3}},
        {"type": "note", "level": EVIL, "text": EVIL}, END), "--color", "never")
    assert done.returncode == 0
    for raw in ("\x1b", "\x07", "\u202e", "\u0085", "\r"):
        assert raw not in done.stdout and raw not in done.stderr
    assert "\\x1b]0;owned\\x07" in done.stdout


def test_every_truncation_is_read(tmp_path):
    whole = recording(tmp_path / "r", {"type": "stack", "id": 1, "frames": [{"function": "f"}]}, SLOW, END).read_bytes()
    header = whole.index(b"\n")
    path = tmp_path / "cut"
    for cut in range(1, len(whole), 13):
        path.write_bytes(whole[:cut])
        done = report(path)
        assert done.returncode == (2 if cut < header else 0), (cut, done.stderr)
        if cut > header + 1 and whole[cut - 1] != 10 and whole[cut] != 10:
            assert "cut short" in done.stdout, cut


def test_a_grown_recording_keeps_its_figures(tmp_path):
    """What the generator of the benchmark wrote is found again, with memory far below the file's size."""
    source, big = tmp_path / "r", tmp_path / "big"
    recording(source, {"type": "process", "pid": 42, "exe": "/prog"}, {"type": "stack", "id": 1, "frames": [{"function": "f"}]},
              *[{**SLOW, "id": i, "site": f"site{i % 7}", "duration_ns": 21000000 + i} for i in range(50)],
              {"type": "stats", "pid": 42, "tid": 42, "loop": "turn", "callbacks": 5, "total_ns": 1, "max_ns": 1,
               "turns": 5, "busy_ns": 1000, "histogram": [[200, 5]], "at_ns": 9000}, END)
    made = subprocess.run([sys.executable, helpers.ROOT / "tests/bench/grow.py", "60M", big, source],
                          capture_output=True, text=True, check=True)
    truth = json.loads(made.stdout)
    done = report(big, "--format", "json", limit_mb=40)
    document = json.loads(done.stdout)
    assert document["verdict"]["stalls"] == truth["stalls"]
    assert document["verdict"]["total_ns"] == truth["total_ns"]
    assert sum(s["samples"] for s in document["sites"]) == truth["stalls"]
    assert document["loops"][0]["turns"] == 5
    assert report(big, "--format", "json", "--site", "site3").returncode == 0
