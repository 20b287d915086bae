"""Blocks a loop while tasks are ready, timers fall due and executors have more work than workers.

    python3 pywaiting.py LOOP

Each of the stalls is 200 ms. In "task" a task blocks, in "plain" a callback does; then "threads" and "processes".
"""

import asyncio
import concurrent.futures
import sys
import time

READY, TIMERS, CANCELLED, WORK, WORKERS = 7, 5, 3, 30, 3
QUEUED = 2  # in "threads": less than there are workers
LONG = 0.2


def work():
    time.sleep(0.05)


def long_work():
    time.sleep(0.4)


def block(name):
    time.sleep(LONG)


def task_block():
    block("task")


def plain_block():
    block("plain")


def threads_block():
    block("threads")


def processes_block():
    block("processes")


async def wait_for(future):
    await future


async def pause(n=10):
    for _ in range(n):
        await asyncio.sleep(0.002)


def crowd(loop):
    """READY tasks that a future has woken, and timers that fall due in the middle of the stall."""
    future = loop.create_future()
    for _ in range(READY - 2):
        loop.create_task(wait_for(future))
    for i in range(TIMERS):
        loop.call_later(LONG / 2 + i * 0.001, int)
    for _ in range(CANCELLED):
        loop.call_later(LONG / 2, int).cancel()
    loop.call_later(60, int)
    return future


async def blocks(function):
    function()


async def main():
    loop = asyncio.get_running_loop()
    await pause(40)

    future = crowd(loop)
    await pause(2)
    loop.call_soon(lambda: None)
    future.set_result(None)
    new = [loop.create_task(pause(1)) for _ in range(2)]  # not started yet, so ready, too
    task_block()
    await asyncio.gather(*new)
    await pause()

    future = crowd(loop)
    await pause(2)

    def plain():
        future.set_result(None)
        for _ in range(2):
            loop.create_task(pause(1))
        plain_block()

    loop.call_soon(plain)
    await pause()

    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        await asyncio.gather(*(loop.run_in_executor(pool, work) for _ in range(WORKERS)))  # workers that have been idle
        items = [loop.run_in_executor(pool, long_work) for _ in range(WORKERS + QUEUED)]
        await pause()
        threads_block()
        await asyncio.gather(*items)
    await pause()

    with concurrent.futures.ProcessPoolExecutor(2) as pool:
        items = [loop.run_in_executor(pool, work) for _ in range(WORK)]
        await pause()
        processes_block()
        await asyncio.gather(*items)
    await pause()


if __name__ == "__main__":
    if sys.argv[1] == "uvloop":
        import uvloop
        uvloop.install()
    asyncio.run(main())
