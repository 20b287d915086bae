"""Python: asyncio, aiohttp on asyncio and on uvloop; the script itself is the oracle (time.monotonic_ns).

Each stall must name the function of the script that blocked, its task and the coroutines above it.
"""

import re
import subprocess
import threading
import time

import pytest

import helpers
import servers
from servers import Server, Truth, has_function, http_get, tool

STALLS = r"""
import asyncio, hashlib, json, os, pickle, sys, time, urllib.request

FOLDER = sys.argv[2]

def cpu():
    end = time.monotonic() + 0.15
    while time.monotonic() < end:
        sum(range(1000))

def pbkdf2():
    hashlib.pbkdf2_hmac("sha512", b"password", b"salt", 200000)

def sleep():
    time.sleep(0.2)

def urlopen():
    with urllib.request.urlopen(os.environ["SLOW_URL"]) as response:
        assert response.read() == b"late\n"

def stall(work):
    start = time.monotonic_ns()
    work()
    duration = time.monotonic_ns() - start
    with open(FOLDER + "/truth", "a") as f:
        f.write(json.dumps({"stall": work.__name__, "start_ns": start, "duration_ns": duration}) + "\n")

WORK = {f.__name__: f for f in (sleep, urlopen, cpu, pbkdf2)}
"""

TICKER = STALLS + r"""
async def ticker(ticks):
    for _ in range(ticks):
        await asyncio.sleep(0.005)

async def main():
    await ticker(60)
    for work in WORK.values():
        stall(work)
        await ticker(20)

if sys.argv[1] == "uvloop":
    import uvloop
    uvloop.install()
asyncio.run(main())
"""

AIOHTTP = STALLS + r"""
from aiohttp import web

async def handle(request):
    name = request.match_info["name"]
    if name in WORK:
        stall(WORK[name])
    elif name == "echo":
        return web.Response(body=await request.read(), headers={"Date": "never"})
    elif name != "hello":
        raise web.HTTPNotFound()
    return web.Response(text=name + "\n", headers={"Date": "never"})

if sys.argv[1] == "uvloop":
    import uvloop
    uvloop.install()
app = web.Application()
app.router.add_route("*", "/{name}", handle)
web.run_app(app, host="127.0.0.1", port=int(sys.argv[3]), print=None, access_log=None)
"""

LOOPS = ["asyncio", "uvloop"]


@pytest.fixture
def slow_url(monkeypatch):
    """A peer that answers after 200 ms, without a loop or a thread of the watched process."""
    import http.server

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            time.sleep(0.2)
            self.send_response(200)
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"late\n")

        def log_message(self, *_):
            pass

    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    monkeypatch.setenv("SLOW_URL", f"http://127.0.0.1:{web.server_address[1]}/")
    monkeypatch.setenv("no_proxy", "*")
    yield
    web.shutdown()
    web.server_close()


@pytest.fixture(params=LOOPS)
def loop(request):
    if subprocess.run([helpers.PYTHON, "-c", f"import {request.param}"], capture_output=True).returncode:
        pytest.skip(f"python3-{request.param} is not installed")
    return request.param


def check_python(recording, slow, name):
    """The innermost function of the script is the one that blocked, in the task and the coroutine that called it."""
    samples = [s for s in slow["samples"] if "python" in s]
    assert samples, slow
    for sample in samples:
        own = [f["function"] for f in recording.stacks[sample["stack"]]
               if f.get("language") == "python" and f["file"].endswith(".py") and "/lib/python3" not in f["file"]]
        if sample["python"] != "unproven":
            assert own[:2] == [name, "stall"], own
    assert slow["task"]["name"].startswith("Task-"), slow
    chain = [f["function"] for f in slow["task"]["await"]]
    assert chain[-1] in ("main", "handle") and slow["callback"]["function"] == chain[-1], slow


