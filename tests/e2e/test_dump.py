"""`unblock dump PID`: every thread of a process from outside, and every reason why not."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import jsonschema
import pytest

from helpers import PYTHON, ROOT, UNBLOCK, Recording, clean_environment, one_line, process_state, program, unblock, wait_until

pytestmark = pytest.mark.beside

VALIDATOR = jsonschema.Draft7Validator(json.loads((ROOT / "ui/recording.schema.json").read_text()))

# A thread in each state; the main one prints "ready" and waits.
THREADS = r"""
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static pthread_mutex_t held = PTHREAD_MUTEX_INITIALIZER;
static volatile int spin = 1;

__attribute__((noinline)) static void *sleeps_long(void *arg)
{
    prctl(PR_SET_NAME, "sleeper");
    nanosleep(&(struct timespec){1000, 0}, NULL);
    return arg;
}
__attribute__((noinline)) static void *reads_pipe(void *arg)
{
    char c[7];
    prctl(PR_SET_NAME, "reader");
    return read(*(int *)arg, c, sizeof c) < 0 ? arg : NULL;
}
__attribute__((noinline)) static void *accepts(void *arg)
{
    prctl(PR_SET_NAME, "acceptor");
    accept(*(int *)arg, NULL, NULL);
    return arg;
}
__attribute__((noinline)) static void *wants_lock(void *arg)
{
    prctl(PR_SET_NAME, "locker");
    pthread_mutex_lock(&held);
    return arg;
}
__attribute__((noinline)) static void *spins(void *arg)
{
    prctl(PR_SET_NAME, "spinner");
    while (spin)
        ;
    return arg;
}

