"""Tasks that share text files on pipes whose other ends are slow, pytexts.py [uvloop]: which task got which line, what arrived; on stderr how
often a ticker ran while a print waited."""

import asyncio
import io
import os
import sys
import threading
import time

LINES = [f"line {i} " + "x" * (i % 7 * 9) for i in range(60)]


class Derived(io.TextIOWrapper):
    pass


def feeds(fd):
    """In pieces that are no lines."""
    data = "".join(line + "\n" for line in LINES).encode()
    for at in range(0, len(data), 173):
        os.write(fd, data[at:at + 173])
        time.sleep(0.004)
    os.close(fd)


def by_loop(file):
    yield from file


def by_next(file):
    while (line := next(file, None)) is not None:
        yield line


def by_method(file):
    while (line := getattr(file, "__next__", None)) is not None:
        try:
            yield line()
        except StopIteration:
            return


def mixed(file):
    for line in file:
        yield line
        if line := file.readline():
            yield line


async def reads(task, lines, got, awaits):
    for line in lines:
        got.append((task, line))
        if awaits:
            await asyncio.sleep(0)


async def shared(how, opens, awaits):
    out, to = os.pipe()
    feeder = threading.Thread(target=feeds, args=(to,))
    got = []
    with opens(out) as file:
        feeder.start()
        await asyncio.gather(*(reads(task, how(file), got, awaits) for task in range(3)))
    feeder.join()
    whole = [line.rstrip("\n") for _, line in got] == LINES
    print(how.__name__, "awaits" if awaits else "goes on", "whole" if whole else "torn", "".join(str(task) for task, _ in got))


def drains(fd, came):
    time.sleep(0.3)
    while data := os.read(fd, 65536):
        came.append(data)


async def prints(file, *what):
    print(*what, file=file, flush=True)


async def ticks(count):
    while True:
        await asyncio.sleep(0.005)
        count.append(1)


async def waits():
    """Others come to the file while the first one's text is on its way: in their order, and the loop goes on."""
    out, to = os.pipe()
    came, count = [], []
    reader = threading.Thread(target=drains, args=(out, came))
    with os.fdopen(to, "w") as file:
        reader.start()
        ticker = asyncio.ensure_future(ticks(count))
        await asyncio.gather(prints(file, "a" * 200_000, "a"), *(prints(file, name, "x" * 70_000, name) for name in "bcd"))
        ticker.cancel()
    reader.join()
    os.close(out)
    print("waits", [line[0] + line[-1] + str(len(line)) for line in b"".join(came).decode().splitlines()])
    print("ticks", len(count), file=sys.stderr)


async def main():
    for _ in range(30):
        await asyncio.sleep(0.002)
    for awaits in (False, True):
        await shared(by_loop, open, awaits)
        await shared(by_next, lambda fd: Derived(open(fd, "rb", buffering=0)), awaits)
        await shared(by_method, open, awaits)
        await shared(mixed, open, awaits)
    await waits()


if __name__ == "__main__":
    if "uvloop" in sys.argv:
        import uvloop

        uvloop.install()
    asyncio.run(main())
