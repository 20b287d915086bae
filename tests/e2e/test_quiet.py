"""No false reports: short callbacks, idle loops, stopped programs, and everyday tools that wait but run no loop."""

import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

import helpers
import oracle

SOAK = bool(os.environ.get("UNBLOCK_SOAK"))
THRESHOLD = "10ms"
SLOW_ANSWER = 0.2  # seconds a peer lets a tool wait: far over the threshold


@pytest.fixture
def sentinel():
    with oracle.Sentinel() as running:
        yield running


def test_short_callbacks(tmp_path, sentinel):
    """2000 callbacks of 500 us under a threshold of 10 ms."""
    done, recording = helpers.record(tmp_path, helpers.program("quiet"), 2000, 500, threshold=THRESHOLD, timeout=60)
    assert done.returncode == 0, done.stderr
    own = json.loads(done.stdout)
    assert own["turns"] == 2000
    assert len(oracle.but_noise(recording, sentinel)) <= own["delayed"], recording.slow
    if own["longest_ns"] < 9_000_000:
        assert recording.slow == []
        assert recording.end["slow"] == 0
    stats = recording.of("stats")[-1]
    assert 1990 <= stats["callbacks"] <= 2002
    assert stats["total_ns"] >= 2000 * 500_000 * 0.99


def test_short_callbacks_are_slow_at_a_lower_threshold(tmp_path):
    """The same program is not quiet at 300 us: the test above can fail."""
    _, recording = helpers.record(tmp_path, helpers.program("quiet"), 200, 500, threshold="300us")
    assert sum(1 + s.get("repeats", 0) for s in recording.slow) >= 150


def switches(pid):
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                total += int(line.split()[1])
    return total


def settled(pid):
    """What has been woken so often when nothing was for half a second."""
    last, now = -1, switches(pid)
    for _ in range(4):
        last = now
        time.sleep(0.5)
        now = switches(pid)
        if now - last <= 1:
            break
    return now


def test_idle(tmp_path, sentinel):
    """An idle loop: nothing reported, and the watcher sleeps too."""
    seconds = 60 if SOAK else 5
    path = tmp_path / "r.jsonl"
    process = helpers.start("run", "-t", THRESHOLD, "-o", path, "--", helpers.program("quiet"), 100, 100,
                            seconds * 1000)
    try:
        before = settled(process.pid)  # start-up and the last quiet rounds are over
        time.sleep(seconds - 2)
        woken = switches(process.pid) - before
        out, err = process.communicate(timeout=helpers.PATIENCE)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, err
    recording = helpers.Recording(path)
    assert oracle.but_noise(recording, sentinel) == []
    # The statistics of each 10 s are written, nothing else.
    assert woken <= 4 + seconds, f"the watcher woke {woken} times in {seconds - 2} s of idleness"


def test_stopped_and_continued(tmp_path, sentinel):
    """SIGSTOP and SIGCONT from outside: "stopped", and not in the verdict."""
    path = tmp_path / "r.jsonl"
    process = helpers.start("run", "-t", THRESHOLD, "--fail-on", "90ms", "-o", path, "--", helpers.program("quiet"),
                            4000, 500)
    try:
        pid = helpers.wait_until(lambda: helpers.children(process.pid), what="the program")[0]
        helpers.wait_until(lambda: "quiet" in os.readlink(f"/proc/{pid}/exe"), what="its exec")
        time.sleep(0.2)
        longest = 0
        for _ in range(5):
            begun = time.monotonic_ns()
            os.kill(pid, signal.SIGSTOP)
            time.sleep(0.1)
            os.kill(pid, signal.SIGCONT)
            longest = max(longest, time.monotonic_ns() - begun)
            time.sleep(0.05)
        out, err = process.communicate(timeout=helpers.PATIENCE)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, f"--fail-on counted a stop: {err}"
    recording = helpers.Recording(path)
    stopped = [s for s in recording.slow if s["cause"] == "stopped"]
    # It computes nearly all the time, so nearly every stop falls into a turn.
    assert 3 <= len(stopped) <= 5, recording.slow
    for s in stopped:
        late = sentinel.lateness(s["start_ns"], s["start_ns"] + s["duration_ns"])
        assert 95_000_000 < s["duration_ns"] < longest + late + 50_000_000
    extra = [s for s in oracle.but_noise(recording, sentinel) if s["cause"] != "stopped"]
    assert len(extra) <= json.loads(out)["delayed"], extra


# Everyday tools ---------------------------------------------------------


def quiet(tmp_path, *command, env=None, status=0, same_output=True):
    """The command works as it does alone and nothing of it is reported."""
    env = helpers.clean_environment(**(env or {}))
    alone = subprocess.run([str(c) for c in command], capture_output=True, env=env, stdin=subprocess.DEVNULL,
                           timeout=60)
    with oracle.Sentinel() as sentinel:
        done, recording = helpers.record(tmp_path, *command, threshold=THRESHOLD, env=env, timeout=60, text=False)
    assert (alone.returncode, done.returncode) == (status, status), (alone.stderr, done.stderr)
    if same_output:
        assert done.stdout == alone.stdout
    reported = oracle.but_noise(recording, sentinel)
    assert reported == [], [(s["pid"], recording.functions(s)) for s in reported]
    return done


