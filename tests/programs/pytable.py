"""What blocks in one step, each in a way of its own, beside a task that sleeps for 5 ms again and again: pytable.py asyncio|uvloop [CASE ...].
Prints {case: its longest gap in ms}.

Before the loop runs, a process's first request of urllib is made: it imports how names are encoded, and since CPython 3.12 `urlopen` has
OpenSSL read all certificates of the machine, also for http (40 ms of computing and more). No call waits there, and nothing can be moved.
Likewise what starting a child by multiprocessing imports, and the database's making (which waits for the disk three times)."""

import asyncio
import http.server
import json
import multiprocessing.popen_spawn_posix
import multiprocessing.resource_tracker
import os
import queue
import select
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

SECONDS = 0.2


def later(function, *values):
    threading.Timer(SECONDS, function, values).start()


async def sleeps():
    async def one():
        time.sleep(0.5)
    await asyncio.gather(*[one() for _ in range(5)])


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        time.sleep(float(self.path[1:]))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


def requests(seconds):
    """Of a server that takes so long. Gives what ends it."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/{seconds}").read()
    return lambda: (server.shutdown(), server.server_close())


async def urllibs():
    await asyncio.to_thread(requests(0.3))


async def subprocesses():
    subprocess.run(["sleep", "0.3"], check=True)


def locks(path, ready):
    with sqlite3.connect(path) as other:
        other.execute("begin exclusive")
        ready.set()
        time.sleep(0.45)


async def sqlites():
    spawning = multiprocessing.get_context("spawn")
    ready = spawning.Event()
    other = spawning.Process(target=locks, args=(DATABASE, ready))
    other.start()
    while not ready.is_set():
        await asyncio.sleep(0.01)
    mine = sqlite3.connect(DATABASE, isolation_level=None)
    mine.execute("insert into t values (1)")
    mine.close()
    await asyncio.to_thread(other.join)


async def events():
    event = threading.Event()
    later(event.set)
    event.wait()


async def queues():
    q = queue.Queue()
    later(q.put, 1)
    q.get()


async def joins():
    thread = threading.Thread(target=time.sleep, args=(SECONDS,))
    thread.start()
    thread.join()


async def selects():
    r, w = os.pipe()
    later(os.write, w, b"x")
    select.select([r], [], [])


CASES = {"sleeps": sleeps, "urllib": urllibs, "subprocess": subprocesses, "sqlite": sqlites, "event": events, "queue": queues, "join": joins,
         "select": selects}


async def main(names):
    gaps, said = [], {}

    async def ticker():
        while True:
            begun = time.perf_counter()
            await asyncio.sleep(0.005)
            gaps.append(time.perf_counter() - begun)
    ticking = asyncio.create_task(ticker())
    await asyncio.sleep(0.2)  # until the loop is known to be one
    for name in names:
        gaps.clear()
        await asyncio.create_task(CASES[name]())
        await asyncio.sleep(0.02)
        said[name] = max(gaps) * 1000
    ticking.cancel()
    print(json.dumps(said))


if __name__ == "__main__":
    if sys.argv[1] == "uvloop":
        import uvloop
        uvloop.install()
    requests(0)()
    with tempfile.TemporaryDirectory() as folder:
        DATABASE = os.path.join(folder, "db")
        sqlite3.connect(DATABASE).execute("create table t (a)")
        asyncio.run(main(sys.argv[2:] or list(CASES)))
