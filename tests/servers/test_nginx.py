"""nginx: a master that waits for signals and a worker with a bare epoll loop, which has given up root.

What really blocks a worker here: an access log whose reader stalls (a FIFO: `access_log` to a logger that does
not keep up), and one big response compressed in a single go.
"""

import os
import random
import re
import signal
import subprocess
import time

import pytest

import helpers
import servers
from servers import Server, has_function, http_get, only, run_delay_ns, tool


class Nginx(Server):
    def command(self):
        folder = self.folder
        os.mkfifo(folder / "log.fifo")
        # Opened for both, so that nginx's own open does not wait for us, and never read until a test says so.
        self.log = os.open(folder / "log.fifo", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        root = folder / "root"
        root.mkdir()
        (root / "index.html").write_text("hello\n")
        (root / "big.txt").write_bytes(random.Random(1).randbytes(3 << 20).hex().encode())
        for name in ("body", "proxy", "fastcgi", "uwsgi", "scgi"):
            (folder / name).mkdir()
        if os.getuid() == 0:
            for path in folder.rglob("*"):
                os.chown(path, 65534, 65534)
        (folder / "nginx.conf").write_text(f"""
            daemon off;
            worker_processes 1;
            {'user nobody nogroup;' if os.getuid() == 0 else ''}
            pid {folder}/pid;
            error_log {folder}/error.log warn;
            events {{ worker_connections 1000; }}
            http {{
                access_log off;
                client_body_temp_path {folder}/body;
                proxy_temp_path {folder}/proxy;
                fastcgi_temp_path {folder}/fastcgi;
                uwsgi_temp_path {folder}/uwsgi;
                scgi_temp_path {folder}/scgi;
                server {{
                    listen 127.0.0.1:{self.port};
                    root {root};
                    location /logged/ {{ alias {root}/; access_log {folder}/log.fifo; }}
                    location /packed/ {{
                        alias {root}/;
                        gzip on; gzip_comp_level 9; gzip_types *; gzip_buffers 4 8m;
                        sendfile off; output_buffers 1 16m;
                    }}
                }}
            }}
            """)
        return [tool("nginx"), "-c", folder / "nginx.conf", "-e", folder / "error.log"]

    @property
    def worker(self):
        return helpers.wait_until(lambda: helpers.children(self.pid), what="the worker")[0]

    def fill_log(self):
        """The log's reader has stalled for so long that the pipe is full."""
        for size in (4096, 1):
            while True:
                try:
                    os.write(self.log, b"x" * size)
                except BlockingIOError:
                    break

    def drain_log(self):
        drained = b""
        while True:
            try:
                drained += os.read(self.log, 1 << 20)
            except BlockingIOError:
                return drained

    def end(self):
        super().end()
        if getattr(self, "log", -1) >= 0:
            os.close(self.log)
            self.log = -1


@pytest.fixture
def load():
    running = []

    def start(nginx, seconds):
        running.append(subprocess.Popen([tool("wrk"), "-t1", "-c20", f"-d{seconds}s",
                                         f"http://127.0.0.1:{nginx.port}/index.html"], stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, text=True))
        return running[-1]

    yield start
    for p in running:
        p.kill()
        p.wait()
        p.stdout.close()


def test_access_log_that_is_not_read(server, load):
    """The worker hangs in write() for as long as nobody reads the log, wrk's requests with it."""
    nginx = server(Nginx)
    worker = nginx.worker
    wrk = load(nginx, 3)
    time.sleep(0.7)
    nginx.fill_log()
    connection = nginx.connect()
    noise = run_delay_ns(worker)
    begun = servers.now_ns()
    assert http_get(connection, "/logged/index.html", nginx.port)[1] == b"hello\n"
    helpers.wait_until(lambda: servers.now_ns() - begun > 200_000_000, what="200 ms to pass", interval=0.001)
    ended = servers.now_ns()
    assert nginx.drain_log().startswith(b"x")
    noise = run_delay_ns(worker) - noise
    out = wrk.communicate(timeout=30)[0]
    assert int(re.search(r"(\d+) requests in", out)[1]) > 1000
    assert "Non-2xx" not in out, out
    recording = nginx.stop()

    slow = only(servers.stalls(recording), "the hanging log")
    assert slow["pid"] == worker
    assert slow["cause"] == "call" and slow["call"]["name"] == "write", slow
    assert slow["call"]["fd_path"].endswith("log.fifo"), slow["call"]
    # Whose request was being logged.
    assert slow["input"]["fd_path"] == "socket %s:%d" % connection.getsockname(), slow["input"]
    # It began after our request was sent and ended after we read.
    assert begun < slow["start_ns"] < begun + 20_000_000 + noise
    assert ended - 2_000_000 < slow["start_ns"] + slow["duration_ns"] < ended + 20_000_000 + noise
    assert has_function(recording, slow, "write", "__write", "__libc_write", "__GI___libc_write")
    assert has_function(recording, slow, "ngx_http_log_*", "ngx_http_free_request", "ngx_http_finalize_request",
                        "ngx_*"), recording.functions(slow)


def test_compressing_in_one_go(server):
    """gzip of 6 MB into buffers as large: CPU, in zlib."""
    nginx = server(Nginx)
    connection = nginx.connect()
    for _ in range(20):  # a worker that has served next to nothing is not known as a loop yet
        http_get(connection, "/index.html", nginx.port)
    connection.sendall(b"GET /packed/big.txt HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n")
    received = 0
    while True:
        data = connection.recv(1 << 20)
        if not data:
            break
        received += len(data)
    recording = nginx.stop()
    found = servers.stalls(recording)
    assert received > 1 << 20
    assert found and all(s["cause"] == "cpu" for s in found), found
    worst = max(found, key=lambda s: s["duration_ns"])
    stacks = [s["stack"] for s in worst["samples"] if "stack" in s]  # a starved worker may miss one
    assert any("libz" in f.get("module", "") for stack in stacks for f in recording.stacks[stack])
    assert has_function(recording, worst, "deflate*", "crc32*", "compress*", "longest_match*", "adler32*"), \
        recording.functions(worst)


def test_quiet_under_load(server, load, sentinel):
    nginx = server(Nginx)
    out = load(nginx, 3).communicate(timeout=30)[0]
    requests = int(re.search(r"(\d+) requests in", out)[1])
    worker = nginx.worker
    recording = nginx.stop()
    assert requests > 10000
    assert servers.stalls(recording, sentinel) == []
    stats = [s for s in recording.of("stats") if s["pid"] == worker]
    assert stats and stats[-1].get("turns", stats[-1]["callbacks"]) > requests / 50


def test_reload(server, load):
    """SIGHUP: old worker out, new worker in, no request lost, the new worker watched."""
    nginx = server(Nginx)
    old = nginx.worker
    wrk = load(nginx, 3)
    time.sleep(0.7)
    os.kill(nginx.pid, signal.SIGHUP)
    new = helpers.wait_until(lambda: [c for c in helpers.children(nginx.pid) if c != old], what="the new worker")[0]
    out = wrk.communicate(timeout=30)[0]
    assert "Non-2xx" not in out, out
    nginx.fill_log()
    connection = nginx.connect()
    http_get(connection, "/logged/index.html", nginx.port)
    time.sleep(0.1)
    nginx.drain_log()
    http_get(connection, "/index.html", nginx.port)
    recording = nginx.stop()
    assert only(servers.stalls(recording), "the hanging log")["pid"] == new


def test_same_replies(either):
    def talk(nginx):
        connection = nginx.connect()
        replies = []
        for path in ["/index.html", "/", "/nothing", "/big.txt", "/../x", "/packed/index.html"] * 20:
            replies.append(http_get(connection, path, nginx.port))
            if b"400" in replies[-1][0]:
                connection = nginx.connect()
        return replies

    replies = either(Nginx, talk)
    assert replies[0] == (b"HTTP/1.1 200 OK", b"hello\n") and replies[2][0] == b"HTTP/1.1 404 Not Found"

