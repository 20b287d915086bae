"""Real servers, found running and watched from the kernel; the truth is what they say themselves."""

import os
import re
import subprocess
import threading
import time

import pytest

import helpers
import servers
import tracing
from servers import has_function, http_get, near, only, run_delay_ns
from test_nginx import Nginx
from test_node import Node
from test_redis import Redis

LARGE = 1_500_000


@pytest.fixture
def server():
    started = []

    def start(kind, **options):
        started.append(kind(watched=False, **options))
        started[-1].start()
        return started[-1]

    yield start
    for s in started:
        s.end()


@pytest.fixture
def watch(tmp_path):
    running = []

    def start(pid, *options, threshold="20ms"):
        running.append(tracing.Tracer(tmp_path, pid, threshold=threshold, options=options))
        return running[-1]

    yield start
    for t in running:
        t.end()


def longest(recording, start, end):
    """The longest stall that lies in the given time."""
    found = [s for s in recording.slow if s["start_ns"] < end and s["start_ns"] + s["duration_ns"] > start]
    return max(found, key=lambda s: s["duration_ns"]) if found else None


def test_redis(server, watch):
    """DEBUG SLEEP, KEYS over 1.5 million keys, SAVE, and an AOF that is synced at each command, against the SLOWLOG."""
    redis = server(Redis)
    client = redis.client()
    client.ask("DEBUG", "POPULATE", LARGE)
    client.ask("SLOWLOG", "RESET")
    tracer = watch(redis.pid)
    spans, noise = {}, run_delay_ns(redis.pid)

    def do(*words):
        begun = servers.now_ns()
        client.ask(*words)
        spans[words[0]] = (begun, servers.now_ns())

    do("DEBUG", "SLEEP", "0.2")
    do("KEYS", "nothing*")
    do("SAVE")
    client.ask("PING")  # the turn of SAVE is surely over
    noise = run_delay_ns(redis.pid) - noise
    recording = tracer.stop()
    sleep, keys, save = (longest(recording, *spans[name]) for name in ("DEBUG", "KEYS", "SAVE"))
    assert sleep["cause"] == "call" and sleep["call"]["name"] == "clock_nanosleep", sleep
    assert near(sleep["duration_ns"], client.slowlog_ns("DEBUG"), noise)
    assert near(keys["duration_ns"], client.slowlog_ns("KEYS"), noise)
    assert keys["cause"] in ("cpu", "runqueue") and has_function(recording, keys, "keysCommand")
    assert near(save["duration_ns"], client.slowlog_ns("SAVE"), noise)
    assert has_function(recording, save, "rdbSave*"), recording.functions(save)
    assert save["syscalls"] > 1000, save
    if "calls" in save:  # of less than a hundredth of the time nothing is said
        assert any(c["name"] == "write" and c["count"] > 1000 for c in save["calls"]), save


def test_redis_fsync(server, watch, tmp_path):
    """appendfsync always on a disk that something else keeps busy: the file of the AOF is named."""
    redis = server(Redis)
    client = redis.client()
    client.ask("CONFIG", "SET", "appendonly", "yes")
    client.ask("CONFIG", "SET", "appendfsync", "always")
    tracer = watch(redis.pid, threshold="2ms")
    stop = threading.Event()

    def keep_busy():
        while not stop.is_set():
            with open(redis.folder / "busy", "wb") as f:
                f.write(bytes(32 << 20))
                os.fsync(f.fileno())

    busy = threading.Thread(target=keep_busy)
    busy.start()
    for _ in range(300):
        client.ask("SET", "key", "x" * 1000)
    stop.set()
    busy.join()
    recording = tracer.stop()
    synced = [s for s in recording.slow if s.get("call", {}).get("name") in ("fsync", "fdatasync")]
    if not synced and not [s for s in recording.slow if s["cause"] == "call"]:
        pytest.skip("this disk syncs in less than 2 ms")
    assert synced, recording.slow
    named = [s["call"]["fd_path"] for s in synced if "fd_path" in s["call"]]  # files closed since have no name
    assert named and all("appendonly" in path for path in named), synced


