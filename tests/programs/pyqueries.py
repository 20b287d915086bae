"""Queries of SQLite's that compute, in steps of tasks: alone and with every sqlite3_step made by a thread each case prints the same. The
ticker's gap goes to standard error, as in pyoffload.py."""
import asyncio
import os
import signal
import sqlite3
import sys
import threading
import time

import pyoffload
import pysqlite

# So many rows take some tenths of a second; `FEW` some milliseconds.
MANY, FEW = 600_000, 5_000
COUNTS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {}) "


def counts(rows, select):
    return COUNTS.format(rows) + select


async def computes():
    db = sqlite3.connect(":memory:")

    async def query(i):
        return db.execute(counts(MANY, "SELECT count(*), ? FROM n"), (i,)).fetchone()
    got = await asyncio.gather(query(1), query(2))
    db.close()
    return got


async def rows_of_one():
    """Each row takes its time; who comes to the same connection meanwhile is served between two awaits of who reads."""
    db, seen = sqlite3.connect(":memory:"), []

    async def read():
        for i, _ in db.execute(counts(3, "SELECT i, (" + counts(FEW, "SELECT sum(i) FROM n") + ") FROM n")):
            seen.append(i)
        return len(seen)

    async def look():
        return db.execute("SELECT 7").fetchone(), len(seen)
    got = await asyncio.gather(read(), look(), look())
    db.close()
    return got


async def writers():
    """Two connections to one file, neither of which waits for the other."""
    path = pysqlite.fresh("writers")

    async def write(who, rows):
        db = sqlite3.connect(path, timeout=0)
        db.execute(counts(rows, f"INSERT INTO t SELECT '{who}' FROM n WHERE i % {rows // 2} = 0"))
        db.commit()
        db.close()
    await asyncio.gather(write("a", MANY), write("b", FEW), write("c", FEW))
    return pysqlite.rows(path)


async def reader_and_writer():
    path = pysqlite.fresh("reader")

    async def read():
        db = sqlite3.connect(path, timeout=0)
        got = db.execute(counts(MANY, "SELECT count(*) + (SELECT count(*) FROM t) FROM n")).fetchone()
        db.close()
        return got

    async def write():
        with sqlite3.connect(path, timeout=0) as db:
            pysqlite.insert(db, "new")
        db.close()
    return await asyncio.gather(read(), write(), read()), pysqlite.rows(path)


async def rolls_back():
    """One connection: the second task's transaction begins when the first's is over, and only that is rolled back."""
    db = sqlite3.connect(":memory:")
    db.execute("CREATE TABLE t (who TEXT)")

    async def first():
        db.execute(counts(MANY, f"INSERT INTO t SELECT 'first' FROM n WHERE i = {MANY}"))
        db.commit()

    async def second():
        within = db.in_transaction, db.total_changes
        pysqlite.insert(db, "second")
        db.rollback()
        return within
    got = await asyncio.gather(first(), second())
    rest = db.execute("SELECT who FROM t").fetchall()
    db.close()
    return got, rest


async def over_awaits():
    """A transaction that is open over an await: then nothing is made elsewhere, and who comes sleeps until it is over."""
    path = pysqlite.fresh("awaits", "WAL")
    db = sqlite3.connect(path)

    async def slow():
        pysqlite.insert(db, "slow")
        await asyncio.sleep(0.02)
        db.commit()

    async def quick():
        await asyncio.sleep(0.01)
        with sqlite3.connect(path, timeout=5) as other:
            other.execute(counts(FEW, f"INSERT INTO t SELECT 'quick' FROM n WHERE i = {FEW}"))
        other.close()
    await asyncio.gather(slow(), asyncio.sleep(0.05))
    await quick()
    db.close()
    return pysqlite.rows(path)


async def in_callback():
    """It is no task's, and cannot be left: what the task has begun is over first."""
    db, got = sqlite3.connect(":memory:"), []

    async def query():
        got.append(db.execute(counts(MANY, "SELECT count(*) FROM n")).fetchone())
    asyncio.get_running_loop().call_soon(lambda: got.append("before"))
    task = asyncio.create_task(query())
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_soon(lambda: got.append(db.execute("SELECT 8").fetchone()))
    await task
    await asyncio.sleep(0.01)
    db.close()
    return got


