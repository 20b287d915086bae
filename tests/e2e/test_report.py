"""unblock report: what it prints, what it refuses, and with which words and exit status."""

import json
import os
import shutil

import pytest

import helpers

pytestmark = pytest.mark.beside

SAMPLE = helpers.ROOT / "tests/data/sample.jsonl"
LINES = SAMPLE.read_text().splitlines(keepends=True)


def report(*args, **kwargs):
    return helpers.unblock("report", *args, **kwargs)


def refused(*args, **kwargs):
    """The one line on standard error of a report that is refused."""
    done = report(*args, **kwargs)
    assert done.returncode == 2, done
    assert done.stdout == ""
    return helpers.one_line(done.stderr)


def test_text():
    done = report(SAMPLE)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout == (helpers.ROOT / "tests/data/sample.report.txt").read_text()


def test_json():
    done = report("--format", "json", SAMPLE)
    assert done.returncode == 0 and done.stderr == ""
    document = json.loads(done.stdout)
    assert document["schema"] == "unblock-report" and document["version"] == 1
    assert document["verdict"] == {"stalls": 6, "total_ns": 483300000, "max_ns": 251300000, "ongoing": 0}
    assert [s["site"] for s in document["sites"] if s["class"] == "counted"] == ["7f3a91c2", "0c11d2e4", "5e5a1007"]
    assert document["sites"][0]["where"][0] == {"function": "debugCommand", "module": "/usr/bin/redis-check-rdb",
                                                "offset": 1713, "samples": 3}
    loop = document["loops"][0]
    assert loop["turns"] == 12034 and loop["p99_ns"] == 1200000
    assert loop["busy_share"] == pytest.approx(900 / 61000)
    assert document["recordings"][0]["exit"] == 0


def test_standard_input():
    with open(SAMPLE) as f:
        done = report("-", stdin=f)
    assert done.returncode == 0
    assert done.stdout == report(SAMPLE).stdout


def test_output_file(tmp_path):
    out = tmp_path / "out.txt"
    done = report("-o", out, SAMPLE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert out.read_text() == report(SAMPLE).stdout


def test_recording_is_not_overwritten(tmp_path):
    path = tmp_path / "r.jsonl"
    shutil.copy(SAMPLE, path)
    assert "recording itself" in refused("-o", path, path)
    assert path.read_text() == SAMPLE.read_text()


def test_full_disk():
    done = report("-o", "/dev/full", SAMPLE)
    assert done.returncode == 2
    assert "No space left" in helpers.one_line(done.stderr)
    with open("/dev/full", "w") as full:
        done = report(SAMPLE, stdout=full)
    assert done.returncode == 2
    assert "No space left" in helpers.one_line(done.stderr)


@pytest.mark.parametrize("content,words", [
    ("", "empty"),
    ("hello\n", "no recording"),
    ("\x00" * 5000, "no recording"),
    (LINES[1], "no recording"),
    (LINES[0].replace('"version":1', '"version":7'), "newer"),
])
def test_unreadable(tmp_path, content, words):
    path = tmp_path / "r.jsonl"
    path.write_text(content)
    line = refused(path)
    assert str(path) in line and words in line


def test_not_there_not_ours(tmp_path):
    assert "no such file" in refused(tmp_path / "nothing.jsonl")
    assert f"is a folder: name the recordings in it: unblock report {tmp_path}/*.jsonl" in refused(tmp_path)
    assert refused(SAMPLE, tmp_path / "nothing.jsonl")  # half an answer would look like a whole one
    secret = tmp_path / "secret.jsonl"
    secret.write_text("")
    secret.chmod(0)
    if os.geteuid() != 0:
        assert "permission denied" in refused(secret)


def test_torn_recording_is_read(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text("".join(LINES[:7]) + LINES[7][:100])
    done = report(path)
    assert done.returncode == 0, done.stderr
    assert "debugCommand" in done.stdout
    assert "the last line is cut short" in done.stdout
    assert "the recording has no end" in done.stdout


def test_two_hosts(tmp_path):
    other = tmp_path / "r.jsonl"
    other.write_text(SAMPLE.read_text().replace('"web1"', '"web2"'))
    done = report(SAMPLE, other)
    assert done.returncode == 0
    assert "12 stalls" in done.stdout
    assert "host web1" in done.stdout and "host web2" in done.stdout
    assert done.stdout.count("site   7f3a91c2") == 1, "the same bug on two hosts is one call site"


def test_the_same_file_twice(tmp_path):
    link = tmp_path / "link.jsonl"
    link.symlink_to(SAMPLE)
    done = report(SAMPLE, link)
    assert done.returncode == 0
    assert "given twice" in helpers.one_line(done.stderr)
    assert done.stdout == report(SAMPLE).stdout


def test_filters():
    done = report("--min", "100ms", SAMPLE)
    assert "1 stall," in done.stdout
    assert "note: filtered: 3 stall lines were left out" in done.stdout
    assert "3 stalls" not in report("--cause", "lock", SAMPLE).stdout
    assert "no stalls" in report("--cause", "lock", SAMPLE).stdout
    assert "1. AOF" in report("--sort", "count", SAMPLE).stdout
    assert "note: filtered" not in report("--sort", "max", SAMPLE).stdout


@pytest.mark.parametrize("args,words", [
    (["--format", "htm"], ["--format", "text", "json"]),
    (["--formt", "json"], ["--formt", "--format"]),
    (["--min", "100"], ["--min", "unit", "100ms"]),
    (["--cause", "slowness"], ["--cause", "slowness", "runqueue"]),
    (["--since", "noon"], ["--since", "noon", "10m"]),
    (["--sort", "name"], ["--sort", "total"]),
    (["--min"], ["--min"]),
])
def test_wrong_use(args, words):
    line = refused(*args, *([SAMPLE] if len(args) > 1 else []))
    for word in words:
        assert word in line


def test_no_file(tmp_path):
    assert "unblock report FILE" in refused(cwd=tmp_path)
    for age, name in enumerate(["unblock-b.jsonl", "unblock-a.jsonl"]):
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (1000 + age, 1000 + age))
    assert "unblock report unblock-a.jsonl" in refused(cwd=tmp_path)


def test_colour():
    env = helpers.clean_environment()
    plain = report(SAMPLE, env=env).stdout
    assert "\x1b" not in plain
    coloured = report("--color", "always", SAMPLE, env=env).stdout
    assert "\x1b[1;31m6 stalls\x1b[0m" in coloured
    forced = report(SAMPLE, env=helpers.clean_environment(CLICOLOR_FORCE="1")).stdout
    assert forced == coloured
    assert report(SAMPLE, env=helpers.clean_environment(CLICOLOR_FORCE="1", NO_COLOR="1")).stdout == plain
    assert report("--color=never", SAMPLE, env=helpers.clean_environment(CLICOLOR_FORCE="1")).stdout == plain


def test_closed_pipe():
    """`unblock report ... | head -1` ends quietly."""
    read, write = os.pipe()
    os.close(read)
    try:
        done = report(SAMPLE, stdout=write)
    finally:
        os.close(write)
    assert done.returncode in (-13, 2)


def test_help():
    done = report("--help")
    assert done.returncode == 0 and done.stderr == ""
    for option in ("--format", "--output", "--since", "--site", "--loop", "--thread", "--cause", "--min", "--sort", "--color"):
        assert option in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
