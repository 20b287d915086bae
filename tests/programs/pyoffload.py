"""Steps of tasks that block, each case printing what it did: alone and with its calls moved it has to be the same.
The ticker's gap goes to standard error."""
import asyncio
import contextvars
import http.server as http_server
import os
import signal
import select
import selectors
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

VAR = contextvars.ContextVar("var", default=None)


async def state(i):
    """Context, exception in hand, the task's own name: its own, before and after."""
    VAR.set(i)
    try:
        raise KeyError(i)
    except KeyError:
        time.sleep(0.2)
        assert sys.exc_info()[1].args == (i,)
    assert VAR.get() == i and asyncio.current_task().get_name() == f"t{i}"
    assert contextvars.Context().run(lambda: (time.sleep(0.1), VAR.get())[1]) is None
    assert VAR.get() == i
    return i


async def states():
    return await asyncio.gather(*[asyncio.create_task(state(i), name=f"t{i}") for i in range(8)])


async def recv():
    a, b = socket.socketpair()
    with a, b:
        threading.Timer(0.3, lambda: b.send(b"hello")).start()
        return a.recv(10)


async def one_socket():
    """Two readers of one socket: first come, first served."""
    a, b = socket.socketpair()

    async def read():
        return a.recv(1)
    with a, b:
        threading.Thread(target=lambda: [(time.sleep(0.1), b.send(c)) for c in (b"1", b"2", b"3")]).start()
        return await asyncio.gather(read(), read(), read())


async def raises():
    async def fail():
        time.sleep(0.1)
        raise ValueError("as ever")
    return [str(e) for e in await asyncio.gather(fail(), fail(), return_exceptions=True)]


async def cancel():
    """Takes effect at the next await, and is counted once."""
    async def inner():
        time.sleep(0.3)
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError as e:
            return ["cancelled", asyncio.current_task().cancelling(), e.args]
        return "not cancelled"
    task = asyncio.create_task(inner())
    await asyncio.sleep(0.05)
    task.cancel("enough")
    return await task


async def generators():
    def numbers():
        for i in range(3):
            time.sleep(0.06)
            yield i

    async def agen():
        for i in numbers():
            await asyncio.sleep(0)
            yield i

    async def use():
        return [i async for i in agen()]
    return await asyncio.gather(use(), use())


async def deep():
    def down(n):
        if n == 0:
            time.sleep(0.1)
            return 0
        return 1 + down(n - 1)

    async def use():
        return down(800)
    return await asyncio.gather(*[use() for _ in range(5)])


async def rlock():
    """An RLock lets its thread in again: a step that has it must not be left."""
    lock, count = threading.RLock(), [0]

    async def add():
        with lock:
            n = count[0]
            time.sleep(0.06)
            count[0] = n + 1
    await asyncio.gather(*[add() for _ in range(5)])
    return count


async def importing():
    """Half of a module must not be seen."""
    async def use():
        import slow_module
        return slow_module.VALUE
    return await asyncio.gather(use(), use())


async def alarm():
    """A handler's exception comes out of the call that it interrupts."""
    def ring(*_):
        raise TimeoutError("rung")
    signal.signal(signal.SIGALRM, ring)

    async def wait():
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        try:
            time.sleep(2)
        except TimeoutError as e:
            return str(e)
        return "slept"
    return await wait()


class Slow(http_server.BaseHTTPRequestHandler):
    def do_GET(self):
        time.sleep(0.15)
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *_):
        pass


class Quiet(http_server.ThreadingHTTPServer):
    def handle_error(self, *_):
        pass


async def http():
    """A client that blocks, with a timeout and without, of a server that is slow; more than one at once."""
    server = http_server.ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    async def get(**how):
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/", **how) as reply:
            return reply.read()
    try:
        return await asyncio.gather(get(), get(timeout=10), get(timeout=10))
    finally:
        server.shutdown()
        server.server_close()


async def https():
    """Likewise, in TLS. OpenSSL keeps its errors by thread: a client that does not trust the server has one while others wait."""
    import ssl
    name = os.environ["CERTIFICATE"]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(name)
    server = Quiet(("127.0.0.1", 0), Slow)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    async def get(trusted, **how):
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if trusted:
            client.load_verify_locations(name)
        try:
            with urllib.request.urlopen(f"https://localhost:{server.server_port}/", context=client, **how) as reply:
                return reply.read()
        except urllib.error.URLError as e:
            return type(e.reason).__name__
    try:
        return await asyncio.gather(*[get(trusted, **how) for how in ({}, {"timeout": 20}) for trusted in (True, False, True)])
    finally:
        server.shutdown()
        server.server_close()


async def children():
    async def run():
        child = subprocess.run([sys.executable, "-S", "-c", "import sys, time; time.sleep(.15); print(len(sys.stdin.read()))"],
                               input=b"x" * 100, capture_output=True, check=True)
        return child.stdout
    return await asyncio.gather(run(), run())


async def spawns():
    """A child that closes what another step waits on."""
    a, b = socket.socketpair()
    with a, b:
        threading.Timer(0.3, lambda: b.send(b"x")).start()

        async def read():
            return a.recv(1)

        async def run():
            return subprocess.run(["true"], check=True).returncode
        return await asyncio.gather(read(), run())


async def timeouts():
    """A timeout is the call's own."""
    a, b = socket.socketpair()

    async def wait():
        a.settimeout(0.12)
        try:
            return a.recv(1)
        except TimeoutError as e:
            return str(e)
    with a, b:
        return await wait()


