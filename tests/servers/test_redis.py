"""redis-server: a bare epoll loop (`ae`), measured against what redis itself says in its SLOWLOG.

Debian's redis is stripped but built with -rdynamic: its exported functions have names.
"""

import os
import random
import shutil
import signal
import subprocess
import time

import pytest

import helpers
import servers
from servers import Server, has_function, near, only, run_delay_ns, tool


class Redis(Server):
    def __init__(self, daemon=False, **options):
        super().__init__(**options)
        self.daemon = daemon

    def command(self):
        return [tool("redis-server"), "--port", self.port, "--bind", "127.0.0.1", "--dir", self.folder, "--save", "",
                "--appendonly", "no", "--enable-debug-command", "yes", "--slowlog-log-slower-than", "10000",
                "--slowlog-max-len", "1000", "--daemonize", "yes" if self.daemon else "no",
                "--pidfile", self.folder / "pid"]

    def ready(self):
        try:
            return self.client().ask("PING") == "PONG"
        except (OSError, AssertionError):
            return False

    def client(self):
        return Client(self.connect())


class Client:
    """The redis protocol, as far as the tests need it."""

    def __init__(self, connection):
        self.connection = connection
        self.file = connection.makefile("rb")

    def send(self, *words):
        text = b"*%d\r\n" % len(words)
        for word in words:
            word = str(word).encode()
            text += b"$%d\r\n%s\r\n" % (len(word), word)
        self.connection.sendall(text)

    def read(self):
        line = self.file.readline()
        assert line.endswith(b"\r\n"), "redis hung up"
        kind, rest = line[:1], line[1:-2].decode()
        if kind == b"*":
            return [self.read() for _ in range(int(rest))]
        if kind == b"$":
            return None if rest == "-1" else self.file.read(int(rest) + 2)[:-2].decode()
        return int(rest) if kind == b":" else rest

    def ask(self, *words):
        self.send(*words)
        return self.read()

    def slowlog_ns(self, *words):
        """How long redis says that the last such command took."""
        for entry in self.ask("SLOWLOG", "GET", "1000"):
            if [w.upper() for w in entry[3][:len(words)]] == list(words):
                return entry[2] * 1000
        raise AssertionError(f"{words} is not in the SLOWLOG")