def tool(name):
    path = shutil.which(name)
    if not path:
        pytest.skip(f"{name} is not installed")
    return path


@pytest.fixture
def slow_web():
    """A web server that lets everybody wait."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            time.sleep(SLOW_ANSWER)
            body = b"slow but here\n"
            self.send_response(200)
            self.send_header("Content-Length", str(2 * len(body)))
            self.end_headers()
            for _ in range(2):
                self.wfile.write(body)
                self.wfile.flush()
                time.sleep(SLOW_ANSWER)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_curl(tmp_path, slow_web):
    assert quiet(tmp_path, tool("curl"), "-sS", f"{slow_web}/x", f"{slow_web}/y").stdout == b"slow but here\n" * 4


def test_git(tmp_path):
    git = tool("git")
    env = {"GIT_CONFIG_GLOBAL": "/dev/null", "HOME": str(tmp_path), "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b",
           "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b", "GIT_PAGER": "cat"}
    source = tmp_path / "source"
    subprocess.run([git, "init", "-q", source], check=True, env=helpers.clean_environment(**env))
    for i in range(300):
        (source / f"f{i}").write_text(f"{i}\n" * 200)
    subprocess.run([git, "-C", source, "add", "."], check=True, env=helpers.clean_environment(**env))
    quiet(tmp_path, git, "-C", source, "-c", "core.hooksPath=/dev/null", "commit", "-q", "--allow-empty", "-m", "all",
          env=env, same_output=False)
    quiet(tmp_path, git, "-C", source, "log", "--stat", env=env)
    # A clone through upload-pack, which waits with poll for a pack process that is slow.
    slow_pack = tmp_path / "slow-pack"
    slow_pack.write_text(f"#!/bin/sh\nsleep {SLOW_ANSWER}\nexec {git} upload-pack \"$@\"\n")
    slow_pack.chmod(0o755)
    quiet(tmp_path, "/bin/sh", "-c", f"rm -rf {tmp_path}/clone && {git} clone -q --no-local -u {slow_pack} "
          f"file://{source} {tmp_path}/clone && ls {tmp_path}/clone | wc -l", env=env)


def test_ssh(tmp_path):
    """A whole session with a server that answers late, on the loopback."""
    ssh = tool("ssh")
    paramiko = pytest.importorskip("paramiko", reason="python3-paramiko is not installed")
    key = paramiko.RSAKey.generate(2048)

    class Server(paramiko.ServerInterface):
        def check_auth_none(self, username):
            return paramiko.AUTH_SUCCESSFUL

        def get_allowed_auths(self, username):
            return "none"

        def check_channel_request(self, kind, chanid):
            return paramiko.OPEN_SUCCEEDED

        def check_channel_exec_request(self, channel, command):
            def answer():
                for _ in range(3):
                    time.sleep(SLOW_ANSWER)
                    channel.send(b"late\n")
                channel.send_exit_status(7)
                channel.close()

            threading.Thread(target=answer, daemon=True).start()
            return True

    listener = socket.create_server(("127.0.0.1", 0))
    transports = []

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            time.sleep(SLOW_ANSWER)
            transport = paramiko.Transport(connection)
            transports.append(transport)
            transport.add_server_key(key)
            try:
                transport.start_server(server=Server())
            except (paramiko.SSHException, EOFError):
                pass

    threading.Thread(target=serve, daemon=True).start()
    try:
        done = quiet(tmp_path, ssh, "-F", "none", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
                     "-o", "IdentityAgent=none", "-o", "LogLevel=ERROR", "-p", listener.getsockname()[1],
                     "nobody@127.0.0.1", "whatever", env={"HOME": str(tmp_path)}, status=7)
        assert done.stdout == b"late\n" * 3
    finally:
        listener.close()
        for transport in transports:
            transport.close()


def test_pip(tmp_path, slow_web):
    env = {"HOME": str(tmp_path), "PIP_CONFIG_FILE": "/dev/null", "PIP_DISABLE_PIP_VERSION_CHECK": "1",
           "PIP_NO_CACHE_DIR": "1"}
    if subprocess.run([helpers.PYTHON, "-c", "import pip"], capture_output=True).returncode:
        pytest.skip("python3-pip is not installed")
    quiet(tmp_path, helpers.PYTHON, "-m", "pip", "list", env=env)
    # An index that answers late and knows nothing.
    done = quiet(tmp_path, helpers.PYTHON, "-m", "pip", "download", "--no-deps", "-d", tmp_path / "d",
                 "--index-url", slow_web, "unheard-of", env=env, status=1)
    assert b"unheard-of" in done.stderr


def test_make_and_gcc(tmp_path):
    make, gcc = tool("make"), tool("gcc")
    (tmp_path / "x.c").write_text("#include <stdio.h>\nint main(void) { return puts(\"made\") < 0; }\n")
    (tmp_path / "Makefile").write_text(f"all: one two\n\t@./one; ./two\none two: x.c\n\t@sleep {SLOW_ANSWER}; "
                                       f"{gcc} -O1 x.c -o $@\nclean:\n\t@rm -f one two\n")
    done = quiet(tmp_path, "/bin/sh", "-c", f"cd {tmp_path} && {make} -s clean && {make} -s -j2")
    assert done.stdout == b"made\nmade\n"


def test_bash(tmp_path):
    bash = tool("bash")
    script = (f"for i in 1 2 3; do (sleep {SLOW_ANSWER}; echo $i) & done; wait; "
              f"for i in $(seq 30); do echo $i | cat | wc -c; done; "
              f"read -t {SLOW_ANSWER} x < <(sleep 1); trap 'echo term' TERM; kill $$; coproc sleep {SLOW_ANSWER}; wait")
    quiet(tmp_path, bash, "-c", script, same_output=False)


def communicate(times, between):
    """A Python program that waits for `times` children with subprocess.communicate, which polls two pipes."""
    return ("import subprocess, time\n"
            f"for i in range({times}):\n"
            "    p = subprocess.Popen(['sh', '-c', 'sleep 0.05; echo out; echo err >&2'],\n"
            "                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)\n"
            "    print(p.communicate())\n"
            f"    time.sleep({between})\n")


def test_python_subprocess(tmp_path):
    quiet(tmp_path, helpers.PYTHON, "-c", communicate(2, 0.05))


def test_python_subprocess_many_times(tmp_path):
    """What a program does between two of them is no turn of a loop."""
    quiet(tmp_path, helpers.PYTHON, "-c", communicate(12, 0.05))


def test_python_subprocess_on_a_full_cpu(tmp_path):
    """The reports are worked out when there is time: the process may be gone by then, what was seen of it is not."""
    before = os.sched_getaffinity(0)
    cpu = {min(before)}
    busy = [subprocess.Popen(["taskset", "-c", *map(str, cpu), "sh", "-c", "while :; do :; done"]) for _ in range(4)]
    try:
        os.sched_setaffinity(0, cpu)
        _, recording = helpers.record(tmp_path, helpers.PYTHON, "-c", communicate(12, 0.05), threshold=THRESHOLD)
    finally:
        os.sched_setaffinity(0, before)
        for b in busy:
            b.kill()
            b.wait()
    assert [s for s in recording.slow if s["cause"] == "call"] == []


POLL_LOOP = """
import os, select, sys, time
r, w = os.pipe()
quiet, _ = os.pipe()
poll = select.poll()
poll.register(r, select.POLLIN)
poll.register(quiet, select.POLLIN)
def callback(i):
    os.read(r, 1)
    if i % 10 == 0:
        time.sleep(0.05)
