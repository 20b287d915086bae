"""A ticker (10 ms) beside a function that counts down: pycount.py asyncio|uvloop COUNT CALLS. Prints {"gap_ms": , "total_s": , "check": }."""

import asyncio
import json
import sys
import time

import pywork
from pyburn import PERIOD, ticker


async def one(count):
    return pywork.counts_down(count)


async def main(count, calls):
    gaps = []
    ticking = asyncio.create_task(ticker(gaps))
    while len(gaps) < 20:  # until the loop is recognised
        await asyncio.sleep(0.01)
    if calls > 1:  # what starts once does not count
        pywork.counts_down(1)
        await asyncio.sleep(0.1)
    gaps.clear()
    begun = time.monotonic()
    done = [await one(count) for _ in range(calls)]
    total = time.monotonic() - begun
    await asyncio.sleep(3 * PERIOD)
    ticking.cancel()
    print(json.dumps({"gap_ms": max(gaps) * 1e3, "total_s": total, "check": sum(done)}))


if __name__ == "__main__":
    if sys.argv[1] == "uvloop":
        import uvloop

        uvloop.install()
    asyncio.run(main(int(sys.argv[2]), int(sys.argv[3])))