int main(void)
{
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof in;
    int pipes[2], listener = socket(AF_INET, SOCK_STREAM, 0);
    pthread_t t;

    if (pipe(pipes) || bind(listener, (struct sockaddr *)&in, len) || listen(listener, 1))
        return 1;
    getsockname(listener, (struct sockaddr *)&in, &len);
    pthread_mutex_lock(&held);
    pthread_create(&t, NULL, sleeps_long, NULL);
    pthread_create(&t, NULL, reads_pipe, &pipes[0]);
    pthread_create(&t, NULL, accepts, &listener);
    pthread_create(&t, NULL, wants_lock, NULL);
    pthread_create(&t, NULL, spins, NULL);
    usleep(100000);
    printf("%d %d %d\n", ntohs(in.sin_port), pipes[0], listener);
    fflush(stdout);
    pthread_join(t, NULL);
}
"""


@pytest.fixture(scope="module")
def threads_program(tmp_path_factory):
    path = tmp_path_factory.mktemp("dump") / "threads"
    subprocess.run(["gcc", "-O1", "-g", "-x", "c", "-", "-o", path, "-lpthread"], input=THREADS, text=True, check=True)
    return path


@pytest.fixture
def threads(threads_program):
    """(Popen, port, descriptor of the pipe, of the listener)"""
    popen = subprocess.Popen([threads_program], stdout=subprocess.PIPE, text=True)
    try:
        yield (popen, *map(int, popen.stdout.readline().split()))
    finally:
        popen.kill()
        popen.wait()


@pytest.fixture
def sleeper():
    popen = subprocess.Popen(["sleep", "1000"])
    wait_until(lambda: process_state(popen.pid) == "S")
    yield popen
    popen.kill()
    popen.wait()


def dumped(pid, tmp_path, *options):
    """The recording of a dump: (Recording, {thread name: record})."""
    path = tmp_path / "d.jsonl"
    done = unblock("dump", pid, "-o", path, "--force", *options)
    assert done.returncode in (0, 1), done.stderr
    recording = Recording(path)
    for line in recording.lines:
        assert [e.message for e in VALIDATOR.iter_errors(line)] == [], line
    return recording, {t["name"]: t for t in recording.of("thread")}


# What it shows ------------------------------------------------------------


def test_every_thread_with_state_call_and_stack(threads, workdir):
    popen, port, pipe, listener = threads
    recording, thread = dumped(popen.pid, workdir)
    assert recording.header["source"] == "dump" and recording.end["slow"] == 0
    (process,) = recording.of("process")
    assert process["pid"] == popen.pid and process["exe"].endswith("/threads")
    assert list(thread) == ["threads", "sleeper", "reader", "acceptor", "locker", "spinner"]
    assert [t["tid"] for t in thread.values()][0] == popen.pid

    def check(name, state, call, function, **fields):
        t = thread[name]
        assert t["state"] == state
        if call:
            assert t["call"]["name"] == call
        for key, value in fields.items():
            assert t["call"].get(key) == value, (key, t["call"])
        assert function in recording.frames(t["stack"]), recording.frames(t["stack"])
        return t

    check("sleeper", "blocked", "clock_nanosleep", "sleeps_long", args="1000 s")
    check("reader", "blocked", "read", "reads_pipe", fd=pipe, fd_path="pipe", args=f"{pipe}, 7")
    check("acceptor", "blocked", "accept", "accepts", fd=listener, fd_path=f"socket listening 127.0.0.1:{port}")
    check("locker", "blocked", "futex", "wants_lock")
    check("threads", "blocked", "futex", "main")
    for name in ("sleeper", "reader", "acceptor", "locker"):
        assert thread[name]["proof"] == "still" and thread[name]["complete"] is True
    if "stack" in thread["spinner"]:
        assert check("spinner", "running", None, "spins")["proof"] == "perf"
    else:  # perf events may be forbidden: then it must say so
        assert thread["spinner"]["state"] == "running" and "perf" in thread["spinner"]["error"]


def test_how_long_it_has_waited(sleeper, workdir):
    time.sleep(0.5)
    _, thread = dumped(sleeper.pid, workdir)
    waited = thread["sleep"].get("in_state_ns")
    if waited is None:
        pytest.skip("this kernel keeps no /proc/PID/sched")
    started = float(Path(f"/proc/{sleeper.pid}/stat").read_text().rsplit(")", 1)[1].split()[19]) / os.sysconf("SC_CLK_TCK")
    age = float(Path("/proc/uptime").read_text().split()[0]) - started
    assert 0.4e9 < waited < (age + 0.1) * 1e9


def test_text(threads, workdir):
    popen, port, pipe, listener = threads
    done = unblock("dump", popen.pid)
    assert done.returncode in (0, 1) and done.stderr == ""
    assert "\x1b" not in done.stdout
    for text in (f"process {popen.pid} (threads)", "sleeper", "clock_nanosleep(1000 s)", f"{pipe} = pipe",
                 f"{listener} = socket listening 127.0.0.1:{port}", "wants_lock", "sleeps_long"):
        assert text in done.stdout, done.stdout
    assert "\x1b[" in unblock("dump", "--color=always", popen.pid).stdout


def test_json_on_standard_output(sleeper):
    done = unblock("dump", "--format", "json", sleeper.pid)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["type"] for line in lines] == ["header", "process", "stack", "thread", "end"]


def test_the_dump_of_a_file_is_reported(sleeper, workdir):
    dumped(sleeper.pid, workdir)
    done = unblock("report", "d.jsonl")
    assert done.returncode == 0 and "clock_nanosleep" in done.stdout


def test_a_thread_number_is_good_enough(threads, workdir):
    popen = threads[0]
    tid = max(int(t) for t in os.listdir(f"/proc/{popen.pid}/task"))
    assert f"process {popen.pid} " in unblock("dump", tid).stdout


def test_stopped_process(sleeper, workdir):
    sleeper.send_signal(signal.SIGSTOP)
    wait_until(lambda: process_state(sleeper.pid) == "T")
    recording, thread = dumped(sleeper.pid, workdir)
    assert thread["sleep"]["state"] == "stopped"
    assert process_state(sleeper.pid) == "T", "a dump continues nobody"


def test_redact(threads, workdir):
    recording, thread = dumped(threads[0].pid, workdir, "--redact")
    assert "args" not in thread["sleeper"]["call"] and "fd_path" not in thread["reader"]["call"]
    assert "/threads" not in json.dumps([line for line in recording.lines if line["type"] == "stack"])


def test_secrets_in_arguments_are_masked(workdir):
    popen = subprocess.Popen(["sh", "-c", "sleep 1000; :", "--password=hunter2", "--token", "s3cret", "--port=1"])
    try:
        wait_until(lambda: process_state(popen.pid) == "S")
        recording, _ = dumped(popen.pid, workdir)
        text = json.dumps(recording.lines)
        assert "hunter2" not in text and "s3cret" not in text and "--port=1" in text
    finally:
        subprocess.run(["pkill", "-P", str(popen.pid)])
        popen.wait()


def test_hostile_names(workdir):
    """A process that calls itself by escape sequences does not reach the terminal."""
    script = "import ctypes, time; ctypes.CDLL(None).prctl(15, b'\\x1b[31m\\xff\\n)x'); print('ok', flush=True); time.sleep(1000)"
    popen = subprocess.Popen([PYTHON, "-c", script, "\x1b]0;title\x07"], stdout=subprocess.PIPE)
    try:
        popen.stdout.readline()
        done = unblock("dump", popen.pid, text=False)
        assert b"\x1b" not in done.stdout and b"\x1b" not in done.stderr
        recording, thread = dumped(popen.pid, workdir)
        assert list(thread) == ["\\x1b[31m\\xff\\n)x"]
    finally:
        popen.kill()


def test_main_thread_has_ended(workdir):
    script = ("import ctypes, threading, time; t = threading.Thread(target=time.sleep, args=(1000,)); t.start();"
              "print('ok', flush=True); ctypes.CDLL(None).syscall(60, 0)")
    popen = subprocess.Popen([PYTHON, "-c", script], stdout=subprocess.PIPE)
    try:
        popen.stdout.readline()
        wait_until(lambda: process_state(popen.pid) == "Z")
        done = unblock("dump", popen.pid)
        assert done.returncode == 0 and "clock_nanosleep" in done.stdout, done.stdout + done.stderr
    finally:
        popen.kill()


def test_code_without_tables(workdir):
    """As in a musl libc: its frames are told by their code, the program's below them by their tables."""
    target = subprocess.Popen([program("tableless")], stdout=subprocess.PIPE, text=True)
    try:
        assert target.stdout.readline() == "waits\n"
        wait_until(lambda: process_state(target.pid) == "S", what="it to wait")
        recording, _ = dumped(target.pid, workdir)
        frames = recording.frames(recording.of("thread")[0]["stack"])
        assert frames[:4] == ["bare_wait", "bare_middle", "user_calls", "main"], frames
    finally:
        target.kill()
        target.wait()


