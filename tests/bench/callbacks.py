"""What a callback of each event-loop library costs, timed and named: tests/programs/cost_*.c, and other tools on one of them.

The agent is compared with itself as it is with UNBLOCK_CALLBACKS=0 (turns are timed, callbacks are not), so that the turn is
not counted to the callback; the whole difference to the bare program stands beside it.
"""

import json
import shutil
import subprocess

import helpers
import micro
import pairs
import peers

LIBRARIES = {"libuv": "cost_uv", "libevent": "cost_event", "libev": "cost_ev", "glib": "cost_glib", "sd-event": "cost_sd"}
COUNT = 200000


def measure(library, variant, count=COUNT):
    command, env = [helpers.program(LIBRARIES[library]), count], {}
    recording = micro.OUT / "callbacks.jsonl"
    if variant != "bare":
        env["UNBLOCK_CALLBACKS"] = "1" if variant == "agent" else "0"
        command = [helpers.UNBLOCK, "run", "-q", "-t", "50ms", "--force", "-o", recording, "--", *command]
    said = json.loads(micro.run(command, env))
    assert said["check"] == said["count"] == count, said
    if variant == "agent":
        counted = sum(k["callbacks"] for k in helpers.Recording(recording).of("stats")[-1].get("kinds", {}).values())
        assert counted >= count, f"{counted} callbacks timed of {count}"
    return said


def rows_of(library, said):
    seen = {variant: {s["allocations"] for s in said[variant]} for variant in said}
    assert seen["agent"] == seen["turns"] == seen["bare"], f"{library}: allocations while callbacks run differ: {seen}"
    whole_run = {variant: {s["allocations_all"] for s in said[variant]} for variant in ("agent", "bare")}
    assert whole_run["agent"] == whole_run["bare"], f"{library}: allocations from start to end differ: {whole_run}"
    ns = {variant: [s["median_ns"] for s in said[variant]] for variant in said}
    rdtsc = pairs.interval([s["rdtsc_ns"] for s in said["bare"]])[0]
    clock = pairs.interval([s["clock_ns"] for s in said["bare"]])[0]
    median, low, high = pairs.interval(pairs.differences(ns, "agent", "turns"))
    whole = pairs.interval(pairs.differences(ns, "agent", "bare"))[0]
    ours = (f"{median:+.1f} ns [{low:+.1f}, {high:+.1f}] on {pairs.interval(ns['bare'])[0]:.0f}, turn included {whole:+.1f}; "
            f"{median / rdtsc:.1f} rdtsc, {median / clock:.1f} clock_gettime; 0 allocations more, the start included")
    # The gate of the clock that the agent reads, where there is one: 1.5 rdtsc; that of the other is 2.5 clock_gettime.
    limit = 1.5 * rdtsc if rdtsc else 2.5 * clock
    return {"what": f"{library}: a callback timed and named", "ours": ours, "limit": limit, "judged": median, "unit": " ns"}


def callbacks(quick):
    micro.OUT.mkdir(parents=True, exist_ok=True)
    rows, raw = [], {}
    for library in LIBRARIES:
        said = pairs.interleave(("bare", "turns", "agent"), lambda v, name=library: measure(name, v), pairs.rounds(quick))
        rows.append(rows_of(library, said))
        raw[library] = said
    return rows, raw


def added_by(name, command, quick, count):
    """A peer around cost_uv: what it adds to a callback."""
    def one(variant):
        if variant == "none":
            return measure("libuv", "bare", count)["median_ns"]
        return cost_said(command, count)

    values = pairs.interleave(("none", "peer"), one, 2 if quick else 5)
    added = pairs.interval(pairs.differences(values, "peer", "none"))[0]
    return [{"what": f"libuv: a callback, {name}", "peer": f"{added:+.0f} ns"}], values


def cost_said(command, count):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=300, check=False,
                          env=helpers.clean_environment())
    line = next((text for text in done.stdout.splitlines() if text.startswith('{"library"')), None)
    if line is None:
        raise peers.Missing(f"{command[0]}: {(done.stderr.strip().splitlines() or ['no output'])[-1]}")
    said = json.loads(line)
    assert said["check"] == count, said
    return said["median_ns"]


def uprobes(quick):
    """A pair of probes on the callback, as one would write to find slow ones."""
    path, count, program = peers.need("bpftrace"), 50000, helpers.program("cost_uv")
    script = (f"uprobe:{program}:on_cost {{ @b[tid] = nsecs; }} "
              f"uretprobe:{program}:on_cost /@b[tid]/ {{ @took = hist(nsecs - @b[tid]); delete(@b[tid]); }}")
    return added_by("bpftrace uprobe + uretprobe", [path, "-c", f"{program} {count}", "-e", script], quick, count)


def uftrace(quick):
    """Needs the program rebuilt with -pg; only the callback is recorded."""
    path, count, built = peers.need("uftrace"), 50000, micro.OUT / "cost_uv-pg"
    subprocess.run(["cc", "-std=gnu17", "-D_GNU_SOURCE", "-O2", "-g", "-pg", helpers.ROOT / "tests/programs/cost_uv.c",
                    "-o", built, "-luv"], check=True)
    data = micro.OUT / "uftrace-callback.data"
    try:
        return added_by("uftrace record (rebuilt with -pg)",
                        [path, "record", "--no-libcall", "-F", "on_cost", "-d", data, built, count], quick, count)
    finally:
        shutil.rmtree(data, ignore_errors=True)