@pytest.fixture
def load():
    """redis-benchmark beside the test, ended with it."""
    running = []

    def start(redis):
        running.append(subprocess.Popen([tool("redis-benchmark"), "-p", str(redis.port), "-c", "20", "-n", "100000000",
                                         "-t", "get,set", "-q"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        time.sleep(0.5)

    yield start
    for p in running:
        p.kill()
        p.wait()


def test_stalls_under_load(server, load):
    """DEBUG SLEEP, KEYS of a million keys and SAVE, while redis-benchmark keeps the server busy."""
    redis = server(Redis)
    client = redis.client()
    assert client.ask("DEBUG", "POPULATE", "1000000") == "OK"
    load(redis)
    truth = {}
    for name, *words in (("sleep", "DEBUG", "SLEEP", "0.2"), ("keys", "KEYS", "*"), ("save", "SAVE")):
        noise = run_delay_ns(redis.pid)
        begun = servers.now_ns()
        reply = client.ask(*words)
        assert reply == "OK" if name != "keys" else len(reply) >= 1000000
        ended = servers.now_ns()
        redis.peer = "socket %s:%d" % client.connection.getsockname()
        truth[name] = (begun, ended, client.slowlog_ns(*words[:2] if name == "sleep" else words[:1]),
                       run_delay_ns(redis.pid) - noise)
        time.sleep(0.2)
    recording = redis.stop()

    for name, (begun, ended, true_ns, noise_ns) in truth.items():
        if true_ns < 22_000_000:
            continue  # a machine too fast for this one: below the threshold
        inside = [s for s in recording.slow if begun - 2_000_000 <= s["start_ns"] <= ended and
                  s["duration_ns"] > 0.8 * true_ns]
        slow = only(inside, f"{name} ({true_ns / 1e6:.1f} ms) in {[(s['start_ns'] - begun, s['duration_ns']) for s in recording.slow]}")
        assert near(slow["duration_ns"], true_ns, noise_ns), (name, slow["duration_ns"] / 1e6, true_ns / 1e6, noise_ns)
        if name == "sleep":
            assert slow["cause"] == "call"
            assert slow["call"]["name"] in ("usleep", "nanosleep", "clock_nanosleep")
            assert has_function(recording, slow, "debugCommand")
        elif name == "keys":
            assert slow["cause"] == "cpu", slow
            assert has_function(recording, slow, "keysCommand")
        else:
            assert slow["cause"] in ("cpu", "call"), slow
            assert has_function(recording, slow, "saveCommand")
        # Below the dispatcher aeProcessEvents comes redis's own reading of a client.
        assert slow["callback"]["function"] in ("readQueryFromClient", "connSocketEventHandler", "call",
                                                "processInputBuffer"), slow["callback"]
        # Whom it served: it had read our command last.
        if any("stack" in s for s in slow["samples"]):
            assert slow["input"]["fd_path"] == redis.peer and slow["input"]["call"] == "read", slow["input"]
    assert truth["sleep"][2] >= 200_000_000

    # What else redis did in its loop: the populating and printing of the SLOWLOG, its own cron, nothing invented.
    for slow in servers.stalls(recording):
        assert has_function(recording, slow, "debugCommand", "keysCommand", "saveCommand", "slowlogCommand",
                            "serverCron", "writeToClient", "sendReplyToClient", "freeClient*", "readQueryFromClient",
                            "handleClientsWithPendingWrites", "*beforeSleep"), recording.functions(slow)


def test_quiet_under_load(server, load, sentinel):
    """A healthy redis under full load: nothing to report."""
    redis = server(Redis)
    load(redis)
    time.sleep(3)
    requests = int(dict(line.split(":", 1) for line in redis.client().ask("INFO", "stats").split("\r\n")
                        if ":" in line)["total_commands_processed"])
    recording = redis.stop()
    assert requests > 10000
    assert servers.stalls(recording, sentinel) == []
    turns = max(s.get("turns", s["callbacks"]) for s in recording.of("stats"))
    assert turns > requests / 50, "a turn serves at most as many requests as there are clients"


def test_bgsave_forks(server, load):
    """The fork of BGSAVE saves and ends as ever; its parent stays watched."""
    redis = server(Redis)
    client = redis.client()
    client.ask("DEBUG", "POPULATE", "200000")
    load(redis)
    for _ in range(3):
        assert client.ask("BGSAVE") == "Background saving started"
        helpers.wait_until(lambda: "rdb_bgsave_in_progress:0" in client.ask("INFO", "persistence"), what="BGSAVE")
        assert "rdb_last_bgsave_status:ok" in client.ask("INFO", "persistence")
    assert (redis.folder / "dump.rdb").stat().st_size > 1000000
    pid = redis.pid
    client.ask("DEBUG", "SLEEP", "0.1")
    recording = redis.stop()
    slept = [s for s in recording.slow if has_function(recording, s, "debugCommand")
             and s.get("call", {}).get("name") in ("usleep", "nanosleep", "clock_nanosleep")]
    assert only(slept, "DEBUG SLEEP after the forks")["pid"] == pid
    assert {s["pid"] for s in recording.slow} == {pid}


def test_daemonize(server):
    """`--daemonize yes` under `unblock run`: the daemon lives, serves and ends on its own."""
    redis = Redis(daemon=True)
    try:
        launched = subprocess.run([str(helpers.UNBLOCK), "run", "-t", "20ms", "-o", str(redis.path), "--",
                                   *map(str, redis.command())], stdin=subprocess.DEVNULL,
                                  stdout=subprocess.DEVNULL, stderr=redis.stderr, timeout=30,
                                  env=helpers.clean_environment(), start_new_session=True)
        assert launched.returncode == 0, redis.complaints()
        helpers.wait_until(redis.ready, what="the daemon")
        client = redis.client()
        assert client.ask("DEBUG", "SLEEP", "0.1") == "OK"
        assert client.ask("SET", "a", "b") == "OK" and client.ask("GET", "a") == "b"
        pid = int((redis.folder / "pid").read_text())
        assert helpers.process_state(pid) in ("S", "R", "D")
        os.kill(pid, signal.SIGTERM)
        helpers.wait_until(lambda: helpers.process_state(pid) in (None, "Z"), what="the daemon's end")
    finally:
        try:
            os.kill(int((redis.folder / "pid").read_text()), signal.SIGKILL)
        except (OSError, ValueError):
            pass
        redis.stderr.close()
        shutil.rmtree(redis.folder, ignore_errors=True)


def test_same_replies(either):
    """A conversation of 3000 commands gets the same replies with the agent and without."""
    rand = random.Random(4)
    script = []
    for i in range(3000):
        key = f"k{rand.randrange(50)}"
        script.append(rand.choice([("SET", key, i), ("GET", key), ("APPEND", key, "x" * rand.randrange(2000)),
                                   ("STRLEN", key), ("LPUSH", "l", i), ("LRANGE", "l", "0", "20"), ("INCR", "n"),
                                   ("GET", "l"), ("DEL", key), ("EXPIRE", key, "100"), ("EVAL", "return 1+1", "0"),
                                   ("NOSUCH", key), ("SORT", "l"), ("DBSIZE",)]))

    def talk(redis):
        client = redis.client()
        for words in script:
            client.send(*words)
        return [client.read() for _ in script]

    replies = either(Redis, talk)
    assert len(replies) == 3000 and "OK" in replies
