"""Functions that a policy has called elsewhere ([python]): every case prints the same as alone.

`make check` has some cases on the first interpreter; `make check-offload` all, on every one that is here, and uvloop.
"""

import json
import os
import signal
import subprocess

import helpers
import oracle
import pythons
import pytest

PROGRAM = helpers.ROOT / "tests/programs/pyfunctions.py"
PATIENCE = 90
ALL = "UNBLOCK_SOAK" in os.environ
ON_FIRST = pytest.mark.skipif(not ALL, reason="takes long: make check-offload")

POLICY = """[python]
pywork.nap = thread(4)
pywork.sets = thread
pywork.fails = thread
pywork.factorial = thread
pywork.adds = thread
pywork.kinds = thread
pywork.Work.* = thread
pywork.Base.__init__ = thread
pywork.is_prime = process(2)
pywork.echoes = process(2)
pywork.exits = process(2)
pywork.fails_there = process
pywork.who = process
pywork.nested = thread
pywork.dies = process
pywork.gives_lock = process
pywork.raises_strange = fork
pywork.dies_in_fork = fork
pywork.waits_for_lock = fork
pywork.saves = fork
pywork.coroutine = thread
pywork.Work = thread
pywork.fials = process
pickle.dump = fork
zlib.compress = thread
hashlib.pbkdf2_hmac = thread
collections.deque.copy = thread
pylate.gives = thread
pylate_too.gi* = thread
"""

# What of each case runs elsewhere; `in_threads` of the program's own are told as well.
CASES = {"paths": ("pywork.nap", "pywork.Work.still", "pywork.Work.gives", "pywork.Work.twice", "pywork.Work.makes",
                   "pywork.Work.__init__", "pywork.adds", "pywork.factorial", "pywork.kinds"),
         "together": ("pywork.nap",), "raises": ("pywork.fails",), "contexts": ("pywork.sets",), "cancelled": ("pywork.nap",),
         "primes": ("pywork.is_prime",), "in_processes": ("pywork.echoes", "pywork.exits", "pywork.fails_there", "pywork.Work.__eq__"),
         "pools": ("pywork.is_prime",), "snapshots": ("pywork.saves", "pickle.dump"),
         "of_c": ("zlib.compress", "hashlib.pbkdf2_hmac", "collections.deque.copy"), "callbacks": (),
         "late": ("pylate.gives", "pylate_too.gives"), "forks": ("pywork.nap", "pywork.is_prime", "pywork.nested"),
         "collects": ("pywork.nap",), "timed": ("pywork.nap",)}
SHORT = ("paths", "together", "raises", "contexts", "primes", "in_processes", "pools", "snapshots", "of_c", "callbacks", "late",
         "forks")


def interpreters():
    return pythons.moving(helpers.AGENT, ALL) or [pytest.param(None, marks=pytest.mark.skip(
        reason="no headers of CPython 3.11 to 3.13: not built"))]


def environment(folder, loop=()):
    (folder / "pylate.py").write_text("def gives():\n    return 'late'\n")
    (folder / "pylate_too.py").write_text("def gives():\n    return 'late, too'\n")
    return helpers.clean_environment(PYTHONPATH=str(folder), PYTHONDONTWRITEBYTECODE="1", LOOP="".join(loop),
                                     COUNTED=str(folder / "counted"))


def begin(folder, python, *cases, policy=POLICY, program=PROGRAM):
    python, *loop = python.split()
    env = environment(folder, loop)
    (folder / "app.policy").write_text(policy)
    path = folder / "recording.jsonl"
    path.touch()
    command = [python, *(("-X", "dev", "-W", "ignore") if ALL else ()), program, *cases]
    alone = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**env, "COUNTED": os.devnull})
    return alone, helpers.start("run", "--force", "-t", "50ms", "--live=none", "-o", path, f"--offload={folder / 'app.policy'}",
                                "--", *command, env=env), path


