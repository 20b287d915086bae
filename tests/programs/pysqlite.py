"""SQLite in steps of tasks, beside others: alone and with calls moved every case prints the same. The ticker's gap goes to standard
error, as in pyoffload.py."""
import asyncio
import os
import sqlite3
import subprocess
import sys
import tempfile
import time

import pyoffload

FOLDER = tempfile.mkdtemp(prefix="unblock-sqlite-")
HOLDER = """
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute(sys.argv[2])
cursor = db.execute(sys.argv[3])
print(flush=True)
time.sleep(float(sys.argv[4]))
cursor.close()
db.execute("COMMIT")
"""


def fresh(name, mode="DELETE"):
    path = os.path.join(FOLDER, name)
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA journal_mode={mode}")
        db.execute("CREATE TABLE t (who TEXT)")
    db.close()
    return path


def held(path, begin="BEGIN IMMEDIATE", then="INSERT INTO t VALUES ('other')", seconds=0.3):
    """Another process has it, for so long."""
    child = subprocess.Popen([sys.executable, "-S", "-c", HOLDER, path, begin, then, str(seconds)], stdout=subprocess.PIPE)
    child.stdout.readline()
    return child


def rows(path):
    db = sqlite3.connect(path)
    try:
        return [who for who, in db.execute("SELECT who FROM t ORDER BY rowid")]
    finally:
        db.close()


def insert(db, who):
    db.execute("INSERT INTO t VALUES (?)", (who,))


async def locked():
    """Another process writes: whoever writes here waits for it, and nobody else does."""
    path = fresh("locked")
    child = held(path)

    async def write(who):
        db = sqlite3.connect(path)
        insert(db, who)
        db.commit()
        db.close()
    await asyncio.gather(write("a"), write("a"), write("a"))
    child.wait()
    return rows(path)


async def connected():
    """connect, cursor, execute, fetch: one after the other, as a program does."""
    path = fresh("connected")
    child = held(path)

    async def use():
        with sqlite3.connect(path) as db:
            cursor = db.cursor()
            cursor.execute("INSERT INTO t VALUES ('here')")
            cursor.execute("SELECT count(*) FROM t")
            found = cursor.fetchone()
        db.close()
        return found
    found = await use()
    child.wait()
    return found, rows(path)


async def transaction():
    """A task that blocks within its transaction: the other's does not run into it, which here would fail at once."""
    path = fresh("transaction")

    async def slow():
        db = sqlite3.connect(path, timeout=0)
        insert(db, "slow")
        time.sleep(0.12)
        db.commit()
        time.sleep(0.12)
        db.close()

    async def quick():
        db = sqlite3.connect(path, timeout=0)
        insert(db, "quick")
        db.commit()
        db.close()
    await asyncio.gather(slow(), quick())
    return rows(path)


async def reading():
    """Likewise while it reads, row by row: who writes would have to wait for it."""
    path = fresh("reading")
    with sqlite3.connect(path) as db:
        for i in range(3):
            insert(db, str(i))
    db.close()

    async def read():
        db = sqlite3.connect(path, timeout=0)
        got = []
        for who, in db.execute("SELECT who FROM t"):
            got.append(who)
            time.sleep(0.06)
        db.close()
        return got

    async def write():
        db = sqlite3.connect(path, timeout=0)
        insert(db, "new")
        db.commit()
        db.close()
    return await asyncio.gather(read(), write()), rows(path)


async def shared():
    """One connection for all: who comes while another is in the midst of a call waits for that."""
    path = fresh("shared")
    db = sqlite3.connect(path)
    child = held(path)

    async def write(who):
        insert(db, who)
        db.commit()
        return db.execute("SELECT count(*) FROM t").fetchone()[0], db.total_changes

    async def count():
        return db.execute("SELECT count(*) FROM t").fetchone()[0]
    got = await asyncio.gather(write("a"), write("b"), count())
    child.wait()
    db.close()
    return got, rows(path)


async def shared_in_callback():
    """Likewise where it cannot be left: the other goes on above it."""
    path = fresh("callback")
    db = sqlite3.connect(path)
    child = held(path)
    got = []

    async def write():
        insert(db, "task")
        db.commit()
    task = asyncio.create_task(write())
    asyncio.get_running_loop().call_later(0.1, lambda: got.append(db.execute("SELECT count(*) FROM t").fetchone()))
    await asyncio.sleep(0.2)
    await task
    child.wait()
    db.close()
    return got, rows(path)


async def commits():
    """The commit waits for another process that reads."""
    path = fresh("commits")
    child = held(path, "BEGIN", "SELECT * FROM sqlite_master", 0.3)

    async def write():
        db = sqlite3.connect(path)
        insert(db, "here")
        db.commit()
        db.close()
    await write()
    child.wait()
    return rows(path)


async def awaits():
    """A transaction that is open over an await; the other waits for its end, and then writes."""
    path = fresh("awaits", "WAL")
    db = sqlite3.connect(path)

    async def slow():
        insert(db, "slow")
        await asyncio.sleep(0.01)
        time.sleep(0.06)
        db.commit()
        time.sleep(0.06)

    async def quick():
        await asyncio.sleep(0.05)
        with sqlite3.connect(path, timeout=0) as other:
            insert(other, "quick")
        other.close()
    await asyncio.gather(slow(), quick())
    db.close()
    return rows(path)


async def functions():
    """Python in the midst of a call of SQLite's."""
    db = sqlite3.connect(":memory:")
    db.create_function("nap", 1, lambda seconds: time.sleep(seconds))

    async def use(i):
        return db.execute("SELECT nap(0.06), ?", (i,)).fetchone()
    got = await asyncio.gather(use(1), use(2))
    db.close()
    return got


async def backup():
    path = fresh("backup")
    source, target = sqlite3.connect(path), sqlite3.connect(":memory:")
    with source:
        insert(source, "row")
    child = held(path, "BEGIN EXCLUSIVE", "SELECT 1", 0.3)
    source.backup(target, sleep=0.06)
    child.wait()
    return target.execute("SELECT who FROM t").fetchall()


if __name__ == "__main__":
    asyncio.run(pyoffload.main([globals()[name] for name in sys.argv[1:]]))
