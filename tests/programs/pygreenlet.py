"""Twenty greenlets are in the midst of a line each, at the same depths of the stack, and go on in any order. Prints what they read."""

import asyncio
import io
import random
import time


async def left():
    time.sleep(0.02)


def class_of_files(greenlet):
    class Switches(io.RawIOBase):
        def readable(self):
            return True

        def readinto(self, buffer):
            greenlet.getcurrent().parent.switch()
            buffer[:2] = b"a\n"
            return 2
    return Switches


def lines_of(file):
    return "".join(file.readline() for _ in range(5))


async def main():
    for _ in range(30):
        await asyncio.sleep(0.002)
    await asyncio.gather(left(), left())
    import greenlet  # from here on nothing is left: it copies stacks
    switches = class_of_files(greenlet)
    greenlets = [greenlet.greenlet(lines_of) for _ in range(20)]
    for one in greenlets:
        one.switch(io.TextIOWrapper(io.BufferedReader(switches())))
    order, read = random.Random(1), []
    while living := [one for one in greenlets if not one.dead]:
        one = order.choice(living)
        got = one.switch()
        if one.dead:
            read.append(got)
    print(len(read), set(read))


if __name__ == "__main__":
    asyncio.run(main())