def test_many_threads(workdir):
    script = ("import threading, time\nfor i in range(200): threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n"
              "print('ok', flush=True); time.sleep(1000)")
    popen = subprocess.Popen([PYTHON, "-c", script], stdout=subprocess.PIPE)
    try:
        popen.stdout.readline()
        recording, _ = dumped(popen.pid, workdir)
        assert len(recording.of("thread")) == 201
        assert all("stack" in t for t in recording.of("thread"))
        assert len(recording.of("stack")) < 20, "equal stacks are written once"
    finally:
        popen.kill()


@pytest.mark.alone
def test_nothing_is_done_to_the_process(workdir):
    """Calls that any signal or stop would interrupt are not: read with a timeout, and the process's own counters."""
    script = ("import os, select, signal, socket, time; s, peer = socket.socketpair();"
              "import struct; s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack('ll', 3, 0));"
              "print('ok', flush=True); t = time.monotonic()\n"
              "try: s.recv(1)\n"
              "except BlockingIOError: print('timeout', time.monotonic() - t >= 2.9)\n"
              "except InterruptedError: print('interrupted')")
    popen = subprocess.Popen([PYTHON, "-c", script], stdout=subprocess.PIPE, text=True)
    assert popen.stdout.readline() == "ok\n"
    wait_until(lambda: process_state(popen.pid) == "S")
    before = re.search(r"voluntary_ctxt_switches:\s+(\d+)", Path(f"/proc/{popen.pid}/status").read_text()).group(1)
    for _ in range(10):
        assert unblock("dump", popen.pid).returncode == 0
    after = re.search(r"voluntary_ctxt_switches:\s+(\d+)", Path(f"/proc/{popen.pid}/status").read_text()).group(1)
    assert before == after
    assert popen.communicate(timeout=20)[0] == "timeout True\n"


# Why not ------------------------------------------------------------------


def refused(*args, says, **kwargs):
    done = unblock("dump", *args, **kwargs)
    line = one_line(done.stderr)
    assert (done.returncode, done.stdout) == (2, ""), line
    for text in (says,) if isinstance(says, str) else says:
        assert text in line, line


def test_wrong_use(workdir):
    refused(says="no process named")
    refused("1", "2", says="one PID at a time")
    for word in ("redis", "12x", "0", "", "99999999999", "1.5"):
        refused(word, says="is not a process number")
    refused("-5", says="unknown option -5")
    refused("--format=xml", "1", says="none of text, json")
    refused("--frmat=text", "1", says="did you mean --format?")


def test_no_such_process():
    popen = subprocess.Popen(["true"])
    popen.wait()
    refused(popen.pid, says=f"there is no process {popen.pid}")


