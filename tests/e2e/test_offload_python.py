"""asyncio's steps that block, with their calls moved: every case prints the same as alone, and its loop goes on; what a
dry run and a report say of them.

The programs wait nearly all of the time: those of one interpreter run at once. `make check` has asyncio on the first
interpreter; `make check-offload` every one that is here, and uvloop.

Seen to fail without its mend: the child of vfork (spawns), multiprocessing's lock (shared_rlock), our own code that leaves
(most of them, under load), a finalizer that is run while a step begins to wait (collected; found by the stress), a collection
that 3.12 had put off (scheduled: hung), descriptors of threads that had ended (ends_threads), a number that the program had closed
(closes_all), locks that were looked at every 50 ms (bounded), locks of who sleeps below (the stress with --yield), a step that is left while it turns
another loop (nested, with --yield on uvloop: test_nested_loops), or a loop of another kind (other_loops).
"""

import itertools
import os
import subprocess

import helpers
import oracle
import pythons
import pytest

PATIENCE = 60
ALL = "UNBLOCK_SOAK" in os.environ

ON_FIRST = pytest.mark.skipif(not ALL, reason="takes long: make check-offload")

# The longest that the ticker may be kept waiting, in ms: half of what it is alone, or less. None: it is kept waiting,
# by what stays where it is; the case is there for what it prints.
CALLS = {"states": 1200, "recv": 150, "one_socket": 150, "raises": 100, "cancel": 150, "generators": 180, "deep": 250,
         "rlock": 150, "importing": None, "alarm": None, "http": 150, "https": 300, "children": 150, "spawns": 150, "timeouts": 80, "selects": 90, "epolls": None, "other_loops": None}
LOCKS = {"event": 75, "queues": 150, "condition": 80, "fifo": 180, "handed_over": None, "rlock": 150,
         "shared_rlock": 150, "shared_lock": 120, "collected": None, "rlock_of_another": 75, "tries": 200, "timeouts": 120,
         "buffered": 75, "logs": 75, "joins": 150,
         "plain_callback": None, "fails_in_callback": None, "imports": None, "alarm": None, "sockets_in_callback": None,
         "forked": None, "forked_on": 180, "threads": 170, "from_c": 75, "closed": 130, "wait_for": 150}
SQLITE = {"locked": 150, "connected": 150, "transaction": None, "reading": None, "shared": 150, "shared_in_callback": None,
          "commits": None, "awaits": None, "functions": None, "backup": None}
# Programs of their own: they end their loops.
ENDS = {"exits": 3, "interrupted": 0, "drained": 0, "ends_threads": 0, "closes_all": 0, "scheduled": 0, "bounded": 0}


# What `make check` has of them.
SHORT = ("states", "selects", "other_loops", "recv", "one_socket", "cancel", "http", "https", "spawns", "event", "queues", "fifo", "rlock", "shared_rlock", "shared_lock",
         "collected", "tries", "buffered", "plain_callback", "sockets_in_callback", "forked_on", "interrupted", "ends_threads", "closes_all", "bounded", "locked", "transaction", "reading", "shared")


def half(cases, i):
    return {case: cases[case] for case in [case for case in cases if ALL or case in SHORT][i::2]}


# A group is one run of a program, which can be run again by itself.
GROUPS = {**{f"calls{i}": ("pyoffload.py", half(CALLS, i), 6) for i in range(2)},
          **{f"locks{i}": ("pylocks.py", half(LOCKS, i), 10) for i in range(2)},
          "sqlite": ("pysqlite.py", half(SQLITE, 0) | half(SQLITE, 1), 6),
          **{case: ("pylocks.py", {case: None}, 1) for case in ENDS if ALL or case in SHORT}}


def interpreters():
    return pythons.moving(helpers.AGENT, ALL) or [pytest.param(None, marks=pytest.mark.skip(
        reason="no headers of CPython 3.11 to 3.13: not built"))]


def environment(folder):
    (folder / "slow_module.py").write_text("import time\ntime.sleep(0.2)\nVALUE = 7\n")
    (folder / "waiting_module.py").write_text("import sys\nassert sys.modules['__main__'].there.wait(20)\nVALUE = 7\n")
    certificate = folder / "certificate.pem"
    if not certificate.exists():
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
                        "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", certificate,
                        "-out", folder / "public.pem"], check=True, capture_output=True)
        certificate.write_text(certificate.read_text() + (folder / "public.pem").read_text())
    return helpers.clean_environment(PYTHONPATH=str(folder), PYTHONDONTWRITEBYTECODE="1", CERTIFICATE=str(certificate))


