"""Habits that cost, and some that do not: sleep(0) in abundance and too seldom, coroutines that nobody runs.

    python3 pylints.py LOOP

LOOP is asyncio or uvloop.
"""

import asyncio
import sys
import time


def spin(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


async def often():
    for _ in range(1500):
        await asyncio.sleep(0)


async def sometimes():
    for _ in range(100):
        spin(0.0003)
        await asyncio.sleep(0)


async def seldom():
    for _ in range(4):
        spin(0.05)
        await asyncio.sleep(0)


async def forgotten():
    pass


async def given():
    pass


async def called():
    pass


async def kept():
    pass


async def closed():
    pass


async def awaited():
    await asyncio.sleep(0)


async def nap():
    for _ in range(10):
        await asyncio.sleep(0.002)


async def main(uvloop):
    loop = asyncio.get_running_loop()
    await nap()
    for coroutine in (often, sometimes, seldom):
        await asyncio.ensure_future(coroutine())
        await nap()
    forgotten()
    await nap()
    loop.call_soon(called)
    await nap()
    if not uvloop:  # which says so itself
        result = await loop.run_in_executor(None, given); result = None
        await nap()
    again = kept()
    await again
    closed().close()
    await awaited()
    await asyncio.sleep(0.3)  # the watcher may be late, and a name is read while the process is there


if __name__ == "__main__":
    if sys.argv[1] == "uvloop":
        import uvloop
        uvloop.install()
    asyncio.run(main(sys.argv[1] == "uvloop"))
