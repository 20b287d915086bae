"""What the end-to-end tests share: running the command, reading recordings, waiting, terminals.

The tests run the built command (build/bin/unblock, or $UNBLOCK_BIN) and the
programs of tests/programs, never anything installed.
"""

import errno
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("UNBLOCK_BUILD", ROOT / "build"))
UNBLOCK = Path(os.environ.get("UNBLOCK_BIN", BUILD / "bin" / "unblock"))
AGENT = UNBLOCK.parent.parent / "lib" / "unblock" / "libunblock.so"
PROGRAMS = BUILD / "tests" / "programs"
PYTHON = "/usr/bin/python3"

# Enough for a machine that is busy with something else; tests wait for events, not for times.
PATIENCE = 30.0


# `make check-sanitizers`: programs that are built by a test have AddressSanitizer and UndefinedBehaviorSanitizer in them.
SANITIZED = "UNBLOCK_SANITIZED" in os.environ
COMPILER = ["clang++", "-DSANITIZED", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"] if SANITIZED \
    else ["g++"]


def program(name):
    """Path of a program of tests/programs; `make programs` builds them."""
    path = PROGRAMS / name
    assert path.exists(), f"{path} is missing: make programs"
    return str(path)


def clean_environment(**more):
    """This process's environment without anything that would change unblock's behaviour, or that of a pytest under it."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("UNBLOCK", "PYTEST_"))}
    for name in ("LD_PRELOAD", "NO_COLOR", "CLICOLOR_FORCE"):
        env.pop(name, None)
    env.update(more)
    return env


def unblock(*args, cwd=None, env=None, timeout=PATIENCE, text=True, **popen):
    """Runs `unblock ARGS...` to its end; a CompletedProcess with stdout and stderr."""
    popen.setdefault("stdin", subprocess.DEVNULL)
    popen.setdefault("stdout", subprocess.PIPE)
    popen.setdefault("stderr", subprocess.PIPE)
    return subprocess.run([str(UNBLOCK), *map(str, args)], cwd=cwd, env=env or clean_environment(),
                          timeout=timeout, text=text, **popen)


def start(*args, cwd=None, env=None, text=True, **popen):
    """Starts `unblock ARGS...`; a Popen with pipes for stdout and stderr."""
    popen.setdefault("stdin", subprocess.DEVNULL)
    popen.setdefault("stdout", subprocess.PIPE)
    popen.setdefault("stderr", subprocess.PIPE)
    return subprocess.Popen([str(UNBLOCK), *map(str, args)], cwd=cwd, env=env or clean_environment(),
                            text=text, **popen)


def finish(process, timeout):
    """What `unblock run` (see start()) prints until its end. One that hangs is ended with its program, and fails the test with what that did."""
    try:
        return process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        where = unblock("dump", process.pid).stdout
        for child in children(process.pid):
            where += unblock("dump", child).stdout
            os.kill(child, signal.SIGKILL)
        printed, said = process.communicate()
        raise AssertionError(f"hangs\n{printed}\n{said[-3000:]}\n{where}") from None


def one_line(stderr):
    """Asserts that `stderr` is exactly one line of unblock's own and returns it."""
    lines = stderr.splitlines()
    assert len(lines) == 1, f"expected one line on standard error, got:\n{stderr}"
    assert lines[0].startswith("unblock"), lines[0]
    return lines[0]


def wait_until(condition, timeout=PATIENCE, what="condition", interval=0.01):
    """Polls until `condition()` is true and returns its value; fails the test after `timeout` seconds."""
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"timed out after {timeout} s waiting for {what}")
        time.sleep(interval)


def let_in(folder):
    """Lets other users into a test's folder: pytest made it its own, and up to three above it."""
    for path in (folder, *list(folder.parents)[:3]):
        if path.stat().st_mode & 0o5 != 0o5:
            path.chmod(0o755)


