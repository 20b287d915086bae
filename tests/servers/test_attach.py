"""`unblock attach` into real servers under load, again and again: each reply is the right one, none is lost.

UNBLOCK_SOAK=1: a thousand times each. What is printed: how long the loop was kept from its work at each entry, and the
slowest reply, beside that of the same load without anybody entering.
"""

import os
import threading
import time

import pytest

import attaching
import helpers
import servers
from servers import http_get
from test_asyncio import Aiohttp, AiohttpUvloop
from test_memcached import Memcached
from test_memcached import ask as ask_memcached
from test_nginx import Nginx
from test_node import Node
from test_redis import Client, Redis

CYCLES = 1000 if os.environ.get("UNBLOCK_SOAK") == "1" else 50
CLIENTS = 3


def talk_redis(server, connection, i):
    client = Client(connection)  # one question at a time: nothing is left over in its buffer
    return client.ask("SET", f"k{i % 100}", i), client.ask("GET", f"k{i % 100}") is not None


def talk_memcached(server, connection, i):
    return ask_memcached(connection, b"set k%d 0 0 5\r\nhello\r\n" % (i % 100))


def talk_http(path):
    return lambda server, connection, i: http_get(connection, path, server.port)


KINDS = {
    "redis": (Redis, talk_redis, ("OK", True), lambda s: s.pid),
    "memcached": (Memcached, talk_memcached, b"STORED\r\n", lambda s: s.pid),
    "nginx": (Nginx, talk_http("/index.html"), (b"HTTP/1.1 200 OK", b"hello\n"), lambda s: s.worker),
    "node": (Node, talk_http("/hello"), (b"HTTP/1.1 200 OK", b"GET hello\n"), lambda s: s.pid),
    "aiohttp": (Aiohttp, talk_http("/hello"), (b"HTTP/1.1 200 OK", b"hello\n"), lambda s: s.pid),
    "uvloop": (AiohttpUvloop, talk_http("/hello"), (b"HTTP/1.1 200 OK", b"hello\n"), lambda s: s.pid),
}


class Load:
    """Clients that ask one question after another and compare each reply."""

    def __init__(self, server, talk, reply):
        self.over = threading.Event()
        self.replies, self.slowest, self.wrong = 0, 0.0, []
        self.threads = [threading.Thread(target=self.client, args=(server, talk, reply)) for _ in range(CLIENTS)]

    def client(self, server, talk, reply):
        i = 0
        try:
            while not self.over.is_set():
                i = self.converse(server, talk, reply, i)
        except (OSError, AssertionError) as error:
            self.wrong.append(error)

    def converse(self, server, talk, reply, i):
        """500 questions a connection: nginx closes one after 1000."""
        with server.connect() as connection:
            for _ in range(500):
                if not self.over.is_set():
                    begun = time.monotonic()
                    said = talk(server, connection, i)
                    self.slowest = max(self.slowest, time.monotonic() - begun)
                    if said != reply:
                        self.wrong.append(said)
                    self.replies += 1
                    i += 1
        return i

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        for thread in self.threads:
            thread.join()


@pytest.mark.parametrize("name", KINDS)
def test_cycles_under_load(server, tmp_path, name):
    kind, talk, reply, whom = KINDS[name]
    running = server(kind, watched=False)
    pid = whom(running)
    with Load(running, talk, reply) as before:
        time.sleep(1)
    held = attaching.Held()
    with Load(running, talk, reply) as load:
        for i in range(CYCLES):
            path = tmp_path / f"{i % 2}.jsonl"
            path.unlink(missing_ok=True)
            held.add(attaching.leave(attaching.enter(pid, path)))
            if i == 1:
                maps, files = len(attaching.maps(pid)), attaching.open_files(pid)
            assert not load.wrong, load.wrong
    print(f"{name}: {held}; "
          f"{load.replies} replies, slowest {load.slowest * 1e3:.1f} ms (without: {before.slowest * 1e3:.1f})")
    assert load.replies > 100 and not load.wrong
    assert helpers.process_state(pid) in ("S", "R", "D")
    # Nothing grows from the second time on (a thread that is met for the first time takes its part of the arena).
    assert len(attaching.maps(pid)) <= maps + 4 + len(os.listdir(f"/proc/{pid}/task"))
    assert sum("memfd" in f for f in attaching.open_files(pid)) == sum("memfd" in f for f in files) == 0


def test_a_stall_in_redis_is_named(server, tmp_path):
    """Entered while it serves, left again: the stall between is there with its function and call."""
    redis = server(Redis, watched=False)
    client = redis.client()
    path = tmp_path / "a.jsonl"
    attached = attaching.enter(redis.pid, path)
    for _ in range(30):
        client.ask("PING")
    assert client.ask("DEBUG", "SLEEP", "0.2") == "OK"
    client.ask("PING")
    attaching.leave(attached)
    assert client.ask("DEBUG", "SLEEP", "0.1") == "OK"
    recording = helpers.Recording(path)
    slow = servers.only([s for s in recording.slow if s["duration_ns"] > 150_000_000], "DEBUG SLEEP")
    assert slow["cause"] == "call" and slow["call"]["name"] in ("usleep", "nanosleep", "clock_nanosleep")
    assert servers.has_function(recording, slow, "debugCommand")
