"""memcached: one libevent loop in each of several threads.

It is written never to block. What blocks it all the same: a log that nobody reads (`-vv` writes a line for each
command to standard error).
"""

import os
import random
import subprocess
import threading
import time

import servers
from servers import Server, has_function, only, tool


class Memcached(Server):
    verbose = False

    def command(self):
        return [tool("memcached"), "-l", "127.0.0.1", "-p", self.port, "-t", "2", "-m", "64",
                *(["-u", "nobody"] if os.getuid() == 0 else []), *(["-vv"] if self.verbose else [])]


class Verbose(Memcached):
    """Its standard error is a pipe that is read only when the test says so."""

    verbose = True
    options = ("-q",)  # unblock itself must not write into that pipe

    def popen_arguments(self):
        return {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}

    def complaints(self):
        return "(its standard error is the test's)"


def ask(connection, text):
    connection.sendall(text)
    data = b""
    while not data.endswith((b"STORED\r\n", b"END\r\n", b"DELETED\r\n", b"NOT_FOUND\r\n", b"OK\r\n", b"ERROR\r\n",
                             b"TOUCHED\r\n")) and not (data[:1].isdigit() and data.endswith(b"\r\n")):
        more = connection.recv(1 << 20)
        assert more, "memcached hung up"
        data += more
    return data


def test_log_that_is_not_read(server):
    memcached = server(Verbose)
    connection = memcached.connect()
    pid = memcached.pid
    filled = threading.Event()
    answered = []

    def fill():
        # Each command is a line in the log: sooner or later one of them hangs.
        for _ in range(20000):
            if filled.is_set():
                break
            answered.append(ask(connection, b"set k 0 0 1\r\nx\r\n"))

    thread = threading.Thread(target=fill)
    thread.start()
    last = -1
    while len(answered) != last:
        last = len(answered)
        time.sleep(0.25)
    hung_at_least_ns = 200_000_000
    filled.set()
    read_from = servers.now_ns()

    def drain():
        while memcached.process.stderr.read1(1 << 20):
            pass

    threading.Thread(target=drain, daemon=True).start()
    thread.join(30)
    assert ask(connection, b"get k\r\n") == b"VALUE k 0 1\r\nx\r\nEND\r\n"
    recording = memcached.stop()
    slow = only([s for s in servers.stalls(recording) if s["duration_ns"] > hung_at_least_ns], "the hanging log")
    assert slow["pid"] == pid and slow["tid"] != pid, "a worker thread"
    assert slow["cause"] == "call" and slow["call"]["name"] in ("write", "writev"), slow
    assert (slow["loop"], slow["kind"]) == ("libevent", "io") and slow["callback"]["fd"] > 2, slow
    assert slow["callback"]["fd_path"] == "socket %s:%d" % connection.getsockname(), slow["callback"]
    assert slow["call"]["fd"] == 2 and "pipe" in slow["call"]["fd_path"], slow["call"]
    assert abs(slow["start_ns"] + slow["duration_ns"] - read_from) < 30_000_000
    assert has_function(recording, slow, "write", "__write", "__libc_write", "__GI___libc_write")
    assert slow["samples"][0]["complete"], "from write to clone, through memcached's own frames"
    assert any("libevent" in f.get("module", "") for f in recording.stacks[slow["samples"][0]["stack"]])


def test_quiet_under_load(server, sentinel):
    """Both workers busy: no report, and the totals are right."""
    memcached = server(Memcached)
    pid = memcached.pid
    each, connections = 3000, 8
    requests = []

    def client(seed):
        rand = random.Random(seed)
        connection = memcached.connect()
        for i in range(each):
            key = b"key%d" % rand.randrange(1000)
            ask(connection, b"set %s 0 0 4\r\nabcd\r\n" % key if i % 3 == 0 else b"get %s\r\n" % key)
        requests.append(each)
        connection.close()

    threads = [threading.Thread(target=client, args=(i,)) for i in range(connections)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(120)
    assert sum(requests) == each * connections
    recording = memcached.stop()
    assert servers.stalls(recording, sentinel) == []
    last = {}
    for s in recording.of("stats"):
        assert s["pid"] == pid
        last[s["tid"]] = s
    turns = sorted((s.get("turns", s["callbacks"]) for s in last.values()), reverse=True)
    # Synchronous clients: a turn serves at most one request of each, at least one of somebody.
    assert each * connections / connections <= turns[0] + turns[1] <= 2.5 * each * connections
    assert turns[1] > each, "the second worker was watched too"


def test_same_replies(either):
    rand = random.Random(9)
    script = []
    for i in range(2000):
        key = b"k%d" % rand.randrange(40)
        # No leading zeros: incr would make the value shorter, and whether memcached then pads it with a blank or
        # stores it anew depends on what its maintainer thread holds just then.
        script.append(rand.choice([b"set %s 0 0 3\r\n%03d\r\n" % (key, 100 + i % 900), b"get %s\r\n" % key,
                                   b"incr %s 1\r\n" % key, b"append %s 0 0 1\r\n7\r\n" % key, b"delete %s\r\n" % key,
                                   b"touch %s 100\r\n" % key, b"nonsense\r\n"]))

    def talk(memcached):
        connection = memcached.connect()
        return [ask_any(connection, line) for line in script]

    replies = either(Memcached, talk)
    assert len(replies) == 2000 and any(r.startswith(b"VALUE") for r in replies)


def ask_any(connection, line):
    """Like `ask`, for replies of one line or of a value."""
    connection.sendall(line)
    data = b""
    while not data.endswith(b"\r\n") or (data.startswith(b"VALUE") and not data.endswith(b"END\r\n")):
        more = connection.recv(1 << 20)
        assert more, "memcached hung up"
        data += more
    return data