def finish(begun):
    """What it printed and said alone, moved, and the recording."""
    alone, moved, path = begun
    expected = alone.communicate(timeout=PATIENCE)
    try:
        printed, said = moved.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        where = "".join(helpers.unblock("dump", child).stdout for child in helpers.children(moved.pid))
        for child in helpers.children(moved.pid):
            os.kill(child, signal.SIGKILL)
        moved.communicate()
        pytest.fail(f"hangs\n{where}")
    return expected, (printed, said), helpers.Recording(path), moved.returncode


def rows(recording, kind):
    return {line["function"]: line for line in recording.of("python") if line["kind"] == kind}


def check_shown(folder, recording, moved):
    """The live view and the metrics have what ran elsewhere, of a run that is over and of one that goes on."""
    told = [line.get("functions", []) for line in (*recording.of("executor"), recording.end["offload"])]
    same = "function", "place", "count", "ns", "longest_ns"
    assert {name: {key: line[key] for key in same} for name, line in moved.items()} == {one["function"]: one for one in told[-1]}
    counts = [sum(one["count"] for one in functions) for functions in told]
    assert counts == sorted(counts) and counts[-2] > 0, "while it runs, too"
    going_on = folder / "now.jsonl"
    lines = {**recording.of("header")[0], "host": "another"}, *recording.of("process"), recording.of("executor")[-1]
    going_on.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for path, functions in (recording.path, told[-1]), (going_on, told[-2]):
        metrics = helpers.unblock("report", "--format", "prometheus", path).stdout.splitlines()
        for one in functions:
            labels = f'{{function="{one["function"]}",place="{one["place"]}"}}'
            assert f"unblock_offload_function_calls_total{labels} {one['count']}" in metrics, metrics
            assert f"unblock_offload_function_seconds_total{labels} {one['ns'] / 1e9:.9f}" in metrics, metrics
        top = helpers.unblock("top", "--once", path).stdout
        first, second = sorted(functions, key=lambda one: -one["ns"])[:2]
        assert f"python: {sum(one['count'] for one in functions)} calls of {len(functions)} functions elsewhere\n  {first['function']} ran in" in top
        assert f"\n  {second['function']} ran in" in top and f"\n  and {len(functions) - 3} more functions\n" in top, top
    both = helpers.unblock("report", "--format", "prometheus", recording.path, going_on).stdout
    twice = sum(one["count"] for functions in told[-2:] for one in functions if one["function"] == first["function"])
    assert f'unblock_offload_function_calls_total{{function="{first["function"]}",place="{first["place"]}"}} {twice}\n' in both


@pytest.mark.parametrize("python", interpreters())
def test_same_as_alone(tmp_path, python):
    cases = tuple(CASES) if ALL else SHORT
    expected, (printed, said), recording, status = finish(begin(tmp_path, python, *cases))
    assert status == 0, said
    assert printed == expected[0], said
    moved = rows(recording, "moved")
    assert set(moved) == {name for case in cases for name in CASES[case]}, recording.of("python")
    stayed = {(line["function"], line["text"]) for line in recording.of("python") if line["kind"] == "stayed"}
    assert stayed == {("pywork.echoes", "cannot be pickled: cannot pickle '_thread.lock' object"),
                      ("pickle.dump", "writes to a BytesIO, which is lost with the fork")}
    assert moved["pywork.nap"]["count"] >= 8 + 3 and moved["pywork.nap"]["longest_ns"] > 100_000_000
    assert not recording.of("lost")
    check_shown(tmp_path, recording, moved)


