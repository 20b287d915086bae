"""Every way to block an asyncio loop, on every interpreter that is here and on uvloop: right function, line, task,
chain, cause, GIL. The program (tests/programs/pystalls.py) writes the truth.

A stall during which the machine itself was late (oracle.Sentinel), or that waited for a CPU for a fifth of its time, is excused; a run with more than a quarter of its
stalls excused is skipped.
"""

import http.server
import json
import shutil
import ssl
import subprocess
import threading
import time

import pytest

import helpers
import oracle
import pythons

PROGRAM = helpers.ROOT / "tests/programs/pystalls.py"

# What the standard library imports in the midst of the calls: from a cold disk that alone is a stall of its own.
LATE_IMPORTS = ("ctypes, encodings.idna, http.client, multiprocessing.connection, multiprocessing.popen_fork, multiprocessing.queues, "
                "multiprocessing.synchronize, multiprocessing.util, urllib.request")

WAITS, CPU = {"call", "lock"}, {"cpu"}
# name: causes, GIL ("held", "released" or None for either), innermost function of the program's own
EXPECTED = {
    "sleep": ({"call"}, "released", "sleep"),
    "http": ({"call"}, "released", "http"),
    "https": ({"call"}, "released", "https"),
    "pipe_read": ({"call"}, "released", "pipe_read"),
    "file_sync": ({"call", "cpu"}, None, "file_sync"),
    "run_process": ({"call"}, "released", "run_process"),
    "sqlite_locked": ({"call"}, "released", "sqlite_locked"),
    "sqlite_query": (CPU, "released", "sqlite_query"),
    "getaddrinfo": ({"call"}, "released", "getaddrinfo"),
    "mapped": ({"pagefault"}, "held", "mapped"),
    "lock": ({"lock"}, "released", "lock"),
    "event": ({"lock"}, "released", "event"),
    "queue_get": ({"lock"}, "released", "queue_get"),
    "join": ({"lock"}, "released", "join"),
    "process_queue": (WAITS, "released", "process_queue"),
    "process_connection": ({"call"}, "released", "process_connection"),
    "process_join": ({"call"}, "released", "process_join"),
    "log": ({"call"}, "released", "emit"),
    "cpu": (CPU, "held", "cpu"),
    "json_loads": ({"cpu", "gc"}, "held", "json_loads"),  # a collection is part of making so many objects
    "pickle_dumps": (CPU, "held", "pickle_dumps"),
    "checkpoint": ({"cpu", "call"}, None, "checkpoint"),  # by turns: pickle holds the GIL, each write of its lets go of it
    "regex": (CPU, "held", "regex"),
    "sort": (CPU, "held", None),  # the key is a function of the program too
    "gil": ({"gil"}, None, "gil"),
    "collect": ({"gc"}, "held", "collect"),
    "import_module": ({"import"}, "held", "<module>"),
}

EVERY = [(v, p) for v in pythons.READ for p in pythons.of(v) or [None]]
CASES = [("asyncio", v, p) for v, p in EVERY] + [("uvloop", "3.11", helpers.PYTHON)]


class Late(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        time.sleep(0.12)
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"late\n")

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def late_urls(tmp_path_factory):
    """Servers that answer late: {variable: URL}; without openssl only the plain one."""
    servers = {"SLOW_URL": http.server.ThreadingHTTPServer(("127.0.0.1", 0), Late)}
    urls = {}
    if shutil.which("openssl"):
        folder = tmp_path_factory.mktemp("tls")
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=x",
                        "-keyout", folder / "key", "-out", folder / "cert"], check=True, capture_output=True)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "cert", folder / "key")
        servers["SLOW_HTTPS_URL"] = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Late)
        servers["SLOW_HTTPS_URL"].socket = context.wrap_socket(servers["SLOW_HTTPS_URL"].socket, server_side=True)
    for name, server in servers.items():
        threading.Thread(target=server.serve_forever, daemon=True).start()
        urls[name] = f"http{'s' if 'HTTPS' in name else ''}://127.0.0.1:{server.server_address[1]}/"
    yield urls
    for server in servers.values():
        server.shutdown()
        server.server_close()


def own(frames):
    return [f for f in frames if f.get("language") == "python" and
            (f["file"] == str(PROGRAM) or f["file"].endswith("/bigmodule.py"))]


