"""Turns of many short task steps, a slow step, slow handles of all sorts, a step that is thrown into; writes down the truth.

    python3 pysteps.py LOOP TRUTH [py]

LOOP is asyncio or uvloop; with "py" tasks are asyncio's Python ones, not those of the C module. TRUTH gets one JSON
object: by function the calls and nanoseconds of the steps of the crowded turn, and the number of resumptions that
the program itself counts.
"""

import asyncio
import contextvars
import functools
import json
import socket
import sys
import time
import types

LONG = 0.12
SPENT = {}
RESUMED = 0


def spin(name, seconds):
    begun = time.monotonic_ns()
    while time.monotonic_ns() - begun < seconds * 1e9:
        pass
    calls, total = SPENT.get(name, (0, 0))
    SPENT[name] = calls + 1, total + time.monotonic_ns() - begun


async def small(start):
    global RESUMED
    await start.wait()
    RESUMED += 1
    spin("small", 0.0003)


@types.coroutine
def old(start):
    """A generator that is a coroutine: what coroutines were before `async def`."""
    yield from start.wait()
    spin("old", 0.002)


async def bigger(start):
    global RESUMED
    await start.wait()
    RESUMED += 1
    spin("bigger", 0.002)


async def block():
    time.sleep(LONG)


def plain():
    time.sleep(LONG)


def later(seconds, _):
    time.sleep(seconds)


class Server:
    def method(self):
        time.sleep(LONG)


def readable(sock):
    sock.recv(1)
    time.sleep(LONG)


def foreign():
    """A context entered by the program itself, in a handle."""
    contextvars.copy_context().run(time.sleep, LONG)


async def cancelled():
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        time.sleep(LONG)


async def pause():
    for _ in range(10):
        await asyncio.sleep(0.002)


async def crowd():
    start = asyncio.Event()
    kinds = [(small, 120), (bigger, 12)]
    if sys.version_info < (3, 12):  # later, a task takes no generators
        kinds.append((old, 3))
    tasks = [asyncio.ensure_future(f(start)) for f, n in kinds for _ in range(n)]
    await pause()
    start.set()
    await asyncio.gather(*tasks)


async def main():
    for _ in range(10):
        await pause()
    await crowd()
    await pause()
    await asyncio.ensure_future(block())
    await pause()
    loop = asyncio.get_running_loop()
    loop.call_soon(plain)
    await pause()
    loop.call_later(0.001, functools.partial(later, LONG), None)
    await pause()
    loop.call_soon(Server().method)
    await pause()
    a, b = socket.socketpair()
    loop.add_reader(a, readable, a)
    b.send(b"x")
    await pause()
    loop.remove_reader(a)
    loop.call_soon(foreign)
    await pause()
    loop.call_soon(time.sleep, LONG)
    await pause()
    task = asyncio.ensure_future(cancelled())
    await pause()
    task.cancel()
    await task
    await pause()


if __name__ == "__main__":
    if sys.argv[1] == "uvloop":
        import uvloop
        uvloop.install()
    if sys.argv[3:] == ["py"]:
        asyncio.Task = asyncio.tasks.Task = asyncio.tasks._PyTask
    asyncio.run(main())
    with open(sys.argv[2], "w") as out:
        json.dump({"spent": SPENT, "resumed": RESUMED}, out)