NUMBERS = itertools.count()


class Both:
    """A program alone and with its calls moved."""

    def __init__(self, folder, python, program, arguments):
        python, *loop = python.split()
        env = {**environment(folder), "LOOP": loop[0] if loop else ""}
        command = [python, "-X", "dev", "-W", "ignore", helpers.ROOT / "tests" / "programs" / program, *arguments]
        self.path = folder / f"{next(NUMBERS)}.jsonl"
        self.alone = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
        self.moved = helpers.start("run", "--force", "-q", "-t", "50ms", "-o", self.path, "--offload=eager", "--", *command,
                                   env=env)

    def finish(self):
        self.expected, self.alone_said = self.alone.communicate(timeout=PATIENCE)
        self.printed, self.said = helpers.finish(self.moved, PATIENCE)
        return self

    def line(self, text, case):
        return [line for line in text.splitlines() if line.split()[:1] == [case]]


def telling(folder, python, mode, *cases):
    path = folder / "recording.jsonl"
    path.touch()
    python, *loop = python.split()
    return path, helpers.start("run", "--force", "-t", "50ms", "-o", path, f"--offload={mode}", "--live=full", "--", python,
                               helpers.ROOT / "tests/programs/pymoves.py", *cases, env={**environment(folder), "LOOP": loop[0] if loop else ""})


def told(begun):
    """What it said, and its recording."""
    path, process = begun
    _, said = helpers.finish(process, PATIENCE)
    assert process.returncode == 0, said
    return said, helpers.Recording(path)


TOLD = {"dry-run": ("sleeps", "waits", "fetches", "selects", "epolls", "imports", "in_callback"), "flagged": ("sleeps", "fetches", "in_callback")}


@pytest.fixture(scope="module")
def tellings(tmp_path_factory):
    """As `runs`."""
    first = interpreters()[0]
    begun = {mode: telling(tmp_path_factory.mktemp("told"), first, mode, *cases) for mode, cases in TOLD.items()
             if isinstance(first, str)}

    def run(python, mode):
        one = begun[mode] or telling(tmp_path_factory.mktemp("told"), python, mode, *TOLD[mode])
        begun[mode] = None
        return told(one)
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tellings):
    """Of (interpreter, group): the run that was begun with the others, once; after that a new one."""
    begun, folder = {}, tmp_path_factory.mktemp("python")

    def run(python, group):
        if not any(key[0] == python for key in begun):
            for other, (program, cases, _) in GROUPS.items():
                begun[python, other] = Both(folder, python, program, cases)
        program, cases, _ = GROUPS[group]
        one = begun.get((python, group)) or Both(folder, python, program, cases)
        begun[python, group] = None
        return one.finish()
    with oracle.Sentinel() as sentinel:
        run.sentinel = sentinel
        yield run


@pytest.mark.parametrize("python", interpreters())
@pytest.mark.parametrize("group", GROUPS)
def test_same_as_alone(runs, python, group):
    _, cases, least = GROUPS[group]
    run = runs(python, group)
    assert run.moved.returncode == run.alone.returncode == ENDS.get(group, 0), run.said
    assert run.printed == run.expected, run.said
    assert helpers.Recording(run.path).end["offload"]["moved"] >= least
    late = sum(b - a for a, b in runs.sentinel.late)
    for case, most_ms in cases.items():
        assert group in ENDS or run.line(run.printed, case), run.alone_said
        if most_ms and late < 50_000_000:
            assert int(run.line(run.said, case)[0].split()[1]) < most_ms, (case, run.said)


