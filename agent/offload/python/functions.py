# Functions that a policy has called elsewhere: the threads, processes and forks that run them. Run inside the program, with
# the functions of functions.c and WORKER (worker.py) among its names; nothing of it is in sys.modules. rules.py comes
# after it, and shares its names.
# Longer than most files here: three ways of running a call, and what they share on the way there and back.
import _contextvars
import _pickle
import _queue
import _signal
import _thread
import collections
import functools
import gc
import os
import sys
import threading
from time import sleep as pause

BIG = 1 << 16  # results of forks above that go through a memory file
FORKS = 4  # at once
STUCK = 30  # seconds that a forked child may wait for a lock which nobody has any more
FUTEX = {"x86_64": "202", "aarch64": "98"}


class Stays(str):
    """Why a call is made where it is."""


class RemoteTraceback(Exception):
    def __init__(self, text):
        self.text = text

    def __str__(self):
        return self.text


# ---- threads ---------------------------------------------------------------------------------------------------


class Job:
    __slots__ = ("call", "arguments", "names", "context", "ticket", "value", "error")

    def run(self):
        """In the caller's own Context, which it has left or is about to."""
        began = False

        def begin():
            nonlocal began
            began = True
            return self.call(*self.arguments, **self.names)
        for attempt in range(41):
            try:
                context = self.context
                if context is None:
                    return begin()
                if attempt == 40:  # it could not be left
                    context = context.copy()
                    try:
                        return context.run(begin)
                    finally:
                        self.context = context
                return context.run(begin)
            except RuntimeError:
                if began:
                    raise
                pause(0 if attempt < 20 else 0.0005)  # the loop goes on, as far as to its wait


def write_back(context):
    """What was set in a copy."""
    now = _contextvars.copy_context()
    for variable, value in context.items():
        if variable not in now or now[variable] is not value:
            variable.set(value)


class Threads:
    def __init__(self, most):
        self.most = most
        self.reset()

    def reset(self):
        self.queue = _queue.SimpleQueue()
        self.idle, self.threads, self.closed = [], [], False

    def submit(self, job):
        if self.closed:
            raise RuntimeError
        try:
            self.idle.pop()
        except IndexError:
            if len(self.threads) < self.most:
                thread = threading.Thread(target=self.work, args=(self.queue, self.idle), daemon=True,
                                          name=f"unblock_{len(self.threads)}")
                self.threads.append(thread)
                try:
                    thread.start()
                except RuntimeError:
                    self.threads.remove(thread)
                    if not self.threads:
                        raise
        self.queue.put(job)

    @staticmethod
    def work(queue, idle):
        inline()
        while True:
            job = queue.get()
            if job is None:
                return
            try:
                job.value = job.run()
            except BaseException as error:
                job.error = error
            idle.append(None)
            done(job.ticket)
            job = None

    def finish(self):
        """Before the interpreter goes: what it has begun is brought to its end."""
        self.closed = True
        for _ in self.threads:
            self.queue.put(None)
        for thread in self.threads:
            thread.join()


def in_thread(rule, function, call, arguments, names):
    job = Job()
    job.call, job.arguments, job.names, job.error = call, arguments, names or {}, None
    job.context = own = context()
    job.ticket = make_ticket()
    try:
        rule.pool.submit(job)
    except RuntimeError:
        return Stays("no thread can be started")
    wait(job.ticket)
    if job.context is not own:
        write_back(job.context)
    if job.error is None:
        return job.value
    try:
        raise job.error
    finally:
        job = None


# ---- what goes to other processes and comes from them -------------------------------------------------------------


def write_all(fd, data):
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view):]
        except BlockingIOError:
            wait_fd(fd, True, 1000)


def read_all(fd, n, beat=None):
    """None: its other end is gone."""
    parts, left = [], n
    while left:
        try:
            part = os.read(fd, min(left, 1 << 20))
        except BlockingIOError:
            if not wait_fd(fd, False, 1000) and beat:
                beat()
            continue
        if not part:
            return None
        parts.append(part)
        left -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def result_of(function, where, reply):
    """(whether it returned, its value or exception, a traceback's text)"""
    ok, value, text = reply
    if ok:
        return value
    if text:
        value.__cause__ = RemoteTraceback(f'\n"""\n{text}"""')
    if ok is None:
        value.add_note(f"unblock: {function.name} ran in {where}, and what came of it cannot be brought back")
    raise value


# ---- processes ----------------------------------------------------------------------------------------------------


@functools.cache
def main_module():
    """How another process gets the program's main module: (name, path), or why it cannot."""
    main = sys.modules["__main__"]
    if getattr(main, "__spec__", None) is not None:
        return main.__spec__.name, None
    path = getattr(main, "__file__", None)
    if not path or not path.endswith(".py"):
        return Stays("the main module is no file")
    import ast
    try:
        with open(path, "rb") as file:
            tree = ast.parse(file.read())
    except (OSError, SyntaxError, ValueError):
        return Stays("the main module cannot be read")
    for line in tree.body:
        if isinstance(line, ast.If) and any(isinstance(n, ast.Name) and n.id == "__name__" for n in ast.walk(line.test)):
            return None, os.path.abspath(path)
    return Stays("the main module has no `if __name__ == '__main__'`")


