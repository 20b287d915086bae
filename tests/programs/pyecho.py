"""An echo server beside tasks that never await: pyecho.py LOOP COUNT PAUSE_MS TASKS. A process of its own asks COUNT times, and waits for so
long in between. Prints {"check": answers, "p50_us", "p99_us", "max_us", "rounds": what the tasks computed}."""

import asyncio
import json
import os
import socket
import sys
import time

LOOP, COUNT, PAUSE, TASKS = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]) / 1000, int(sys.argv[4])
over, rounds = False, 0


async def computes():
    global rounds
    while not over:
        rounds += 1


async def echoes(reader, writer):
    global over
    while data := await reader.read(100):
        writer.write(data)
    over = True
    writer.close()


def asks(port):
    took = []
    with socket.create_connection(("127.0.0.1", port)) as s:
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for i in range(COUNT):
            time.sleep(PAUSE)
            text, begun = b"%d" % i, time.perf_counter_ns()
            s.sendall(text)
            assert s.recv(100) == text
            took.append((time.perf_counter_ns() - begun) // 1000)
    return took


def client(port, out):
    took = sorted(asks(port))
    os.write(out, json.dumps({"check": len(took), "p50_us": took[len(took) // 2], "p99_us": took[len(took) * 99 // 100],
                              "max_us": took[-1]}).encode())


async def main():
    server = await asyncio.start_server(echoes, "127.0.0.1", 0)
    for _ in range(30):  # so that the loop is known to be one
        await asyncio.sleep(0.001)
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        client(server.sockets[0].getsockname()[1], w)
        os._exit(0)
    await asyncio.gather(*[computes() for _ in range(TASKS)])
    os.waitpid(pid, 0)
    print(json.dumps({**json.loads(os.read(r, 1000)), "rounds": rounds}))


if LOOP == "uvloop":
    import uvloop
    uvloop.install()
asyncio.run(main())
