"""What detection adds to a step of an asyncio task, beside asyncio's own debug mode and a wrapper written in Python."""

import json

import helpers
import micro
import pairs

PROGRAM = helpers.ROOT / "tests/programs/pystepcost.py"


def ns_a_step(loop, variant, count):
    command = [helpers.PYTHON, PROGRAM, loop, count]
    recording = micro.OUT / "steps.jsonl"
    if variant in ("debug", "wrapper"):
        command.append(variant)
    elif variant == "agent":
        command = [helpers.UNBLOCK, "run", "-q", "-t", "50ms", "--force", "-o", recording, "--", *command]
    said = json.loads(micro.run(command))
    assert said["check"] == said["count"] == count, said
    if variant == "agent":
        steps = max(s["kinds"]["task"]["callbacks"] for s in helpers.Recording(recording).of("stats"))
        assert steps >= count, f"{steps} steps timed of {count}"
    return said["quiet_ns"]


def compare(loop, variants, quick):
    micro.OUT.mkdir(parents=True, exist_ok=True)
    values = pairs.interleave(["bare", *variants], lambda v: ns_a_step(loop, v, 10000 if v == "debug" else 100000), pairs.rounds(quick))
    base = pairs.interval(values["bare"])[0]

    def told(variant):
        median, low, high = pairs.interval(pairs.differences(values, variant, "bare"))
        return f"{median:+.0f} ns [{low:+.0f}, {high:+.0f}]", median

    ours, added = told("agent")
    peers = [f"{'debug=True' if v == 'debug' else 'wrapper in Python'} {told(v)[0]}" for v in variants if v != "agent"]
    return [{"what": f"{loop}: a task's step, agent", "ours": f"{ours} on {base:.0f}", "peer": "; ".join(peers),
             "limit": 150, "judged": added, "unit": " ns"}], values


def steps(quick):
    rows, raw = compare("asyncio", ("agent", "debug", "wrapper"), quick)
    if micro.run([helpers.PYTHON, "-c", "import importlib.util as u; print(u.find_spec('uvloop') is not None)"]) == "True\n":
        more, raw_uvloop = compare("uvloop", ("agent", "debug"), quick)  # no wrapper in Python sees uvloop's callbacks
        rows, raw = rows + more, {"asyncio": raw, "uvloop": raw_uvloop}
    return rows, raw
