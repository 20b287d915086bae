"""The programs that this project began with, each as one would write it first, beside a ticker of 10 ms: pyseeds.py CASE...

Each case prints what it found: alone, and with its calls or functions moved, it has to be the same. The ticker's longest gap,
but for what its thread waited for a CPU, and the time that the case took go to standard error, in ms.
"""
import asyncio
import http.server
import json
import multiprocessing
import os
import sqlite3
import sys
import tempfile
import threading
import time
import urllib.request

if {"odbc", "transacts", "stays", "apart"} & set(sys.argv):
    import pyodbc
if "files" in sys.argv:
    import aiofiles

SIZE = int(os.environ.get("SIZE", 1))  # of what computes
MESSAGE = 2_000_000
FOLDER = tempfile.mkdtemp(prefix="seeds")


# ---- what waits -----------------------------------------------------------------------------


class Slow(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        time.sleep(0.3)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"report")

    def log_message(self, *_):
        pass


async def fetches():
    """A worker that blocks in a client of HTTP."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found = [urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/").read() for _ in range(2)]
    server.shutdown()
    server.server_close()
    return found


# ---- what computes --------------------------------------------------------------------------


def counts_down(left):
    while left:
        left -= 1
    return left


async def counts():
    """50 million decrements, with SIZE 50."""
    return counts_down(SIZE * 1_000_000)


def is_prime(n):
    if n % 2 == 0:
        return n == 2
    for i in range(3, int(n ** 0.5) + 1, 2):
        if n % i == 0:
            return False
    return True


async def primes():
    return is_prime(112272535095293)


def tree(depth):
    return {f"key{i}": tree(depth - 1) for i in range(8)} if depth else list(range(20))


def walk(value):
    """How many numbers there are, and their sum."""
    if isinstance(value, dict):
        found = [walk(child) for child in value.values()]
        return sum(n for n, _ in found), sum(s for _, s in found)
    return len(value), sum(value)


def text_of_tree():
    path = os.path.join(FOLDER, "tree.json")
    if not os.path.exists(path):
        with open(path, "w") as file:
            json.dump(tree(5), file)
    with open(path) as file:
        return file.read()


async def walks():
    """An object of some MB of JSON."""
    value = json.loads(text_of_tree())
    await asyncio.sleep(0.02)
    return [walk(value) for _ in range(12)]  # looked at several times


# ---- databases --------------------------------------------------------------------------------

LONG = """with recursive n(i) as (select 1 union all select i + 1 from n where i < 1000000) select count(*), max(i) from n"""


def asks(connection):
    cursor = connection.cursor()
    cursor.execute(LONG)
    row = tuple(cursor.fetchone())
    cursor.close()
    return row


def chain():
    connection = sqlite3.connect(os.path.join(FOLDER, "one.db"))
    found = asks(connection)
    connection.close()
    return found


async def sqlite():
    """connect, cursor, execute, on sqlite."""
    return [chain() for _ in range(2)]


async def transacts(name="shared.db"):
    """Two tasks share a connection of ODBC: the second takes nothing back that the first has not committed yet."""
    path = os.path.join(FOLDER, name)
    connection, other = [pyodbc.connect(f"DRIVER=SQLite3;Database={path}", autocommit=False) for _ in range(2)]
    connection.execute("create table t(a)")
    connection.commit()

    async def writes():
        connection.cursor().execute("insert into t values(1)")
        other.execute("select 1").fetchone()
        time.sleep(0.15)
        connection.commit()

    async def takes_back():
        connection.rollback()
    writing = asyncio.create_task(writes())
    await asyncio.sleep(0.05)
    await takes_back()
    await writing
    return connection.execute("select count(*) from t").fetchone()[0]


async def stays():
    """The same, where the second is in a transaction of sqlite3's besides."""
    own = sqlite3.connect(os.path.join(FOLDER, "own.db"), isolation_level=None)
    own.execute("begin exclusive")
    found = await transacts("stays.db")
    own.close()
    return found


async def apart():
    """Two tasks with a connection of ODBC each, to what somebody else has locked: each gives up after its time. Two that share one: what
    the first writes is all there when the second looks, also with more statements than are known."""
    locked = [os.path.join(FOLDER, f"locked{i}.db") for i in range(2)]
    connections = [pyodbc.connect(f"DRIVER=SQLite3;Database={path};Timeout=300", autocommit=True) for path in locked]
    lockers = [sqlite3.connect(path, isolation_level=None) for path in locked]
    for locker in lockers:
        locker.execute("begin exclusive")

    async def gives_up(connection):
        try:
            connection.execute("create table t(a)")
        except pyodbc.Error as error:
            return "locked" in str(error)
    begun = time.monotonic()
    found = await asyncio.gather(*[gives_up(connection) for connection in connections])
    print(f"apart_took {(time.monotonic() - begun) * 1000:.0f}", file=sys.stderr)
    for locker in lockers:
        locker.close()
    connection = pyodbc.connect(f"DRIVER=SQLite3;Database={FOLDER}/both.db", autocommit=True)
    connection.execute("create table t(a)")

    async def writes(cursor):
        cursor.execute("insert into t values(1)")
        time.sleep(0.15)
        cursor.execute("insert into t values(2)")

    async def looks(cursor):
        return cursor.execute("select count(*) from t").fetchone()[0]
    cursors = [connection.cursor() for _ in range(1500)]
    for i, j in (0, 1), (2, -1), (-1, 3):
        found.append((await asyncio.gather(writes(cursors[i]), looks(cursors[j])))[1])
    return found


