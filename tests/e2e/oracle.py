"""Compares a recording with the truth that a program of tests/programs wrote about itself (see stalls.h).

Allowed differences, and why:

  duration   the turn may be 2 ms longer or shorter than the stall, and longer by `noise_ns`: how long the
             thread waited for a CPU around the stall, by its own schedstat.
  cause      "runqueue" also where the stall itself spent more than 20 % of its time waiting for a CPU
             (`delay_ns`): then that is the truth on this machine.
  stack      none is asked for of a stopped program: `unblock run` stops with it, as a shell's job does.
  retry      a write-back that was shorter than wanted, maybe just above the threshold: only its duration counts.
  extra      a stall that the program does not know of must be tagged "runqueue" (the machine was busy), or be
             "unknown", without a sample and less than 2 ms over the threshold (over before anybody could look), or
             not called a stall (`unclear`).

A machine too busy to judge: beside each run a thread of the test sleeps for a millisecond at a time and notes
when it was woken late (class Sentinel). What is wrong with a stall during which (or between its end and the end that
was recorded of it) that alone made 5 ms is not held
against the watcher, which is woken in the same way, but counted as `excused`; a run with more than a quarter of
its stalls excused is skipped.
"""

import json
import re
import threading
import time
from pathlib import Path

import pytest

import helpers

TOLERANCE_NS = 2_000_000
THRESHOLD_MS = 10
DELAY_SHARE = 0.2

LOCK_CALLS = {"futex", "pthread_mutex_lock", "pthread_cond_wait", "pthread_rwlock_rdlock", "sem_wait"}


# The kinds of event loop: a program of tests/programs, and its argument.
LOOPS = {
    "epoll": ["loop_bare", "epoll"],
    "epoll_pwait": ["loop_bare", "epoll_pwait"],
    "epoll_pwait2": ["loop_bare", "epoll_pwait2"],
    "poll": ["loop_bare", "poll"],
    "ppoll": ["loop_bare", "ppoll"],
    "select": ["loop_bare", "select"],
    "pselect": ["loop_bare", "pselect"],
    "io_uring": ["loop_bare", "io_uring"],
    "libuv": ["loop_uv"],
    "libevent": ["loop_event"],
    "libev": ["loop_ev"],
    "glib": ["loop_glib"],
    "sd-event": ["loop_sd"],
}


def table():
    """Names of all stalls, from stalls_do.h."""
    text = (helpers.ROOT / "tests/programs/stalls_do.h").read_text()
    return re.findall(r"^\s*ROW\((\w+), \"", text, re.M)


class Sentinel:
    """How late this machine wakes a thread that is no part of what is tested."""

    LATE_NS = 2_000_000
    BUSY_NS = 5_000_000

    def __enter__(self):
        self.late, self.stop = [], threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def watch(self):
        while not self.stop.is_set():
            begun = time.monotonic_ns()
            time.sleep(0.001)
            now = time.monotonic_ns()
            if now - begun > 1_000_000 + self.LATE_NS:
                self.late.append((begun + 1_000_000, now))

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()

    def busy(self, start_ns, end_ns):
        """Whether the machine was too busy in that time to judge anybody's punctuality."""
        return self.lateness(start_ns, end_ns) >= self.BUSY_NS

    def lateness(self, start_ns, end_ns):
        """How long in that time it should have run, and did not."""
        return sum(min(b, end_ns) - max(a, start_ns) for a, b in self.late if a < end_ns and b > start_ns)


class Truth:
    def __init__(self, *paths):
        self.stalls, self.skipped, self.summaries = [], [], []
        for path in paths:
            for line in Path(path).read_text().splitlines():
                entry = json.loads(line)
                if "stall" in entry:
                    self.stalls.append(entry)
                elif "skipped" in entry:
                    self.skipped.append(f"{entry['skipped']}: {entry['reason']}")
                else:
                    self.summaries.append(entry)

    @property
    def undisturbed(self):
        return all(s["interrupted"] == 0 and s["short_counts"] == 0 for s in self.summaries)


def base(path):
    return path.rsplit("/", 1)[-1]


def own_frames(frames, module):
    """Functions of the program itself, innermost first, inlined ones and the linker's stubs left out."""
    return [f.get("function") for f in frames if base(f.get("module", "")) == module and not f.get("inlined")
            and not (f.get("function") or "").endswith("@plt")]


def find(truth, recording):
    """The recorded stall of the same thread that covers the middle of a true one."""
    middle = truth["start_ns"] + truth["duration_ns"] // 2
    return [s for s in recording.slow if s["pid"] == truth["pid"] and s["tid"] == truth["tid"]
            and s["start_ns"] <= middle <= s["start_ns"] + s["duration_ns"]]


def span(truth, records):
    """From the first beginning to the last end of a true stall and what was recorded of it: who was starved only at its
    end, after the program's own clock was read, was starved all the same."""
    return (min([truth["start_ns"], *(s["start_ns"] for s in records)]),
            max(s["start_ns"] + s["duration_ns"] for s in [truth, *records]))


def is_noise(slow):
    """The machine's doing, not the program's: see "extra" above."""
    just_over = slow["duration_ns"] - slow["threshold_ns"] < TOLERANCE_NS
    unsure = slow.get("unclear") or (slow["cause"] == "unknown" and not slow.get("samples") and just_over)
    return slow["cause"] == "runqueue" or unsure


