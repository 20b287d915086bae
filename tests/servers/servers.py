"""Real servers on the loopback, each with its own folder and port, alone or under `unblock run`."""

import fnmatch
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

import helpers
import oracle

THRESHOLD = "20ms"
TOLERANCE_NS = 2_000_000


def tool(*names):
    """The first of these programs that is installed."""
    for name in names:
        path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
        if path:
            return path
    pytest.skip(f"{' or '.join(names)} is not installed")
    return None


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run_delay_ns(pid):
    """How long the threads of a process have waited for a CPU, ever: the machine's noise."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[1])
        except (OSError, IndexError):
            pass
    return total


def descendants(pid):
    out = []
    for child in helpers.children(pid):
        out += [child, *descendants(child)]
    return out


class SlowDisk:
    """A folder of the real disk, shown again at `path` by slowfs.c with delays of our choice."""

    def __init__(self, folder):
        if not os.access("/dev/fuse", os.R_OK | os.W_OK) or os.getuid() != 0:
            pytest.skip("a slow disk needs root and /dev/fuse")
        program = helpers.BUILD / "tests" / "slowfs"
        source = Path(__file__).resolve().parent / "slowfs.c"
        if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
            built = subprocess.run(["cc", "-std=gnu17", "-D_GNU_SOURCE", "-D_FILE_OFFSET_BITS=64", "-O1", "-o", program,
                                    source, "-lfuse3"], capture_output=True, text=True, check=False)
            if built.returncode != 0:
                pytest.skip(f"slowfs cannot be built (libfuse3-dev?): {built.stderr[-300:]}")
        self.path, self.control = folder / "slow", folder / "slow.control"
        self.disk = Path(tempfile.mkdtemp(prefix="unblock-disk-", dir="/dev/shm"))  # in itself it is quick
        self.path.mkdir()
        self.quick()
        before = self.path.stat().st_dev
        self.process = subprocess.Popen([program, self.disk, self.path, self.control], stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        helpers.wait_until(lambda: self.path.stat().st_dev != before, what="the slow disk")

    def slow(self, **milliseconds):
        """By operation (slowfs.c has the list)."""
        new = self.control.with_suffix(".new")
        new.write_text("".join(f"{name} {ms}\n" for name, ms in milliseconds.items()))
        new.rename(self.control)

    quick = slow

    def end(self):
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            subprocess.run(["umount", "-l", self.path], check=False)
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.disk, ignore_errors=True)


class Server:
    """One server process. Subclasses say how it is started and when it is ready."""

    options = ()  # of `unblock run`
    disk = None   # a SlowDisk, for those whose command() makes one

    def __init__(self, watched=True, threshold=THRESHOLD, options=None):
        self.watched = watched
        self.threshold = threshold
        if options is not None:
            self.options = options
        self.folder = Path(tempfile.mkdtemp(prefix="unblock-servers-"))
        self.folder.chmod(0o755)  # workers give up root
        self.port = free_port()
        self.path = self.folder / "recording.jsonl"
        self.process = None
        self.stderr = open(self.folder / "stderr", "wb")

    def command(self):
        raise NotImplementedError

    def ready(self):
        try:
            self.connect().close()
            return True
        except OSError:
            return False

    def connect(self, timeout=30):
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout)

    def environment(self):
        return {}

    def popen_arguments(self):
        return {"stdout": subprocess.DEVNULL, "stderr": self.stderr}

    def start(self):
        command = [str(c) for c in self.command()]
        if self.watched:
            command = [str(helpers.UNBLOCK), "run", "-t", self.threshold, "-o", str(self.path), *self.options, "--",
                       *command]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL,
                                        env=helpers.clean_environment(**self.environment()),
                                        cwd=self.folder, **self.popen_arguments())
        try:
            helpers.wait_until(lambda: self.process.poll() is not None or self.ready(), what=f"{command} to listen")
            assert self.process.poll() is None, f"{command} ended: {self.complaints()}"
        except BaseException:
            self.end()
            raise

    def complaints(self):
        return (self.folder / "stderr").read_text(errors="replace")[-2000:]

    @property
    def pid(self):
        """The server's first process."""
        return helpers.children(self.process.pid)[0] if self.watched else self.process.pid

    def stop(self, timeout=30):
        """Ends the server as an administrator would; the recording, when there is one."""
        os.kill(self.pid, signal.SIGTERM)
        status = self.process.wait(timeout)
        assert status in (0, -signal.SIGTERM), f"ended with {status}: {self.complaints()}"
        return helpers.Recording(self.path) if self.watched else None

    def end(self):
        """Whatever happened: nothing is left."""
        if self.process and self.process.poll() is None:
            for pid in [*descendants(self.process.pid), self.process.pid]:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            self.process.wait()
        for stream in (self.process and self.process.stdout, self.process and self.process.stderr, self.stderr):
            if stream:
                stream.close()
        if self.disk:
            self.disk.end()
        shutil.rmtree(self.folder, ignore_errors=True)


