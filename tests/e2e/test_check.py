"""unblock check, diff and the lists of known stalls: exit status, formats, and what is refused."""

import datetime
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree

import pytest

import helpers

pytestmark = pytest.mark.beside

SAMPLE = helpers.ROOT / "tests/data/sample.jsonl"  # 251 ms once (7f3a91c2), 61 ms (0c11d2e4), 90 ms (5e5a1007)


def check(*args, **kwargs):
    return helpers.unblock("check", *args, **kwargs)


def days(n):
    return (datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=n)).strftime("%Y-%m-%d")


def document(*args):
    return json.loads(check(SAMPLE, *args, "-f", "json").stdout)


@pytest.mark.parametrize("limit,status,sites", [
    ("20ms", 1, {"7f3a91c2", "0c11d2e4", "5e5a1007"}), ("80ms", 1, {"7f3a91c2", "5e5a1007"}),
    ("251300us", 1, {"7f3a91c2"}), ("251301us", 0, set()), ("1s", 0, set())])
def test_limits(limit, status, sites):
    assert check(SAMPLE, "--fail-on", limit).returncode == status
    found = document("--fail-on", limit)
    assert {f["site"] for f in found["findings"]} == sites
    assert found["passed"] == (status == 0)


def test_text():
    done = check(SAMPLE, "--fail-on", "80ms")
    assert done.stderr == ""
    assert done.stdout.startswith("FAILED   DEBUG SLEEP: clock_nanosleep in debugCommand\n")
    assert "  where  /build/redis/src/lzf_c.c:155\n  do     BGSAVE instead of SAVE\n  site   5e5a1007\n" in done.stdout
    assert done.stdout.endswith("failed: 2 call sites blocked for 80 ms or longer\n")
    assert check(SAMPLE, "--fail-on", "1s").stdout == "passed: no stall of 1 s or longer\n"


def test_only_stalls_that_reached_the_limit_are_counted(tmp_path):
    path = tmp_path / "r"
    path.write_text(SAMPLE.read_text().replace('"duration_ns":61200000', '"duration_ns":99000000'))
    found = json.loads(check(path, "--fail-on", "60ms", "-f", "json").stdout)["findings"]
    assert [f["stalls"] for f in found if f["site"] == "0c11d2e4"] == [1]


def test_what_it_cannot_tell(tmp_path):
    def refused(*args):
        done = check(*args)
        assert done.returncode == 2 and done.stdout == "", done
        return helpers.one_line(done.stderr)

    assert "below the threshold" in refused(SAMPLE, "--fail-on", "10ms")
    assert "record with unblock run -t 10ms" in refused(SAMPLE, "--fail-on", "10ms")
    assert "--fail-on is missing" in refused(SAMPLE)
    assert "no recording is given" in refused("--fail-on", "20ms")
    assert "no such file" in refused(tmp_path / "x", "--fail-on", "20ms")
    assert "No such file" in refused(SAMPLE, "--fail-on", "20ms", "--allow", tmp_path / "x")
    (tmp_path / "x").write_text("# known\n7f3a\n")
    assert "x:2: '7f3a' is too short" in refused(SAMPLE, "--fail-on", "20ms", "--allow", tmp_path / "x")
    nothing = tmp_path / "r"
    nothing.write_text(SAMPLE.read_text().splitlines(keepends=True)[0])
    done = check(nothing, "--fail-on", "20ms")
    assert done.returncode == 0 and "no event loop was seen" in helpers.one_line(done.stderr)


def test_allowed(tmp_path):
    allow = tmp_path / "allow"
    args = ("--fail-on", "20ms", "--allow", allow)

    def states():
        return {f["site"]: f["state"] for f in document(*args)["findings"]}

    allow.write_text(f"7f3a91c2  until {days(1)}   # ticket 1\ncall:fdatasync\nfunction:lzf_* max 50ms\n")
    assert states() == {"7f3a91c2": "allowed", "0c11d2e4": "allowed", "5e5a1007": "too-long"}
    assert check(SAMPLE, *args).returncode == 1
    allow.write_text(f"7f3a91c2  until {days(-1)}\ncall:fdatasync\n5e5a1007 max 1s until {days(0)}\n")
    assert states() == {"7f3a91c2": "expired", "0c11d2e4": "allowed", "5e5a1007": "allowed"}
    assert "EXPIRED  DEBUG SLEEP" in check(SAMPLE, *args).stdout
    allow.write_text("function:*\n")
    done = check(SAMPLE, *args)
    assert done.returncode == 0 and "passed" in done.stdout and "3 allowed" in done.stdout


def test_the_list_only_shrinks(tmp_path):
    allow = tmp_path / "allow"
    text = "# known stalls\n7f3a91c2   # ticket 1\n\naaaaaaaa   # mended\ncall:fdatasync\n"
    allow.write_text(text)
    done = check(SAMPLE, "--fail-on", "20ms", "--allow", allow)
    assert "allow:4: no stall fits any more" in helpers.one_line(done.stderr) and "aaaaaaaa" in done.stderr
    assert allow.read_text() == text
    assert check(SAMPLE, "--fail-on", "20ms", "--allow", allow, "--shrink").returncode == 1
    assert allow.read_text() == "# known stalls\n7f3a91c2   # ticket 1\n\ncall:fdatasync\n"
    assert list(tmp_path.iterdir()) == [allow]


