"""Twenty tasks that compute print lines to one file and write rows by one csv writer, pyprints.py FOLDER [uvloop]: prints how many of them are
not as one task has written them, and of a pattern that matches for long the longest gap of a ticker beside it, in ms."""

import asyncio
import collections
import csv
import re
import sys
import time

TASKS, EACH = 20, 1000
written = collections.Counter()


def strange(name):
    with open(name) as file:
        found = collections.Counter(file.read().splitlines())
    return sum((found - written).values()), sum((written - found).values())


def numbers(task, i):
    return range(task * EACH + i, task * EACH + i + 20)


def text(between, task, i):
    return between.join(map(str, numbers(task, i)))


async def writes(task, lines, rows):
    for i in range(EACH):
        written[text(" ", task, i)] += 1
        print(*numbers(task, i), file=lines)
        rows.writerow(numbers(task, i))
        if i % 50 == 0:
            await asyncio.sleep(0)


async def ticks(gaps):
    last = time.perf_counter()
    while True:
        await asyncio.sleep(0.005)
        now = time.perf_counter()
        gaps.append(now - last)
        last = now


async def matches():
    return re.match(r"(a+)+$", "a" * 22 + "b")


async def main(folder):
    for _ in range(30):
        await asyncio.sleep(0.002)
    with open(f"{folder}/lines", "w") as lines, open(f"{folder}/rows", "w") as rows:
        writer = csv.writer(rows)
        await asyncio.gather(*(writes(task, lines, writer) for task in range(TASKS)))
    print("lines", *strange(f"{folder}/lines"))
    written.clear()
    written.update(text(",", task, i) for task in range(TASKS) for i in range(EACH))
    print("rows", *strange(f"{folder}/rows"))
    gaps = []
    ticker = asyncio.ensure_future(ticks(gaps))
    await asyncio.gather(matches())
    await asyncio.sleep(0.02)
    ticker.cancel()
    print("gap", int(max(gaps) * 1000), file=sys.stderr)


if __name__ == "__main__":
    if "uvloop" in sys.argv:
        import uvloop

        uvloop.install()
    asyncio.run(main(sys.argv[1]))
