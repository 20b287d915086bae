"""What computes, alone, with --yield and by a policy in threads and processes: the longest gap of a ticker beside it, and what that costs."""

import json

import helpers
import micro
import pairs
import pythons
from checkpoint import Checkpoint

PROGRAM = helpers.ROOT / "tests/programs/pyburn.py"
COUNT = 20_000_000


def interpreters():
    """(path, loop, name): each that yields; uvloop where it is there."""
    for one in pythons.moving(helpers.AGENT, True):
        path, *loop = one.split()
        yield path, *(loop or ["asyncio"]), *(loop or [pythons.ask(path, "import sys; print('%d.%d' % sys.version_info[:2])")])


def measure(path, loop, tasks, yields):
    command = [path, PROGRAM, loop, tasks, COUNT]
    if yields:
        command = [helpers.UNBLOCK, "run", "-q", "-t", "50ms", "--force", "--yield", "-o", micro.OUT / "yields.jsonl", "--", *command]
    said = json.loads(micro.run(command))
    assert said["check"] == COUNT, said
    if yields:
        rows = helpers.Recording(micro.OUT / "yields.jsonl").of("python")
        assert sum(row.get("count", 0) for row in rows) > 0, "nothing yielded: it is the bare program that was measured"
    return said


def yields(quick):
    micro.OUT.mkdir(parents=True, exist_ok=True)
    rows, raw = [], {}
    for path, loop, name in interpreters():
        for tasks in (1, 4):
            said = pairs.interleave(("bare", "yield"), lambda v, a=(path, loop, tasks): measure(*a, v == "yield"),
                                    2 if quick else 5)
            gap = {v: pairs.interval([s["gap_ms"] for s in said[v]]) for v in said}
            cpu = {v: [s["cpu_s"] for s in said[v]] for v in said}
            ratio = pairs.interval(pairs.ratios(cpu, "yield", "bare"))
            rows.append({"what": f"{name}: {COUNT // 1_000_000} million decrements in {tasks} task{'s' * (tasks > 1)}, --yield",
                         "ours": f"ticker's longest gap {gap['yield'][0]:.0f} ms [{gap['yield'][1]:.0f}, {gap['yield'][2]:.0f}], "
                                 f"alone {gap['bare'][0]:.0f} ms; CPU x {ratio[0]:.2f} [{ratio[1]:.2f}, {ratio[2]:.2f}]"})
            raw[f"{name} {tasks}"] = said
    return rows, raw


def answers(path, loop, pause_ms):
    recording = micro.OUT / "echoes.jsonl"
    said = json.loads(micro.run([helpers.UNBLOCK, "run", "-q", "-t", "50ms", "--force", "--yield", "-o", recording, "--",
                                 path, helpers.ROOT / "tests/programs/pyecho.py", loop, 500, pause_ms, 2]))
    assert said["check"] == 500 and said["rounds"] > 0, said
    return said


def echoes(quick):
    """An echo server beside two tasks that never await, with --yield (alone it never answers): asked without a pause, and each 3 ms."""
    micro.OUT.mkdir(parents=True, exist_ok=True)
    rows, raw = [], {}
    for path, loop, name in interpreters():
        for pause in (0, 3):
            raw[f"{name} {pause}"] = said = [answers(path, loop, pause) for _ in range(2 if quick else 5)]
            p50, p99 = (pairs.interval([one[key] / 1000 for one in said]) for key in ("p50_us", "p99_us"))
            rows.append({"what": f"{name}: echo beside two tasks that never await, {f'asked each {pause} ms' if pause else 'asked at once again'}",
                         "ours": f"p50 {p50[0]:.2f} ms [{p50[1]:.2f}, {p50[2]:.2f}], p99 {p99[0]:.1f}", "peer": "design p50 0.06-0.17"})
    return rows, raw


DOWN = 50_000_000
RULES = {"inline": None, "yield": "[yield]\npywork.* = 5ms\n", "thread": "[python]\npywork.counts_down = thread\n",
         "process": "[python]\npywork.counts_down = process\n"}


def counts(path, loop, way, count, calls):
    """pycount.py that way: its ticker's longest gap, and how long it took."""
    command = [path, helpers.ROOT / "tests/programs/pycount.py", loop, count, calls]
    if RULES[way]:
        policy, recording = micro.OUT / "count.policy", micro.OUT / "counts.jsonl"
        policy.write_text(RULES[way])
        command = [helpers.UNBLOCK, "run", "-q", "-t", "50ms", "--force", f"--offload={policy}", "-o", recording, "--", *command]
    said = json.loads(micro.run(command))
    assert said["check"] == count * calls, said
    if RULES[way]:
        kind = "yield" if way == "yield" else "moved"
        told = [row["count"] for row in helpers.Recording(recording).of("python") if row["kind"] == kind]
        assert sum(told) >= calls, "it ran where it was called"
    return said


def elsewhere(quick):
    """A function that counts down, 50 million times: left where it is, yielding, by a thread, by a process; what a call costs."""
    micro.OUT.mkdir(parents=True, exist_ok=True)
    rows, raw = [], {}
    for path, loop, name in list(interpreters())[:1 if quick else None]:
        said = pairs.interleave(tuple(RULES), lambda way, a=(path, loop): counts(*a, way, DOWN, 1), 1 if quick else 3)
        for way in RULES:
            gap, total = ([s[key] for s in said[way]] for key in ("gap_ms", "total_s"))
            rows.append({"what": f"{name}: 50 million decrements in a function, {way}",
                         "ours": f"ticker's longest gap {sorted(gap)[len(gap) // 2]:.0f} ms, total {sorted(total)[len(total) // 2]:.2f} s"})
        raw[name] = said
        calls = 2000
        for way in ("inline", "thread", "process"):
            least = min(counts(path, loop, way, 1, calls)["total_s"] for _ in range(3))
            rows.append({"what": f"{name}: a call of a function that does nothing, {way}", "ours": f"{least / calls * 1e6:.1f} us"})
    return rows, raw


def checkpoints(quick):
    """A service with 100 MB of live state that writes it down by pickle.dump: what its other requests see, alone and with a fork."""
    rows, raw = [], {}
    for name, rules in (("alone", None), ("pickle.dump = fork", "[python]\npickle.dump = fork\n")):
        folder = micro.OUT / "checkpoint"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "app.policy").write_text(rules or "")
        with Checkpoint(folder, 100, *([f"--offload={folder / 'app.policy'}"] if rules else [])) as server:
            took, said = server.saves(2 if quick else 5)
        saved = sorted(one["ms"] for one in said)[len(said) // 2]
        rows.append({"what": f"aiohttp, a checkpoint of {said[0]['bytes'] / 1e6:.0f} MB, {name}",
                     "ours": f"other requests p50 {took[len(took) // 2]:.1f}, p99 {took[len(took) * 99 // 100]:.1f}, "
                             f"max {took[-1]:.0f} ms; the save {saved:.0f} ms"})
        raw[name] = [took, said]
    return rows, raw