def check(truth, recording):
    assert [t["stall"] for t in truth.stalls] == ["sleep", "urlopen", "cpu", "pbkdf2"]
    for true, slow in truth.pairs(recording):
        name = true["stall"]
        if name == "sleep":
            assert slow["cause"] == "call" and slow["call"]["name"] in ("clock_nanosleep", "nanosleep", "select"), slow
            assert has_function(recording, slow, "clock_nanosleep*", "__clock_nanosleep*", "__GI___clock_nanosleep*",
                                "select", "*clock_nanosleep*"), recording.functions(slow)
        elif name == "urlopen":
            assert slow["cause"] == "call" and slow["call"]["name"] in ("recvfrom", "recv", "poll", "connect"), slow
            assert "127.0.0.1" in slow["call"].get("fd_path", "127.0.0.1"), slow["call"]
        else:
            assert slow["cause"] == "cpu", slow
            if name == "pbkdf2":
                text = "\n".join(f"{x.get('function')} {x.get('module')}" for s in slow["samples"]
                                 for x in recording.stacks[s["stack"]])
                assert re.search(r"PBKDF2|libcrypto|SHA512|sha512", text), text
        check_python(recording, slow, name)
    truth.nothing_else(recording)


def test_ticker(tmp_path, slow_url, loop):
    """Four blocking calls in coroutines, between ticks that do not block."""
    script = servers.script_truth(tmp_path, TICKER, "ticker.py")
    done, recording = helpers.record(tmp_path, helpers.PYTHON, script, loop, tmp_path, threshold="20ms", timeout=60)
    assert done.returncode == 0, done.stderr
    check(Truth(tmp_path / "truth"), recording)


class Aiohttp(Server):
    loop = "asyncio"

    def command(self):
        if subprocess.run([helpers.PYTHON, "-c", "import aiohttp"], capture_output=True).returncode:
            pytest.skip("python3-aiohttp is not installed")
        return [helpers.PYTHON, servers.script_truth(self.folder, AIOHTTP, "server.py"), self.loop, self.folder,
                self.port]


class AiohttpUvloop(Aiohttp):
    loop = "uvloop"


KINDS = {"asyncio": Aiohttp, "uvloop": AiohttpUvloop}


def test_aiohttp(server, slow_url, loop):
    web = server(KINDS[loop])
    connection = web.connect()
    for _ in range(30):
        http_get(connection, "/hello", web.port)
    for name in ("sleep", "urlopen", "cpu", "pbkdf2"):
        assert http_get(connection, f"/{name}", web.port) == (b"HTTP/1.1 200 OK", f"{name}\n".encode())
        for _ in range(5):
            http_get(connection, "/hello", web.port)
    truth, recording = Truth(web.folder / "truth"), web.stop()
    check(truth, recording)
    for _, slow in truth.pairs(recording):
        assert slow["request"] == {"method": "GET", "route": "/{name}"}, slow.get("request")


def test_aiohttp_quiet_under_load(server, loop, sentinel):
    web = server(KINDS[loop])
    out = subprocess.run([tool("wrk"), "-t1", "-c10", "-d3s", f"http://127.0.0.1:{web.port}/hello"],
                         capture_output=True, text=True, timeout=60).stdout
    requests = int(re.search(r"(\d+) requests in", out)[1])
    assert requests > 1000 and "Non-2xx" not in out, out
    recording = web.stop()
    # A collection of CPython's garbage over the threshold would be rightly reported.
    assert [s for s in servers.stalls(recording, sentinel) if not has_function(recording, s, "*gc_collect*", "gc_*")] == []
    assert max(s.get("turns", s["callbacks"]) for s in recording.of("stats")) > requests / 30


def test_same_replies(either, loop):
    def talk(web):
        connection = web.connect()
        replies = [http_get(connection, path, web.port) for path in ["/hello", "/nothing", "/sleep", "/hello"] * 5]
        for size in (0, 1, 1000, 100000, 900000):
            body = b"b" * size
            connection.sendall(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (size, body))
            replies.append(servers.http_response(connection))
        return replies

    replies = either(KINDS[loop], talk)
    assert replies[0] == (b"HTTP/1.1 200 OK", b"hello\n") and len(replies[-1][1]) == 900000
