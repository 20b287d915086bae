"""The agent's own cost, in a program that does nothing else: tests/programs/turns.c."""

import json
import subprocess

import helpers
import pairs

OUT = helpers.BUILD / "bench"


def run(command, env=None):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=300, check=False,
                          env=helpers.clean_environment(**(env or {})))
    assert done.returncode == 0, done.stderr
    return done.stdout


def empty_library():
    """A library that does nothing: what preloading anything at all costs."""
    source, library = OUT / "empty.c", OUT / "empty.so"
    OUT.mkdir(parents=True, exist_ok=True)
    source.write_text("int unblock_bench_empty;\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    return library


def ns_per(mode, count, variant, library):
    program = [helpers.program("turns"), mode, count]
    env = {}
    if variant == "preloaded":
        env["LD_PRELOAD"] = str(library)
    elif variant == "inert":
        env.update(LD_PRELOAD=str(helpers.AGENT), UNBLOCK="0")
    elif variant == "agent":
        recording = OUT / "micro.jsonl"
        program = [helpers.UNBLOCK, "run", "-q", "-t", "50ms", "--force", "-o", recording, "--", *program]
    said = json.loads(run(program, env))
    assert said["check"] == said["count"] == count, said
    if variant == "agent" and mode not in ("offloop", "malloc", "call", "loopcall"):
        turns = max(s.get("turns", s["callbacks"]) for s in helpers.Recording(recording).of("stats"))
        assert count <= turns <= count + 200, f"{turns} turns recorded of {count}"
    return said["median_ns"]


def measure(mode, count, quick, what, limit, variants=("bare", "preloaded", "inert", "agent")):
    library = empty_library()
    values = pairs.interleave(variants, lambda v: ns_per(mode, count, v, library), pairs.rounds(quick))
    base = pairs.interval(values["bare"])[0]
    rows = []
    for variant, limited in (("preloaded", None), ("inert", None), ("agent", limit)):
        median, low, high = pairs.interval(pairs.differences(values, variant, "bare"))
        ours = f"{median:+.1f} ns [{low:+.1f}, {high:+.1f}] on {base:.0f}"
        rows.append({"what": f"{what}, {variant}", "ours": ours, "limit": limited, "judged": median, "unit": " ns"})
    return rows, values


def turn(quick):
    return measure("turn", 300000, quick, "epoll turn", 30)


def serve(quick):
    return measure("serve", 200000, quick, "epoll turn + read + write", 90)  # a turn, and two timed calls: 30 each


def malloc(quick):
    # "+0" is the target; below 2 % of a pair nothing can be told from the machine.
    rows, values = measure("malloc", 3000000, quick, "malloc + free in the target", 1)
    return rows, values


def offloop(quick):
    return measure("offloop", 300000, quick, "wait call off the loop", 5)


def call(quick):
    return measure("call", 3000000, quick, "interposed call off the loop", 5)


def loopcall(quick):
    return measure("loopcall", 3000000, quick, "interposed call on the loop's thread", 30)


def fibers(quick):
    """A callback on a stack of its own: the switch, and what a callback pays that never suspends."""
    said = [json.loads(run([helpers.program("fibers"), 1000000])) for _ in range(pairs.rounds(quick))]
    rows = []
    for key, what, limit in (("switch_ns", "fiber: switch", 8), ("enter_ns", "fiber: a callback that does not suspend", 60),
                             ("fresh_ns", "fiber: the same on a stack never used", None)):
        median, low, high = pairs.interval([s[key] for s in said])
        rows.append({"what": what, "ours": f"{median:.1f} ns [{low:.1f}, {high:.1f}]", "limit": limit, "judged": median,
                     "unit": " ns"})
    return rows, said
