"""Real servers with LD_PRELOAD alone: daemons, prefork masters, workers that give up root, reloads."""

import os
import signal
import subprocess
import time

import helpers
import servers
from servers import http_get, tool
from test_nginx import Nginx
from test_node import Node
from test_preload import helpers_of
from test_redis import Redis


def preloaded(kind):
    """The server class started with LD_PRELOAD instead of `unblock run`."""

    class Preloaded(kind):
        def start(self):
            self.watched = False
            out = self.folder / "recordings"
            out.mkdir()
            if os.getuid() == 0:
                os.chown(out, 65534, 65534)  # whoever turns out to be the first to loop
            env = helpers.clean_environment(LD_PRELOAD=str(helpers.AGENT), UNBLOCK_THRESHOLD=self.threshold,
                                            UNBLOCK_OUTPUT=str(out / "r-%p.jsonl"))
            self.process = subprocess.Popen([str(c) for c in self.command()], stdin=subprocess.DEVNULL, env=env,
                                            cwd=self.folder, **self.popen_arguments())
            helpers.wait_until(lambda: self.process.poll() is not None or self.ready(), what="the server to listen")

        def recordings(self):
            helpers.wait_until(lambda: not helpers_of(self.folder), what="the helpers' end")
            return [helpers.Recording(p) for p in sorted((self.folder / "recordings").iterdir())]

    return Preloaded


def test_redis(server):
    redis = server(preloaded(Redis))
    client = redis.client()
    for _ in range(50):
        assert client.ask("PING") == "PONG"
    helpers.wait_until(lambda: helpers_of(redis.folder), what="the helper")
    time.sleep(0.2)
    client.ask("DEBUG", "SLEEP", "0.2")
    client.ask("BGSAVE")
    for _ in range(20):
        client.ask("PING")
    time.sleep(0.2)
    redis.stop()
    (r,) = redis.recordings()
    slept = [s for s in r.slow if s.get("call", {}).get("name") == "clock_nanosleep"]
    assert len(slept) == 1 and 200_000_000 <= slept[0]["duration_ns"] < 260_000_000
    assert servers.has_function(r, slept[0], "debugCommand")
    assert r.end


def test_redis_daemon(server, tmp_path):
    """It forks before its loop, the first process ends; nothing keeps its folder or terminal."""
    folder = tmp_path / "d"
    folder.mkdir()
    port = servers.free_port()
    env = helpers.clean_environment(LD_PRELOAD=str(helpers.AGENT), UNBLOCK_OUTPUT=str(folder / "r-%p.jsonl"),
                                    UNBLOCK_THRESHOLD="20ms")
    subprocess.run([tool("redis-server"), "--port", str(port), "--daemonize", "yes", "--dir", folder, "--save", "",
                    "--enable-debug-command", "local", "--pidfile", folder / "pid"], env=env, check=True, stdout=subprocess.DEVNULL, timeout=30)
    cli = [tool("redis-cli"), "-p", str(port)]
    try:
        helpers.wait_until(lambda: subprocess.run([*cli, "ping"], capture_output=True).stdout == b"PONG\n", what="redis")
        for _ in range(15):
            subprocess.run([*cli, "ping"], capture_output=True, check=True)
        helpers.wait_until(lambda: helpers_of(folder), what="the helper")
        time.sleep(0.2)
        subprocess.run([*cli, "debug", "sleep", "0.15"], capture_output=True, check=True)
    finally:
        subprocess.run([*cli, "shutdown", "nosave"], capture_output=True)
    helpers.wait_until(lambda: not helpers_of(folder), what="the helper's end")
    (path,) = folder.glob("r-*.jsonl")
    r = helpers.Recording(path)
    assert [s for s in r.slow if 150_000_000 <= s["duration_ns"] < 250_000_000] and r.end


def test_nginx_reload(server):
    """The master never loops. Workers, as another user, share one helper, also those of after a reload."""
    nginx = server(preloaded(Nginx))
    for _ in range(20):
        http_get(nginx.connect(), "/index.html", nginx.port)
    (helper,) = helpers.wait_until(lambda: helpers_of(nginx.folder), what="the helper")
    for _ in range(6):
        old = nginx.worker
        nginx.process.send_signal(signal.SIGHUP)
        helpers.wait_until(lambda: helpers.children(nginx.pid) and old not in helpers.children(nginx.pid), what="the reload")
        for _ in range(20):
            http_get(nginx.connect(), "/index.html", nginx.port)
    assert helpers_of(nginx.folder) == [helper], "one helper for all"
    time.sleep(0.2)
    nginx.fill_log()
    connection = nginx.connect()
    assert http_get(connection, "/logged/index.html", nginx.port)[1] == b"hello\n"
    time.sleep(0.2)
    nginx.drain_log()
    assert http_get(connection, "/index.html", nginx.port)[1] == b"hello\n"
    assert helpers.children(nginx.pid) and helper not in helpers.children(nginx.pid)
    nginx.process.send_signal(signal.SIGTERM)
    assert nginx.process.wait(30) == 0
    (r,) = nginx.recordings()
    assert [s for s in r.slow if 150_000_000 < s["duration_ns"] < 400_000_000], "the log that nobody read"


def test_node(server):
    node = server(preloaded(Node))
    connection = node.connect()
    for _ in range(30):
        http_get(connection, "/hello", node.port)
    helpers.wait_until(lambda: helpers_of(node.folder), what="the helper")
    time.sleep(0.3)
    http_get(connection, "/atomics", node.port)
    http_get(connection, "/hello", node.port)
    node.stop()
    (r,) = node.recordings()
    assert [s for s in r.slow if 200_000_000 <= s["duration_ns"] < 260_000_000]


class Gunicorn(servers.Server):
    """An arbiter that collects its workers with waitpid(-1) and replaces those it did not end itself."""

    def command(self):
        (self.folder / "app.py").write_text("""
import time
def app(environ, start_response):
    if environ["PATH_INFO"] == "/slow":
        time.sleep(0.12)
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
""")
        return [tool("gunicorn"), "-w", "3", "-b", f"127.0.0.1:{self.port}", "--chdir", self.folder, "app:app"]


def test_gunicorn(server):
    g = server(preloaded(Gunicorn))
    for _ in range(180):  # whoever is asked: each worker must have become a loop
        http_get(g.connect(), "/", g.port, close=True)
    helpers.wait_until(lambda: helpers_of(g.folder), what="a helper")
    time.sleep(0.3)
    for _ in range(12):
        http_get(g.connect(), "/slow", g.port, close=True)
    workers = helpers.children(g.pid)
    assert len(workers) == 3
    os.kill(workers[0], signal.SIGKILL)
    helpers.wait_until(lambda: len(helpers.children(g.pid)) == 3 and workers[0] not in helpers.children(g.pid),
                       what="the arbiter to replace a worker")
    g.process.send_signal(signal.SIGTERM)
    assert g.process.wait(30) == 0
    assert "unknown" not in g.complaints().lower()
    assert sum(1 for r in g.recordings() for s in r.slow if 120_000_000 <= s["duration_ns"] < 200_000_000) >= 2
