"""Real servers under load: CPU time a request, with the agent and without, at once.

A pair is one short load on each of two servers at the same time: they take turns
on one CPU by the scheduler's slices, and so see the same machine, whose moods
last for seconds. The CPU time of a server's processes is divided by the requests
that the load generator (or the server) counted. The load comes from another CPU,
where there are two.
"""

import os
import re
import socket
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import helpers
import pairs
import servers
import test_asyncio
import test_memcached
import test_nginx
import test_node
import test_redis
from watcher import cpu_ns

THRESHOLD = "50ms"


PAIRS_A_START = 5  # then both servers are started anew: addresses and heaps differ from start to start
SERVER_CPU, LOAD_CPU = (1, 0) if len(os.sched_getaffinity(0)) > 1 else (0, 0)


def family_cpu_ns(pid):
    return sum(cpu_ns(p) for p in [pid, *servers.descendants(pid)])


def pin(pid):
    for p in [pid, *servers.descendants(pid)]:
        for task in os.listdir(f"/proc/{p}/task"):
            os.sched_setaffinity(int(task), {SERVER_CPU})


def start(kind, watched):
    s = kind(watched=watched, threshold=THRESHOLD, options=("-q",))
    s.start()
    if watched:
        assert helpers.AGENT.name in Path(f"/proc/{s.pid}/maps").read_text(), "the agent is not there"
    pin(s.pid)
    return s


def loaded(s, load):
    """ns of CPU that the server spends on one request of `load(server) -> requests`."""
    before = family_cpu_ns(s.pid)
    requests = load(s, warm=False)
    spent = family_cpu_ns(s.pid) - before
    assert requests > 1000, f"only {requests} requests"
    return spent / requests


def in_pairs(kind, load, count, a_start):
    """Two servers, both loaded at once."""
    values = {"none": [], "agent": []}
    while len(values["none"]) < count:
        running = {}
        try:
            for name in values:
                running[name] = start(kind, name == "agent")
                load(running[name], warm=True)
            with ThreadPoolExecutor(2) as pool:
                for _ in range(min(a_start, count - len(values["none"]))):
                    loads = {name: pool.submit(loaded, s, load) for name, s in running.items()}
                    for name, future in loads.items():
                        values[name].append(future.result())
        finally:
            for s in running.values():
                s.end()
    return values


def wrk(path, seconds, connections=20):
    def load(s, warm):
        out = subprocess.run([servers.tool("wrk"), "-t1", f"-c{connections}", f"-d{1 if warm else seconds}s",
                              f"http://127.0.0.1:{s.port}{path}"], capture_output=True, text=True, check=True).stdout
        assert "Non-2xx" not in out and "Socket errors" not in out, out
        return int(re.search(r"(\d+) requests in", out)[1])

    return load


def redis_load(s, warm):
    count = 20000 if warm else 15000
    client = s.client()

    def done():
        return int(re.search(r"total_commands_processed:(\d+)", client.ask("INFO", "stats"))[1])

    before = done()
    subprocess.run([servers.tool("redis-benchmark"), "-p", str(s.port), "-c", "50", "-n", str(count), "-t", "get", "-q"],
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    served = done() - before
    assert count <= served <= count + 20, f"redis served {served} of {count}"
    client.connection.close()
    return served


def memcached_load(s, warm):
    """Eight connections, each 32 gets at a time; every reply is checked."""
    rounds, batch = (50, 32) if warm else (500, 32)
    request = b"get k\r\n" * batch
    reply = b"VALUE k 0 10\r\n0123456789\r\nEND\r\n" * batch
    served = []

    def client():
        connection = s.connect()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        test_memcached.ask(connection, b"set k 0 0 10\r\n0123456789\r\n")
        for _ in range(rounds):
            connection.sendall(request)
            got = 0
            while got < len(reply):
                got += len(connection.recv(1 << 20))
            assert got == len(reply)
        served.append(rounds * batch)
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(served) == 8, "a client failed"
    return sum(served)


def compare(name, kind, load, quick, limit, peer=""):
    affinity = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {LOAD_CPU})  # inherited by the load generator; the servers are pinned to the other one
    try:
        values = in_pairs(kind, load, 2 * pairs.rounds(quick), PAIRS_A_START)
    finally:
        os.sched_setaffinity(0, affinity)
    median, low, high = pairs.interval(pairs.ratios(values, "agent", "none"))
    base = pairs.interval(values["none"])[0] / 1000
    row = {"what": f"{name}: CPU a request, agent/none", "ours": f"{median:.3f} [{low:.3f}, {high:.3f}] on {base:.1f} us",
           "limit": limit, "judged": high, "peer": peer}
    return [row], values


def redis(quick):
    return compare("redis", test_redis.Redis, redis_load, quick, 1.03, "throughput: strace x 0.19, perf trace x 0.54")


def nginx(quick):
    return compare("nginx", test_nginx.Nginx, wrk("/index.html", 1), quick, 1.03)


def memcached(quick):
    return compare("memcached", test_memcached.Memcached, memcached_load, quick, 1.03)


def node(quick):
    return compare("node", test_node.Node, wrk("/hello", 1), quick, 1.03, "async_hooks +150 ns a turn")


def aiohttp(quick):
    return compare("aiohttp on asyncio", test_asyncio.Aiohttp, wrk("/hello", 1), quick, 1.05,
                   "debug=True +45 us a callback")


def uvloop(quick):
    return compare("aiohttp on uvloop", test_asyncio.AiohttpUvloop, wrk("/hello", 1), quick, 1.05)
