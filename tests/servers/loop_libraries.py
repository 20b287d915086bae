"""What the tests of programs on event-loop libraries share (test_loop_*.py).

Programs that nobody here wrote, one or more on each library, under their own clients. Each behaves the same with the agent
and without, its callbacks are timed by themselves, and on a slow disk (slowfs.c) the stall is found in the callback that
waits for it: kind, call, descriptor, duration.
"""

import subprocess

import helpers

SLOW_MS = 150


def output(*command, text=True, **options):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=text, timeout=60, check=False,
                          env=helpers.clean_environment(**options.pop("env", {})), **options)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


def kinds(recording, library):
    """What `stats` has counted, by kind, over all loops of that library."""
    loops = {(line["pid"], line["tid"]): line for line in recording.of("loop") if line["identity"] == "callback"}
    assert loops and {line["loop"] for line in loops.values()} == {library}, recording.of("loop")
    last = {(line["pid"], line["tid"]): line for line in recording.of("stats")}
    counted = {}
    for key in loops:
        for kind, sums in last[key].get("kinds", {}).items():
            counted[kind] = counted.get(kind, 0) + sums["callbacks"]
    return counted


def slow_one(recording, library, kind, call):
    """The one stall of the slow disk, and the call in it: a callback of that kind was in that call for so long."""
    found = [(s, c) for s in recording.slow for c in s.get("calls", [])
             if c["name"] == call and c["duration_ns"] > SLOW_MS * 950_000 and not s.get("startup")]
    assert len(found) == 1, recording.slow
    slow, found_call = found[0]
    assert (slow["loop"], slow["kind"]) == (library, kind), slow
    assert slow["cause"] in ("call", "runqueue") and slow["duration_ns"] >= found_call["duration_ns"], slow
    return slow, found_call