async def odbc():
    """The same through ODBC."""
    connection = pyodbc.connect(f"DRIVER=SQLite3;Database={FOLDER}/one.db", autocommit=True)
    found = [asks(connection) for _ in range(2)]
    connection.close()
    return found


# ---- files --------------------------------------------------------------------------------------


async def files():
    """As aiofiles reads: each call by a thread."""
    path = os.path.join(FOLDER, "lines")
    async with aiofiles.open(path, "w") as file:
        for i in range(200):
            await file.write(f"line {i}\n" * 50)

    async def read():
        async with aiofiles.open(path) as file:
            whole = await file.read()
        count = 0
        async with aiofiles.open(path) as file:
            async for _ in file:
                count += 1
                if count == 300:
                    break
            return len(whole), count, await file.readline()
    return await asyncio.gather(*[read() for _ in range(5)])


# ---- workers --------------------------------------------------------------------------------------


def answers_queue(asked, answered):
    while (message := asked.get()) is not None:
        time.sleep(0.15)
        answered.put(message[::-1])


def answers_pipe(end):
    while (message := end.recv()) is not None:
        time.sleep(0.15)
        end.send(message[::-1])
    time.sleep(0.2)


async def by_queue():
    """A reactor hands messages of 2 MB to workers: by Queue."""
    asked, answered = multiprocessing.Queue(), multiprocessing.Queue()
    workers = [multiprocessing.Process(target=answers_queue, args=(asked, answered)) for _ in range(2)]
    for worker in workers:
        worker.start()
    messages = [bytes([i]) * MESSAGE + b"end" for i in range(4)]
    for message in messages:
        asked.put(message)
    found = {answered.get() for _ in messages}
    for _ in workers:
        asked.put(None)
    for worker in workers:
        worker.join()
    return found == {m[::-1] for m in messages}, [worker.exitcode for worker in workers]


async def by_pipe():
    """By Pipe."""
    here, there = multiprocessing.Pipe()
    worker = multiprocessing.Process(target=answers_pipe, args=(there,))
    worker.start()
    found = []
    for i in range(3):
        message = bytes([i]) * MESSAGE + b"end"
        here.send(message)
        found.append(here.recv() == message[::-1])
    here.send(None)
    worker.join()
    return found, worker.exitcode


async def by_many():
    """Tasks that share a Queue: each has one of the answers."""
    asked, answered = multiprocessing.Queue(), multiprocessing.Queue()
    worker = multiprocessing.Process(target=answers_queue, args=(asked, answered))
    worker.start()

    async def ask(i):
        asked.put(bytes([i]) * MESSAGE)
        return answered.get()[0]
    found = await asyncio.gather(*[ask(i) for i in range(3)])
    asked.put(None)
    worker.join(10)
    return sorted(found), worker.exitcode


schedstat = os.open("/proc/thread-self/schedstat", os.O_RDONLY) if os.path.exists("/proc/thread-self/schedstat") else -1


def without_a_cpu():
    """How long the loop's thread has waited for one, in s: that is the machine's doing."""
    return int(os.pread(schedstat, 100, 0).split()[1]) / 1e9 if schedstat >= 0 else 0


async def run(case):
    gaps = []

    async def ticker():
        last = time.monotonic() - without_a_cpu()
        while True:
            await asyncio.sleep(0.01)
            now = time.monotonic() - without_a_cpu()
            gaps.append(now - last)
            last = now
    ticking = asyncio.create_task(ticker())
    await asyncio.sleep(0.02)
    gaps.clear()
    begun = time.monotonic()
    print(case.__name__, await case(), flush=True)
    took = time.monotonic() - begun
    await asyncio.sleep(0.02)
    ticking.cancel()
    print(case.__name__, f"{max(gaps) * 1000:.0f} {took * 1000:.0f}", file=sys.stderr, flush=True)


async def main(cases):
    for _ in range(12):
        await asyncio.sleep(0.002)  # until the loop is known to be one
    for case in cases:
        await run(case)


if __name__ == "__main__":
    if os.environ.get("LOOP") == "uvloop":
        import uvloop
        uvloop.install()
    asyncio.run(main([globals()[name] for name in sys.argv[1:]]))
