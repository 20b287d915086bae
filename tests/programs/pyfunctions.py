"""Functions called in tasks. Each case prints what came of it, which is to be the same whether a policy has them called
elsewhere or not. LOOP=uvloop: on that. The longest gap of a ticker beside each goes to stderr: `case MS`."""

import asyncio
import atexit
import collections
import functools
import gc
import hashlib
import io
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import traceback
import zlib
from concurrent.futures import ThreadPoolExecutor

import pywork
from pywork import Work, factorial, fails, is_prime, kinds, nap, variable
from zlib import compress

kept = Work.__new__(Work)
kept.n = 4
bound = kept.gives
N = 1000003


async def paths():
    """However it is reached."""
    part = functools.partial(nap, 0.01)
    return [nap(0.01, gives=2), pywork.nap(gives=3), part(gives=4), list(map(Work.still, [1, 2])), bound(), kept.gives(),
            kept.twice, Work.makes(3), Work(6).gives(), pywork.adds(), pywork.adds(9), factorial(20), nap.__name__,
            sorted([3, 1, 2], key=Work.still), kinds(1), kinds(1, 5, 6, 7, d=8, e=9), repr(kept.gives)[:19]]


async def together():
    async def one(i):
        return nap(0.1, gives=i)
    return await asyncio.gather(*[one(i) for i in range(8)])


async def raises():
    said = []
    for n in (3, 0):
        try:
            fails(n)
        except ValueError as e:
            said += [repr(e), repr(e.__context__), e.__traceback__.tb_frame.f_code.co_name,
                     traceback.extract_tb(e.__traceback__)[-1].name, len(traceback.extract_tb(e.__context__.__traceback__))]
    try:
        nap(1, 2, 3)
    except TypeError as e:
        said.append(str(e))
    try:
        kinds()
    except TypeError as e:
        said.append(str(e))
    return said


async def contexts():
    async def own(i):
        said = pywork.sets(i), variable.get()
        await asyncio.sleep(0)
        return said, variable.get(), asyncio.current_task() is not None
    variable.set(77)
    return await asyncio.gather(*[own(i) for i in range(5)]), variable.get()


async def cancelled():
    said = []

    async def one():
        try:
            said.append(nap(0.15))
            await asyncio.sleep(5)
            said.append("not cancelled")
        except asyncio.CancelledError:
            said.append("cancelled")
            raise
    task = asyncio.create_task(one())
    await asyncio.sleep(0.001)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        said.append("told")
    return said


async def primes():
    async def one(n):
        return is_prime(n)
    return await asyncio.gather(*[one(n) for n in (2, 9, 112272535095, 10000019, 1000003 * 7)])


async def in_processes():
    """Values there and back; what cannot go stays."""
    lock = threading.Lock()
    said = [pywork.echoes(value) for value in (None, b"x" * 3_000_000, {"a": [1, (2, 3)]}, 1e300, Work.__name__)]
    said[1] = len(said[1])
    said.append(pywork.echoes(lock) is lock)
    said.append(pywork.echoes(kept) == kept)
    for call in (pywork.exits, functools.partial(pywork.fails_there, 1)):
        try:
            call()
        except BaseException as e:
            said.append(repr(e))
    return said


async def pools():
    """In the program's own threads."""
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(3) as pool:
        return (await asyncio.gather(*[loop.run_in_executor(pool, is_prime, n) for n in (7, 112272535095, 10000019)]),
                await asyncio.to_thread(factorial, 5), list(pool.map(is_prime, range(2, 9))))


async def snapshots():
    """Written while others go on changing it."""
    data, over = collections.defaultdict(collections.deque), False
    for i in range(200):
        data[i].extend(range(i, i + 300))
    data["first"] = collections.deque([1])

    async def changes():
        while not over:
            for i in range(0, 200, 7):
                data[i].append(data[i].popleft())
            await asyncio.sleep(0.001)
    task = asyncio.create_task(changes())
    await asyncio.sleep(0.01)
    said = []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(3):
            size = pywork.saves(data, f"{folder}/{i}")
            with open(f"{folder}/{i}", "rb") as file:
                back = pickle.load(file)
            said += [size == os.path.getsize(f"{folder}/{i}"), len(back), {len(d) for k, d in back.items() if k != "first"}]
        with open(f"{folder}/there", "wb") as file:  # opened here, written there, and again here
            file.write(b"head")
            pickle.dump(data, file)
            file.write(b"tail")
            said.append(file.tell() == os.path.getsize(f"{folder}/there") or file.flush())
        with open(f"{folder}/there", "rb") as file:
            text = file.read()
            said += [text[:4], text[-4:], len(pickle.loads(text[4:-4]))]
    memory = io.BytesIO()
    pickle.dump(list(range(1000)), memory)
    said.append(len(memory.getvalue()))
    over = True
    await task
    return said


