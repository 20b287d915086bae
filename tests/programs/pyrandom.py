"""Many asyncio tasks that do random things, blocking ones among them, and write down what blocked when.

    python3 pyrandom.py LOOP TRUTH SECONDS [TASKS]
"""

import asyncio
import hashlib
import json
import os
import random
import sys
import threading
import time

end = time.monotonic() + float(sys.argv[3])
tasks = int(sys.argv[4]) if len(sys.argv) > 4 else 200
out = open(sys.argv[2], "w")
lock = threading.Lock()
checked = 0


def long():
    return random.uniform(0.02, 0.06)


def sleeping():
    time.sleep(long())


def spinning():
    until = time.monotonic() + long()
    while time.monotonic() < until:
        helper(3)


def helper(n):
    return n if n == 0 else helper(n - 1)


def hashing():
    until = time.monotonic() + long()
    while time.monotonic() < until:
        hashlib.sha256(bytes(300_000)).hexdigest()


def reading():
    r, w = os.pipe()
    timer = threading.Timer(long(), os.write, (w, b"x"))
    timer.start()
    os.read(r, 1)
    timer.join()
    os.close(r)
    os.close(w)


def dumping():
    json.dumps([[i, str(i)] for i in range(60_000)])


def locking():
    with lock:
        time.sleep(long())


def failing():
    try:
        time.sleep(long())
        raise ValueError("expected")
    except ValueError:
        pass


def generating():
    return sum(slow_numbers())


def slow_numbers():
    for i in range(3):
        time.sleep(long() / 3)
        yield i


BLOCKING = [sleeping, spinning, hashing, reading, dumping, locking, failing, generating]


async def block(name):
    function = random.choice(BLOCKING)
    start = time.monotonic_ns()
    function()
    out.write(json.dumps({"task": name, "function": function.__name__, "start_ns": start,
                          "end_ns": time.monotonic_ns()}) + "\n")


async def numbers():
    for i in range(3):
        await asyncio.sleep(0)
        yield i


async def harmless():
    global checked
    kind = random.randrange(6)
    if kind == 0:
        await asyncio.sleep(random.uniform(0, 0.01))
    elif kind == 1:
        assert [i async for i in numbers()] == [0, 1, 2]
    elif kind == 2:
        assert sum(await asyncio.gather(*(add(i) for i in range(4)))) == 10
    elif kind == 3:
        try:
            await asyncio.wait_for(asyncio.sleep(10), 0.002)
        except asyncio.TimeoutError:
            pass
    elif kind == 4:
        assert await asyncio.get_running_loop().run_in_executor(None, add_now, 1) == 2
    else:
        task = asyncio.get_running_loop().create_task(asyncio.sleep(10))
        await asyncio.sleep(0)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            pass
    checked += 1


async def add(i):
    await asyncio.sleep(0)
    return i + 1


def add_now(i):
    return i + 1


async def worker(name):
    while time.monotonic() < end:
        if random.random() < 0.02:
            await block(name)
        else:
            await harmless()


async def main():
    for _ in range(30):
        await asyncio.sleep(0.001)
    create = asyncio.get_running_loop().create_task
    names = [f"worker {i}" for i in range(tasks)]
    running = [create(worker(name)) for name in names]
    for task, name in zip(running, names):
        task.set_name(name)
    await asyncio.gather(*running)
    out.write(json.dumps({"checked": checked}) + "\n")


if sys.argv[1] == "uvloop":
    import uvloop
    uvloop.install()
asyncio.run(main())
out.close()