def test_zombie():
    popen = subprocess.Popen(["true"])
    wait_until(lambda: process_state(popen.pid) == "Z")
    refused(popen.pid, says=(str(popen.pid), "is a zombie"))
    popen.wait()


def test_kernel_thread():
    try:
        name = Path("/proc/2/comm").read_text()
    except OSError:
        name = ""
    if name != "kthreadd\n":
        pytest.skip("no kernel threads are visible here (a PID namespace)")
    refused("2", says="(kthreadd) is a kernel thread")


def nobody(**kwargs):
    if os.geteuid() != 0:
        pytest.skip("takes root to become somebody else")
    if subprocess.run([UNBLOCK, "--version"], user=65534, capture_output=True).returncode != 0:
        pytest.skip("the build folder is closed to other users")
    return {"user": 65534, "group": 65534, "extra_groups": [], **kwargs}


def test_process_of_another_user(sleeper):
    refused(sleeper.pid, says=("(sleep) belongs to user root", f"sudo unblock dump {sleeper.pid}"), **nobody(cwd="/"))


def test_own_process_that_is_not_dumpable():
    script = "import ctypes, time; ctypes.CDLL(None).prctl(4, 0); print('ok', flush=True); time.sleep(1000)"
    popen = subprocess.Popen([PYTHON, "-c", script], stdout=subprocess.PIPE, **nobody(cwd="/"))
    try:
        popen.stdout.readline()
        refused(popen.pid, says=("undumpable", f"sudo unblock dump {popen.pid}"), **nobody(cwd="/"))
    finally:
        popen.kill()


def test_own_process_as_a_user():
    popen = subprocess.Popen(["sleep", "1000"], **nobody(cwd="/"))
    try:
        wait_until(lambda: process_state(popen.pid) == "S")
        done = unblock("dump", popen.pid, **nobody(cwd="/"))
        if done.returncode == 2 and "ptrace_scope" in done.stderr:
            pytest.skip("kernel.yama.ptrace_scope forbids it")
        assert done.returncode == 0 and "clock_nanosleep" in done.stdout, done.stderr
    finally:
        popen.kill()


def test_root_without_the_capability(sleeper):
    if os.geteuid() != 0:
        pytest.skip("takes root")
    popen = subprocess.Popen(["sleep", "1000"], **nobody(cwd="/"))
    try:
        wait_until(lambda: process_state(popen.pid) == "S")
        done = subprocess.run(["setpriv", "--bounding-set", "-sys_ptrace", "--inh-caps", "-sys_ptrace", UNBLOCK, "dump",
                               str(popen.pid)], capture_output=True, text=True, env=clean_environment())
        assert done.returncode == 2
        assert "CAP_SYS_PTRACE is missing" in one_line(done.stderr)
    finally:
        popen.kill()


def test_process_hidden_by_hidepid(sleeper):
    nobody()
    command = ["unshare", "-m", "sh", "-c", 'mount -t proc -o hidepid=2 proc /proc && exec setpriv --reuid 65534 --regid 65534 --clear-groups "$@"',
               "sh", UNBLOCK, "dump", str(sleeper.pid)]
    done = subprocess.run(command, capture_output=True, text=True, env=clean_environment())
    if "hidepid" not in done.stderr:
        pytest.skip(f"cannot mount /proc with hidepid here: {done.stderr}")
    assert done.returncode == 2
    assert "is hidden from us" in one_line(done.stderr)


def test_output_that_exists_or_cannot_be(sleeper, workdir):
    Path("old").write_text("old\n")
    for more in ((), ("--format", "text")):
        refused(sleeper.pid, "-o", "old", *more, says=("old exists", "--force"))
        assert Path("old").read_text() == "old\n"
        refused(sleeper.pid, "-o", "no/such/file", *more, says="cannot write no/such/file: No such file")
        refused(sleeper.pid, "-o", "/dev/full", *more, says="cannot write /dev/full: No space left")
    assert unblock("dump", sleeper.pid, "--format", "text", "-o", "old", "--force").returncode == 0
    assert "sleep" in Path("old").read_text()
    assert unblock("dump", sleeper.pid, "-o", "dump-%p.jsonl").returncode == 0
    assert Path(f"dump-{sleeper.pid}.jsonl").exists()


def test_reader_of_the_output_leaves(sleeper):
    done = subprocess.run(["bash", "-c", f"{UNBLOCK} dump {sleeper.pid} | true; echo ${{PIPESTATUS[0]}}"],
                          capture_output=True, text=True, timeout=20, env=clean_environment())
    assert done.stdout.strip() in ("0", "141") and "cannot" not in done.stderr
