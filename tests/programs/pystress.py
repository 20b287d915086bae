"""Many tasks that do random things, most of which block: none of their effects may be lost, doubled or seen half done.

    python3 -X dev pystress.py TASKS OPERATIONS SECONDS [SEED]    rounds of all tasks until the time is over

Prints `stress: all as it should be`, and on standard error each round with its seed (`pystress.py TASKS OPERATIONS 0 SEED` is
that round again) and how many rounds there were, of how many operations.
"""
import asyncio
import collections
import concurrent.futures
import contextlib
import contextvars
import gc
import logging
import os
import queue
import random
import socket
import sys
import tempfile
import threading
import time

NAP = 0.003
VAR = contextvars.ContextVar("var", default=None)


class Expected(Exception):
    pass


class Finalized:
    """In a cycle: collected by whoever comes, and once."""

    def __init__(self, round):
        self.round, self.own = round, self

    def __del__(self):
        time.sleep(NAP)
        self.round.finalized += 1


class Lines(logging.Handler):
    def __init__(self, found):
        super().__init__()
        self.found = found

    def emit(self, record):
        time.sleep(NAP)
        self.found.append(record.getMessage())


class Round:
    """What all tasks of a round share, and what each operation has to leave there."""

    def __init__(self, folder, pool):
        self.pool = pool
        self.lock, self.rlock, self.condition = threading.Lock(), threading.RLock(), threading.Condition()
        self.expected = dict.fromkeys(("locked", "relocked", "conditioned", "finalized", "cancelled", "queued"), 0)
        self.locked = self.relocked = self.conditioned = self.finalized = self.cancelled = self.queued = 0
        self.path = os.path.join(folder, "shared")
        self.file = open(self.path, "w")
        self.lines, self.logged, self.logs = [], [], []
        self.log = logging.Logger("stress")
        self.log.addHandler(Lines(self.logs))
        self.queue = queue.Queue()
        self.done = {}

    def check(self):
        self.file.close()
        gc.collect()
        found = {name: getattr(self, name) for name in self.expected}
        assert found == self.expected, (found, self.expected)
        with open(self.path) as file:
            lines, expected = collections.Counter(file.read().splitlines()), collections.Counter(self.lines)
        assert lines == expected, (lines - expected, expected - lines)
        assert sorted(self.logs) == sorted(self.logged)
        assert self.queue.empty()


# ---- operations: (round, rng, number of this one) --------------------------------------------


async def naps(r, rng, i):
    time.sleep(NAP)


async def awaits(r, rng, i):
    await asyncio.sleep(rng.random() / 200)


async def locks(r, rng, i):
    r.expected["locked"] += 1
    with r.lock:
        n = r.locked
        time.sleep(NAP)
        r.locked = n + 1


async def relocks(r, rng, i):
    r.expected["relocked"] += 1

    def add(depth):
        with r.rlock:
            if depth:
                return add(depth - 1)
            n = r.relocked
            time.sleep(NAP)
            r.relocked = n + 1
    add(rng.randrange(4))


async def tries(r, rng, i):
    if r.lock.acquire(timeout=0.002):
        n = r.locked
        time.sleep(NAP)
        assert r.locked == n
        r.lock.release()


async def conditions(r, rng, i):
    r.expected["conditioned"] += 1
    with r.condition:
        r.pool.submit(lambda: (time.sleep(0.002), notify(r)))
        r.condition.wait(5)
        r.conditioned += 1


def notify(r):
    with r.condition:
        r.condition.notify_all()


async def sockets(r, rng, i):
    a, b = socket.socketpair()
    with a, b:
        data = os.urandom(rng.choice((1, 3000, 300_000)))
        echo = r.pool.submit(echoes, b, len(data))
        a.sendall(data)
        found = b""
        while len(found) < len(data):
            found += a.recv(1 << 20)
        assert found == data
        echo.result()


def echoes(sock, size):
    data = b""
    while len(data) < size:
        data += sock.recv(1 << 20)
    time.sleep(0.002)
    sock.sendall(data)


async def files(r, rng, i):
    r.lines.append(f"line {i}")
    print(f"line {i}", file=r.file, flush=rng.random() < 0.2)
    with tempfile.TemporaryFile() as file:
        file.write(b"%d" % i * 3000)
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        assert file.read() == b"%d" % i * 3000


async def logs(r, rng, i):
    r.logged.append(f"logged {i}")
    r.log.warning("logged %d", i)


async def raises(r, rng, i):
    try:
        try:
            time.sleep(NAP)
            raise KeyError(i)
        except KeyError as error:
            time.sleep(NAP)
            assert sys.exc_info()[1] is error
            raise Expected(i) from error
        finally:
            time.sleep(NAP)
    except Expected as error:
        assert error.args == (i,) == error.__cause__.args
    assert sys.exc_info()[1] is None


