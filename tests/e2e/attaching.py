"""Entering running processes: shared by tests/e2e/test_attach.py and tests/servers/test_attach.py."""

import json
import os
import re
import signal
import struct
import subprocess
from pathlib import Path

import helpers
from helpers import program, wait_until

HELD = re.compile(r"kept from its work for ([0-9.]+) ms in (\d+) pieces, ([0-9.]+) ms at most at a time")
LONGEST = re.compile(r"the longest piece, ms \(of these without a CPU\), ([a-z ]+): (.*)")
PARTS = ("until it had stopped", "on the way to its wait", "stopped", "at work for us")
PART = re.compile(rf"([0-9.]+) \(([0-9.]+)\) ({'|'.join(PARTS)})(?:, |$)")


class Target:
    """tests/programs/attached, which says at its end what it noticed."""

    def __init__(self, *words, **popen):
        self.process = subprocess.Popen([program("attached"), *map(str, words)], stdin=subprocess.DEVNULL,
                                        stdout=subprocess.PIPE, text=True, env=helpers.clean_environment(), **popen)
        self.pid = self.process.pid
        self.line = None

    def ready(self):
        assert self.process.stdout.readline() == "ready\n"
        return self

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        out, _ = self.process.communicate(timeout=helpers.PATIENCE)
        assert self.process.returncode == 0, self.process.returncode
        return json.loads(out.splitlines()[-1])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


def nothing_noticed(said):
    """What the program says of itself is what it would have said alone."""
    assert {k: said[k] for k in ("eintr", "odd", "changed", "early")} == \
        {"eintr": 0, "odd": 0, "changed": 0, "early": 0}, said


def attach(pid, path, *options, **popen):
    """`unblock attach` in the background; `inside` tells when it is in."""
    return helpers.start("attach", "-v", "-t", "20ms", "-o", path, "--live", "none", *options, pid, **popen)


def maps(pid):
    return [line.split(maxsplit=5) for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]


def has_arena(pid):
    return any("unblock-arena" in line[-1] for line in maps(pid))


def is_watched(attached, path, pid):
    """The watch has begun: its recording has a header, and the process has the arena."""
    assert attached.poll() is None, attached.communicate()
    return Path(path).exists() and Path(path).stat().st_size > 0 and has_arena(pid)


def enter(pid, path, *options):
    attached = attach(pid, path, *options)
    wait_until(lambda: is_watched(attached, path, pid), what="the agent to be in")
    return attached


def leave(attached, how=signal.SIGINT):
    """Ends the watching; what it said."""
    attached.send_signal(how)
    _, err = attached.communicate(timeout=helpers.PATIENCE)
    assert attached.returncode == 0, err
    return err


def spread(values):
    values = sorted(values)
    return f"p50 {values[len(values) // 2]:.2f} p90 {values[len(values) * 9 // 10]:.2f} max {values[-1]:.2f} ms"


class Held:
    """How long loops were kept from their work, of many entries: in all, the longest time at once, and how that divides."""

    def __init__(self):
        self.all, self.longest, self.of_that, self.parts = [], [], [], []

    def add(self, err):
        match, longest = HELD.search(err), LONGEST.search(err)
        assert match and longest, err
        parts = {name: (float(took), float(starved)) for took, starved, name in PART.findall(longest[2])}
        assert set(parts) == set(PARTS), err
        self.all.append(float(match[1]))
        self.longest.append(float(match[3]))
        self.of_that.append(longest[1])
        self.parts.append(parts)

    def starved(self):
        """Of each entry: for how long in its longest piece the loop's thread or the injector waited for a CPU."""
        return [sum(starved for _, starved in parts.values()) for parts in self.parts]

    def without_waiting(self):
        """The rest of these pieces."""
        return [sum(took - starved for took, starved in parts.values()) for parts in self.parts]

    def ours(self):
        """Likewise, from when the thread had stopped: before, it may be in a system call that ends when it ends (fork, fsync)."""
        return [sum(took - starved for name, (took, starved) in parts.items() if name != PARTS[0]) for parts in self.parts]

    def piece(self, i):
        return f"{self.of_that[i]}: " + ", ".join(f"{took:.2f} ({starved:.2f}) {name}"
                                                  for name, (took, starved) in self.parts[i].items())

    def __str__(self):
        own = self.without_waiting()
        lines = [f"held at a time {spread(self.longest)}, of that with a CPU {spread(self.without_waiting())}, "
                 f"in all {spread(self.all)}, {len(self.all)} entries"]
        for name in PARTS:
            lines.append(f"  {name}: {spread([parts[name][0] for parts in self.parts])}, "
                         f"without a CPU {spread([parts[name][1] for parts in self.parts])}")
        lines.append(f"  the longest, {self.piece(self.longest.index(max(self.longest)))}")
        lines.append(f"  the longest with a CPU, {self.piece(own.index(max(own)))}")
        return "\n".join(lines)


def in_wait(pid):
    """Its main thread sleeps in a wait call of a loop."""
    call = Path(f"/proc/{pid}/syscall").read_text().split()[0]
    return call in ("7", "232", "270", "271", "281", "441")


ASKED, RUNNING, DONE = 1, 2, 3  # enum ub_attach_state, common/attach.h
TID_AT = 152  # offsetof(struct ub_attach, tid)


def room_at(pid):
    """Where the injector's memory in there keeps its requests; 0: nowhere."""
    with open(f"/proc/{pid}/mem", "rb") as mem:
        for line in maps(pid):
            start, end = (int(x, 16) for x in line[0].split("-"))
            if line[1] == "r-xp" and end - start == 4096 and len(line) == 5:
                mem.seek(end)
                if mem.read(8) == b"UBATTACH":
                    return end
    return 0


def room(pid):
    """State of the last request, its number, its thread."""
    at = room_at(pid)
    if not at:
        return 0, 0, 0
    with open(f"/proc/{pid}/mem", "rb") as mem:
        mem.seek(at)
        request = mem.read(TID_AT + 4)
    state, = struct.unpack_from("<I", request, 12)
    return state & 3, state >> 2, struct.unpack_from("<i", request, TID_AT)[0]


def set_room(pid, state, number, tid):
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as mem:
        at = room_at(pid)
        mem.seek(at + TID_AT)
        mem.write(struct.pack("<i", tid))
        mem.seek(at + 12)
        mem.write(struct.pack("<I", number << 2 | state))


def open_files(pid):
    files = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            files.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
        except FileNotFoundError:
            pass  # closed meanwhile
    return sorted(files)


def agent_ranges(pid):
    return [tuple(int(x, 16) for x in line[0].split("-")) for line in maps(pid) if "libunblock.so" in line[-1]]


def words_into_agent(pid, file):
    """Pointers into the agent in the writable or once writable data of the modules named so."""
    ranges = agent_ranges(pid)
    low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
    tops = re.compile(b"|".join(re.escape(n.to_bytes(5, "little")) for n in range(low >> 24, (high >> 24) + 1)), re.DOTALL)
    found = 0
    with open(f"/proc/{pid}/mem", "rb") as mem:
        for line in maps(pid):
            start, end = (int(x, 16) for x in line[0].split("-"))
            if not line[-1].endswith(file) or "x" in line[1]:
                continue
            mem.seek(start)
            data = mem.read(end - start)
            for at in tops.finditer(data):  # looking at each word takes seconds
                i = at.start() - 3
                found += i % 8 == 0 and low <= int.from_bytes(data[i:i + 8], "little") < high
    return found
