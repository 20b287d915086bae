"""asyncio's steps that block, with their calls moved: every case prints the same as alone, and its loop goes on.

The cases wait nearly all of the time, so all programs run at once, before the first test.
"""

import os
import signal
import subprocess

import helpers
import oracle
import pythons
import pytest

OBJECTS = helpers.AGENT.parent
PATIENCE = 90

# The longest that the ticker may be kept waiting, in ms: half of what it is alone, or less. None: it is kept waiting,
# by what stays where it is; the case is there for what it prints.
CALLS = {"states": 1200, "recv": 150, "one_socket": 150, "raises": 100, "cancel": 150, "generators": 180, "deep": 250,
         "rlock": 150, "importing": None, "alarm": None, "http": 150, "children": 150, "timeouts": 80}
LOCKS = {"event": 75, "queues": 150, "condition": 80, "fifo": 180, "handed_over": None, "rlock": 150,
         "rlock_of_another": 75, "tries": 200, "timeouts": 120, "buffered": 75, "logs": 75, "joins": 150,
         "plain_callback": None, "fails_in_callback": None, "imports": None, "alarm": None, "sockets_in_callback": None,
         "forked": None, "forked_on": 180, "threads": 170, "from_c": 75, "closed": 130, "wait_for": 150}
# Programs of their own: they end their loops.
ENDS = {"exits": 3, "interrupted": 0, "drained": 0}


def interpreters():
    found = [path for minor in ("3.11", "3.12", "3.13") if (OBJECTS / f"python{minor}.so").exists()
             for path in pythons.installed(minor)[:1]]
    if os.path.realpath(helpers.PYTHON) in found and pythons.ask(helpers.PYTHON, "import uvloop; print(1)"):
        found.append(helpers.PYTHON + " uvloop")
    return found or [pytest.param(None, marks=pytest.mark.skip(reason="no headers of CPython 3.11 to 3.13: not built"))]


def environment(folder):
    (folder / "slow_module.py").write_text("import time\ntime.sleep(0.2)\nVALUE = 7\n")
    (folder / "waiting_module.py").write_text("import sys\nassert sys.modules['__main__'].there.wait(20)\nVALUE = 7\n")
    return helpers.clean_environment(UNBLOCK_UNFINISHED="1", PYTHONPATH=str(folder), PYTHONDONTWRITEBYTECODE="1")


class Both:
    """A program alone and with its calls moved."""

    def __init__(self, folder, python, program, *arguments):
        python, *loop = python.split()
        env = {**environment(folder), "LOOP": loop[0] if loop else ""}
        command = [python, "-X", "dev", "-W", "ignore", helpers.ROOT / "tests" / "programs" / program, *arguments]
        self.path = folder / f"{len(list(folder.iterdir()))}.jsonl"
        self.path.touch()
        self.alone = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
        self.moved = helpers.start("run", "--force", "-q", "-t", "50ms", "-o", self.path, "--offload=eager", "--", *command,
                                   env=env)

    def finish(self):
        self.expected, self.alone_said = self.alone.communicate(timeout=PATIENCE)
        try:
            self.printed, self.said = self.moved.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            for child in helpers.children(self.moved.pid):
                os.kill(child, signal.SIGKILL)
            self.printed, self.said = self.moved.communicate()
            self.said += "\nhangs"
        return self

    def line(self, text, case):
        return [line for line in text.splitlines() if line.split()[:1] == [case]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("python")
    found = {}
    with oracle.Sentinel() as sentinel:
        for python in [p for p in interpreters() if isinstance(p, str)]:
            found[python, "calls"] = Both(folder, python, "pyoffload.py", *CALLS)
            found[python, "locks"] = Both(folder, python, "pylocks.py", *LOCKS)
            for case in ENDS:
                found[python, case] = Both(folder, python, "pylocks.py", case)
        for run in found.values():
            run.finish()
    found["starved"] = sum(b - a for a, b in sentinel.late)
    return found


@pytest.mark.parametrize("python", interpreters())
@pytest.mark.parametrize("group,case", [("calls", c) for c in CALLS] + [("locks", c) for c in LOCKS])
def test_case(runs, python, group, case):
    run = runs[python, group]
    assert run.line(run.expected, case), run.alone_said
    assert run.line(run.printed, case) == run.line(run.expected, case), run.said
    most_ms = {"calls": CALLS, "locks": LOCKS}[group][case]
    if most_ms:
        gap = int(run.line(run.said, case)[0].split()[1])
        assert gap < most_ms or runs["starved"] > 50_000_000, gap


@pytest.mark.parametrize("python", interpreters())
@pytest.mark.parametrize("group,least", [("calls", 40), ("locks", 150)])
def test_moves(runs, python, group, least):
    run = runs[python, group]
    assert run.moved.returncode == run.alone.returncode == 0, run.said
    assert helpers.Recording(run.path).end["offload"]["moved"] >= least


@pytest.mark.parametrize("python", interpreters())
@pytest.mark.parametrize("case", ENDS)
def test_ends(runs, python, case):
    run = runs[python, case]
    assert run.moved.returncode == run.alone.returncode == ENDS[case], run.said
    assert run.printed == run.expected, run.said
    assert helpers.Recording(run.path).end["offload"]["moved"] > 0


@pytest.mark.parametrize("python", interpreters())
def test_stress(tmp_path, python):
    python, *loop = python.split()
    size = ("200", "30") if os.environ.get("UNBLOCK_SOAK") else ("30", "6")
    done, recording = helpers.record(tmp_path, python, "-X", "dev", helpers.ROOT / "tests/programs/pyoffload.py", "stress",
                                     *size, threshold="50ms", options=("--offload=eager", "-q"),
                                     env={**environment(tmp_path), "LOOP": loop[0] if loop else ""}, timeout=180)
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    assert done.stdout == f"stress {int(size[0]) * int(size[1])}\n"
    assert recording.end["offload"]["moved"] > 0