def test_nginx(server, watch):
    """A worker, found as a child of the master, blocks in the write of a log that nobody reads."""
    nginx = server(Nginx)
    tracer = watch(nginx.pid, "--children")
    connection = nginx.connect()
    for _ in range(30):
        http_get(connection, "/index.html", nginx.port)
    filler = os.open(nginx.folder / "log.fifo", os.O_WRONLY | os.O_NONBLOCK)
    try:
        while True:
            os.write(filler, bytes(4096))
    except BlockingIOError:
        pass
    os.close(filler)

    def drain():
        time.sleep(0.25)
        os.read(nginx.log, 1 << 20)

    reader = threading.Thread(target=drain)
    reader.start()
    http_get(connection, "/logged/index.html", nginx.port)
    reader.join()
    recording = tracer.stop()
    slow = only([s for s in recording.slow if s["duration_ns"] > 150_000_000], "the log")
    assert slow["cause"] == "call" and slow["call"]["name"] == "write", slow
    assert slow["call"]["fd_path"].endswith("log.fifo") or slow["call"]["fd_path"].startswith("pipe"), slow
    assert slow["pid"] != nginx.pid


class ColdNginx(Nginx):
    """With a file of 64 MB that is read in one go, in the server's way of a small site: no sendfile, no threads."""

    def command(self):
        command = super().command()
        conf = self.folder / "nginx.conf"
        root = self.folder / "root"
        conf.write_text(conf.read_text().replace(
            "location /logged/", f"location /cold/ {{ alias {root}/; sendfile off; output_buffers 1 64m; }} location /logged/"))
        with open(root / "cold.bin", "wb") as f:
            f.write(os.urandom(64 << 20))
            os.fsync(f.fileno())
        return command

    def forget(self):
        """The file is not in memory any more."""
        fd = os.open(self.folder / "root/cold.bin", os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def test_nginx_cold_file(server, watch):
    """A worker reads a big file that is not in memory: the call, the file, and nginx's own frames; warm it is quicker."""
    nginx = server(ColdNginx)
    tracer = watch(nginx.pid, "--children", threshold="2ms")
    connection = nginx.connect()
    for _ in range(30):
        http_get(connection, "/index.html", nginx.port)
    spans = []
    for _ in range(3):
        nginx.forget()
        begun = servers.now_ns()
        status = http_get(connection, "/cold/cold.bin", nginx.port)[0]
        spans.append((begun, servers.now_ns()))
        assert status == b"HTTP/1.1 200 OK"
    recording = tracer.stop()
    named = 0
    for span in spans:
        slow = longest(recording, *span)
        assert slow and slow["pid"] == nginx.worker and slow["cause"] in ("call", "cpu", "runqueue"), slow
        read = max(slow["calls"], key=lambda c: c["duration_ns"])
        assert read["name"] in ("pread64", "read") and str(64 << 20) in read["args"], slow
        assert read.get("blocked_ns", 0) <= read["duration_ns"] <= slow["duration_ns"], slow
        if slow["cause"] == "call":  # what it is depends on the disk: some are as fast as memory
            assert slow["call"]["name"] == read["name"], slow
        frames = [f for s in slow["samples"] if "stack" in s for f in recording.stacks[s["stack"]]]
        assert not frames or any(f.get("module", "").endswith("/nginx") for f in frames), frames
        named += read.get("fd_path", "").endswith("/cold.bin")  # nginx closes it when it is sent
    assert named, recording.slow


SYNCER = r"""
const fs = require('fs');
const block = Buffer.alloc(32 << 20, 'x'), folder = process.argv[2];
let round = 0;
function flush() {
    const start = process.hrtime.bigint();
    const fd = fs.openSync(folder + '/synced', 'w');
    fs.writeSync(fd, block);
    fs.fsyncSync(fd);
    const duration = process.hrtime.bigint() - start;
    fs.appendFileSync(folder + '/truth', `{"stall": "sync", "start_ns": ${start}, "duration_ns": ${duration}}
`);
    setTimeout(() => fs.closeSync(fd), 1000);
}
const timer = setInterval(() => { if (++round % 40 === 0) flush(); if (round === 160) { clearInterval(timer); } }, 10);
"""


def test_node_sync(tracer, tmp_path):
    """openSync, writeSync and fsyncSync in a timer: the calls with their file, node's own functions, its own clock."""
    (tmp_path / "sync.js").write_text(SYNCER)
    traced = tracer(servers.tool("node", "nodejs"), tmp_path / "sync.js", tmp_path, threshold="5ms")
    status, _, err, recording = traced.wait()
    assert status == 0, err
    truth = servers.Truth(tmp_path / "truth")
    assert len(truth.stalls) == 4
    paths = []
    for true in truth.stalls:
        slow = longest(recording, true["start_ns"], true["start_ns"] + true["duration_ns"])
        assert slow and slow["duration_ns"] >= true["duration_ns"] - 1_000_000, (true, slow)
        assert slow["cause"] in ("call", "cpu", "runqueue"), slow
        calls = {c["name"]: c for c in slow["calls"]}
        assert "write" in calls or "fsync" in calls, slow  # below a hundredth of the time nothing is said
        paths += [c["fd_path"] for name, c in calls.items() if name in ("write", "fsync") and "fd_path" in c]
        if slow["cause"] == "call" and slow["call"]["name"] == "fsync":  # that is up to the disk
            assert has_function(recording, slow, "*fsync*"), recording.functions(slow)
        frames = [f for s in slow["samples"] if "stack" in s for f in recording.stacks[s["stack"]]]
        assert any("node" in f.get("module", "") or "uv" in f.get("module", "") for f in frames), frames
    # A file that was closed before anybody came to look its name up has none.
    assert paths and all(path.endswith("/synced") for path in paths), recording.slow


def test_node(server, watch):
    node = server(Node)
    tracer = watch(node.pid)
    connection = node.connect()
    for _ in range(30):
        http_get(connection, "/hello", node.port)
    for name in ("fifo", "atomics", "loop", "pbkdf2"):
        if name == "fifo":
            feeder = subprocess.Popen(["sh", "-c", f"sleep 0.2; echo fed >{node.folder}/fifo"])
        http_get(connection, f"/{name}", node.port)
        for _ in range(5):
            http_get(connection, "/hello", node.port)
    feeder.wait()
    truth = servers.Truth(node.folder / "truth")
    recording = tracer.stop()
    for true, slow in truth.pairs(recording):
        expected = {"fifo": ("call", "openat|open|read"), "atomics": ("lock|call", "futex")}.get(true["stall"])
        if expected:
            assert slow["cause"] in expected[0].split("|") and slow["call"]["name"] in expected[1].split("|"), slow
        else:
            assert slow["cause"] in ("cpu", "runqueue"), slow
    fifo = [slow for true, slow in truth.pairs(recording) if true["stall"] == "fifo"][0]
    assert "fifo" in fifo["call"].get("args", "") + fifo["call"].get("fd_path", ""), fifo["call"]


def test_asyncio(tracer):
    """time.sleep and a computation in callbacks of an asyncio program that nothing enters."""
    traced = tracer(helpers.PYTHON, "-c", """
import asyncio, time
async def main():
    for i in range(40):
        await asyncio.sleep(0.005)
    print(time.monotonic_ns())
    time.sleep(0.08)
    print(time.monotonic_ns())
    await asyncio.sleep(0.01)
    print(time.monotonic_ns())
    until = time.monotonic() + 0.08
    while time.monotonic() < until:
        sum(range(1000))
    print(time.monotonic_ns())
    for i in range(10):
        await asyncio.sleep(0.005)
asyncio.run(main())
""", threshold="20ms")
    status, out, err, recording = traced.wait()
    assert status == 0, err
    times = [int(word) for word in out.split()]
    found = [longest(recording, *times[:2]), longest(recording, *times[2:])]
    assert all(s and s["duration_ns"] > 75_000_000 for s in found), recording.slow
    assert found[0]["cause"] == "call" or tracing.starved(found[0]), found[0]
    assert found[0]["call"]["name"] == "clock_nanosleep", found[0]
    assert re.match(r"80(\.\d+)? ms|0\.08 s|until", found[0]["call"]["args"]), found[0]
    assert found[1]["cause"] in ("cpu", "runqueue") and found[1]["samples"], found[1]