for i in range(1, 41):
    os.write(w, b"x")
    if i % 4 == 0:
        time.sleep(0.002)
    for fd, _ in poll.poll(1000):
        callback(i)
    poll.poll(1)
"""


def test_a_python_loop_that_polls_is_one(tmp_path):
    """The other side of the test above: its wait is not somebody's in the standard library."""
    done, recording = helpers.record(tmp_path, helpers.PYTHON, "-c", POLL_LOOP, threshold="20ms")
    assert done.returncode == 0
    assert len([s for s in recording.slow if s["duration_ns"] >= 45_000_000]) >= 3


@pytest.fixture
def postgres(tmp_path_factory):
    """A private PostgreSQL on a socket of its own, as an unprivileged user."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("no PostgreSQL server is installed (postgresql)")
    folder = tmp_path_factory.mktemp("pg")
    as_user = []
    if os.getuid() == 0:
        if not shutil.which("setpriv"):
            pytest.skip("setpriv is not installed, and initdb refuses root")
        helpers.let_in(folder)
        shutil.chown(folder, 65534, 65534)
        as_user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    bin = found[-1].parent
    run = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", check=True)
    subprocess.run([*as_user, bin / "initdb", "-D", folder / "data", "-A", "trust", "-N", "-U", "postgres"], **run)
    server = subprocess.Popen([*as_user, bin / "postgres", "-D", folder / "data", "-k", folder, "-h", "", "-F"],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/")
    helpers.wait_until(lambda: subprocess.run([bin / "pg_isready", "-h", folder], capture_output=True).returncode == 0,
                       what="PostgreSQL")
    yield folder
    server.terminate()
    server.wait()


def test_psql(tmp_path, postgres):
    psql = tool("psql")
    quiet(tmp_path, psql, "-X", "-h", postgres, "-U", "postgres", "-Atc", "select 1", "-c",
          f"select pg_sleep({SLOW_ANSWER})", "-c", "select 2", env={"HOME": str(tmp_path)})
