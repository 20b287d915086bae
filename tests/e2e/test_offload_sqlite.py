"""Queries of SQLite's that compute: made by a thread, while their task waits.

Checked that it can fail: without waiting at a method's beginning (`closes` crashes), with nobody waiting for who computes (`writers`:
locked), with Python's functions called by whatever thread (`calls_python`), with forks that do not wait
for queries (`forks`: the child hangs), with places not learned.
"""

import os
import subprocess

import helpers
import oracle
import pythons
import pytest

CASES = ("computes", "rows_of_one", "writers", "reader_and_writer", "rolls_back", "over_awaits", "in_callback", "closes", "fails",
         "calls_python", "in_threads", "mixed", "forks")
PROGRAM = helpers.ROOT / "tests/programs/pyqueries.py"
PYTHONS = pythons.moving(helpers.AGENT, "UNBLOCK_SOAK" in os.environ) or [
    pytest.param(None, marks=pytest.mark.skip(reason="no headers of CPython 3.11 to 3.13: not built"))]


def environment(loop, **more):
    return helpers.clean_environment(PYTHONDONTWRITEBYTECODE="1", LOOP=loop[0] if loop else "", **more)


def gaps(said):
    """The longest of the ticker in each case, in ms."""
    return {words[0]: int(words[1]) for words in map(str.split, said.splitlines()) if len(words) == 2 and words[0] in CASES}


@pytest.mark.parametrize("python", PYTHONS)
def test_every_step_elsewhere(tmp_path, python):
    """A rule for all of them: what each case prints is what it prints alone, and the loop goes on."""
    policy = tmp_path / "policy"
    policy.write_text("[offload]\nsqlite3_step = move\n")
    python, *loop = python.split()
    command = [python, "-X", "dev", "-W", "ignore", PROGRAM, *CASES]
    with oracle.Sentinel() as sentinel:
        alone = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(loop))
        done, recording = helpers.record(tmp_path, *command, threshold="50ms", options=("-q", f"--offload={policy}"), env=environment(loop), timeout=90)
        printed, said = alone.communicate()
    assert (done.returncode, done.stdout) == (alone.returncode, printed), done.stderr
    assert alone.returncode == 0 and len(printed.splitlines()) == len(CASES), said
    if sum(b - a for a, b in sentinel.late) < 50_000_000:
        for case in ("computes", "closes"):
            assert gaps(done.stderr)[case] < gaps(said)[case] / 2, (done.stderr, said)
    moved = {line.get("callback", {}).get("function", "?").split(".")[0] for line in recording.of("offload") if line["moved"] and line["call"] == "sqlite3_step"}
    assert moved >= {"computes", "writers", "rolls_back", "closes", "mixed"} and "calls_python" not in moved, moved


LEARNS = """
import asyncio, sqlite3, sys
SLOW = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 400000) SELECT count(*) FROM n"

async def query(db):
    return db.execute(SLOW).fetchone()

async def writes(db):
    db.execute("CREATE TABLE t(x)")
    db.execute("INSERT INTO t VALUES (1)")
    if sys.argv[1] == "transaction":
        await asyncio.sleep(60)

async def main():
    for _ in range(12):
        await asyncio.sleep(0.002)
    other = sqlite3.connect(":memory:")
    if sys.argv[1] in ("transaction", "ended"):
        task = asyncio.create_task(writes(other))
        await asyncio.sleep(0)
    db = sqlite3.connect(":memory:", check_same_thread=sys.argv[1] != "threads")
    if sys.argv[1] == "function":
        db.create_function("f", 1, abs)
    for _ in range(3):
        print(await asyncio.create_task(query(db)))
        await asyncio.sleep(0.01)

asyncio.run(main())
"""
STAYS = {"plain": None, "ended": None, "function": "a function, collation or handler of Python's may be called",
         "threads": "its connection may be used by several threads", "transaction": "another task has a transaction open"}


def said_of(recording):
    return [(line["state"], line.get("reason"), line["call"]) for line in (slow["offload"] for slow in recording.slow if "offload" in slow)]