def stalls(recording, sentinel=None):
    """Stalls that are neither start-up nor a busy machine (see oracle.Sentinel)."""
    return [s for s in recording.slow
            if not s.get("startup") and s["cause"] != "stopped" and not oracle.is_noise(s)
            and not (sentinel and sentinel.busy(s["start_ns"], s["start_ns"] + s["duration_ns"]))]


def has_function(recording, slow, *names):
    """Whether some sample's stack names one of these functions (`*` stands for anything)."""
    for stack in recording.functions(slow):
        for function in stack:
            for name in names:
                if fnmatch.fnmatchcase(function, name):
                    return True
    return False


def only(found, what):
    assert len(found) == 1, f"{len(found)} records of {what}: {found}"
    return found[0]


def near(recorded_ns, true_ns, noise_ns=0, tolerance_ns=TOLERANCE_NS):
    """`recorded_ns` is the turn, `true_ns` the part of it that the server measured itself."""
    return true_ns - tolerance_ns <= recorded_ns <= true_ns + tolerance_ns + noise_ns


class Truth:
    """What a script wrote about its own stalls: one JSON line each, {"stall", "start_ns", "duration_ns"}."""

    def __init__(self, path):
        self.stalls = [json.loads(line) for line in Path(path).read_text().splitlines()]

    def pairs(self, recording):
        """(what was true, its record) for each; fails when one has none or several."""
        for true in self.stalls:
            middle = true["start_ns"] + true["duration_ns"] // 2
            found = [s for s in recording.slow if s["start_ns"] <= middle <= s["start_ns"] + s["duration_ns"]]
            slow = only(found, true["stall"])
            noise = slow.get("runqueue_ns", 0)
            if slow["cause"] in ("call", "lock"):
                noise += slow.get("cpu_ns", 0)  # what it did besides, in the same turn
            assert near(slow["duration_ns"], true["duration_ns"], noise), (true, slow)
            yield true, slow

    def nothing_else(self, recording):
        spans = [(t["start_ns"] + t["duration_ns"] // 2) for t in self.stalls]
        extra = [s for s in stalls(recording)
                 if not any(s["start_ns"] <= m <= s["start_ns"] + s["duration_ns"] for m in spans)]
        assert not extra, [(s, recording.functions(s)) for s in extra]


def script_truth(server_folder, source, name):
    path = server_folder / name
    path.write_text(source)
    return path


def http_get(connection, path, port, close=False):
    """One request on an open connection: (status line, body)."""
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
                       f"Connection: {'close' if close else 'keep-alive'}\r\n\r\n".encode())
    return http_response(connection)


def http_response(connection):
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        assert more, f"the server hung up: {data!r}"
        data += more
    head, body = data.split(b"\r\n\r\n", 1)
    headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    length = int(headers[b"content-length"])
    while len(body) < length:
        more = connection.recv(1 << 20)
        assert more, "the server hung up"
        body += more
    return head.split(b"\r\n")[0], body


def now_ns():
    return time.monotonic_ns()
