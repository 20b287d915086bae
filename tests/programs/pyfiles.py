"""Tasks that share files on pipes whose other ends are slow, pyfiles.py [uvloop]: which task got which line, what arrived; on stderr how
often a ticker ran while a print waited."""

import asyncio
import contextlib
import gzip
import io
import os
import random
import sys
import threading
import time

LINES = [f"line {i} {random.Random(i).randbytes(i % 7 * 9).hex()}" for i in range(60)]
WHOLE = "".join(line + "\n" for line in LINES).encode()
stack = contextlib.ExitStack()


class Derived(io.TextIOWrapper):
    pass


def feeds(fd, packed):
    """In pieces that are no lines."""
    data = gzip.compress(WHOLE) if packed else WHOLE
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


def by_readinto(file):
    """As who decompresses a file reads it."""
    buffer = bytearray(40)
    while n := file.readinto(buffer):
        yield bytes(buffer[:n])


def by_read1(file):
    while data := file.read1(50):
        yield data


PIECES = by_readinto, by_read1


def binary(fd):
    return open(fd, "rb", buffering=256)


def compressed(fd):
    return gzip.GzipFile(fileobj=stack.enter_context(binary(fd)))


async def shared(how, opens, awaits):
    out, to = os.pipe()
    feeder = threading.Thread(target=feeds, args=(to, opens is compressed))
    got = []
    with opens(out) as file:
        feeder.start()
        await asyncio.gather(*(reads(task, how(file), got, awaits) for task in range(3)))
    feeder.join()
    stack.close()
    came = [line if isinstance(line, bytes) else line.encode() for _, line in got]
    whole = b"".join(came) == WHOLE and (how in PIECES or [line.decode() for line in came] == [line + "\n" for line in LINES])
    print(how.__name__, "awaits" if awaits else "goes on", "whole" if whole else "torn", "".join(str(task) for task, _ in got) if how not in PIECES else "")


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


async def replaced():
    """A print is on its way to sys.stdout, which is put back meanwhile: nobody else has that file."""
    out, to = os.pipe()
    came, before = [], sys.stdout

    async def puts_back():
        sys.stdout = before

    async def says():
        print("a" * 200_000, "a")

    reader = threading.Thread(target=drains, args=(out, came))
    sys.stdout = os.fdopen(to, "w")
    reader.start()
    await asyncio.gather(says(), puts_back())
    reader.join()
    os.close(out)
    print("replaced", len(b"".join(came)))


async def main():
    for _ in range(30):
        await asyncio.sleep(0.002)
    for awaits in (False, True):
        await shared(by_loop, open, awaits)
        await shared(by_next, lambda fd: Derived(open(fd, "rb", buffering=0)), awaits)
        await shared(by_method, open, awaits)
        await shared(mixed, open, awaits)
        for how in (by_loop, by_next, by_method, mixed, *PIECES):
            await shared(how, binary, awaits)
        await shared(by_loop, compressed, awaits)
    await waits()
    await replaced()


if __name__ == "__main__":
    if "uvloop" in sys.argv:
        import uvloop

        uvloop.install()
    asyncio.run(main())
