"""Tasks that compute. Each case prints what came out of it, which is to be the same whether steps yield or not; the longest
gap of a ticker beside it goes to stderr: `case MS`. LOOP=uvloop: on that. SPIN: how much is computed."""

import asyncio
import contextvars
import ctypes
import fcntl
import gc
import json
import linecache
import os
import queue
import random
import resource
import select
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback

COUNTS = []  # lists that take how many threads there are at a fork
os.register_at_fork(before=lambda: [seen.append(len(os.listdir("/proc/self/task"))) for seen in COUNTS])
N = int(os.environ.get("SPIN", 3_000_000))
variable = contextvars.ContextVar("variable", default=0)


def spin(n=N):
    while n:
        n -= 1
    return "spun"


async def burn(n=N):
    return spin(n)


async def one():
    return await burn(3 * N)


async def many():
    return await asyncio.gather(*[burn(N // 2) for _ in range(8)])


async def raises():
    async def fails():
        try:
            spin()
            raise ValueError("after a while")
        finally:
            spin()
    try:
        await asyncio.create_task(fails())
    except ValueError as e:
        return repr(e), e.__traceback__.tb_next.tb_frame.f_code.co_name


async def contexts():
    async def own(i):
        variable.set(i)
        spin(N // 4)
        task = asyncio.current_task()
        spin(N // 4)
        return variable.get() == i and task is asyncio.current_task() and asyncio.get_running_loop().is_running()
    return await asyncio.gather(*[asyncio.create_task(own(i)) for i in range(1, 7)]), variable.get()


async def cancelled():
    said = []

    async def stubborn():
        try:
            spin()
            said.append("spun")
            await asyncio.sleep(0.1)
            said.append("not cancelled")
        except asyncio.CancelledError:
            said.append("cancelled")
            raise
    task = asyncio.create_task(stubborn())
    asyncio.get_running_loop().call_later(0.02, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        said.append("told")
    return said, task.cancelled()


async def timed():
    """Alone its time is over when it first comes to an await, having computed."""
    async def works():
        spin()
        return 1
    try:
        return await asyncio.wait_for(works(), 20)
    except asyncio.TimeoutError:
        return "timeout"


async def locks():
    """Nobody is inside where somebody else is."""
    lock, again, inside, seen = threading.Lock(), threading.RLock(), [], []

    async def enters(which, i):
        with which:
            seen.append(len(inside))
            inside.append(i)
            spin(N // 8)
            with again if which is again else threading.Lock():
                spin(N // 8)
            inside.pop()
    await asyncio.gather(*[enters(lock, i) for i in range(4)])
    await asyncio.gather(*[enters(again, i) for i in range(4)])
    return seen


async def imports():
    """A module that computes is not seen by half."""
    async def gets():
        import computing_module
        return computing_module.VALUE
    return await asyncio.gather(*[gets() for _ in range(3)])


async def half_done():
    """Who was set aside does not go on above a call that stays where others would see a module by half, or stand in a transaction."""
    async def gets():
        import calling_module
        return calling_module.VALUE

    async def computes(then):
        spin(2 * N)
        return await then()
    said = await asyncio.gather(computes(gets), gets(), return_exceptions=True)
    for call in lambda: os.system("true"), lambda: time.sleep(0.002):
        db = sqlite3.connect(":memory:")
        db.execute("CREATE TABLE t(x)")

        async def writes():
            db.execute("INSERT INTO t VALUES ('kept')")
            db.commit()

        async def takes_back():
            db.execute("INSERT INTO t VALUES ('taken back')")
            call()
            db.rollback()
        await asyncio.gather(computes(writes), takes_back())
        said.append([x for x, in db.execute("SELECT x FROM t")])
        db.close()
    return said


async def generators():
    async def numbers():
        for i in range(4):
            spin(N // 4)
            yield i

    def plain():
        for i in range(4):
            spin(N // 8)
            yield i

    async def takes():
        return [i async for i in numbers()] + list(plain())
    return await asyncio.gather(takes(), takes())


async def deep():
    def down(n):
        return 0 if n == 0 else 1 + down(n - 1) + (spin(2000) is None)

    async def goes():
        try:
            return down(100_000)
        except RecursionError:
            spin()
            return down(700)
    return await asyncio.gather(goes(), goes())


async def callbacks():
    """A callback that waits in its place for what a step does that computed before it."""
    event, done = threading.Event(), asyncio.get_running_loop().create_future()

    async def sets():
        spin()
        event.set()
    task = asyncio.create_task(sets())
    asyncio.get_running_loop().call_later(0.005, lambda: done.set_result(event.wait(20)))
    return await done, await task


async def gathers():
    """asyncio's debug mode looks at the stack in the midst of its functions: what they have not set yet nobody sees."""
    real = linecache.checkcache

    def slowly(*names):
        if any(f.f_code.co_qualname == "_GatheringFuture.__init__" for f, _ in traceback.walk_stack(None)):
            spin()
            time.sleep(0.06)
        real(*names)

    async def nothing():
        pass
    for _ in range(40):  # calls are moved once the loop is known for one
        await asyncio.sleep(0.001)
    linecache.checkcache = slowly
    try:
        return await asyncio.gather(*[nothing() for _ in range(4)])
    finally:
        linecache.checkcache = real


async def overtaken():
    """Whose turn has come is gone on with by a callback that waits for it: then it is the next one's turn."""
    event, loop = threading.Event(), asyncio.get_running_loop()
    first = asyncio.create_task(sets_late(event))
    second = asyncio.create_task(burn())

    def busy():
        if first._fut_waiter and first._fut_waiter.done():
            return event.wait(60)
        return first.done() or loop.call_soon(busy)
    loop.call_soon(busy)
    return await second, await first


async def slept_on():
    """Who sleeps with a lock lets others go on above it, that want it."""
    lock, again, seen = threading.Lock(), threading.RLock(), []

    async def computes(which, i):
        spin(N // 4)
        with which:
            seen.append(i)

    async def sleeps(which, i):
        with which:
            for _ in range(3):
                time.sleep(0.005)
            seen.append(i)
    await asyncio.gather(*[each(which, i) for i, (each, which) in enumerate(
        ((computes, lock), (computes, again), (sleeps, lock), (sleeps, again), (computes, lock)))])
    return sorted(seen)


async def sets_late(event):
    spin()
    event.set()


async def pairs():
    """A task that reads, blocking, what one writes that computed before it."""
    a, b = socket.socketpair()

    async def writes():
        spin()
        a.send(b"written")

    async def reads():
        return b.recv(20).decode()
    with a, b:
        return (await asyncio.gather(writes(), reads()))[1]


class Things:
    """What one task does after computing, and ways in which another one waits for that."""

    def __init__(self):
        self.there, self.lock, self.again = threading.Event(), threading.Lock(), threading.RLock()
        self.condition, self.queue, self.few = threading.Condition(), queue.SimpleQueue(), threading.Semaphore(0)
        self.socket, self.other_socket = socket.socketpair()
        self.file = tempfile.NamedTemporaryFile()
        self.same_file = open(self.file.name)
        self.child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.pipe, self.other_end = os.pipe()

    def computes(self):
        with self.lock, self.again:
            fcntl.flock(self.file, fcntl.LOCK_EX)
        spin()
        self.there.set()
        fcntl.flock(self.file, fcntl.LOCK_UN)
        with self.condition:
            self.condition.notify()
        self.queue.put(1)
        self.few.release()
        self.other_socket.send(b"sent")
        self.child.stdin.close()
        os.write(self.other_end, b"written")
        socket.create_connection(self.listening.getsockname()).close()

    def events(self): return self.there.wait()
    def conditions(self):
        with self.condition:
            return self.condition.wait_for(self.there.is_set)
    def queues(self): return self.queue.get()
    def semaphores(self): return self.few.acquire()
    def receives(self): return self.socket.recv(10)
    def receives_in_time(self):
        self.socket.settimeout(60)
        return self.socket.recv(10)
    def flocks(self): return fcntl.flock(self.same_file, fcntl.LOCK_EX)
    def waits_for_child(self): return self.child.wait()
    def sleeps(self):
        while not self.there.is_set():
            time.sleep(0.004)
        return "slept"
    def accepts(self): return self.listening.accept()[0].close()
    def reads(self): return os.read(self.pipe, 10)
    def selects(self): return len(select.select([self.pipe], [], [])[0])
    def waits_for_events(self):
        with select.epoll() as epoll:
            epoll.register(self.pipe, select.EPOLLIN)
            return len(epoll.poll())
    def systems(self): return os.system(f"head -c 7 /proc/{os.getpid()}/fd/{self.pipe} >/dev/null")
    def joins(self):
        thread = threading.Thread(target=self.there.wait)
        thread.start()
        return thread.join()
    def polls(self):
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        while not poll.poll(4):
            pass
        return "polled"

    def end(self):
        for one in self.socket, self.other_socket, self.file, self.same_file, self.listening:
            one.close()
        os.close(self.pipe)
        os.close(self.other_end)
        self.child.wait()


WAYS = ("events", "conditions", "queues", "semaphores", "receives", "receives_in_time", "flocks", "waits_for_child", "sleeps", "polls",
        "accepts", "reads", "selects", "waits_for_events", "joins", "systems")


async def waits():
    """A task that waits, whatever the way, for what one does that computed before it: in a task, and in a callback."""
    async def call(function):
        return function()
    said, loop = [], asyncio.get_running_loop()
    for way in WAYS:
        for in_callback in False, True:
            things, done = Things(), loop.create_future()
            first = asyncio.create_task(call(things.computes))
            if in_callback:
                loop.call_soon(lambda: done.set_result(getattr(things, way)()))
                said.append(await done)
            else:
                said.append(await asyncio.create_task(call(getattr(things, way))))
            await first
            things.end()
    return said


async def guarded():
    """Who holds a lock is not set aside; who has given it back is."""
    lock = threading.Lock()

    async def holds():
        with lock:
            return spin()

    async def held_once():
        with lock:
            pass
        return spin()
    return await asyncio.gather(asyncio.create_task(holds()), asyncio.create_task(held_once()))


async def forked():
    """No thread of ours is there while a program forks, and until its next step."""
    seen = []
    COUNTS.append(seen)

    async def forks():
        pid = os.fork()
        if pid == 0:
            os._exit(7)
        spin()
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    async def others():
        return spin()
    return [await asyncio.create_task(one()) for one in (others, forks, others)], seen


async def hurried(times=300):
    """A descriptor that is ready again 30 us after it was read, beside one who never awaits (alone nobody would ever read)."""
    resource.setrlimit(resource.RLIMIT_CPU, (120, 120))  # with nobody watching it any more it would compute for good
    loop, libc, over = asyncio.get_running_loop(), ctypes.CDLL(None), False
    fd = libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)

    def ready():
        os.read(fd, 8)
        read.set_result(None)

    async def computes():
        rounds = 0
        while not over:
            rounds += 1
        return rounds > 0
    computing = asyncio.create_task(computes())
    read = None
    loop.add_reader(fd, ready)
    for _ in range(times):
        read = loop.create_future()
        libc.timerfd_settime(fd, 0, struct.pack("4q", 0, 0, 0, 30_000), None)
        await read
    over = True
    loop.remove_reader(fd)
    os.close(fd)
    return times, await computing


async def collects():
    class Node:
        def __init__(self):
            self.me, self.weight = self, bytearray(100)

        def __del__(self):
            spin(50)

    async def makes():
        for _ in range(3000):
            Node()
        gc.collect()
        return spin(N // 2)
    return await asyncio.gather(*[makes() for _ in range(3)])


async def handled():
    """Exceptions that are being handled stay each task's own."""
    async def handles(i):
        try:
            raise KeyError(i)
        except KeyError:
            spin(N // 4)
            assert sys.exc_info()[1].args == (i,)
            try:
                raise IndexError(i)
            except IndexError as e:
                spin(N // 4)
                return e.args, e.__context__.args
    return await asyncio.gather(*[handles(i) for i in range(4)])


async def handlers():
    """The program's own handlers run while a task computes."""
    got = []
    signal.signal(signal.SIGUSR1, lambda *_: got.append("usr1"))
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, lambda: got.append("usr2"))
    threading.Timer(0.03, lambda: (os.kill(os.getpid(), signal.SIGUSR1), os.kill(os.getpid(), signal.SIGUSR2))).start()
    await burn(3 * N)
    await asyncio.sleep(0.05)
    asyncio.get_running_loop().remove_signal_handler(signal.SIGUSR2)
    return sorted(got)


async def forks():
    """A child has no part in what is set aside."""
    async def forks_one():
        spin(N // 2)
        pid = os.fork()
        if pid == 0:
            os._exit(7 if spin(N // 4) else 1)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return await asyncio.gather(burn(), forks_one(), burn())


async def held():
    """C code that looks for no signal."""
    text = json.dumps([{"a": i, "b": [i] * 5} for i in range(N // 50)])

    async def loads():
        return len(json.loads(text))

    async def sorts():
        values = list(range(N // 6))
        random.Random(1).shuffle(values)
        return len(sorted(values))
    return await asyncio.gather(loads(), sorts())


async def ticker(gaps):
    while True:
        begun = time.perf_counter()
        await asyncio.sleep(0.005)
        gaps.append(time.perf_counter() - begun)


async def main(cases):
    for case in cases:
        gaps = []
        ticking = asyncio.create_task(ticker(gaps))
        await asyncio.sleep(0.02)
        if case is overtaken:  # nobody else goes on meanwhile
            ticking.cancel()
        print(case.__name__, await case(), flush=True)
        await asyncio.sleep(0.02)
        ticking.cancel()
        print(case.__name__, round(max(gaps) * 1000), file=sys.stderr, flush=True)


def interrupted():
    """What SIGINT raises comes out of what runs."""
    async def endless():
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        while True:
            spin(N // 30)
            await asyncio.sleep(0)
    try:
        asyncio.run(endless())
    except KeyboardInterrupt:
        print("interrupted", flush=True)


def urgent():
    """A handler of the program's own for the signal that we use."""
    got = []
    signal.signal(signal.SIGURG, lambda *_: got.append("urg"))

    async def computes():
        await asyncio.sleep(0.1)
        os.kill(os.getpid(), signal.SIGURG)
        return await burn()
    asyncio.run(asyncio.wait_for(computes(), 60))
    print("urgent", got, flush=True)


def is_quiet():
    """Whether nobody in this process wakes up again and again while it computes."""
    for _ in range(20):
        before, end = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw, time.monotonic() + 0.2
        while time.monotonic() < end:
            pass
        if resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - before < 20:
            return True
    return False


def left():
    """A loop that an exception ends while a task is set aside, which nobody goes on with after that."""
    tasks = []

    async def ends():
        for _ in range(12):
            await asyncio.sleep(0.002)
        tasks.append(asyncio.ensure_future(burn(100 * N)))
        await asyncio.sleep(0.01)
        raise SystemExit
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(ends())
    except SystemExit:
        print("left", is_quiet(), flush=True)
    os._exit(0)


if __name__ == "__main__":
    if os.environ.get("LOOP") == "uvloop":
        import uvloop
        uvloop.install()
    if sys.argv[1] in ("interrupted", "urgent", "left"):
        globals()[sys.argv[1]]()
    else:
        asyncio.run(main([globals()[name] for name in sys.argv[1:]]))
