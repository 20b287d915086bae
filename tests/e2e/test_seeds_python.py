"""The programs that this project began with (tests/programs/pyseeds.py), as they are: each prints the same with its calls or
functions moved as alone, and the ticker beside it goes on.

`make check` has on the first interpreter what no other test has; `make check-offload` all of it on every one that is here, and
uvloop, and what computes in its full length (50 million decrements).

Seen to fail: `by_many` and `by_queue` (their gaps) while who had a lock of multiprocessing's was not left; `transacts` (no row) while
statements were taken for connections.
"""

import os
import subprocess

import helpers
import oracle
import pythons
import pytest

PROGRAM = helpers.ROOT / "tests/programs/pyseeds.py"
PATIENCE = 120
ALL = "UNBLOCK_SOAK" in os.environ
ON_FIRST = pytest.mark.skipif(not ALL, reason="takes long: make check-offload")
DEBIANS = {"files": "aiofiles", "odbc": "pyodbc", "transacts": "pyodbc"}  # what a case imports
SIZE = 50 if ALL else 6

# How each may be helped: the option, what it has to say of itself then, and the gap that is allowed, as a part of that alone.
EAGER = {"fetches": 0.5, "by_pipe": 0.5, "by_queue": 0.7, "by_many": 0.5, "odbc": 0.5, "files": None, "transacts": None}
POLICIES = {
    "counts": {"[yield]\npyseeds.* = 5ms\n": "yields", "[python]\npyseeds.counts_down = thread\n": "in a thread",
               "[python]\npyseeds.counts_down = process\n": "in a process"},
    "primes": {"[yield]\npyseeds.* = 5ms\n": "yields", "[python]\npyseeds.is_prime = process\n": "in a process"},
    "sqlite": {"[python]\npyseeds.chain = thread\n": "in a thread"},
    "walks": {"[python]\njson.loads = fork\n[yield]\npyseeds.* = 5ms\n": "yields"},
}


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
    cases = [case for case in EAGER if ALL or case in ("by_many", "transacts")]
    cases = [case for case in cases if case not in DEBIANS or pythons.ask(python.split()[0], f"import {DEBIANS[case]}; print(1)")]
    both = Both(tmp_path, python, cases, "--offload=eager")
    for case in cases:
        both.check_gap(case, EAGER[case])
    offload = helpers.Recording(both.path).end["offload"]
    assert offload["moved"] >= 5, offload


@pytest.mark.parametrize("python", interpreters())
@pytest.mark.parametrize("case, policy", [pytest.param(case, policy, marks=ON_FIRST,
                                                       id=f"{case}-{how.split()[-1]}")
                                          for case, policies in POLICIES.items() for policy, how in policies.items()])
def test_computing(tmp_path, python, case, policy):
    (tmp_path / "app.policy").write_text(policy)
    both = Both(tmp_path, python, [case], f"--offload={tmp_path / 'app.policy'}", at_once=False)
    both.check_gap(case, 0.5)
    assert POLICIES[case][policy].split()[-1] in both.said, both.said
