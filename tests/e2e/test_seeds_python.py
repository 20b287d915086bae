"""The programs that this project began with (tests/programs/pyseeds.py), as they are: each prints the same with its calls or
functions moved as alone, and the ticker beside it goes on.

`make check` has on the first interpreter what no other test has; `make check-offload` all of it on every one that is here, and
uvloop, and what computes in its full length (50 million decrements).

Seen to fail: `by_many` and `by_queue` (their gaps) while who had a lock of multiprocessing's was not left; `transacts` (no row) while
statements were taken for connections; `apart`, while all connections were as one (its time), or statements of which nothing is known
as one of their own (what was read); `stays` (it hung), while a step that
was over had its connections until the loop came to it.
"""

import os
import re
import subprocess

import checkpoint
import helpers
import oracle
import pythons
import pytest

PROGRAM = helpers.ROOT / "tests/programs/pyseeds.py"
PATIENCE = 120
ALL = "UNBLOCK_SOAK" in os.environ
ON_FIRST = pytest.mark.skipif(not ALL, reason="takes long: make check-offload")
DEBIANS = {"files": "aiofiles", "odbc": "pyodbc", "transacts": "pyodbc", "apart": "pyodbc", "stays": "pyodbc"}  # what a case imports
SIZE = 50 if ALL else 6

# How each may be helped: the option, what it has to say of itself then, and the gap that is allowed, as a part of that alone.
EAGER = {"fetches": 0.5, "by_pipe": 0.5, "by_queue": 0.7, "by_many": 0.5, "odbc": 0.5, "files": None, "transacts": None,
         "stays": None}
POLICIES = {
    "counts": {"[yield]\npyseeds.* = 5ms\n": "yields", "[python]\npyseeds.counts_down = thread\n": "in a thread",
               "[python]\npyseeds.counts_down = process\n": "in a process"},
    "primes": {"[yield]\npyseeds.* = 5ms\n": "yields", "[python]\npyseeds.is_prime = process\n": "in a process"},
    "sqlite": {"[python]\npyseeds.chain = thread\n": "in a thread"},
    "walks": {"[python]\njson.loads = fork\n[yield]\npyseeds.* = 5ms\n": "yields"},
}


# What a dry run has `unblock policy` write for each, and what is left of the gap then. Of sqlite's two the first may stay: whose place it is, is asked for
# when it is made.
WRITTEN = {"counts": ("[python]", "pyseeds.counts_down = process ", 0.5), "primes": ("[python]", "pyseeds.is_prime = process ", 0.5),
           "sqlite": ("[offload]", "sqlite3_step in pyseeds.asks = move ", 0.75), "odbc": ("[python]", "pyseeds.asks = thread ", 0.5),
           "walks": ("[yield]", "pyseeds.walk = 5ms ", None)}  # its gap is what json does in C: test_computing has that


def interpreters():
    return pythons.moving(helpers.AGENT, ALL) or [pytest.param(None, marks=pytest.mark.skip(
        reason="no headers of CPython 3.11 to 3.13: not built"))]


class Both:
    """Alone, and then as the options say: one after the other where it computes, else at once."""

    def __init__(self, folder, python, cases, *options, at_once=True):
        python, *loop = python.split()
        for case in cases:
            if case in DEBIANS and not pythons.ask(python, f"import {DEBIANS[case]}; print(1)"):
                pytest.skip(f"{python} has no {DEBIANS[case]}")
        self.path = folder / "recording.jsonl"
        self.path.touch()
        command = [python, PROGRAM, *cases]
        env = helpers.clean_environment(PYTHONDONTWRITEBYTECODE="1", LOOP="".join(loop), SIZE=str(SIZE), TMPDIR=str(folder))
        alone = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
        if not at_once:
            self.alone = alone.communicate(timeout=PATIENCE)
        with oracle.Sentinel() as sentinel:
            moved = helpers.start("run", "--force", "-t", "50ms", "--live=none", "-o", self.path, *options, "--", *command, env=env)
            self.printed, self.said = moved.communicate(timeout=PATIENCE)
        if at_once:
            self.alone = alone.communicate(timeout=PATIENCE)
        self.late_ns = sum(b - a for a, b in sentinel.late)
        assert alone.returncode == 0 == moved.returncode, (self.alone[1], self.said)
        assert self.printed == self.alone[0], self.said

    @staticmethod
    def gap(text, case):
        return int(next(line.split()[1] for line in text.splitlines() if line.split()[0] == case))

    def check_gap(self, case, part):
        alone, moved = self.gap(self.alone[1], case), self.gap(self.said, case)
        if part and self.late_ns < 50_000_000:
            assert moved < alone * part, (case, alone, self.said)