class Worker:
    def __init__(self):
        from subprocess import _args_from_interpreter_flags as flags
        if not sys.executable or getattr(sys, "frozen", False) or not os.path.basename(sys.executable).startswith("python"):
            raise OSError("which program the interpreter is, is not known")
        inside, self.to = os.pipe()
        self.back, outside = os.pipe()
        try:
            self.pid = os.posix_spawn(
                sys.executable, [sys.executable, *flags(), "-c", WORKER], {**os.environ, "UNBLOCK": "0"},
                file_actions=[(os.POSIX_SPAWN_DUP2, inside, 0), (os.POSIX_SPAWN_DUP2, outside, 3)] if outside != 3 else
                [(os.POSIX_SPAWN_DUP2, inside, 0), (os.POSIX_SPAWN_DUP2, 3, 4), (os.POSIX_SPAWN_DUP2, 4, 3)],
                setsigmask=())
        except BaseException:
            os.close(self.to)
            os.close(self.back)
            raise
        finally:
            os.close(inside)
            os.close(outside)
        os.set_blocking(self.to, False)
        os.set_blocking(self.back, False)
        self.fresh = True

    def ask(self, question):
        """None: it is gone; False: before it had the question, so nothing has run."""
        if self.fresh:
            question = _pickle.dumps(sys.path, 5) + question
            self.fresh = False
        try:
            write_all(self.to, len(question).to_bytes(8, "little") + question)
        except BrokenPipeError:
            return False
        head = read_all(self.back, 8)
        return head and read_all(self.back, int.from_bytes(head, "little"))

    def end(self):
        for fd in (self.to, self.back):
            os.close(fd)
        try:
            os.kill(self.pid, _signal.SIGKILL)
            os.waitpid(self.pid, 0)
        except (ChildProcessError, ProcessLookupError):
            pass  # somebody else has waited for it


class Processes:
    def __init__(self, most):
        self.most = most
        self.reset()

    def reset(self):
        self.idle, self.count, self.waiters = [], 0, collections.deque()
        self.lock = _thread.allocate_lock()

    def take(self):
        """One that is free, in the order of who came. OSError: none can be had."""
        with self.lock:
            if self.idle:
                return self.idle.pop()
            mine = None
            if self.count < self.most:
                self.count += 1
            else:
                mine = [make_ticket(), None]
                self.waiters.append(mine)
        if mine:
            try:
                wait(mine[0])
            except BaseException:
                with self.lock:
                    if mine in self.waiters:
                        self.waiters.remove(mine)
                        mine = None
                if mine:
                    self.give(mine[1])
                raise
            if mine[1]:
                return mine[1]
        try:
            return Worker()
        except BaseException:
            self.give(None)
            raise

    def give(self, worker):
        """Back, or (None) a place for another."""
        with self.lock:
            if self.waiters:
                waiter = self.waiters.popleft()
            else:
                waiter = None
                if worker:
                    self.idle.append(worker)
                else:
                    self.count -= 1
        if waiter:
            waiter[1] = worker
            done(waiter[0])


def in_process(rule, function, call, arguments, names):
    if function.changes:
        return Stays("it changes what it is called with, which a process would lose")
    try:
        data = _pickle.dumps((arguments, names or {}), 5)
    except Exception as error:
        return Stays(f"cannot be pickled: {error}")
    main = None
    if function.module == "__main__" or b"__main__" in data:
        main = main_module()
        if isinstance(main, Stays):
            return main
    question = _pickle.dumps((main, function.module, function.path, data), 5)
    try:
        worker = rule.pool.take()
    except OSError as error:
        return Stays(f"no process can be started: {error}")
    try:
        answer = worker.ask(question)
    except BaseException:
        worker.end()
        rule.pool.give(None)
        raise
    if not answer:
        worker.end()
        rule.pool.give(None)
        if answer is False:
            return Stays("the process that was to run it had ended")
        from concurrent.futures.process import BrokenProcessPool
        raise BrokenProcessPool(f"unblock: the process that ran {function.name} has ended")
    rule.pool.give(worker)
    reply = _pickle.loads(answer)
    if isinstance(reply, str):
        return Stays(reply)
    if reply[3]:
        function.changes = True
        tell("refused", function.name, rule.label, "what it changed in its arguments was lost; it will no more", 1)
    return result_of(function, rule.label, reply[:3])


# ---- forks ----------------------------------------------------------------------------------------------------------


class Gate:
    """So many at once, in the order of who came."""

    def __init__(self, most):
        self.most = most
        self.reset()

    def reset(self):
        self.free, self.waiters, self.lock = self.most, collections.deque(), _thread.allocate_lock()

    def __enter__(self):
        with self.lock:
            if self.free:
                self.free -= 1
                return
            mine = make_ticket()
            self.waiters.append(mine)
        try:
            wait(mine)
        except BaseException:
            with self.lock:
                if mine in self.waiters:
                    self.waiters.remove(mine)
                    raise
            self.__exit__()
            raise

    def __exit__(self, *unused):
        with self.lock:
            waiter = self.waiters.popleft() if self.waiters else None
            self.free += not waiter
        if waiter:
            done(waiter)