@ON_FIRST
@pytest.mark.parametrize("python", interpreters())
def test_nested_loops(tmp_path, python):
    """With --yield, too, by which a step could be left between two callbacks of a loop that it turns itself. Seen to hang with steps
    left in a loop whose turn is a callback of another one's, with what they waited for left there."""
    python, *loop = python.split()
    env = {**environment(tmp_path), "LOOP": loop[0] if loop else ""}
    command = [python, "-X", "dev", "-W", "ignore", helpers.ROOT / "tests/programs/pyoffload.py", "nested", "nested_in_callback"]
    alone = subprocess.run(command, capture_output=True, text=True, env=env, timeout=PATIENCE)
    for _ in range(4):
        done, _ = helpers.record(tmp_path, *command, threshold="50ms", options=("--force", "-q", "--offload=eager", "--yield"), env=env,
                                 timeout=PATIENCE)
        assert (done.returncode, done.stdout) == (0, alone.stdout), done.stderr[-3000:]


# ---- what is told -----------------------------------------------------------------------------


def place(line, key):
    return line.get(key, {}).get("function"), line.get(key, {}).get("file", "").rsplit("/", 1)[-1]


MOVES = {"sleeps": {"would-move"}, "waits": {"would-move"}, "fetches": {"would-move"}, "selects": {"would-move"},
         "epolls": {"call"}, "imports": {"import"}, "in_callback": {"kind"}}


def judged(recording):
    """By case, what is said of its stalls."""
    found = {}
    for slow in recording.slow:
        if slow.get("offload") and slow["duration_ns"] >= 120_000_000:
            name = slow["callback"].get("function", "?").split(".")[0]
            found.setdefault(name, set()).add(slow["offload"].get("reason") or slow["offload"]["state"])
            if slow["offload"]["state"] == "would-move":
                # What it waited for a CPU is not saved; nobody knows what that was where the watcher got none to look twice.
                assert 0 < slow["offload"]["saved_ns"] >= slow.get("blocked_ns", 0) / 2, slow
    return found


@pytest.mark.parametrize("python", interpreters()[:1])
def test_dry_run(tellings, python):
    """On a machine without a free CPU the watcher may see a wait for a lock too late, or other waits may be long as well: tried again."""
    for _ in range(4):
        said, recording = tellings(python, "dry-run")
        assert not any(line["moved"] for line in recording.of("offload"))
        found = judged(recording)
        if found == MOVES and " would have moved from 4 call sites, " in said:
            break
    assert found == MOVES, recording.slow
    assert "move   would move to a timer, saves " in said
    assert "move   pinned: a module is being imported" in said
    assert " would have moved from 4 call sites, " in said


@pytest.mark.parametrize("python", interpreters()[:1])
def test_flagged(tellings, python):
    """The first blocks, the second has left; where it was is told by the program's own line."""
    said, recording = tellings(python, "flagged")
    moved = {place(line, "callback")[0]: line for line in recording.of("offload") if line["moved"] and line["first"]}
    assert set(moved) == {"sleeps", "fetches"}, recording.of("offload")
    assert place(moved["sleeps"], "caller") == ("nap", "pymoves.py")
    assert place(moved["fetches"], "caller") == ("fetches", "pymoves.py")
    for line in moved.values():
        assert line["first"] == 1 and line["saved_ns"] >= 110_000_000
    states = {slow["callback"].get("function", "?").split(".")[0]: slow["offload"].get("reason") or slow["offload"]["state"]
              for slow in recording.slow if slow.get("offload") and slow["duration_ns"] >= 120_000_000}
    assert states == {"sleeps": "first", "fetches": "first", "in_callback": "kind"}
    assert "clock_nanosleep in nap() (pymoves.py:" in said


@pytest.mark.skipif(not pythons.ask("/usr/bin/python3", "import uvloop; print(1)") or not interpreters(), reason="no uvloop")
def test_uvloop_as_asyncio(tmp_path):
    """Debian's uvloop uses the system's libuv, whose callbacks are timed around the steps of tasks: calls and places are the steps' all the same."""
    said, recording = told(telling(tmp_path, "/usr/bin/python3 uvloop", "dry-run", "sleeps"))
    (states,) = {slow["callback"]["function"]: slow["offload"] for slow in recording.slow if slow["duration_ns"] >= 120_000_000}.values()
    assert states["state"] == "would-move", recording.slow
    said, recording = told(telling(tmp_path, "/usr/bin/python3 uvloop", "flagged", "sleeps"))
    (line,) = [line for line in recording.of("offload") if line["moved"]]
    assert line["first"] == 1 and place(line, "caller") == ("nap", "pymoves.py") and place(line, "callback")[0] == "sleeps", line