async def closes():
    db = sqlite3.connect(":memory:")

    async def query():
        return db.execute(counts(MANY, "SELECT count(*) FROM n")).fetchone()

    async def close():
        db.close()
    got = await asyncio.gather(query(), close())
    return got


async def fails():
    """Errors belong to the call that has them."""
    db = sqlite3.connect(":memory:")
    db.execute("CREATE TABLE t (n INTEGER UNIQUE)")

    async def insert(rows):
        try:
            db.execute(counts(rows, f"INSERT INTO t SELECT i / {rows} FROM n"))
        except sqlite3.Error as error:
            return str(error)
    got = await asyncio.gather(insert(MANY), insert(FEW), insert(1))
    db.close()
    return got


async def calls_python():
    """What SQLite calls in Python is called by the thread that made the connection."""
    here, threads = threading.get_ident(), []

    def called(result):
        threads.append(threading.get_ident())
        return result
    got = []
    for prepare, query in ((lambda db: db.create_function("f", 1, lambda n: called(n)), "SELECT f(3)"),
                           (lambda db: db.create_collation("c", lambda a, b: called((a > b) - (a < b))), "SELECT 'b' < 'a' COLLATE c"),
                           (lambda db: db.set_progress_handler(lambda: called(0), 100), counts(FEW, "SELECT count(*) FROM n")),
                           (lambda db: db.set_trace_callback(called), "SELECT 5"),
                           (lambda db: db.set_authorizer(lambda *_: called(sqlite3.SQLITE_OK)), "SELECT 6")):
        db = sqlite3.connect(":memory:")
        prepare(db)
        before = len(threads)

        async def run(db=db, query=query):
            return db.execute(query).fetchone()
        got.append((await asyncio.create_task(run()), len(threads) > before))
        db.close()
    return got, set(threads) == {here}


async def in_threads():
    """Connections of the program's own threads, while a task's query is away."""
    def use(i):
        db = sqlite3.connect(":memory:")
        try:
            return db.execute(counts(FEW, "SELECT count(*) + ? FROM n"), (i,)).fetchone()
        finally:
            db.close()
    loop = asyncio.get_running_loop()
    return await asyncio.gather(computes(), *(loop.run_in_executor(None, use, i) for i in range(8)))


async def forks():
    """A child of fork uses SQLite while its parent's query is away: no lock of the library's is held in it by a thread that it has not. (Who makes
    random bytes has one nearly all the time.)"""
    db, over = sqlite3.connect(":memory:"), []

    async def query():
        got = db.execute(counts(FEW // 10, "SELECT sum(length(randomblob(200000))) FROM n")).fetchone()
        over.append(True)
        return got

    def child():
        other = sqlite3.connect(":memory:")
        other.execute("SELECT random()").fetchone()
        other.close()
        os._exit(7)

    async def fork():
        codes = []
        while not over or not codes:
            pid = os.fork()
            if pid == 0:
                signal.alarm(5)
                child()
            codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            await asyncio.sleep(0.01)
        return set(codes)
    got = await asyncio.gather(query(), fork())
    db.close()
    return got


async def mixed():
    """Thirty tasks, three connections to one file: each adds what it has counted, or finds the others' rows whole."""
    path = pysqlite.fresh("mixed")
    dbs = [sqlite3.connect(path) for _ in range(3)]

    async def work(i):
        db = dbs[i % 3]
        await asyncio.sleep(i % 7 / 1000)
        db.execute(counts(FEW, f"INSERT INTO t SELECT '{i}' FROM n WHERE i < 3"))
        if i % 5 == 0:
            time.sleep(0.002)
        db.commit()
        found = dbs[(i + 1) % 3].execute("SELECT who, count(*) FROM t GROUP BY who").fetchall()
        return all(n == 2 for _, n in found)
    got = await asyncio.gather(*(work(i) for i in range(30)))
    for db in dbs:
        db.close()
    return all(got), len(pysqlite.rows(path))


if __name__ == "__main__":
    asyncio.run(pyoffload.main([globals()[name] for name in sys.argv[1:]]))