def process_state(pid):
    """The state letter of /proc/PID/stat, or None when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rsplit(")", 1)[1].split()[0]
    except OSError:
        return None


def children(pid):
    """Direct children of `pid`."""
    out = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text(errors="replace").rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[1]) == pid:
                out.append(int(entry.name))
    return sorted(out)


# Recordings -------------------------------------------------------------


class Recording:
    """The lines of one recording file. Every line must be whole JSON unless `torn` allows a cut last one."""

    def __init__(self, path, torn=False):
        self.path = Path(path)
        raw = self.path.read_bytes().decode("utf-8", "strict")
        lines = raw.split("\n")
        tail = lines.pop()
        assert torn or tail == "", f"{path} ends in a torn line: {tail[:80]!r}"
        self.lines = [json.loads(line) for line in lines]
        for line in self.lines:
            assert isinstance(line, dict) and "type" in line, line
        assert self.lines and self.lines[0]["type"] == "header", f"{path} does not begin with a header"
        self.header = self.lines[0]
        self.stacks = {line["id"]: line["frames"] for line in self.of("stack")}

    def of(self, kind):
        """All lines of one type."""
        return [line for line in self.lines if line["type"] == kind]

    @property
    def slow(self):
        """Finished or last-known stalls: of lines with the same id the last one counts."""
        last = {}
        for line in self.of("slow"):
            last[(line["pid"], line["id"])] = line
        return list(last.values())

    @property
    def end(self):
        """The `end` line, or None for a run that was cut off."""
        ends = self.of("end")
        assert len(ends) <= 1, "a recording ends once"
        return ends[0] if ends else None

    def frames(self, stack):
        """Function names of a stack id, innermost first; "" where the name is not known."""
        return [frame.get("function", "") for frame in self.stacks[stack]]

    def functions(self, slow):
        """Function names of all samples of a stall, one list a sample."""
        return [self.frames(s["stack"]) for s in slow.get("samples", []) if "stack" in s]


def recordings(folder):
    """The recordings that `unblock run` left in a folder under its default name."""
    return sorted(Path(folder).glob("unblock-*.jsonl"))


def record(tmp_path, *command, threshold="20ms", options=(), **kwargs):
    """Runs a command under `unblock run` into a fresh file; returns (CompletedProcess, Recording)."""
    path = Path(tmp_path) / f"r{len(list(Path(tmp_path).glob('r*.jsonl')))}.jsonl"
    done = unblock("run", "-t", threshold, "-o", path, *options, "--", *command, **kwargs)
    assert path.exists(), f"no recording was written:\n{done.stderr}"
    return done, Recording(path)


# Terminals --------------------------------------------------------------


class Terminal:
    """A program on its own pseudo-terminal, as its session leader: what a person at a keyboard has."""

    def __init__(self, *argv, cwd=None, env=None, rows=24, columns=80):
        self.output = b""
        env = env or clean_environment()
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            try:
                os.chdir(cwd or ".")
                os.execvpe(argv[0], list(map(str, argv)), env)
            finally:
                os._exit(127)
        self.resize(rows, columns)
        self.status = None

    def resize(self, rows, columns):
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def send(self, text):
        os.write(self.fd, text.encode() if isinstance(text, str) else text)

    def read(self, timeout):
        """Reads what is there within `timeout` seconds; False at the end of the terminal."""
        ready, _, _ = select.select([self.fd], [], [], timeout)
        if not ready:
            return True
        try:
            data = os.read(self.fd, 65536)
        except OSError as error:
            if error.errno == errno.EIO:
                return False
            raise
        self.output += data
        return bool(data)

    def expect(self, pattern, timeout=PATIENCE):
        """Waits until `pattern` (a regular expression) shows; drops the output up to its end; returns the match."""
        expression = re.compile(pattern.encode() if isinstance(pattern, str) else pattern, re.S)
        end = time.monotonic() + timeout
        while True:
            match = expression.search(self.output)
            if match:
                self.output = self.output[match.end():]
                return match
            left = end - time.monotonic()
            alive = self.read(max(0.0, min(left, 0.5))) if left > 0 else False
            if not alive and not expression.search(self.output):
                raise AssertionError(f"expected {pattern!r} within {timeout} s, the terminal shows:\n"
                                     f"{self.output.decode(errors='replace')}")

    def wait(self, timeout=PATIENCE):
        """Waits for the program to end; its wait status."""
        end = time.monotonic() + timeout
        while self.status is None:
            self.read(0.02)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = status
            assert time.monotonic() < end, f"still running; the terminal shows:\n{self.output.decode(errors='replace')}"
        return self.status

    def close(self):
        if self.status is None:
            try:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
            except (ProcessLookupError, ChildProcessError):
                pass
        try:
            os.close(self.fd)
        except OSError:
            pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