gate = Gate(FORKS)


def files_of(values):
    """Those that the call may write to. What it writes to memory would be lost: why it stays."""
    import _io
    found = []
    for value in values:
        if not hasattr(value, "write"):
            continue
        file = getattr(value, "file", value) if type(value).__module__ == "tempfile" else value
        inner = file.buffer if type(file) is _io.TextIOWrapper else file
        if type(inner) not in (_io.BufferedWriter, _io.BufferedRandom, _io.FileIO):
            return Stays(f"writes to a {type(inner).__name__}, which is lost with the fork")
        try:
            inner.fileno()
        except (OSError, ValueError):
            return Stays("writes to a file that is closed")
        found.append(file)
    return found


def flush(files):
    for file in files:
        try:
            file.flush()
        except (AttributeError, OSError, ValueError):
            pass


def settle(files):
    """The child has moved the position that they share."""
    for file in files:
        try:
            if file.seekable():
                file.seek(file.buffer.seek(0, 1) if hasattr(file, "encoding") else 0, 0 if hasattr(file, "encoding") else 1)
        except (OSError, ValueError):
            pass


def in_child(call, arguments, names, files, out, memory):
    """Never returns."""
    try:
        gc.disable()
        _signal.set_wakeup_fd(-1)
        for number in range(1, _signal.NSIG):
            if callable(_signal.getsignal(number)):
                _signal.signal(number, _signal.SIG_IGN if number == _signal.SIGINT else _signal.SIG_DFL)
        try:
            reply = (True, call(*arguments, **names), None)
        except BaseException as error:
            import traceback
            reply = (False, error, "".join(traceback.format_exception(error)))
        flush([*files, sys.stdout, sys.stderr])
        try:
            data = _pickle.dumps(reply, 5)
            _pickle.loads(data) if reply[0] is False else None
        except Exception as error:
            data = _pickle.dumps((None, type(error)(*error.args), reply[2]), 5)
        if len(data) > BIG:
            write_all(memory, data)
            data = b""
        write_all(out, len(data).to_bytes(8, "little") + data)
        os._exit(0)
    finally:
        os._exit(1)


class Watch:
    """Whether the child waits for a lock that another thread had as it was forked: nobody will ever give it back."""

    def __init__(self, pid):
        self.pid, self.used, self.beats = pid, None, 0
        self.futex = FUTEX.get(os.uname().machine)

    def __call__(self):
        try:
            with open(f"/proc/{self.pid}/stat") as file:
                stat = file.read().rpartition(")")[2].split()
            with open(f"/proc/{self.pid}/syscall") as file:
                waits = stat[0] == "S" and file.read().split()[0] == self.futex
        except (OSError, IndexError):
            return
        used = stat[11], stat[12]
        self.beats = self.beats + 1 if waits and used == self.used else 0
        self.used = used
        if self.beats > STUCK:
            os.kill(self.pid, _signal.SIGKILL)


def in_fork(rule, function, call, arguments, names):
    names = names or {}
    files = files_of([*arguments, *names.values()])
    if isinstance(files, Stays):
        return files
    with gate:
        return forked(function, call, arguments, names, files)


def forked(function, call, arguments, names, files):
    flush([*files, sys.stdout, sys.stderr])
    back, out = os.pipe()
    memory = os.memfd_create("unblock-result")
    try:
        try:
            pid = fork(functools.partial(in_child, call, arguments, names, files, out, memory))
        except OSError as error:
            os.close(out)
            return Stays(f"no process can be forked: {error}")
        os.close(out)
        os.set_blocking(back, False)
        watch = Watch(pid)
        try:
            head = read_all(back, 8, watch)
            data = head and read_all(back, int.from_bytes(head, "little"), watch)
            wait_for_exit(pid)
        except BaseException:
            os.kill(pid, _signal.SIGKILL)
            raise
        finally:
            status = ended(pid)
        settle(files)
        if data is None:
            raise ChildProcessError(
                f"unblock: {function.name} waited in its fork for a lock that another thread had as it was forked"
                if watch.beats > STUCK else f"unblock: the fork that ran {function.name} has ended: {status}")
        if not data:
            import mmap
            with mmap.mmap(memory, 0) as data:
                reply = _pickle.loads(data)
        else:
            reply = _pickle.loads(data)
        return result_of(function, "a fork", reply)
    finally:
        os.close(back)
        os.close(memory)


def wait_for_exit(pid):
    """Not for the end of its pipe, which children of its own may have as well."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return
    try:
        while not wait_fd(fd, False, 1000):
            pass
    finally:
        os.close(fd)


def ended(pid):
    try:
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError:
        return "somebody else has waited for it"
    return f"signal {-status}" if status < 0 else f"status {status}"