async def of_c():
    """Functions, methods and class methods in C, imported before and after."""
    text = b"abc" * 100_000
    deque = collections.deque(range(5))
    method = deque.copy
    return [len(compress(text)), len(zlib.compress(text, level=1)), hashlib.pbkdf2_hmac("sha256", b"a", b"b", 2000).hex()[:8],
            deque.copy(), method(), dict.fromkeys([1, 2], 3), int.from_bytes(b"ab", byteorder="big")]


async def callbacks():
    """Outside of tasks all stays."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    said = []

    def on_call():
        said.append(nap(0.01, gives=5))
        said.append(is_prime(101))
        done.set()
    loop.call_soon(on_call)
    await done.wait()
    return said


async def late():
    """A module that comes later, by any way of importing."""
    import importlib
    import pylate
    other = importlib.import_module("pylate_too")
    return pylate.gives(), other.gives()


async def forks():
    """A child of the program's own has none of our threads and processes; it calls all itself."""
    said = [nap(0.01), is_prime(101)]
    pid = os.fork()
    if pid == 0:
        ok = nap(0.01, gives=3) == 3 and is_prime(103)
        os._exit(4 if ok else 5)
    said.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    said += [nap(0.01), is_prime(107), pywork.nested()]
    return said


async def collects():
    async def one(i):
        values = [nap(0.005, gives=i) for _ in range(3)]
        gc.collect()
        return sum(values)
    return await asyncio.gather(*[one(i) for i in range(6)])


async def timed():
    async def one():
        return nap(0.05)
    try:
        return await asyncio.wait_for(one(), 20)
    except asyncio.TimeoutError:
        return "timeout"


async def elsewhere():
    """Not the same alone: where it ran."""
    return [pywork.who() != os.getpid(), pywork.nested()]


async def dies():
    """The process that runs it ends; the next one has another."""
    said = []
    for call in (pywork.dies, pywork.dies_in_fork):
        try:
            call()
        except BaseException as e:
            said.append(type(e).__name__)
    return said + [is_prime(101)]


async def cannot_return():
    """What it did is done once, and what came of it is an error."""
    said = []
    for call in (pywork.gives_lock, pywork.raises_strange):
        try:
            said.append(type(call()).__name__)
        except BaseException as e:
            said += [type(e).__name__, [note.split(" ran")[0] for note in e.__notes__]]
    with open(os.environ["COUNTED"]) as file:
        return said + [file.read()]


async def hangs():
    """A fork that waits for a lock which another thread had."""
    lock = threading.Lock()
    lock.acquire()
    try:
        return pywork.waits_for_lock(lock)
    except ChildProcessError as e:
        return str(e)


async def interrupted():
    loop = asyncio.get_running_loop()
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    nap(0.5)
    await asyncio.sleep(5)


async def ends():
    """The loop ends while it is away: it comes to its end before."""
    async def one():
        print("ended", nap(0.1), flush=True)
    asyncio.get_running_loop().task = asyncio.create_task(one())
    await asyncio.sleep(0.001)


async def ticker(gaps):
    last = time.perf_counter()
    while True:
        await asyncio.sleep(0.005)
        now = time.perf_counter()
        gaps.append(now - last)
        last = now


async def main():
    for _ in range(40):  # until the loop is recognised
        await asyncio.sleep(0.001)
    for case in sys.argv[1:]:
        gaps = []
        task = asyncio.create_task(ticker(gaps))
        await asyncio.sleep(0.02)
        result = await asyncio.create_task(globals()[case]())
        await asyncio.sleep(0.01)
        task.cancel()
        print(case, result, flush=True)
        print(case, round(max(gaps) * 1000), file=sys.stderr, flush=True)


if __name__ == "__main__":
    atexit.register(lambda: print("exit of one", flush=True))
    print(nap(0.001), is_prime(103), Work(1).n)
    if os.environ.get("LOOP") == "uvloop":
        import uvloop
        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        print("KeyboardInterrupt")
    print(nap(0.001), is_prime(109))
