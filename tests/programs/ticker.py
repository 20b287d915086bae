"""An asyncio program with a fault: prints a tick every 100 ms, and beside it a worker that blocks the loop.

    python3 ticker.py [SECONDS]

The worker does what such workers do: it sleeps with time.sleep() and pickles
something large, both in a coroutine. Watch the ticks stop.
"""

import asyncio
import pickle
import sys
import time


async def ticker(end):
    last = time.monotonic()
    while last < end:
        await asyncio.sleep(0.1)
        now = time.monotonic()
        late = now - last - 0.1
        print("tick" if late < 0.05 else f"tick  {late * 1000:6.0f} ms late", flush=True)
        last = now


async def worker():
    rows = [{"id": i, "name": f"customer {i}", "tags": [i, i + 1]} for i in range(60_000)]
    while True:
        await asyncio.sleep(0.7)
        time.sleep(0.5)  # somebody's retry loop
        await asyncio.sleep(0.7)
        pickle.loads(pickle.dumps(rows))


async def main(seconds):
    working = asyncio.create_task(worker())
    await ticker(time.monotonic() + seconds)
    working.cancel()


asyncio.run(main(float(sys.argv[1]) if len(sys.argv) > 1 else 4.0))
