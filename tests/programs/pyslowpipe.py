"""Twenty tasks print to a pipe that is read slowly: how many lines came, how many that nobody wrote, how many different ones."""

import asyncio
import fcntl
import os
import sys
import threading
import time

TASKS, EACH = 20, 100
came = []


def reads(fd):
    while data := os.read(fd, 2048):
        came.append(data)
        time.sleep(0.002)


async def prints(task, file):
    for i in range(EACH):
        print("line", task, i, "x" * 40, file=file, flush=i % 10 == 0)
        if i % 7 == 0:
            await asyncio.sleep(0)


async def main(file):
    for _ in range(30):
        await asyncio.sleep(0.002)
    await asyncio.gather(*(prints(task, file) for task in range(TASKS)))


if __name__ == "__main__":
    out, to = os.pipe()
    fcntl.fcntl(to, fcntl.F_SETPIPE_SZ, 4096)
    reader = threading.Thread(target=reads, args=(out,))
    reader.start()
    if "uvloop" in sys.argv:
        import uvloop

        uvloop.install()
    with os.fdopen(to, "w") as opened:
        asyncio.run(main(opened))
    reader.join()
    lines = b"".join(came).decode(errors="replace").splitlines()
    written = {f"line {task} {i} {'x' * 40}" for task in range(TASKS) for i in range(EACH)}
    print(len(lines), sum(line not in written for line in lines), len(set(lines)))
