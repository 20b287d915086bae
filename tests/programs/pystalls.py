"""Blocks an asyncio (or uvloop) loop in every way that programs do, one after the other, and writes down the truth.

    python3 pystalls.py LOOP TRUTH [NAME...]

LOOP is asyncio or uvloop. TRUTH gets one JSON line a stall: its name, the
function that blocks, its lines, the task, start and duration by
time.monotonic_ns(). SLOW_URL (and SLOW_HTTPS_URL) name a server that answers
late. Only the standard library; runs on CPython 3.8 and later.
"""

import asyncio
import collections
import fcntl
import gc
import inspect
import json
import logging
import mmap
import multiprocessing
import os
import pickle
import queue
import re
import socket
import sqlite3
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

LONG = 0.12


class Skip(Exception):
    """What a stall needs is not here."""


STALLS = {}
FOLDER = tempfile.mkdtemp(prefix="pystalls-")


def stall(function):
    STALLS[function.__name__] = function
    return function


def prepared(prepare):
    """A stall whose preparation takes time of its own: that happens first, outside the loop."""
    def wrap(function):
        function.prepare = prepare
        return stall(function)
    return wrap


# Blocking calls ---------------------------------------------------------


@stall
def sleep():
    time.sleep(LONG)


@stall
def http():
    urllib.request.urlopen(os.environ["SLOW_URL"]).read()


@stall
def https():
    context = ssl._create_unverified_context()
    urllib.request.urlopen(os.environ["SLOW_HTTPS_URL"], context=context).read()


@stall
def pipe_read():
    r, w = os.pipe()
    threading.Timer(LONG, os.write, (w, b"x")).start()
    os.read(r, 1)


@stall
def file_sync():
    with open(os.path.join(FOLDER, "synced"), "wb") as f:
        end = time.monotonic() + LONG
        while time.monotonic() < end:
            f.write(bytes(1 << 20))
            f.flush()
            os.fsync(f.fileno())


@stall
def run_process():
    subprocess.run(["sleep", str(LONG)])


@stall
def sqlite_locked():
    path = os.path.join(FOLDER, "db")
    owner = sqlite3.connect(path, isolation_level=None)
    owner.execute("create table if not exists t (a)")
    owner.execute("begin exclusive")
    try:
        sqlite3.connect(path, timeout=LONG).execute("insert into t values (1)")
    except sqlite3.OperationalError:
        pass
    owner.close()


@stall
def sqlite_query():
    sqlite3.connect(":memory:").execute(
        "with recursive c(x) as (select 1 union all select x + 1 from c where x < 900000) select max(x) from c").fetchone()


def late_name_server(server):
    packet, peer = server.recvfrom(512)
    time.sleep(LONG)
    server.sendto(packet[:2] + b"\x81\x83" + packet[4:], peer)  # a response: no such name


def name_server():
    """This thread's resolver asks a server on loopback that answers late."""
    import ctypes
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 0))
    threading.Thread(target=late_name_server, args=(server,), daemon=True).start()
    libc = ctypes.CDLL(None)
    libc.__res_init()
    libc.__res_state.restype = ctypes.c_void_p
    state = libc.__res_state()
    address = struct.pack("=H", socket.AF_INET) + struct.pack(">H4s8x", server.getsockname()[1], b"\x7f\0\0\1")
    ctypes.memmove(state + 16, struct.pack("=i", 1) + address, 20)  # nscount, nsaddr_list[0]


@prepared(name_server)
def getaddrinfo(_):
    try:
        socket.getaddrinfo("slow.invalid.", 80, socket.AF_INET)
    except socket.gaierror:
        pass


def late_page(uffd, address):
    """In a process of its own: who meets the fault holds the GIL."""
    os.read(uffd, 32)
    time.sleep(LONG)
    fcntl.ioctl(uffd, 0xc020aa04, struct.pack("=QQQq", address, 4096, 0, 0))  # UFFDIO_ZEROPAGE
    os._exit(0)


def late_pages():
    import ctypes
    uffd = ctypes.CDLL(None).syscall(323, os.O_CLOEXEC | 1)  # userfaultfd, for faults of user mode
    if uffd < 0:
        raise Skip("userfaultfd is not permitted here")
    area = mmap.mmap(-1, 4096)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    fcntl.ioctl(uffd, 0xc018aa3f, bytearray(struct.pack("=QQQ", 0xaa, 0, 0)))  # UFFDIO_API
    fcntl.ioctl(uffd, 0xc020aa00, bytearray(struct.pack("=QQQQ", address, 4096, 1, 0)))  # UFFDIO_REGISTER
    child = os.fork()
    if child == 0:
        late_page(uffd, address)
    return area, child