@pytest.mark.parametrize("python", interpreters())
def test_told(tmp_path, python):
    """Where it ran; who stays and why; a process that ends; what cannot come back; rules that fit nothing."""
    _, (printed, said), recording, status = finish(begin(tmp_path, python, "elsewhere", "dies", "cannot_return"))
    assert status == 0, said
    lines = dict(line.split(" ", 1) for line in printed.splitlines() if line.split()[0] in ("elsewhere", "dies", "cannot_return"))
    assert lines["elsewhere"] == "[True, 3]"
    assert lines["dies"] == "['BrokenProcessPool', 'ChildProcessError', True]"
    assert lines["cannot_return"] == ("['TypeError', ['unblock: pywork.gives_lock'], 'AttributeError', "
                                      "['unblock: pywork.raises_strange'], 'x']"), "what it did is done once"
    assert printed.count("exit of one") == 1, "neither a fork nor a process ends as the program does"
    assert "pywork.who ran in a process 1 time, away for " in said
    assert "pywork.coroutine (thread) stays: its body runs when it is awaited or iterated" in said
    assert "pywork.Work (thread) stays: is a class: name its __init__ or __new__" in said
    assert "'pywork.fials = process' fitted nothing" in said and "the nearest name was pywork.fails" in said
    assert "'pylate.gives = thread' fitted nothing" in said and "not followed" not in said


@pytest.mark.parametrize("python", interpreters()[:None if ALL else 1])
def test_loop_that_ends(tmp_path, python):
    """What is away comes to its end; functions are called where they are in a step that cannot be left."""
    expected, (printed, said), recording, status = finish(begin(tmp_path, python, "ends"))
    assert status == 0 and sorted(printed.splitlines()) == sorted(expected[0].splitlines()), said
    assert rows(recording, "moved")["pywork.nap"]["count"] == 1


@ON_FIRST
@pytest.mark.parametrize("python", interpreters())
def test_interrupted(tmp_path, python):
    expected, (printed, said), _, status = finish(begin(tmp_path, python, "interrupted"))
    assert status == 0 and printed == expected[0], said


@pytest.mark.parametrize("how", ["process", "fork"])
def test_ends_with_the_program(tmp_path, how):
    """What computes for a program that is killed ends."""
    (tmp_path / "app.py").write_text(
        "import asyncio, os, time\n"
        "def spins():\n    print(os.getppid(), os.getpid(), flush=True)\n    until = time.time() + 60\n"
        "    while time.time() < until: pass\n"
        "async def main():\n    for _ in range(40):\n        await asyncio.sleep(0.001)\n    spins()\n"
        "if __name__ == '__main__':\n    asyncio.run(main())\n")
    (tmp_path / "app.policy").write_text(f"[python]\napp.spins = {how}\n")
    run = helpers.start("run", "--force", "-q", "-o", tmp_path / "r.jsonl", f"--offload={tmp_path / 'app.policy'}", "--",
                        interpreters()[0], tmp_path / "app.py", env=environment(tmp_path))
    program, other = map(int, run.stdout.readline().split())
    try:
        assert helpers.process_state(other) and program != run.pid
        os.kill(program, signal.SIGKILL)
        helpers.wait_until(lambda: helpers.process_state(other) in (None, "Z"), what=f"the {how} to end")
    finally:
        for pid in program, other:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        run.communicate()


@ON_FIRST
def test_fork_that_hangs(tmp_path):
    """Of a lock that another thread had nobody lets go in the fork: it is ended, and that is told."""
    python = interpreters()[0]
    alone, moved, path = begin(tmp_path, python, "hangs")
    alone.kill()
    _, (printed, said), _, status = finish((alone, moved, path))
    assert status == 0 and "hangs unblock: pywork.waits_for_lock waited in its fork for a lock" in printed, said


@pytest.mark.parametrize("python", interpreters()[:1])
@pytest.mark.parametrize("guard", ["if True:", pytest.param('if __name__ == "__main__":', marks=ON_FIRST)])
def test_functions_of_the_program_itself(tmp_path, python, guard):
    """A process imports the program for them: not one that would start all over. An exception is stronger than rules."""
    (tmp_path / "app.py").write_text("import asyncio, os\ndef where(): return os.getpid()\ndef kept(): return os.getpid()\n"
                                     "async def main():\n    for _ in range(40):\n        await asyncio.sleep(0.001)\n"
                                     f"    print(where() == os.getpid(), kept() == os.getpid())\n{guard}\n    asyncio.run(main())\n")
    policy = "[python]\napp.* = process\n[except]\napp.kept = inline\n"
    _, (printed, said), recording, status = finish(begin(tmp_path, python, policy=policy, program=tmp_path / "app.py"))
    assert status == 0 and printed == f"{guard == 'if True:'} True\n", said
    if guard == "if True:":
        assert [line["text"] for line in rows(recording, "stayed").values()] == [
            "the main module has no `if __name__ == '__main__'`"]
    assert "fitted nothing" not in said


