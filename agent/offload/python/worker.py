# One process that calls functions for another (functions.py): questions come on descriptor 0, answers go to 3.
import os
import pickle
import signal
import sys


def read_all(fd, n):
    parts = []
    while n:
        part = os.read(fd, min(n, 1 << 20))
        if not part:
            os._exit(0)  # who asks is gone
        parts.append(part)
        n -= len(part)
    return b"".join(parts)


def write_all(fd, data):
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view):]


def watch(fd):
    """Who asks has ended while a function runs."""
    import select
    poll = select.poll()
    poll.register(fd, 0)
    poll.poll()
    os._exit(1)


def get_main(main):
    if not get_main.done:
        get_main.done = True
        from multiprocessing import spawn
        name, path = main
        if name:
            spawn._fixup_main_from_name(name)
        else:
            spawn._fixup_main_from_path(path)


get_main.done = False


def find(module, path):
    __import__(module)
    found = sys.modules[module]
    for name in path.split("."):
        found = getattr(found, name)
    return found.fget if isinstance(found, property) else found


SMALL = 1 << 18
looked_at = set()


def pickled(given):
    try:
        return pickle.dumps(given, 5)
    except Exception:
        return None  # then it was changed, too: it could be before


def is_changed(before, given):
    """Whether a function has changed what it was called with: as pickling it again says, and where that is not the same, the objects."""
    after = pickled(given)
    if after is None or before == after:
        return after is None
    try:
        return not pickle.loads(before) == pickle.loads(after)
    except Exception:
        return True


def answer(question):
    main, module, path, data = question
    try:
        if main:
            get_main(main)
        function = find(module, path)
        given = arguments, names = pickle.loads(data)
        # Of much data only the first call of each function: pickling it takes time, too.
        before = pickled(given) if len(data) <= SMALL or (module, path) not in looked_at else None
        looked_at.add((module, path))
        if getattr(function, "__self__", None) is not None and isinstance(function.__self__, type) and arguments[:1] == (
                function.__self__,):
            arguments = arguments[1:]  # a class method, which was caught with its class
    except BaseException as error:
        return pickle.dumps(f"not there in another process: {error!r}")
    try:
        reply = (True, function(*arguments, **names), None)
    except BaseException as error:
        import traceback
        reply = (False, error, "".join(traceback.format_exception(error)))
    reply += (before is not None and is_changed(before, given),)
    try:
        data = pickle.dumps(reply, 5)
        if not reply[0]:
            pickle.loads(data)
        return data
    except Exception as error:
        return pickle.dumps((None, type(error)(*error.args), *reply[2:]), 5)


def serve():
    os.closerange(4, os.sysconf("SC_OPEN_MAX"))  # what the program left to be inherited
    asks, answers = os.dup(0), 3
    os.set_inheritable(answers, False)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import _thread
    _thread.start_new_thread(watch, (answers,))
    first = True
    while True:
        data = read_all(asks, int.from_bytes(read_all(asks, 8), "little"))
        if first:
            import io
            file = io.BytesIO(data)
            sys.path[:] = pickle.load(file)
            data, first = file.read(), False
        reply = answer(pickle.loads(data))
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (AttributeError, OSError, ValueError):
                pass
        write_all(answers, len(reply).to_bytes(8, "little") + reply)


serve()