async def selects():
    """It says the same with and without a limit, from where it is over as well as from where it is not."""
    r, w = os.pipe()
    said = await asks(r, w, lambda *limit: len(select.select([r], [], [], *limit)[0]))
    os.write(w, b"x")
    said.append(len(select.select([r], [w], [r], 20)[1]))
    os.close(r)
    os.close(w)
    return said


async def epolls():
    """Likewise an epoll of the program's own, beside a task that is suspended."""
    r, w = os.pipe()
    sleeping = asyncio.create_task(nap())
    await asyncio.sleep(0.01)
    with select.epoll() as epoll:
        epoll.register(r, select.EPOLLIN)
        said = await asks(r, w, lambda *limit: len(epoll.poll(*limit)))
    os.close(r)
    os.close(w)
    return said, await sleeping


async def asks(r, w, ask):
    said = []
    for limit in ((), (20,)):
        threading.Timer(0.12, os.write, (w, b"x")).start()
        said.append(ask(*limit))
        os.read(r, 1)
    said.append(ask(0.12))
    os.write(w, b"x")
    said.append(ask(20))
    os.read(r, 1)
    return said


async def nap():
    time.sleep(0.2)
    return "slept"


async def other_loops():
    """Each turns a loop of another kind, that knows by the thread whether one runs, as trio's does."""
    running = threading.local()

    async def turns():
        if getattr(running, "one", False):
            raise RuntimeError("from inside of a loop")
        running.one = True
        a, b = socket.socketpair()
        with a, b, selectors.DefaultSelector() as selector:
            selector.register(a, selectors.EVENT_READ)
            threading.Timer(0.12, b.send, (b"x",)).start()
            said = len(selector.select())
        running.one = False
        return said
    return [str(one) for one in await asyncio.gather(turns(), turns(), return_exceptions=True)]


async def sleeps_twice(said, name):
    for i in range(2):
        time.sleep(0.11)
        said.append((name, i, asyncio.current_task() is not None))
        await asyncio.sleep(0.01)
    return name


async def inside(said):
    return await asyncio.gather(sleeps_twice(said, "a"), sleeps_twice(said, "b"))


async def nested():
    """Loops in a loop: one in a thread that a step waits for, one in a step, and the step's own turned once more, as nest_asyncio
    does. A task that was suspended before goes on meanwhile, or after."""
    said, loop, task = [], asyncio.get_running_loop(), asyncio.current_task()

    async def other():
        time.sleep(0.15)
        return "other"
    before = asyncio.create_task(other())
    await asyncio.sleep(0.02)
    thread = threading.Thread(target=lambda: said.append(asyncio.run(inside([]))))
    thread.start()
    thread.join()
    asyncio._set_running_loop(None)
    own = asyncio.new_event_loop()
    try:
        found = []
        said.append((own.run_until_complete(inside(found)), sorted(found)))
    finally:
        own.close()
        asyncio._set_running_loop(loop)
    if hasattr(loop, "_run_once"):
        found = []
        again = loop.create_task(inside(found))
        asyncio.tasks._leave_task(loop, task)
        while not again.done():
            loop._run_once()
        asyncio.tasks._enter_task(loop, task)
        for _ in range(100):
            loop.call_soon(int)  # the turn that this one is in has counted its callbacks before
        said.append((again.result(), sorted(found)))
    time.sleep(0.11)
    return said, await before, asyncio.current_task() is task


async def nested_in_callback():
    """The same in a callback that is no task's: what its steps wait for, one of the outer loop's has or brings."""
    done, said = asyncio.get_running_loop().create_future(), []
    lock, (out, to) = threading.Lock(), os.pipe()

    async def other():
        with lock:
            time.sleep(0.15)
            said.append("other")
            os.write(to, b"x")

    async def wants(found):
        with lock:
            found.append(("locked", 0, True))
        found.append(("read", 0, os.read(out, 1) == b"x"))

    def callback():
        loop = asyncio.get_running_loop()
        asyncio._set_running_loop(None)
        try:
            found = []
            own = asyncio.new_event_loop()
            own.run_until_complete(wants(found))  # no timer: nothing else wakes this loop
            own.close()
            said.append((asyncio.run(inside(found)), sorted(found)))
        finally:
            asyncio._set_running_loop(loop)
        done.set_result(None)
    before = asyncio.create_task(other())
    await asyncio.sleep(0.02)
    asyncio.get_running_loop().call_soon(callback)
    await done
    await before
    os.close(out)
    os.close(to)
    return sorted(map(str, said))


async def run(case):
    """One case beside a ticker, whose longest gap is told."""
    gaps, last = [], time.monotonic()

    async def ticker():
        nonlocal last
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.01)
            now = time.monotonic()
            gaps.append(now - last)
            last = now
    ticking = asyncio.create_task(ticker())
    await asyncio.sleep(0.02)
    print(case.__name__, await case(), flush=True)
    await asyncio.sleep(0.02)
    ticking.cancel()
    print(case.__name__, f"{max(gaps) * 1000:.0f}", file=sys.stderr)


async def main(cases):
    for _ in range(12):
        await asyncio.sleep(0.002)  # until the loop is known to be one
    for case in cases:
        await run(case)


if os.environ.get("LOOP") == "uvloop":
    import uvloop
    uvloop.install()
if __name__ == "__main__":
    asyncio.run(main([globals()[name] for name in sys.argv[1:] if name in globals()]))
