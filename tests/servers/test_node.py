"""Node: libuv inside the executable, entered through epoll_pwait; the script itself is the oracle.

process.hrtime is CLOCK_MONOTONIC, as the recording's start_ns. The stacks are native ones, but for those with --js.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest

import helpers
import servers
from servers import Server, Truth, has_function, http_get, tool

SCRIPT = r"""
const fs = require('fs'), http = require('http'), crypto = require('crypto'), {spawn} = require('child_process');
const [port, folder] = [Number(process.argv[2]), process.argv[3]];
const cell = new Int32Array(new SharedArrayBuffer(4));

function stall(name, work) {
    const start = process.hrtime.bigint();
    work();
    const duration = process.hrtime.bigint() - start;
    fs.appendFileSync(folder + '/truth', `{"stall": "${name}", "start_ns": ${start}, "duration_ns": ${duration}}\n`);
}

const stalls = {
    fifo: () => fs.readFileSync(folder + '/fifo'),
    atomics: () => Atomics.wait(cell, 0, 0, 200),
    loop: () => { const end = Date.now() + 150; while (Date.now() < end); },
    pbkdf2: () => crypto.pbkdf2Sync('password', 'salt', 300000, 64, 'sha512'),
};

http.createServer((request, response) => {
    const name = request.url.slice(1);
    if (name in stalls)
        stall(name, stalls[name]);
    const body = `${request.method} ${name}\n`;
    response.writeHead(name in stalls || name === 'hello' ? 200 : 404, {'Content-Length': body.length, Date: 'never'});
    response.end(body);
}).listen(port, '127.0.0.1');
process.on('SIGTERM', () => process.exit(0));
"""


class Node(Server):
    def command(self):
        os.mkfifo(self.folder / "fifo")
        return [tool("node", "nodejs"), servers.script_truth(self.folder, SCRIPT, "server.js"), self.port, self.folder]


def test_stalls(server):
    """readFileSync of a FIFO, Atomics.wait, a JavaScript loop, pbkdf2Sync: each once, each right."""
    node = server(Node)
    connection = node.connect()
    for _ in range(30):
        http_get(connection, "/hello", node.port)
    for name in ("fifo", "atomics", "loop", "pbkdf2"):
        if name == "fifo":
            feeder = subprocess.Popen(["sh", "-c", f"sleep 0.2; echo fed >{node.folder}/fifo"])
        assert http_get(connection, f"/{name}", node.port) == (b"HTTP/1.1 200 OK", f"GET {name}\n".encode())
        for _ in range(5):
            http_get(connection, "/hello", node.port)
    feeder.wait()
    truth_path = node.folder / "truth"
    truth = Truth(truth_path)
    recording = node.stop()
    assert [t["stall"] for t in truth.stalls] == ["fifo", "atomics", "loop", "pbkdf2"]
    for true, slow in truth.pairs(recording):
        name = true["stall"]
        if name == "fifo":
            assert slow["cause"] == "call" and slow["call"]["name"] in ("open", "openat", "read"), slow
            assert has_function(recording, slow, "uv_fs_open", "uv__fs_work", "uv_fs_read", "*open64", "__open64",
                                "open64", "read", "__read"), recording.functions(slow)
        elif name == "atomics":
            assert slow["cause"] in ("lock", "call") and slow["call"]["name"] in ("futex", "pthread_cond_timedwait")
            assert has_function(recording, slow, "pthread_cond_timedwait*", "__pthread_cond*", "uv_cond_timedwait",
                                "v8::*"), recording.functions(slow)
        elif name == "loop":
            assert slow["cause"] == "cpu", slow
        else:
            assert slow["cause"] == "cpu", slow
            text = "\n".join(f for stack in recording.functions(slow) for f in stack)
            assert re.search(r"PBKDF2|pbkdf2|sha512|SHA512|PKCS5|HMAC|crypto", text), text
    truth.nothing_else(recording)


def test_quiet_under_load(server, sentinel):
    node = server(Node, threshold="50ms")  # below, its compiler and collector are rightly seen
    out = subprocess.run([tool("wrk"), "-t1", "-c10", "-d3s", f"http://127.0.0.1:{node.port}/hello"],
                         capture_output=True, text=True, timeout=60).stdout
    requests = int(re.search(r"(\d+) requests in", out)[1])
    assert requests > 3000 and "Non-2xx" not in out, out
    recording = node.stop()
    # A garbage collection over the threshold would be rightly reported.
    assert [s for s in servers.stalls(recording, sentinel) if not has_function(recording, s, "v8::internal::Heap*")] == []
    turns = max(s.get("turns", s["callbacks"]) for s in recording.of("stats"))
    assert turns > requests / 40


def test_same_replies(either):
    def talk(node):
        connection = node.connect()
        return [http_get(connection, f"/{name}", node.port) for name in ["hello", "x", "loop", "hello", "y"] * 3]

    replies = either(Node, talk)
    assert replies[:2] == [(b"HTTP/1.1 200 OK", b"GET hello\n"), (b"HTTP/1.1 404 Not Found", b"GET x\n")]


NAMED = r"""
const http = require('http');
function computeTotals(ms) {
    const end = Date.now() + ms;
    let n = 0;
    while (Date.now() < end) n++;
    return n;
}
function onRequest(request, response) {
    if (request.url === '/slow') computeTotals(400);
    const body = `${process.env.NODE_OPTIONS}\n`;
    response.writeHead(200, {'Content-Length': body.length, Date: 'never'});
    response.end(body);
}
http.createServer(onRequest).listen(Number(process.argv[2]), '127.0.0.1');
process.on('SIGTERM', () => process.exit(0));
"""


class NamedNode(Server):
    def command(self):
        self.script = servers.script_truth(self.folder, NAMED, "named.js")
        return [tool("node", "nodejs"), self.script, self.port]

    def environment(self):
        return {"NODE_OPTIONS": "--max-http-header-size=9000"}


@pytest.mark.parametrize("options", [("--js",), ()])
def test_names_of_functions(server, options):
    """With --js function, file and line of the definition; without it node's options are left alone, no name is
    invented, and the report says how to get them."""
    node = server(NamedNode, options=("-q", *options))
    pid = node.pid
    perf_map = Path(f"/tmp/perf-{pid}.map")
    connection = node.connect()
    for _ in range(30):
        said = http_get(connection, "/hello", node.port)[1].decode().split()
    assert said == ["--max-http-header-size=9000",
                    *(["--perf-basic-prof", "--interpreted-frames-native-stack"] if options else [])]
    assert perf_map.exists() == bool(options)
    http_get(connection, "/slow", node.port)
    recording = node.stop()
    perf_map.unlink(missing_ok=True)
    slow = max((s for s in recording.slow if not s.get("startup")), key=lambda s: s["duration_ns"])
    assert slow["duration_ns"] > 390_000_000 and slow["cause"] in ("cpu", "runqueue"), slow
    scripted = [f for stack in [s["stack"] for s in slow["samples"] if "stack" in s] for f in recording.stacks[stack]
                if f.get("language") == "js"]
    text = helpers.unblock("report", node.path).stdout
    if options:
        own = {(f["function"], f["file"], f["line"]) for f in scripted if not f["file"].startswith("node:")}
        lines = {"computeTotals": 3, "onRequest": 9}
        assert {(name, str(node.script), line) for name, line in lines.items()} <= own, own
        assert slow["callback"]["function"] == "onRequest" and slow["callback"]["line"] == 9, slow["callback"]
        assert re.search(r"named\.js:3 +computeTotals .*\n +named\.js:9 +onRequest", text) and "--js" not in text, text
    else:
        assert not scripted and "unblock run --js names the functions of JavaScript" in text, text
