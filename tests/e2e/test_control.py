"""The control socket and `unblock ps`: status, following, clients that mean harm, sockets of dead watchers."""

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

import helpers
from helpers import PYTHON, UNBLOCK, clean_environment, start, unblock, wait_until
from test_preload import LOOP, environment

pytestmark = pytest.mark.beside

FOLDER = Path("/run/unblock") if os.geteuid() == 0 else None


@pytest.fixture
def runtime(tmp_path, monkeypatch):
    """The folder of the sockets: root's is fixed, others' follows XDG_RUNTIME_DIR."""
    if FOLDER:
        return FOLDER
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "unblock"


@pytest.fixture
def watched(tmp_path, runtime):
    """A looping program under `unblock run`; (process of unblock, path of its socket)."""
    started, children = [], {}

    def begin(turns=3000):
        path = tmp_path / ("r.jsonl" if not started else f"r{len(started)}.jsonl")
        p = start("run", "-q", "-t", "20ms", "-o", path, "--", PYTHON, "-c", LOOP, turns,
                  env=clean_environment())
        started.append(p)
        children[p.pid] = wait_until(lambda: helpers.children(p.pid), what="the program")
        path = runtime / f"{p.pid}.sock"
        wait_until(path.exists, what="the socket")
        return p, path

    yield begin
    for p in started:
        for child in children[p.pid]:
            if helpers.process_state(child):
                os.kill(child, signal.SIGKILL)
        p.communicate(timeout=helpers.PATIENCE)


class Client:
    def __init__(self, path, timeout=15):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(timeout)
        self.socket.connect(str(path))
        self.file = self.socket.makefile("rb")

    def ask(self, request):
        self.socket.sendall((request if isinstance(request, bytes) else json.dumps({"request": request}).encode()) + b"\n")
        return self.line()

    def line(self):
        line = self.file.readline()
        return json.loads(line) if line else None

    def close(self):
        self.file.close()
        self.socket.close()


def test_status(watched, tmp_path):
    p, path = watched()
    c = Client(path)
    status = wait_until(lambda: (lambda s: s if s["slow"] > 2 and s["loops"] else None)(c.ask("status")), what="stalls")
    assert status["type"] == "status" and status["mode"] == "run" and status["watcher"] == p.pid
    assert status["pid"] == helpers.children(p.pid)[0] == status["loops"][0]["pid"]
    assert status["threshold_ns"] == 20_000_000 and status["recording"] == str(tmp_path / "r.jsonl")
    loop = status["loops"][0]
    assert loop["turns"] > 40 and 55_000_000 < loop["max_ns"] and loop["busy_ns"] > 2 * 55_000_000
    assert 0 < loop["p50_ns"] <= loop["p99_ns"] <= loop["max_ns"] * 1.02
    (site,) = [s for s in status["sites"] if s.get("call", {}).get("name") == "clock_nanosleep"]
    assert site["count"] >= 2 and site["total_ns"] >= 2 * 55_000_000
    wait_until(lambda: c.ask("status")["loops"][0]["turns"] > loop["turns"], what="the figures to move")
    c.close()


def test_follow_tells_what_the_recording_says(watched, tmp_path):
    p, path = watched(300)
    c = Client(path)
    assert c.ask("follow")["type"] == "status"
    told = []
    while (line := c.line()) is not None:
        told.append(line)
    c.close()
    p.wait(helpers.PATIENCE)
    assert told[-1]["type"] == "end"
    stacks = {line["id"] for line in told if line["type"] == "stack"}
    slow = [line for line in told if line["type"] == "slow"]
    assert slow and all(s["stack"] in stacks for line in slow for s in line["samples"] if "stack" in s)
    written = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert all(line in written for line in told)
    assert not path.exists(), "the socket goes with its watcher"


@pytest.mark.parametrize("request_bytes", [b"", b"\0" * 100, b"[]", b"{}", b'{"request":5}', b'{"request":"explode"}',
                                           b"{" * 4000, b'{"request":"detach"}', "\N{SNOWMAN}".encode() * 50])
def test_nonsense_is_refused(watched, request_bytes):
    _, path = watched()
    c = Client(path)
    answer = c.ask(request_bytes)
    assert answer["type"] == "error" and answer["text"]
    assert c.line() is None, "and hung up on"
    c.close()
    good = Client(path)
    assert good.ask("status")["type"] == "status"
    good.close()


def test_an_endless_request_is_cut(watched):
    _, path = watched()
    c = Client(path)
    with pytest.raises((BrokenPipeError, ConnectionResetError, socket.timeout)):
        for _ in range(2000):
            c.socket.sendall(b"x" * 1000)
    c.close()