@pytest.mark.parametrize("python", interpreters())
def test_waiting(tmp_path, python):
    """HTTP, messages of 2 MB to processes and back; files as aiofiles reads them are as they were."""
    cases = [case for case in EAGER if ALL or case in ("by_many", "transacts", "stays")]
    cases = [case for case in cases if case not in DEBIANS or pythons.ask(python.split()[0], f"import {DEBIANS[case]}; print(1)")]
    both = Both(tmp_path, python, cases, "--offload=eager")
    for case in cases:
        both.check_gap(case, EAGER[case])
    offload = helpers.Recording(both.path).end["offload"]
    assert offload["moved"] >= 5, offload


@pytest.mark.parametrize("python", interpreters())
def test_connections_apart(tmp_path, python):
    """Two connections of ODBC wait at the same time, two statements of one connection do not."""
    both = Both(tmp_path, python, ["apart"], "--offload=eager")
    alone, moved = both.gap(both.alone[1], "apart_took"), both.gap(both.said, "apart_took")
    assert moved < alone * 0.75, (alone, both.said)


@pytest.mark.parametrize("python", interpreters())
@pytest.mark.parametrize("case, policy", [pytest.param(case, policy, marks=ON_FIRST,
                                                       id=f"{case}-{how.split()[-1]}")
                                          for case, policies in POLICIES.items() for policy, how in policies.items()])
def test_computing(tmp_path, python, case, policy):
    (tmp_path / "app.policy").write_text(policy)
    both = Both(tmp_path, python, [case], f"--offload={tmp_path / 'app.policy'}", at_once=False)
    both.check_gap(case, 0.5)
    assert POLICIES[case][policy].split()[-1] in both.said, both.said


@pytest.mark.parametrize("python", interpreters())
@pytest.mark.parametrize("case", [pytest.param(case, marks=() if case == "walks" else ON_FIRST) for case in WRITTEN])
def test_written_from_a_recording_and_followed(tmp_path, python, case):
    """The call where it is known, thread where the GIL is released, process for small data, yield for large: as is written, and it mends the stall."""
    dry = Both(tmp_path, python, [case], "--offload", "-t20ms", at_once=False)  # what is walked takes some 45 ms where nobody else computes
    section, rule, part = WRITTEN[case]
    path = tmp_path / "written.policy"
    assert helpers.unblock("policy", dry.path, "-o", path).returncode == 0
    written = path.read_text()
    assert f"\n{rule}" in written.split(section)[1].split("\n[")[0], (written, dry.said)
    name = rule.split()[0]
    told = [line for line in helpers.Recording(dry.path).of("python") if line["kind"] == "would-move" and line["function"] == name]
    if section == "[offload]":
        assert not told and "1 stall would have moved from 1 call site" in dry.said, dry.said
    else:
        assert told and told[0]["ns"] > 0 and f"{name} would " in dry.said, dry.said
        assert "with the rules for functions that unblock policy writes" in dry.said
    assert "[predicted]" in written
    assert "fitted nothing" not in (both := Both(tmp_path, python, [case], f"--offload={path}", at_once=False)).said
    both.check_gap(case, part)
    assert "; predicted p99 " in both.said, both.said


def test_recipes(tmp_path):
    """The page has programs that are run here, and rules that are ones."""
    page = (helpers.ROOT / "agent/offload/recipes.md").read_text()
    assert set(re.findall(r"\(`(\w+)`\)", page)) == {*EAGER, *POLICIES} - {"transacts", "stays"}
    rules = re.findall(r"`([a-z_]+\.[\w.*]+) = (\w+)`", page)
    assert len(rules) >= 8
    for name, what in rules:
        (tmp_path / "one.policy").write_text(f"[{'yield' if what == '5ms' else 'python'}]\n{name} = {what}\n")
        checked = helpers.unblock("policy", "--check", tmp_path / "one.policy")
        assert checked.returncode == 0, checked.stderr


def test_checkpoint(tmp_path):
    """An aiohttp service writes 75 MB (100) of live state down by pickle while its requests change it: a fork is written for it,
    what it writes is whole, and the longest wait of its other requests is a part of what it was."""
    if not pythons.ask(helpers.PYTHON, "import aiohttp; print(1)"):
        pytest.skip("no aiohttp")
    policy, waits = tmp_path / "written.policy", []
    for option in "--offload", f"--offload={policy}":
        with oracle.Sentinel() as sentinel, checkpoint.Checkpoint(tmp_path, 100 if ALL else 75, option) as server:
            took, _ = server.saves(1)
        waits.append(took[-1])
        if option == "--offload":
            assert helpers.unblock("policy", server.path, "-o", policy).returncode == 0
            assert "\npickle.dump* = fork " in policy.read_text(), policy.read_text()
    moved = [line for line in helpers.Recording(server.path).of("python") if line["kind"] == "moved"]
    assert [(line["function"], line["place"], line["count"]) for line in moved] == [("pickle.dump", "fork", 1)], moved
    if sum(b - a for a, b in sentinel.late) < 50_000_000:
        assert waits[1] < waits[0] / 2, waits