def last(function):
    return function.rsplit(".", 1)[-1]


def problems(true, slow, recording):
    """What is wrong with the record of a stall, as texts."""
    causes, gil, function = EXPECTED[true["stall"]]
    wrong = []
    if slow["cause"] not in causes:
        wrong.append(f"cause {slow['cause']}")
    if not -2_000_000 <= slow["duration_ns"] - true["duration_ns"] <= 2_000_000 + slow.get("runqueue_ns", 0) + 10_000_000:
        wrong.append(f"duration {slow['duration_ns']}, really {true['duration_ns']}")
    if slow.get("task", {}).get("name") != "stall " + true["stall"]:
        wrong.append(f"task {slow.get('task')}")
    elif [p["function"] for p in slow["task"]["await"]] != ["outer", "inner"]:
        wrong.append(f"chain {slow['task']['await']}")
    if slow["callback"].get("function") != "outer":
        wrong.append(f"callback {slow['callback']}")
    if slow["kind"] != "task":
        wrong.append(f"kind {slow['kind']}")
    seen = slow.get("gil", {})
    if gil and not seen.get(gil, 0) > seen.get("held" if gil == "released" else "released", 0):
        wrong.append(f"gil {seen}")
    if true["stall"] == "gil" and last(seen.get("holder", {}).get("function", "")) != "hog":
        wrong.append(f"holder {seen}")
    samples = [s for s in slow["samples"] if "python" in s]
    if not samples:
        wrong.append(f"no Python frames: {slow['samples']}")
    for sample in samples:
        frames = own(recording.stacks[sample["stack"]])
        if sample["python"] == "unproven":
            continue
        if function and (not frames or last(frames[0]["function"]) != function):
            wrong.append(f"innermost {frames[:1]}")
        if function != "emit" and not any(true["first"] <= f["line"] <= true["last"] for f in frames):
            wrong.append(f"no line of {true['first']} to {true['last']}: {frames}")
    return wrong


def truth_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("loop,version,python", CASES)
def test_matrix(tmp_path, late_urls, loop, version, python):
    if not python:
        pytest.skip(f"no CPython {version} is installed")
    if loop == "uvloop" and not pythons.ask(python, "import uvloop; print(1)"):
        pytest.skip(f"{python} has no uvloop")
    names = [n for n in EXPECTED if n != "https" or "SLOW_HTTPS_URL" in late_urls]
    names = [n for n in names if "sqlite" not in n or pythons.ask(python, "import sqlite3; print(1)")]
    env = helpers.clean_environment(no_proxy="*", **late_urls)
    subprocess.run([python, "-c", f"import {LATE_IMPORTS}"], check=True)
    with oracle.Sentinel() as sentinel:
        done, recording = helpers.record(tmp_path, python, PROGRAM, loop, tmp_path / "truth", *names, threshold="30ms",
                                         env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    assert {s["loop"] for s in recording.slow if s.get("task", {}).get("name", "").startswith("stall ")} == {loop}
    truth = truth_of(tmp_path / "truth")
    stalls = [t for t in truth if "stall" in t]
    assert [t.get("stall", t.get("skipped")) for t in truth] == names
    for t in truth:
        if "skipped" in t:
            print(t)
    wrong, excused = {}, 0
    for true in stalls:
        middle = true["start_ns"] + true["duration_ns"] // 2
        found = [s for s in recording.slow if s["start_ns"] <= middle <= s["start_ns"] + s["duration_ns"]]
        bad = problems(true, found[0], recording) if len(found) == 1 else [f"{len(found)} records"]
        starved = any(5 * s.get("runqueue_ns", 0) > s["duration_ns"] or
                      sentinel.busy(s["start_ns"], s["start_ns"] + s["duration_ns"]) for s in found)
        if bad and (starved or sentinel.busy(true["start_ns"], true["start_ns"] + true["duration_ns"])):
            excused += 1
        elif bad:
            wrong[true["stall"]] = bad
    assert not wrong, "\n".join(f"{k}: {v}" for k, v in wrong.items())
    if excused > len(stalls) // 4:
        pytest.skip(f"the machine was too busy: {excused} of {len(stalls)} stalls excused")
