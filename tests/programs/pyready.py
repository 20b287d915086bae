"""Steps that wait for descriptors and children, many at once. Prints what each got, the same with calls moved and without; on stderr how many
threads there were at the most."""

import asyncio
import contextlib
import json
import os
import random
import socket
import sys
import threading
import time

EACH = 100
most = 0


def thread_count():
    global most
    most = max(most, len(os.listdir("/proc/self/task")))


async def receives(i, end, limit):
    end.settimeout(limit)
    got = end.recv(100).decode()
    thread_count()
    return i, got


async def expires(i, end):
    end.settimeout(0.15)
    try:
        return i, end.recv(100)
    except TimeoutError as e:
        return i, str(e)


async def waits(i, child):
    return i, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


async def naps(end):
    time.sleep(0.3)
    return end.send(b"slept")


async def outlasts(end):
    """Its time limit is a later one than the nap's end, and was asked for after it."""
    end.settimeout(5)
    return end.recv(100).decode()


def child(status):
    pid = os.fork()
    if pid == 0:
        time.sleep(0.3)
        os._exit(status)
    return pid


def feed(ends):
    time.sleep(0.8)  # all have begun by then, on a busy machine, too
    order = list(enumerate(ends))
    random.shuffle(order)
    for i, end in order:
        end.send(b"for %d" % i)


async def main():
    children = [child(status) for status in range(20)]
    pairs = [socket.socketpair() for _ in range(2 * EACH)]
    silent = [socket.socketpair() for _ in range(3)]
    for _ in range(20):  # until the loop is recognised
        await asyncio.sleep(0.002)
    feeder = threading.Thread(target=feed, args=([b for _, b in pairs],))
    feeder.start()
    got = await asyncio.gather(*(receives(i, a, 20 if i % 2 else None) for i, (a, _) in enumerate(pairs)),
                               *(waits(i, pid) for i, pid in enumerate(children)), *(expires(i, a) for i, (a, _) in enumerate(silent)))
    feeder.join()
    one, other = socket.socketpair()
    got += await asyncio.gather(naps(other), outlasts(one))
    print(json.dumps(got))
    print(json.dumps({"threads": most}), file=sys.stderr)


def takes(end):
    """A number of ours for something else, in another thread."""
    null = os.open("/dev/null", os.O_RDWR)
    time.sleep(0.2)
    for fd in range(600, 1000):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{fd}").startswith("socket"):
                os.dup2(null, fd)
    time.sleep(0.2)
    end.send(b"two")


async def twice(one, two):
    """What the first leaves in its socket is there to be told of."""
    got = one[0].recv(1)
    thread = threading.Timer(0.2, two[1].send, (b"more",))
    thread.start()
    got += two[0].recv(100)
    thread.join()
    return got.decode()


async def taken():
    one, two = socket.socketpair(), socket.socketpair()
    for _ in range(20):
        await asyncio.sleep(0.002)
    thread = threading.Thread(target=takes, args=(one[1],))
    thread.start()
    print(json.dumps(await asyncio.wait_for(twice(one, two), 10)))
    thread.join()


asyncio.run(taken() if sys.argv[1:] == ["taken"] else main())