@pytest.mark.parametrize("python", interpreters()[:1])
def test_policy_has_what_the_modes_move(tmp_path, python):
    """A rule for what the dry run told of is followed: from the first such call on, if the tracer answers in time; so there are some."""
    policy = tmp_path / "app.policy"
    policy.write_text("[offload]\nselect in pymoves.selects = move\n")
    _, recording = told(telling(tmp_path, python, policy, *["selects"] * 6, "sleeps"))
    assert {place(line, "callback")[0] for line in recording.of("offload") if line["moved"]} == {"selects"}, recording.of("offload")


GREENLET = """
#include <Python.h>
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_greenlet", NULL, -1, NULL};
PyMODINIT_FUNC PyInit__greenlet(void) { return PyModule_Create(&module); }
"""


@pytest.mark.parametrize("python", interpreters()[:1])
def test_greenlet(tmp_path, python):
    """It copies stacks: where it is, steps run where they always did. A module of its name does."""
    include = pythons.ask(python, "import sysconfig; print(sysconfig.get_paths()['include'])")
    (tmp_path / "greenlet.c").write_text(GREENLET)
    built = subprocess.run(["cc", "-shared", "-fPIC", f"-I{include}", tmp_path / "greenlet.c", "-o",
                            tmp_path / "_greenlet.so"], capture_output=True, text=True)
    if built.returncode != 0:
        pytest.skip(f"no headers of {python}")
    (tmp_path / "sitecustomize.py").write_text("import _greenlet\n")
    _, recording = told(telling(tmp_path, python, "eager", "sleeps"))
    assert recording.end["offload"]["moved"] == 0
    assert {slow["offload"].get("reason") for slow in recording.slow if slow.get("offload")} == {"runtime"}


@pytest.mark.skipif(not pythons.moving(helpers.AGENT, False), reason="no headers of CPython 3.11 to 3.13: not built")
@pytest.mark.skipif(not pythons.ask("/usr/bin/python3", "import greenlet; print(1)"), reason="no greenlet")
def test_files_of_greenlets(tmp_path):
    """Seen to end by SIGSEGV: what the hooks of files note of a function lay on a stack that was another greenlet's by then."""
    done, recording = helpers.record(tmp_path, "/usr/bin/python3", helpers.ROOT / "tests/programs/pygreenlet.py", threshold="5ms",
                                     options=("--force", "--offload=eager", "-q"))
    assert (done.returncode, done.stdout) == (0, "20 {'a\\na\\na\\na\\na\\n'}\n"), done.stderr
    assert recording.end["offload"]["moved"] >= 2, recording.end


@pytest.mark.parametrize("python", interpreters())
def test_what_is_printed_to_a_slow_pipe(tmp_path, python):
    """Seen with some 60 strange lines, and bytes of the interpreter's own memory among them, where a step was left in a text file that others wrote to."""
    python, *loop = python.split()
    done, recording = helpers.record(tmp_path, python, helpers.ROOT / "tests/programs/pyslowpipe.py", *loop, threshold="5ms",
                                     options=("--force", "--offload=eager", "-q"), timeout=60)
    assert done.stdout == "2000 0 2000\n", done.stdout
    assert recording.end["offload"]["moved"] >= 20, recording.end


@pytest.mark.parametrize("python", interpreters())
def test_files_that_are_shared(tmp_path, python):
    """Seen to lose and mix lines with iteration not hooked, and with binary files not; with a print that waits in its place the ticker ran once; to end by SIGSEGV
    where sys.stdout was replaced in the midst of a print."""
    python, *loop = python.split()
    command = (python, helpers.ROOT / "tests/programs/pyfiles.py", *loop)
    alone = subprocess.run(command, capture_output=True, text=True, timeout=60, env=helpers.clean_environment())
    done, recording = helpers.record(tmp_path, *command, threshold="5ms", options=("--force", "--offload=eager", "-q"), timeout=60)
    assert (done.returncode, done.stdout) == (0, alone.stdout), done.stderr
    assert alone.stdout.count("whole") == 22, alone.stdout
    ticks = [int(line.split()[1]) for line in done.stderr.splitlines() if line.startswith("ticks ")]
    assert ticks[0] >= 10 and recording.end["offload"]["moved"] >= 20, (done.stderr, recording.end)
