"""Functions that a policy has called elsewhere, of all kinds (see pyfunctions.py)."""

import collections
import contextvars
import os
import pickle
import threading
import time

variable = contextvars.ContextVar("variable", default=0)


def nap(seconds=0.05, *, gives=1):
    time.sleep(seconds)
    return gives


def sets(value):
    time.sleep(0.01)
    variable.set(value)
    return variable.get()


def inner(n):
    if n < 0:
        raise KeyError(n)
    return inner(n - 1)


def fails(n):
    try:
        inner(n)
    except KeyError:
        raise ValueError("of fails")


def factorial(n):
    return 1 if n < 2 else n * factorial(n - 1)


def is_prime(n):
    if n % 2 == 0:
        return n == 2
    return all(n % i for i in range(3, int(n ** 0.5) + 1, 2))


def closure(n):
    def own(x=2):
        return (n, x)
    return own


adds = closure(5)


def kinds(a, b=2, /, c=3, *rest, d=4, **more):
    return a, b, c, rest, d, sorted(more.items())


class Base:
    def __init__(self, n):
        time.sleep(0.01)
        self.n = n

    def gives(self):
        return self.n


class Work(Base):
    def __init__(self, n):
        super().__init__(n)
        self.extra = True

    def gives(self):
        return super().gives() + 1

    @staticmethod
    def still(x):
        return x * 2

    @classmethod
    def makes(cls, n):
        return cls(n).n

    @property
    def twice(self):
        return self.n * 2

    def __eq__(self, other):
        return type(other) is Work and other.n == self.n


def echoes(value):
    return value


def dies():
    os._exit(3)


def dies_in_fork():
    os.kill(os.getpid(), 9)


def gives_lock():
    with open(os.environ["COUNTED"], "a") as file:
        file.write("x")
    return threading.Lock()


def raises_strange():
    class Strange(Exception):
        pass
    raise Strange("strange")


def exits():
    raise SystemExit(7)


def who():
    return os.getpid()


def saves(data, path):
    with open(path, "wb") as file:
        pickle.dump(data, file)
    return os.path.getsize(path)


def nested():
    """Called elsewhere, its own calls stay with it."""
    return who() == os.getpid() and nap(0.001, gives=3)


history = collections.defaultdict(collections.deque)


def waits_for_lock(lock):
    with lock:
        return 1


async def coroutine():
    return 1


def fails_there(n):
    raise LookupError(n)


def counts_down(count):
    left = count
    while left:
        left -= 1
    return count - left
