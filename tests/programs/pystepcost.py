"""What a step of a task costs: tasks that do nothing but let the others run.

    python3 pystepcost.py LOOP COUNT [debug|wrapper]

debug: the loop's debug mode, asyncio's own detection of slow callbacks. wrapper: Handle._run replaced by a Python function
that reads the clock before and after, as detectors written in Python do. Prints {"count", "check", "quiet_ns"}: what a
step took in the batches of 1000 that the machine disturbed least, one in twenty of them. The median moved by 300 ns
from run to run on a shared machine, which hid what was to be seen; this moves by 20.
"""

import asyncio
import json
import sys
import time

BATCH = 1000
TASKS = 50


def wrap():
    run = asyncio.events.Handle._run
    slow = []

    def timed(self):
        begun = time.perf_counter()
        try:
            return run(self)
        finally:
            took = time.perf_counter() - begun
            if took > 0.05:
                slow.append((took, repr(self)))

    asyncio.events.Handle._run = timed


async def idle(steps, done):
    for _ in range(steps):
        await asyncio.sleep(0)
    done.append(steps)


async def main(count):
    took, done = [], []
    for _ in range(30):  # so that the loop is known to be one
        await asyncio.sleep(0.001)
    for _ in range(count // BATCH):
        tasks = [asyncio.ensure_future(idle(BATCH // TASKS, done)) for _ in range(TASKS)]
        await asyncio.sleep(0)
        begun = time.perf_counter_ns()
        await asyncio.gather(*tasks)
        took.append((time.perf_counter_ns() - begun) / BATCH)
    print(json.dumps({"count": count, "check": sum(done), "quiet_ns": sorted(took)[len(took) // 20]}))


if __name__ == "__main__":
    if sys.argv[1] == "uvloop":
        import uvloop
        uvloop.install()
    if sys.argv[3:] == ["wrapper"]:
        wrap()
    asyncio.run(main(int(sys.argv[2])), debug=sys.argv[3:] == ["debug"])
