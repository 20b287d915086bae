"""What a dry run and a report of moved calls are told of: each case blocks in one way, twice, in a place of its own."""
import asyncio
import os
import http.server
import select
import socket
import sys
import threading
import time
import urllib.request

SECONDS = 0.12


def nap():
    time.sleep(SECONDS)


async def sleeps():
    nap()


async def waits():
    there = threading.Event()
    threading.Timer(SECONDS, there.set).start()
    there.wait()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        time.sleep(SECONDS)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


async def fetches():
    urllib.request.urlopen(URL).read()


def sends_late():
    a, b = socket.socketpair()
    threading.Timer(SECONDS, b.send, (b"x",)).start()
    return a, b


async def selects():
    a, b = sends_late()
    with a, b:
        assert select.select([a], [], [], 20)[0]


async def epolls():
    a, b = sends_late()
    with a, b, select.epoll() as epoll:
        epoll.register(a, select.EPOLLIN)
        assert epoll.poll(20)


async def imports():
    sys.modules.pop("slow_module", None)
    import slow_module
    return slow_module


async def in_callback():
    """Not a task's step."""
    done = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(lambda: (nap(), done.set_result(None)))
    await done


async def main(cases):
    for _ in range(12):
        await asyncio.sleep(0.002)
    for case in cases:
        for _ in range(2):
            await asyncio.create_task(case())
            await asyncio.sleep(0.01)


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
URL = f"http://127.0.0.1:{server.server_port}/"
threading.Thread(target=server.serve_forever, daemon=True).start()
if os.environ.get("LOOP") == "uvloop":
    import uvloop
    uvloop.install()
asyncio.run(main([globals()[name] for name in sys.argv[1:]]))