@pytest.mark.parametrize("how", STAYS)
@pytest.mark.parametrize("python", PYTHONS[:1])
def test_learned(tmp_path, python, how):
    """flagged: the first blocks, the others have left; or all stay, and the report says why."""
    (tmp_path / "learns.py").write_text(LEARNS)
    done, recording = helpers.record(tmp_path, python, tmp_path / "learns.py", how, threshold="20ms", options=("--offload=flagged",))
    assert (done.returncode, done.stdout) == (0, "(400000,)\n" * 3), done.stderr
    moved = [line for line in recording.of("offload") if line["call"] == "sqlite3_step" and "first" in line]
    stayed = [line for line in recording.of("python") if line["kind"] == "stayed"]
    if STAYS[how]:
        assert not moved and [(line["function"], line["text"], line["count"]) for line in stayed] == [("sqlite3_step", STAYS[how], 3)]
        assert f"sqlite3_step (sqlite3) stayed 3 times: {STAYS[how]}, the longest " in done.stderr
        assert stayed[0]["longest_ns"] >= 20_000_000 and {said[0] for said in said_of(recording)} == {"pinned"}
    else:
        (line,) = moved
        assert (line["moved"], line["first"], stayed) == (2, 1, []) and line["caller"]["function"] == "query", line
        assert said_of(recording) == [("first", None, "sqlite3_step")]


@pytest.mark.parametrize("python", PYTHONS[:1])
def test_dry_run(tmp_path, python):
    """What would have moved, and with the rule that is written from that, does."""
    (tmp_path / "learns.py").write_text(LEARNS)
    command = (python, tmp_path / "learns.py", "plain")
    done, recording = helpers.record(tmp_path, *command, threshold="20ms", options=("--offload=dry-run",))
    assert (done.returncode, done.stdout) == (0, "(400000,)\n" * 3), done.stderr
    assert said_of(recording) == [("would-move", None, "sqlite3_step")] * 3
    (line,) = recording.of("offload")
    assert (line["call"], line["would_move"], line["moved"]) == ("sqlite3_step", 3, 0)
    assert line["saved_ns"] > sum(slow["duration_ns"] for slow in recording.slow) * 3 // 4
    assert "sqlite3_step would move to a thread, saves " in helpers.unblock("report", recording.path).stdout
    assert not recording.of("python") and "if they move" in done.stderr
    policy = helpers.unblock("policy", recording.path).stdout
    assert "sqlite3_step in learns.query = move" in policy and "[python]" not in policy and "[predicted]" in policy
    (tmp_path / "policy").write_text(policy)
    (tmp_path / "then").mkdir()
    done, recording = helpers.record(tmp_path / "then", *command, threshold="20ms", options=(f"--offload={tmp_path / 'policy'}",))
    assert done.stdout == "(400000,)\n" * 3 and "; predicted p99 " in done.stderr
    assert sum(line["moved"] for line in recording.of("offload")) >= 2, done.stderr


@pytest.mark.parametrize("how", [how for how in STAYS if how != "plain"])
@pytest.mark.parametrize("python", PYTHONS[:1])
def test_dry_run_reasons(tmp_path, python, how):
    """Why it would stay is what keeps it where calls move."""
    (tmp_path / "learns.py").write_text(LEARNS)
    done, recording = helpers.record(tmp_path, python, tmp_path / "learns.py", how, threshold="20ms", options=("--offload=dry-run",))
    assert (done.returncode, done.stdout) == (0, "(400000,)\n" * 3), done.stderr
    stayed = [(line["function"], line["text"], line["count"]) for line in recording.of("python") if line["kind"] == "stayed"]
    reason = "transaction" if how == "transaction" else "connection"
    assert said_of(recording) == [("pinned", reason, "sqlite3_step") if STAYS[how] else ("would-move", None, "sqlite3_step")] * 3
    assert stayed == ([("sqlite3_step", STAYS[how], 3)] if STAYS[how] else [])
    if STAYS[how]:
        assert f"sqlite3_step (sqlite3) would stay 3 times: {STAYS[how]}, the longest " in done.stderr
