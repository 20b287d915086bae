"""What a loop of asyncio's has more of ours, after steps of it were left: nothing, some time later or when it stops. Prints one
line each of what was found, the same without us."""

import asyncio
import os
import sys
import time

SHORT = 0.03
ours = []


def has(loop):
    """Of descriptors that it watches, and attributes of its own that are functions of somebody's."""
    return len(loop._selector.get_map()), "stop" in vars(loop)


async def leaves():
    time.sleep(SHORT)


async def warm():
    for _ in range(30):
        await asyncio.sleep(0.001)


async def some_time_later():
    loop = asyncio.get_running_loop()
    await warm()
    before = has(loop)
    for _ in range(3):
        await asyncio.gather(leaves())
        await asyncio.sleep(0)
    ours.append(has(loop) != before)
    await asyncio.sleep(0.3)
    print("later", has(loop) == before)
    await asyncio.gather(leaves())
    print("it goes on", loop.is_running())


async def replaced():
    loop = asyncio.get_running_loop()
    await warm()
    await asyncio.gather(leaves())
    loop.stop = replacement = lambda: type(loop).stop(loop)
    await asyncio.sleep(0.3)
    print("its own stop", vars(loop).get("stop") is replacement)
    del loop.stop


async def forks():
    loop = asyncio.get_running_loop()
    await warm()
    before = has(loop)
    await asyncio.gather(leaves())
    pid = os.fork()
    if pid == 0:
        os._exit(0 if has(loop) == before else 3)
    print("forked", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


async def taken():
    """A number of ours is the program's from then on."""
    loop = asyncio.get_running_loop()
    await warm()
    before = set(loop._selector.get_map())
    await asyncio.gather(leaves())
    more = set(loop._selector.get_map()) - before
    null = os.open("/dev/null", os.O_RDONLY)
    for fd in more:
        os.dup2(null, fd)
    for _ in range(3):
        await asyncio.gather(leaves())
    for fd in more:
        print("taken", os.path.samestat(os.fstat(fd), os.fstat(null)), file=sys.stderr)
        loop.remove_reader(fd)
        os.close(fd)
    print("it goes on")


async def breaks_off():
    await asyncio.gather(leaves())
    raise KeyboardInterrupt


def many_that_break_off():
    """They are never stopped, and closed or not."""
    for i in range(20):
        loop = asyncio.new_event_loop()
        try:
            loop.run_until_complete(warm())
            loop.run_until_complete(breaks_off())
        except KeyboardInterrupt:
            pass
        if i % 2:
            loop.close()
    print("broken off")


def stopped():
    loop = asyncio.new_event_loop()
    loop.run_until_complete(warm())
    before = has(loop)
    loop.run_until_complete(leaves())
    print("stopped", has(loop) == before)
    task = loop.create_task(leaves())
    task.add_done_callback(lambda _: loop.call_later(0.02, lambda: loop.stop()))
    loop.run_forever()
    print("stopped in between", task.done(), has(loop) == before)
    loop.close()


if __name__ == "__main__":
    for part in (some_time_later, replaced, forks, taken):
        asyncio.run(part())
    many_that_break_off()
    stopped()
    print(ours, file=sys.stderr)