@prepared(late_pages)
def mapped(made):
    area, child = made
    area[0]
    os.waitpid(child, 0)


# Other threads and processes ---------------------------------------------


@stall
def lock():
    held = threading.Lock()
    held.acquire()
    threading.Timer(LONG, held.release).start()
    held.acquire()


@stall
def event():
    threading.Event().wait(LONG)


@stall
def queue_get():
    items = queue.Queue()
    threading.Timer(LONG, items.put, (1,)).start()
    items.get()


@stall
def join():
    thread = threading.Thread(target=time.sleep, args=(LONG,))
    thread.start()
    thread.join()


@stall
def process_queue():
    try:
        multiprocessing.Queue().get(timeout=LONG)
    except queue.Empty:
        pass


@stall
def process_connection():
    a, b = multiprocessing.Pipe()
    threading.Timer(LONG, a.send, (1,)).start()
    b.recv()


@stall
def process_join():
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(LONG,))
    child.start()
    child.join()


class SlowHandler(logging.Handler):
    def emit(self, record):
        time.sleep(LONG)


@stall
def log():
    logger = logging.Logger("slow")
    logger.addHandler(SlowHandler())
    logger.warning("late")


# Computation ------------------------------------------------------------


@stall
def cpu():
    end = time.monotonic() + LONG
    while time.monotonic() < end:
        pass


@prepared(lambda: json.dumps([{"a": i, "b": [i, str(i)]} for i in range(200_000)]))
def json_loads(text):
    json.loads(text)


@prepared(lambda: [{"id": i, "name": "customer %d" % i, "tags": [i, str(i)]} for i in range(150_000)])
def pickle_dumps(rows):
    pickle.dumps(rows)


# 100 MB of live state, nested, in pieces of a kilobyte each.
@prepared(lambda: collections.deque([bytes(1000) for _ in range(1000)] for _ in range(100)))
def checkpoint(state):
    path = os.path.join(FOLDER, "checkpoint")
    with open(path, "wb") as f:
        pickle.dump(state, f)
        size = f.tell()
    os.unlink(path)
    assert size > 100_000_000, size


@prepared(lambda: "a" * 24 + "b")
def regex(text):
    for _ in range(2):
        re.match(r"(a+)+$", text)


@prepared(lambda: [(i * 7919) % 1_000_003 for i in range(400_000)])
def sort(numbers):
    sorted(numbers, key=lambda n: -n)


def hog(text):
    json.loads(text)


@prepared(lambda: json.dumps([{"a": i, "b": [i, str(i)]} for i in range(250_000)]))
def gil(text):
    thread = threading.Thread(target=hog, args=(text,))
    thread.start()
    end = time.monotonic() + LONG
    while time.monotonic() < end:
        time.sleep(0.0001)


def cycles():
    gc.disable()
    for _ in range(800_000):
        a = []
        a.append(a)


@prepared(cycles)
def collect(_):
    gc.collect()


def module():
    path = os.path.join(FOLDER, "bigmodule.py")
    with open(path, "w") as f:
        f.write("import time\nend = time.monotonic() + %f\nwhile time.monotonic() < end:\n    pass\n" % LONG)
    sys.path.insert(0, FOLDER)


@prepared(module)
def import_module(_):
    import bigmodule  # noqa: F401


# The loop ---------------------------------------------------------------


async def ticks(n):
    for _ in range(n):
        await asyncio.sleep(0.002)


async def inner(name, arguments, truth):
    function = STALLS[name]
    lines, first = inspect.getsourcelines(function)
    start = time.monotonic_ns()
    function(*arguments)
    duration = time.monotonic_ns() - start
    truth.write(json.dumps({"stall": name, "start_ns": start, "duration_ns": duration, "first": first,
                            "last": first + len(lines) - 1}) + "\n")


async def outer(name, arguments, truth):
    await ticks(5)
    await inner(name, arguments, truth)
    await ticks(5)


async def main(names, truth):
    await ticks(40)
    for name in names:
        prepare = getattr(STALLS[name], "prepare", None)
        # What is prepared is no stall of the matrix: it is told apart by its name.
        try:
            arguments = () if prepare is None else (prepare(),)
        except Skip as why:
            truth.write(json.dumps({"skipped": name, "why": str(why)}) + "\n")
            continue
        await ticks(5)
        task = asyncio.get_running_loop().create_task(outer(name, arguments, truth))
        if hasattr(task, "set_name"):
            task.set_name("stall " + name)
        await task
        arguments = None
        gc.enable()


if __name__ == "__main__":
    if sys.argv[1] == "uvloop":
        import uvloop
        uvloop.install()
    with open(sys.argv[2], "w") as out:
        asyncio.run(main(sys.argv[3:] or list(STALLS), out))