async def generators(r, rng, i):
    ended = []

    def numbers():
        try:
            for n in range(4):
                time.sleep(NAP)
                yield n
        finally:
            time.sleep(NAP)
            ended.append(i)
    found, most = [], rng.randrange(1, 6)
    with contextlib.closing(numbers()) as each:
        for n in each:
            found.append(n)
            if len(found) == most:
                break
    assert found == list(range(min(4, most))) and ended == [i]


async def async_generators(r, rng, i):
    async def numbers():
        for n in range(3):
            time.sleep(NAP)
            await asyncio.sleep(0)
            yield n
    assert [n async for n in numbers()] == [0, 1, 2]


async def contexts(r, rng, i):
    VAR.set(i)
    time.sleep(NAP)
    assert VAR.get() == i
    inner = contextvars.copy_context()
    inner.run(lambda: (VAR.set(-i), time.sleep(NAP)))
    assert VAR.get() == i and inner[VAR] == -i
    await asyncio.sleep(0)
    assert VAR.get() == i


async def collects(r, rng, i):
    r.expected["finalized"] += 1
    Finalized(r)
    if rng.random() < 0.2:
        gc.collect()


async def cancels(r, rng, i):
    r.expected["cancelled"] += 1

    async def inner():
        time.sleep(2 * NAP)
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            time.sleep(NAP)
            r.cancelled += 1
            raise
    task = asyncio.create_task(inner())
    await asyncio.sleep(rng.random() / 100)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    if not task.cancelling() or r.cancelled < 0:
        raise AssertionError("a cancellation is lost")


async def cancels_before(r, rng, i):
    """Before its first step, or while that is suspended."""
    begun = []

    async def inner():
        begun.append(1)
        time.sleep(NAP)
        await asyncio.sleep(30)
    task = asyncio.create_task(inner())
    if rng.random() < 0.5:
        await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert task.cancelled() and len(begun) <= 1


async def times_out(r, rng, i):
    async def inner():
        time.sleep(NAP)
        await asyncio.sleep(30)
    try:
        await asyncio.wait_for(inner(), 0.005)
    except asyncio.TimeoutError:
        return
    raise AssertionError("did not time out")


async def queues(r, rng, i):
    r.expected["queued"] += 1
    r.pool.submit(lambda: (time.sleep(0.002), r.queue.put(1)))
    got = r.queue.get()  # not in one line: what is read before a call that blocks may be old after it
    r.queued += got


async def futures(r, rng, i):
    assert r.pool.submit(lambda: (time.sleep(0.002), i)[1]).result() == i


async def threads(r, rng, i):
    assert await asyncio.to_thread(sum, [i, 1]) == i + 1


OPERATIONS = [naps, awaits, locks, relocks, tries, conditions, sockets, files, logs, raises, generators, async_generators, contexts,
              collects, cancels, cancels_before, times_out, queues, futures, threads]


if os.environ.get("ONLY"):
    OPERATIONS = [globals()[name] for name in os.environ["ONLY"].split()]


async def worker(r, number, count, seed):
    rng = random.Random(seed)
    VAR.set(None)
    name = asyncio.current_task().get_name()
    for i in range(count):
        await rng.choice(OPERATIONS)(r, rng, number * count + i + 1)
        assert asyncio.current_task().get_name() == name
        r.done[number, i] = r.done.get((number, i), 0) + 1
    return number


async def main(tasks, count, seconds, seed=0):
    for _ in range(12):
        await asyncio.sleep(0.002)  # until the loop is known to be one
    until, rounds = time.monotonic() + seconds, 0
    with concurrent.futures.ThreadPoolExecutor(8) as pool, tempfile.TemporaryDirectory() as folder:
        while rounds == 0 or time.monotonic() < until:
            print(f"stress round {rounds}: seed {seed}", file=sys.stderr, flush=True)
            r = Round(folder, pool)
            found = await asyncio.gather(*[asyncio.create_task(worker(r, i, count, seed + i), name=f"t{i}") for i in range(tasks)])
            assert found == list(range(tasks))
            assert r.done == {(i, n): 1 for i in range(tasks) for n in range(count)}
            r.check()
            rounds, seed = rounds + 1, seed + tasks
    print("stress: all as it should be")
    print(f"stress {rounds} rounds of {tasks * count} operations", file=sys.stderr)


if __name__ == "__main__":
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # what took long is no fault here
    if os.environ.get("LOOP") == "uvloop":
        import uvloop
        uvloop.install()
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), *map(int, sys.argv[4:5])))
