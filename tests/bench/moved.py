"""aiohttp with calls moved (`--offload=eager`): handlers that sleep for 50 ms, 50 connections at once, beside the same server with
run_in_executor written by hand, and beside `await asyncio.sleep`, where nobody blocks: that is the ideal (50 / 0.05 = 1000 requests/s are
reached by no server whose loop, and whose client, need CPU time as well), taken in the same run, in turn with the others; and handlers
that do not block, beside a server that nobody watches. Also what a call that is moved costs, a function that a policy calls in a thread,
beside run_in_executor, and what is left of blocking calls for a ticker beside them: on asyncio by kinds of calls, on each event-loop
library of half a second's."""

import json
import re
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

import computing
import helpers
import micro
import pairs
import peers
import servers
import tickers as ticking
from watcher import cpu_ns

CONNECTIONS, SECONDS = 50, 2
BY_HAND, FAST, AWAITED = 1.05, 1 / 0.92, 1 / 0.95


class Server:
    def __init__(self, loop, moved):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        command = [helpers.PYTHON, helpers.ROOT / "tests/programs/pyserver.py", loop, self.port]
        if moved:
            command = [helpers.UNBLOCK, "run", "-q", "--force", "-t", "20ms", "-o", "/dev/null", "--offload=eager", "--", *command]
        self.process = subprocess.Popen([str(c) for c in command], stdin=subprocess.DEVNULL, env=helpers.clean_environment())
        helpers.wait_until(self.answers, what="the server to listen")

    def answers(self):
        assert self.process.poll() is None, "the server ended"
        with socket.socket() as s:
            return s.connect_ex(("127.0.0.1", self.port)) == 0

    def rate(self, path, seconds=SECONDS):
        out = subprocess.run([servers.tool("wrk"), "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", f"http://127.0.0.1:{self.port}{path}"],
                             capture_output=True, text=True, check=True).stdout
        assert "Non-2xx" not in out and "Socket errors" not in out, out
        return float(re.search(r"Requests/sec:\s+([\d.]+)", out)[1])

    def cpu(self, path):
        """us of the server's own CPU time a request: what is quicker or slower by a few per cent is not seen in rates here."""
        pid = (servers.descendants(self.process.pid) or [self.process.pid])[0]
        before = cpu_ns(pid)
        rate = self.rate(path)
        return (cpu_ns(pid) - before) / 1000 / (rate * SECONDS)

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(helpers.PATIENCE)


def one_loop(loop, count):
    plain, moved = Server(loop, False), Server(loop, True)
    rate = {"by hand": lambda: plain.rate("/by_hand"), "moved": lambda: moved.rate("/blocks"),
            "awaited": lambda: plain.rate("/asleep"),
            "none": lambda: plain.cpu("/hello"), "armed": lambda: moved.cpu("/hello")}
    try:
        for measure in rate.values():
            measure()  # once to warm up; and a loop is known to be one
        return {**pairs.interleave(["by hand", "moved", "awaited"], lambda name: rate[name](), count),
                **pairs.interleave(["none", "armed"], lambda name: rate[name](), count)}
    finally:
        plain.end()
        moved.end()


def aiohttp(quick):
    rows, raw = [], {}
    count = pairs.rounds(quick, least=8)
    for loop in ("asyncio", "uvloop"):
        if subprocess.run([helpers.PYTHON, "-c", f"import aiohttp, {loop}"], capture_output=True).returncode:
            raise peers.Missing(f"python3-aiohttp or python3-{loop} is not installed")
        raw[loop] = values = one_loop(loop, count)
        for what, over, under, limit in (("time.sleep(0.05), requests/s by hand/moved", "by hand", "moved", BY_HAND),
                                         ("time.sleep(0.05), requests/s ideal (awaited)/moved", "awaited", "moved", AWAITED),
                                         ("nothing blocks, CPU a request, armed/none", "armed", "none", FAST)):
            median, low, high = pairs.interval(pairs.ratios(values, over, under))
            both = [pairs.interval(values[name])[0] for name in (over, under)]
            unit = " a second" if under == "moved" else " us"
            rows.append({"what": f"aiohttp on {loop}, calls moved: {what}", "limit": limit, "judged": median,
                         "ours": f"{median:.3f} [{low:.3f}, {high:.3f}]; {both[0]:.0f}/{both[1]:.0f}{unit}"})
    return rows, raw


# What design/asyncio.md reports of its prototype: the ticker's longest gap in ms, without and with calls moved.
DESIGN = {"sleeps": (3501, "13-15"), "urllib": (304, "11"), "subprocess": (304, "11"), "sqlite": (451, "11"), "event": ("93-204", "10-12"),
          "queue": ("93-204", "10-12"), "join": ("93-204", "10-12"), "select": ("93-204", "10-12")}
WHAT = {"sleeps": "5 x time.sleep(0.5)", "urllib": "urllib, 0.3 s", "subprocess": "subprocess.run, 0.3 s",
        "sqlite": "sqlite locked by another process, 0.45 s", "event": "Event.wait", "queue": "Queue.get", "join": "Thread.join",
        "select": "select.select"}


def gaps(path, loop, moves):
    command = [path, helpers.ROOT / "tests/programs/pytable.py", loop]
    recording = micro.OUT / "gaps.jsonl"
    if moves:
        command = [helpers.UNBLOCK, "run", "-q", "--force", "-t", "20ms", "-o", recording, "--offload=eager", "--", *command]
    said = json.loads(micro.run(command))
    assert set(said) == set(DESIGN), said
    assert not moves or sum(row["moved"] for row in helpers.Recording(recording).of("offload")) >= len(DESIGN), "they were not moved"
    return said