def test_clients_that_never_read_disturb_nobody(watched, tmp_path):
    """A follower that does not read, others that say nothing and more than there is room for: all stalls are recorded."""
    p, path = watched(400)
    lazy = [Client(path) for _ in range(10)]
    lazy[0].socket.sendall(b'{"request":"follow"}\n' + b'{"request":"status"}\n' * 150)
    silent = []
    for _ in range(20):
        try:
            silent.append(Client(path))
        except OSError:
            break
    p.wait(helpers.PATIENCE)
    recording = helpers.Recording(tmp_path / "r.jsonl")
    assert recording.end["slow"] >= 15 and recording.end["lost"]["queue"] == 0
    for c in [*lazy, *silent]:
        c.close()


def test_a_silent_client_is_hung_up_on(watched):
    _, path = watched(6000)
    c = Client(path, timeout=25)
    c.socket.sendall(b'{"request"')
    begun = time.monotonic()
    assert c.line() is None
    assert time.monotonic() - begun > 5
    c.close()


def test_other_users_are_not_served(watched, runtime):
    if os.geteuid() != 0:
        pytest.skip("takes root")
    _, path = watched()
    mode = runtime.stat().st_mode
    try:
        runtime.chmod(0o755)
        path.chmod(0o777)
        script = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect({str(path)!r}); " \
                 "s.sendall(b'{\"request\":\"status\"}\\n'); print(s.recv(100))"
        done = subprocess.run(["/usr/bin/python3", "-c", script], user=65534, group=65534, extra_groups=[],
                              capture_output=True, text=True)
        assert done.stdout.strip() == "b''" or "Error" in done.stderr
    finally:
        runtime.chmod(mode & 0o7777)


def test_stale_sockets_are_removed(watched, runtime):
    p, path = watched()
    p.kill()
    p.wait()
    assert path.exists()
    assert str(p.pid) not in unblock("ps").stdout
    _, other = watched()
    assert other.exists() and not path.exists()


def test_a_killed_watcher_leaves_the_program(watched):
    p, _ = watched(100)
    (child,) = helpers.children(p.pid)
    p.kill()
    p.wait()
    assert helpers.process_state(child), "the program goes on"


def test_detach_of_a_helper(tmp_path, runtime):
    env = environment(tmp_path)
    p = subprocess.Popen([PYTHON, "-c", LOOP + "print('done')", "600"], env=env, stdout=subprocess.PIPE)
    def socket_of():
        for path in runtime.glob("*.sock"):
            try:
                c = Client(path)
                if c.ask("status")["pid"] == p.pid:
                    return c
                c.close()
            except OSError:
                pass
    c = wait_until(socket_of, what="the helper's socket")
    assert c.ask("detach") == {"type": "ok"}
    c.close()
    path = wait_until(lambda: list(tmp_path.glob("r-*.jsonl")), what="the recording")[0]
    wait_until(lambda: '"type":"end"' in path.read_text(), what="its end")
    assert p.poll() is None
    assert p.communicate(timeout=helpers.PATIENCE)[0] == b"done\n"


# ps ---------------------------------------------------------------------------


def test_ps(watched, tmp_path):
    p, _ = watched()
    env = environment(tmp_path)
    preloaded = subprocess.Popen([PYTHON, "-c", LOOP, "3000"], env=env)
    quiet = subprocess.Popen(["sleep", "100"], env=env)
    try:
        def both():
            all_of = json.loads(unblock("ps", "--format", "json").stdout)
            mine = {w["pid"]: w for w in all_of["watchers"] if w["loops"]}
            return (mine, all_of) if {helpers.children(p.pid)[0], preloaded.pid} <= set(mine) else None
        mine, everything = wait_until(both, what="both watchers")
        assert mine[preloaded.pid]["mode"] == "preload" and mine[helpers.children(p.pid)[0]]["mode"] == "run"
        assert mine[preloaded.pid]["recording"] == str(tmp_path / f"r-{preloaded.pid}.jsonl")
        assert [u for u in everything["unwatched"] if u["pid"] == quiet.pid and u["waiting"]]
        text = unblock("ps").stdout
        (line,) = [line for line in text.splitlines() if line.split()[0] == str(preloaded.pid)]
        assert "preload" in line and str(tmp_path) in line and "20 ms" in line
        assert "no event loop" in unblock("ps", "--all").stdout
    finally:
        preloaded.kill(), quiet.kill()
        preloaded.wait(), quiet.wait()


def test_ps_tells_why_a_helper_could_not_start(tmp_path):
    env = environment(tmp_path, UNBLOCK_HELPER=str(tmp_path / "none"))
    p = subprocess.Popen([PYTHON, "-c", LOOP, "3000"], env=env)
    try:
        def told():
            return [u for u in json.loads(unblock("ps", "--format", "json").stdout)["unwatched"]
                    if u["pid"] == p.pid and not u["waiting"]]
        (mine,) = wait_until(told, what="the reason")
        assert "could not be executed" in mine["why"] and "No such file" in mine["why"]
    finally:
        p.kill()
        p.wait()


def test_ps_help_and_wrong_use():
    assert "preload" in unblock("ps", "--help").stdout
    assert unblock("ps", "1").returncode == 2