def test_suppressed(tmp_path):
    rules = tmp_path / "rules"
    rules.write_text("7f3a91c2\ncall:fdatasync max 1s\n")
    done = check(SAMPLE, "--fail-on", "20ms", "--suppress", rules)
    assert done.returncode == 1 and "failed: 1 call site" in done.stdout and "suppressed" in done.stdout
    text = helpers.unblock("report", SAMPLE, "--suppress", rules).stdout
    assert "1 stall, 90 ms lost, worst 90 ms" in text and "5 more suppressed, 393 ms" in text
    assert "7f3a91c2" not in text
    env = helpers.clean_environment(UNBLOCK_SUPPRESS=str(rules))
    assert helpers.unblock("report", SAMPLE, env=env).stdout == text


def test_junit():
    done = check(SAMPLE, "--fail-on", "80ms", "-f", "junit")
    assert done.returncode == 1
    suite = ElementTree.fromstring(done.stdout).find("testsuite")
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("2", "2", "0")
    case = suite.findall("testcase")[1]
    assert case.get("name") == "SAVE: cpu in lzf_compress [5e5a1007]" and case.get("classname") == "redis-server"
    assert case.get("file") == "/build/redis/src/lzf_c.c" and case.get("line") == "155"
    assert "BGSAVE" in case.find("failure").text
    passed = ElementTree.fromstring(check(SAMPLE, "--fail-on", "1s", "-f", "junit").stdout)
    assert len(passed.findall(".//testcase")) == 1 and not passed.findall(".//failure")


def test_junit_of_hostile_names(tmp_path):
    path = tmp_path / "r"
    path.write_text(SAMPLE.read_text().replace("debugCommand", "a<b>&\\\"\\u001b]0;x\\u0007\\u202e]]>'\\ufffe"))
    done = check(path, "--fail-on", "80ms", "-f", "junit", text=False)
    assert b"\x1b" not in done.stdout
    assert "a<b>&" in ElementTree.fromstring(done.stdout).findall(".//testcase")[0].get("name")


def test_github(tmp_path):
    path = tmp_path / "r"
    path.write_text(SAMPLE.read_text().replace("lzf_compress", "lzf%,:\\u001b[1m"))
    env = helpers.clean_environment(GITHUB_WORKSPACE="/build/redis")
    done = check(path, "--fail-on", "80ms", "-f", "github", env=env)
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("::error file=src/lzf_c.c,line=155,title=event loop blocked::SAVE: cpu in lzf%25,:\\x1b[1m%0A1 stall")
    assert re.fullmatch(r"::error title=event loop blocked::[^\x00-\x1f]*", lines[0])


def test_report_in_the_formats_of_ci():
    assert helpers.unblock("report", "-f", "junit", SAMPLE).stdout.count("<failure") == 3
    assert helpers.unblock("report", "-f", "github", SAMPLE).stdout.count("::error") == 3


def test_diff(tmp_path):
    new = tmp_path / "new"
    new.write_text(SAMPLE.read_text().replace("5e5a1007", "aaaa1007"))
    done = helpers.unblock("diff", SAMPLE, new)
    assert done.returncode == 1 and done.stderr == ""
    assert done.stdout.startswith("new    SAVE: cpu in lzf_compress\n")
    assert "call sites: 1 new, 1 unsure, 2 same" in done.stdout
    found = json.loads(helpers.unblock("diff", "-f", "json", SAMPLE, new).stdout)
    assert found["counts"] == {"new": 1, "worse": 0, "better": 0, "gone": 0, "unsure": 1, "same": 2}
    assert [c["site"] for c in found["changes"]][0] == "aaaa1007"
    assert helpers.unblock("diff", SAMPLE, shutil.copy(SAMPLE, tmp_path / "copy")).returncode == 0
    assert helpers.unblock("diff", new, SAMPLE, "--site", "7f3a91c2").returncode == 0
    assert helpers.unblock("diff", SAMPLE).returncode == 2
    assert helpers.unblock("diff", SAMPLE, tmp_path / "none").returncode == 2


def test_run_with_suppressed_stalls(workdir):
    """What the list names is recorded, but neither shown nor a reason to fail."""
    args = (helpers.program("loop_uv"), "truth", "nanosleep", 3)
    rules = workdir / "rules"
    rules.write_text("function:stall_nanosleep\nfunction:on_tick\n")
    done = helpers.unblock("run", "-t", "10ms", "--fail-on", "20ms", "-o", "a", "--", *args)
    assert done.returncode == 1 and "BLOCKED" in done.stderr
    done = helpers.unblock("run", "-t", "10ms", "--fail-on", "20ms", "--suppress", rules, "-o", "b", "--", *args)
    assert done.returncode == 0, done.stderr
    assert "BLOCKED" not in done.stderr and "suppressed" in done.stderr
    assert len(helpers.Recording("b").slow) >= 3
    done = helpers.unblock("run", "--suppress", workdir / "none", "--", "true")
    assert done.returncode == 125 and "--suppress" in helpers.one_line(done.stderr)


@pytest.mark.skipif(not shutil.which("xmllint"), reason="xmllint is not installed")
def test_junit_is_well_formed(tmp_path):
    done = check(SAMPLE, "--fail-on", "20ms", "-f", "junit")
    assert subprocess.run(["xmllint", "--noout", "-"], input=done.stdout, text=True).returncode == 0