def waits(quick):
    """A task that blocks: the longest gap of a ticker beside it, alone and moved, on each interpreter."""
    micro.OUT.mkdir(parents=True, exist_ok=True)
    rows, raw = [], {}
    for path, loop, name in computing.interpreters():
        raw[name] = values = pairs.interleave(["alone", "moved"], lambda v, a=(path, loop): gaps(*a, v == "moved"), 2 if quick else 5)
        for case, (before, after) in DESIGN.items():
            alone, moved = (pairs.interval([said[case] for said in values[v]]) for v in ("alone", "moved"))
            rows.append({"what": f"{name}: {WHAT[case]}, the longest gap beside it",
                         "ours": f"{alone[0]:.0f} -> {moved[0]:.0f} ms [{moved[1]:.0f}, {moved[2]:.0f}]", "peer": f"design {before} -> {after}"})
    return rows, raw


def hop(path, loop, what):
    """pyhop.py's answer; `sleep` and `call` are moved."""
    count = 2000 if what.startswith("call") else 40
    command = [path, helpers.ROOT / "tests/programs/pyhop.py", loop, what, count]
    recording = micro.OUT / "hops.jsonl"
    if what == "sleep":
        command = [helpers.UNBLOCK, "run", "-q", "--force", "-t", "20ms", "-o", recording, "--offload=eager", "--", *command]
    elif what == "call":
        (micro.OUT / "hop.policy").write_text("[python]\npywork.counts_down = thread\n")
        command = [helpers.UNBLOCK, "run", "-q", "--force", "-t", "20ms", "-o", recording,
                   f"--offload={micro.OUT / 'hop.policy'}", "--", *command]
    said = json.loads(micro.run(command))
    assert said["check"] >= count, said
    if what == "sleep":
        moved = sum(row["moved"] for row in helpers.Recording(recording).of("offload"))
        assert moved >= said["check"], "they were not moved"
    elif what == "call":
        moved = sum(row["count"] for row in helpers.Recording(recording).of("python") if row["kind"] == "moved")
        assert moved >= said["check"], "they were not moved"
    return said


def hops(quick):
    """On each interpreter: the CPU time of a time.sleep that is moved (50 tasks); how long a function in a thread takes."""
    micro.OUT.mkdir(parents=True, exist_ok=True)
    rows, raw = [], {}
    for path, loop, name in computing.interpreters():
        waits = pairs.interleave(["await", "by_hand", "sleep"], lambda what, a=(path, loop): hop(*a, what)["cpu_us"], pairs.rounds(quick, 8))
        calls = pairs.interleave(["call_by_hand", "call"], lambda what, a=(path, loop): hop(*a, what)["us"], pairs.rounds(quick, 8))
        for what, values, ours, theirs in (("CPU of a time.sleep that is moved", waits, "sleep", "by_hand"),
                                           ("a function called in a thread, p50", calls, "call", "call_by_hand")):
            median, low, high = pairs.interval(values[ours])
            ratio = pairs.interval(pairs.ratios(values, ours, theirs))
            beside = f"; awaited {pairs.interval(values['await'])[0]:.1f}" if "await" in values else ""
            rows.append({"what": f"{name}: {what}", "ours": f"{median:.1f} us [{low:.1f}, {high:.1f}]",
                         "peer": f"run_in_executor {pairs.interval(values[theirs])[0]:.1f}, ratio {ratio[0]:.2f} "
                                 f"[{ratio[1]:.2f}, {ratio[2]:.2f}]{beside}",
                         "limit": 2, "judged": ratio[0]})
        raw[name] = [waits, calls]
    return rows, raw


def tickers(quick):
    """Each call on each library: the gaps of a 10 ms ticker, idle and beside the calls, of all runs together."""
    rows, raw = [], {}
    with tempfile.TemporaryDirectory() as folder:
        them = ticking.Tickers(Path(folder))
        try:
            for library in ticking.PROGRAMS:
                alone = ticking.log(them.run(library)[0], ticks=False)
                for mode in ("eager", "policy"):
                    runs = [them.run(library, mode) for _ in range(1 if quick else 3)]
                    assert all(ticking.log(said, ticks=False) == alone for said, _ in runs), f"{library}, {mode}: it said something else"
                    assert all(set(ticking.moved(r)) == set(ticking.CALLS.values()) for _, r in runs), f"{library}, {mode}: not all moved"
                    raw[f"{library} {mode}"] = [said for said, _ in runs]
                    rows += rows_of_gaps(f"{library}, {mode}", raw[f"{library} {mode}"])
        finally:
            them.end()
    return rows, raw


def rows_of_gaps(which, runs):
    cases = [case for said in runs for case in said]
    idle = [gap / 1000 for case in cases for gap in case["idle_us"]]
    beside = [gap / 1000 for case in cases for gap in case["gaps_us"]]
    worst = max(cases, key=lambda case: max(case["gaps_us"]))
    p99, idle_p99, longest = pairs.percentile(beside, 0.99), pairs.percentile(idle, 0.99), max(beside)
    return [{"what": f"{which}: ticker of 10 ms beside calls of {ticking.BLOCK_MS}, p99 gap", "limit": idle_p99 + 2, "judged": p99, "unit": " ms",
             "ours": f"{p99:.1f} ms of {len(beside)}; idle {idle_p99:.1f}, longest {max(idle):.1f}"},
            {"what": f"{which}: longest gap", "limit": ticking.BLOCK_MS * 0.2, "judged": longest, "unit": " ms",
             "ours": f"{longest:.1f} ms ({worst['case']})"}]
