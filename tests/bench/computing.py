"""Coroutines that compute, alone and with --yield: the longest gap of a ticker beside them, and what yielding costs."""

import json

import helpers
import micro
import pairs
import pythons

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
