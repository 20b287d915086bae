"""Offload policies as files: what --check says."""

import re

import pytest

import helpers

pytestmark = pytest.mark.beside


def check(tmp_path, text):
    path = tmp_path / "policy.ini"
    path.write_text(text)
    return helpers.unblock("policy", "--check", str(path)), path


def test_a_good_one(tmp_path):
    done, path = check(tmp_path, "[offload]\nfsync in wal_commit = move lane=files limit=4  # 118 x 290 ms\n"
                                 "getaddrinfo = move\n[python]\njobs.is_prime = process(3)\n[except]\nbilling.* = inline\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{path} is good: 2 rules for calls, 1 rule for Python functions, 1 rule of exception\n"


def test_mistakes(tmp_path):
    done, path = check(tmp_path, "[offload]\nfsnyc = move\nfsync = move lane=fles\n[pyhton]\n")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        f"unblock policy: {path}:2: no call is named 'fsnyc': did you mean fsync?",
        f"unblock policy: {path}:3: the lane 'fles' is not known: did you mean files?",
        f"unblock policy: {path}:4: the section 'pyhton' is not known: did you mean python?"]


def test_the_example_of_the_help_is_good(tmp_path):
    text = helpers.unblock("policy", "--help").stdout
    example = "\n".join(line for line in text.split("counts:")[1].split("Exit status")[0].splitlines())
    done, _ = check(tmp_path, example)
    assert done.returncode == 0 and "2 rules" not in example and "3 rules for calls" in done.stdout, done


def test_calls_that_may_move_are_those_that_the_agent_moves():
    """A rule for any other is refused."""
    source = (helpers.ROOT / "agent/offload/moves.c").read_text()
    moves = [source.split(f"#define {kind}(X)")[1].split("#define ")[0].split("*/")[0] for kind in ("CALLS", "ASKS")]
    hooked = set(re.findall(r"X\(\w[\w ]*?\*?, (\w+), ", "".join(moves))) - {"close", "__close", "epoll_wait"}  # asked about, but stays
    names = (helpers.ROOT / "tracer/policy_names.c").read_text().split("movable[] = {")[1].split("}")[0]
    listed = set(re.findall(r'"(\w+)"', names))
    assert len(hooked) > 40
    plain = {re.sub(r"(64|_chk)$", "", name.removeprefix("__")) for name in hooked}
    assert listed == plain | {"sem_wait"}


def test_wrong_use(tmp_path):
    assert helpers.unblock("policy").returncode == 2
    done = helpers.unblock("policy", "--check", str(tmp_path / "none"))
    assert done.returncode == 2 and "No such file" in done.stderr
