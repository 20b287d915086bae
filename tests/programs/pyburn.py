"""Coroutines that compute beside a ticker: pyburn.py asyncio|uvloop TASKS DECREMENTS

Prints {"gap_ms": , "total_s": , "cpu_s": , "check": }: the ticker's (10 ms) longest gap while they compute, how long that
took all of them together, the process's CPU time for it, and how many decrements were made.
"""

import asyncio
import json
import resource
import sys
import time

PERIOD = 0.01


async def burn(count):
    left = count
    while left:
        left -= 1
    return count - left


async def ticker(gaps):
    last = time.monotonic()
    while True:
        await asyncio.sleep(PERIOD)
        now = time.monotonic()
        gaps.append(now - last)
        last = now


def cpu():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def main(tasks, count):
    gaps = []
    ticking = asyncio.create_task(ticker(gaps))
    await asyncio.sleep(0.2)
    gaps.clear()
    begun, used = time.monotonic(), cpu()
    done = await asyncio.gather(*(burn(count // tasks) for _ in range(tasks)))
    total, used = time.monotonic() - begun, cpu() - used
    await asyncio.sleep(3 * PERIOD)
    ticking.cancel()
    print(json.dumps({"gap_ms": max(gaps) * 1e3, "total_s": total, "cpu_s": used, "check": sum(done)}))


if __name__ == "__main__":
    if sys.argv[1] == "uvloop":
        import uvloop

        uvloop.install()
    asyncio.run(main(int(sys.argv[2]), int(sys.argv[3])))
