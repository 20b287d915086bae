"""pytest plugin: fails the run and names the test during which an event loop was blocked.

    pytest -p unblock_pytest --unblock-fail-on 100ms

starts the same pytest again under `unblock run`. Already under one? Then say where it records:

    unblock run -o r.jsonl -- pytest -p unblock_pytest --unblock-recording r.jsonl --unblock-fail-on 100ms

A stall belongs to the test that ran when it began, in whichever process of the run it happened: a server that
the test started counts as well. With pytest-xdist each worker names the stalls of its own process only.
Stalls at start-up and while the program was stopped do not count.

Copied or installed (PREFIX/lib/unblock/pytest) anywhere on PYTHONPATH; it needs pytest and nothing else.
"""

import json
import os
import shutil
import sys
import tempfile
import time

import pytest

PATIENCE = 2.0  # seconds for the watcher to write what it knows
UNITS = {"us": 1_000, "ms": 1_000_000, "s": 1_000_000_000}


def _nanoseconds(text):
    for unit, factor in UNITS.items():
        number = text[:-len(unit)]
        if text.endswith(unit) and number.replace(".", "", 1).isdigit():
            return int(float(number) * factor)
    raise pytest.UsageError(f"--unblock-fail-on: '{text}' is no time: write for example 100ms")


def pytest_addoption(parser):
    group = parser.getgroup("unblock", "blocked event loops")
    group.addoption("--unblock-fail-on", metavar="TIME", help="fail tests that block an event loop for TIME (100ms)")
    group.addoption("--unblock-recording", metavar="FILE", help="this pytest runs under `unblock run -o FILE`")
    group.addoption("--unblock-suppress", metavar="FILE", help="stalls that are known: a list as of unblock check")


def _start_again(config):
    """Becomes `unblock run ... -- pytest ...`: the process id and the terminal stay."""
    unblock = os.environ.get("UNBLOCK_BIN") or shutil.which("unblock")
    if not unblock:
        raise pytest.UsageError("--unblock-fail-on: there is no unblock in PATH")
    folder = tempfile.mkdtemp(prefix="unblock-pytest-")
    recording = os.path.join(folder, "r.jsonl")
    options = ["-q", "-t", config.getoption("--unblock-fail-on"), "-o", recording, "--max-size", "0"]
    os.environ["UNBLOCK_PYTEST"] = recording
    os.execv(unblock, [unblock, "run", *options, "--", sys.executable, "-m", "pytest",
                       *config.invocation_params.args])


def pytest_configure(config):
    limit = config.getoption("--unblock-fail-on")
    if not limit:
        return
    limit_ns = _nanoseconds(limit)
    recording = config.getoption("--unblock-recording") or os.environ.get("UNBLOCK_PYTEST")
    if not recording:
        if hasattr(config, "workerinput"):
            return
        _start_again(config)
    config.pluginmanager.register(Watch(config, recording, limit_ns), "unblock-watch")


class Watch:
    """Which test ran when, and the stalls of the recording held against that."""

    def __init__(self, config, recording, limit_ns):
        self.config, self.recording, self.limit_ns = config, recording, limit_ns
        self.suppressed = _read_sites(config.getoption("--unblock-suppress"))
        self.tests = []  # (node id, start, end) on CLOCK_MONOTONIC, as in the recording
        self.blocked = []  # (node id or None, record)
        self.worker = hasattr(config, "workerinput") or "PYTEST_XDIST_WORKER" in os.environ

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item):
        begun = time.monotonic_ns()
        yield
        self.tests.append((item.nodeid, begun, time.monotonic_ns()))

    def _stalls(self):
        """The last line of each stall that is long enough and counts."""
        last = {}
        try:
            with open(self.recording, encoding="utf-8", errors="replace") as lines:
                for text in lines:
                    if not text.endswith("\n") or '"slow"' not in text:
                        continue
                    try:
                        line = json.loads(text)
                    except ValueError:
                        continue
                    if line.get("type") == "slow":
                        last[(line["pid"], line["id"])] = line
        except OSError as error:
            raise pytest.UsageError(f"the recording of unblock cannot be read: {error}") from error
        return [s for s in last.values()
                if s["duration_ns"] >= self.limit_ns and not s.get("startup") and not s.get("unclear")
                and s.get("cause") != "stopped"
                and not any(s.get("site", "").startswith(site) for site in self.suppressed)
                and (not self.worker or s["pid"] == os.getpid())]

    def _settled_stalls(self):
        """The watcher explains in the background: wait until nothing new comes."""
        end, before = time.monotonic() + PATIENCE, -1
        while time.monotonic() < end:
            stalls = self._stalls()
            if len(stalls) == before and not any(s.get("ongoing") for s in stalls):
                break
            before = len(stalls)
            time.sleep(0.25)
        return stalls

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session, exitstatus):
        if not self.tests:  # the controller of xdist ran none: its workers look for themselves
            return
        for stall in self._settled_stalls():
            owner = [name for name, begun, ended in self.tests if begun <= stall["start_ns"] <= ended]
            if owner or not self.worker:
                self.blocked.append((owner[0] if owner else None, stall))
        if self.blocked and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        if not self.blocked:
            return
        terminalreporter.section("blocked event loops", red=True)
        for name, stall in sorted(self.blocked, key=lambda b: -b[1]["duration_ns"]):
            terminalreporter.line(f"BLOCKED {stall['duration_ns'] / 1e6:.0f} ms  {name or '(between tests)'}", red=True)
            terminalreporter.line(f"    {_describe(stall)}")
        if not os.environ.get("UNBLOCK_PYTEST"):
            terminalreporter.line(f"stacks and advice: unblock report {self.recording}")

    def pytest_unconfigure(self):
        """A recording of our own making stays only if somebody may want to read it."""
        own = os.environ.get("UNBLOCK_PYTEST")
        if own and self.blocked:
            print(f"stacks and advice: unblock report {own}")
        elif own and not self.worker:
            shutil.rmtree(os.path.dirname(own), ignore_errors=True)


def _read_sites(path):
    """Only the sites of a list: what else it may say is for `unblock check`."""
    if not path:
        return []
    with open(path, encoding="utf-8") as lines:
        words = [line.split("#")[0].split() for line in lines]
    return [w[0] for w in words if w and ":" not in w[0]]


def _plain(text):
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in str(text))


def _describe(stall):
    callback, call = stall.get("callback", {}), stall.get("call", {})
    name = callback.get("name") or callback.get("function") or "a callback"
    words = [f"{_plain(name)}()" if callback.get("function") else _plain(name)]
    if callback.get("file"):
        words.append(f"{_plain(callback['file'])}:{callback.get('line', 0)}")
    what = f"{_plain(call['name'])}({_plain(call.get('args', ''))})" if call.get("name") else stall.get("cause", "")
    return f"{' '.join(words)}: {what}, pid {stall['pid']}, site {_plain(stall.get('site', ''))}"
