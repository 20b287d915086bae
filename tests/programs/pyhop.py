"""What setting aside costs, in CPU time and in time: pyhop.py asyncio|uvloop WHAT COUNT. WHAT: `await` (asyncio.sleep), `by_hand`
(run_in_executor) or `sleep` (time.sleep), 50 tasks that do it COUNT times each; `call` (a function that does nothing) or `call_by_hand`,
one after the other. Prints {"cpu_us": a time, "us": the median of a call, "check": how many}."""

import asyncio
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pywork

TASKS, SECONDS = 50, 0.022
POOL = ThreadPoolExecutor(TASKS)


async def waits(what):
    if what == "await":
        await asyncio.sleep(SECONDS)
    elif what == "by_hand":
        await asyncio.get_running_loop().run_in_executor(POOL, time.sleep, SECONDS)
    else:
        time.sleep(SECONDS)


async def calls(what):
    if what == "call":
        return pywork.counts_down(1)
    return await asyncio.get_running_loop().run_in_executor(POOL, pywork.counts_down, 1)


async def task(what, count, took):
    one = calls if what.startswith("call") else waits
    for _ in range(count):
        begun = time.perf_counter()
        await one(what)
        took.append(time.perf_counter() - begun)
        await asyncio.sleep(0)


async def main(what, count):
    tasks = 1 if what.startswith("call") else TASKS
    for _ in range(20):  # until the loop is recognised
        await asyncio.sleep(0.002)
    await asyncio.gather(*(task(what, 3, []) for _ in range(tasks)))
    took, begun = [], time.process_time()
    await asyncio.gather(*(task(what, count, took) for _ in range(tasks)))
    cpu = time.process_time() - begun
    print(json.dumps({"cpu_us": cpu / len(took) * 1e6, "us": sorted(took)[len(took) // 2] * 1e6, "check": len(took)}))


if __name__ == "__main__":
    if sys.argv[1] == "uvloop":
        import uvloop

        uvloop.install()
    asyncio.run(main(sys.argv[2], int(sys.argv[3])))