def is_slow_start(slow, recording):
    """libuv waits in uv_spawn until its child has executed the program: on a busy machine that is a stall, too."""
    just_over = slow["duration_ns"] - slow["threshold_ns"] < TOLERANCE_NS
    return just_over and slow["cause"] == "call" and any("uv_spawn" in stack for stack in recording.functions(slow))


def compare_one(truth, slow, recording, module, callback=True):
    """What is wrong with the record `slow` of the stall `truth`, as a list of texts."""
    wrong = []
    difference = slow["duration_ns"] - truth["duration_ns"]
    if not -TOLERANCE_NS <= difference <= TOLERANCE_NS + truth["noise_ns"]:
        before, after = truth["start_ns"] - slow["start_ns"], difference - (truth["start_ns"] - slow["start_ns"])
        wrong.append(f"duration off by {difference / 1e6:.2f} ms, {before / 1e6:.2f} before it and {after / 1e6:.2f} after "
                     f"(noise {truth['noise_ns'] / 1e6:.2f} ms)")
    if slow.get("ongoing"):
        wrong.append("still called ongoing")

    if truth["retry"]:
        return wrong

    busy_machine = truth["delay_ns"] > DELAY_SHARE * truth["duration_ns"]
    if slow["cause"] not in truth["cause"].split("|") and not (busy_machine and slow["cause"] == "runqueue"):
        wrong.append(f"cause {slow['cause']}, not {truth['cause']} ({json.dumps(slow.get('call'))})")
    elif truth["call"] and slow["cause"] != "cpu":
        name = slow.get("call", {}).get("name")
        if name not in truth["call"].split("|") and not busy_machine:
            wrong.append(f"call {name}, not {truth['call']}")

    stopped = truth["cause"] == "stopped"
    if callback and not stopped and slow.get("callback", {}).get("function") != truth["callback"]:
        wrong.append(f"callback {slow.get('callback')}, not {truth['callback']}")
    if truth.get("kind") and slow["kind"] != truth["kind"]:
        wrong.append(f"kind {slow['kind']}, not {truth['kind']}")
    stacks = 0
    for sample in slow.get("samples", []):
        at = slow["start_ns"] + sample["at_ns"]
        if "stack" not in sample or not truth["start_ns"] <= at <= truth["start_ns"] + truth["duration_ns"]:
            continue
        stacks += 1
        own = own_frames(recording.stacks[sample["stack"]], module)
        if not own or own[0] != truth["function"]:
            wrong.append(f"innermost user frame {own[:3]} of {recording.frames(sample['stack'])}, "
                         f"not {truth['function']}")
    if not stacks and not stopped:
        wrong.append(f"no stack was taken while it was slow: {json.dumps(slow)}")
    return wrong


class Verdict:
    """Of one run: stalls found with everything right, excused ones, and texts of all that is wrong."""

    def __init__(self):
        self.right, self.excused, self.wrong = 0, [], []

    def check(self, least):
        assert not self.wrong, f"{len(self.wrong)} wrong, {self.right} right:\n" + "\n".join(self.wrong)
        if len(self.excused) > least // 4:
            pytest.skip(f"the machine is too busy to judge: {len(self.excused)} of {least} stalls")
        assert self.right + len(self.excused) >= least, f"{self.right} of {least} stalls were found"


def compare(truth, recording, module, sentinel, callback=True, threshold_ns=THRESHOLD_MS * 1_000_000):
    """A Verdict."""
    verdict, used = Verdict(), set()

    def complain(start_ns, end_ns, problems):
        if sentinel.busy(start_ns, end_ns):
            verdict.excused += problems[:1]
        else:
            verdict.wrong += problems

    for stall in truth.stalls:
        found = find(stall, recording)
        name = f"{stall['stall']} {stall['duration_ns'] / 1e6:.1f} ms in tid {stall['tid']}"
        used.update((s["pid"], s["id"]) for s in found)
        if stall["duration_ns"] + TOLERANCE_NS < threshold_ns:
            continue
        if len(found) != 1:
            if stall["duration_ns"] - TOLERANCE_NS > threshold_ns:
                verdict.wrong.append(f"{name}: {len(found)} records")
            continue
        problems = [f"{name}: {p}" for p in compare_one(stall, found[0], recording, module, callback)]
        if problems:
            complain(*span(stall, found), problems)
        else:
            verdict.right += not stall["retry"]
    for slow in recording.slow:
        if (slow["pid"], slow["id"]) not in used and not is_noise(slow) and not is_slow_start(slow, recording):
            complain(slow["start_ns"], slow["start_ns"] + slow["duration_ns"],
                     [f"nothing of {slow['duration_ns'] / 1e6:.1f} ms happened, but: {json.dumps(slow)} "
                      f"{recording.functions(slow)}"])
    return verdict


def but_noise(recording, sentinel):
    """Reports of a quiet program that cannot be put down to a busy machine."""
    return [s for s in recording.slow
            if not is_noise(s) and not sentinel.busy(s["start_ns"], s["start_ns"] + s["duration_ns"])]