CHANGES = """
class Total:
    def __init__(self): self.sum = 0
    def adds(self, n): self.sum += n; return self.sum
    def looks(self, n): return self.sum + n
def adds(to, n): to.append(n); return len(to)
def named(n, *, to): to[n] = n; raise KeyError(n)
def sums(of): of = list(of); of.append(1); return sum(of)
"""
LOST = "what it changed in its arguments was lost; it will no more"


@pytest.mark.parametrize("python", interpreters()[:1])
def test_changed_arguments(tmp_path, python):
    """A function that changes what it is called with loses that once in a process, as is told, and stays from then on; one that does not goes on."""
    (tmp_path / "pychanges.py").write_text(CHANGES)
    (tmp_path / "app.py").write_text(
        "import asyncio, pychanges\nasync def main():\n    for _ in range(40):\n        await asyncio.sleep(0.001)\n"
        "    total, many, named = pychanges.Total(), [1, 2], {}\n    for i in range(3):\n"
        "        try: pychanges.named(i, to=named)\n        except KeyError: pass\n"
        "        print(pychanges.adds(many, i), pychanges.sums(many), total.adds(1), total.looks(1))\n"
        "    print(many, named, total.sum)\nif __name__ == '__main__':\n    asyncio.run(main())\n")
    _, (printed, said), recording, status = finish(begin(tmp_path, python, policy="[python]\npychanges.Total.__init__ = process\npychanges.* = process(1)\n", program=tmp_path / "app.py"))
    assert (status, printed.splitlines()) == (0, ["3 4 1 1", "3 5 1 2", "4 7 2 3", "[1, 2, 1, 2] {1: 1, 2: 2} 2"]), said
    changing = {"pychanges.adds", "pychanges.Total.adds", "pychanges.named"}
    assert {name: line["text"] for name, line in rows(recording, "refused").items()} == {
        **dict.fromkeys(changing, LOST), "pychanges.Total.__init__": "it fills an object, which would be lost"}, said
    assert {name: line["count"] for name, line in rows(recording, "stayed").items()} == dict.fromkeys(changing, 2)
    assert {name: line["count"] for name, line in rows(recording, "moved").items() if name not in changing} == {"pychanges.sums": 3, "pychanges.Total.looks": 3}
    assert f"pychanges.adds (process(1)) stays: {LOST}" in said


@pytest.mark.parametrize("python", interpreters()[:1])
def test_written_from_a_recording_and_followed(tmp_path, python):
    """What computes is proposed, by the report of a dry run, too; followed, the ticker beside it goes on."""
    counts = helpers.ROOT / "tests/programs/pycount.py", "asyncio", 6_000_000, 1
    env = environment(tmp_path)
    done, recording = helpers.record(tmp_path, python, *counts, options=("-q", "--offload"), threshold="50ms", env=env)
    assert done.returncode == 0, done.stderr
    report = helpers.unblock("report", recording.path).stdout
    assert "would go to a process: pywork.counts_down = process, saves " in report, report
    policy = tmp_path / "written.policy"
    assert helpers.unblock("policy", recording.path, "-o", policy).returncode == 0
    assert "pywork.counts_down = process " in policy.read_text()
    with oracle.Sentinel() as sentinel:
        followed, recording = helpers.record(tmp_path, python, *counts, options=("-q", f"--offload={policy}"), threshold="50ms",
                                             env=env)
    said = [json.loads(one.stdout) for one in (done, followed)]
    assert said[0]["check"] == said[1]["check"] == 6_000_000
    assert rows(recording, "moved")["pywork.counts_down"]["count"] == 1
    if sum(b - a for a, b in sentinel.late) < 50_000_000:
        assert said[1]["gap_ms"] < said[0]["gap_ms"] / 2, said
