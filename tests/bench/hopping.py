"""Calls that libuv's callbacks make, moved: tests/programs/hop_uv.c, beside the same work by libuv's own pool and by a program rewritten by
hand; calls that do not block and stay; what many suspended callbacks take up."""

import contextlib
import json
import multiprocessing
import os

import helpers
import micro
import pairs

COUNT = 3000
SLEEPERS = 1000
INLINE = ("read", "recv", "flock", "sem")


def said(what, count, moved="", **env):
    """`moved`: a mode of offload, "off": only watched; "": without us."""
    command = [helpers.program("hop_uv"), what, count]
    recording = micro.OUT / "hopping.jsonl"
    if moved:
        command = [helpers.UNBLOCK, "run", "-q", "--force", "-t", "20ms", "-o", recording, f"--offload={moved}", "--", *command]
    answer = json.loads(micro.run(command, env))
    assert answer["count"] == count, answer
    if moved:
        calls = helpers.Recording(recording).end.get("offload", {}).get("moved", 0)
        assert calls >= count * 0.99 if what in ("call", "sleepers") else calls == 0, f"{what}: {calls} moved of {count}"
    return answer


def turn_at_the_lowest(cpu):
    os.sched_setaffinity(0, {cpu})
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    while True:
        pass


@contextlib.contextmanager
def awake():
    """No CPU goes to sleep meanwhile: on each there is something to do that gives way to everything else."""
    turning = [multiprocessing.get_context("fork").Process(target=turn_at_the_lowest, args=(cpu,), daemon=True) for cpu in os.sched_getaffinity(0)]
    for process in turning:
        process.start()
    try:
        yield
    finally:
        for process in turning:
            process.kill()
            process.join()


def hops(quick):
    """From the call to its result, p50 of each run: a hop through the pool. Two threads are woken on its way, and what it costs to wake a CPU that
    sleeps is the machine's (a virtual one's more than all the rest): so once with CPUs that do not, and once as it is, beside the others."""
    micro.OUT.mkdir(parents=True, exist_ok=True)
    rows, raw = [], {}
    for how, state in (("CPUs awake", awake), ("CPUs as they are", contextlib.nullcontext)):
        with state():
            values = pairs.interleave(("call", "work", "hand"), lambda what: said(what, COUNT, "eager" if what == "call" else "")["p50_ns"] / 1000, pairs.rounds(quick))
        median, low, high = pairs.interval(values["call"])
        work, hand = pairs.interval(values["work"])[0], pairs.interval(values["hand"])[0]
        rows.append({"what": f"libuv: a call that is moved to the pool, p50, {how}", "ours": f"{median:.1f} us [{low:.1f}, {high:.1f}]", "limit": 20,
                     "judged": median, "unit": " us", "peer": f"uv_queue_work {work:.1f}, by hand {hand:.1f}"})
        raw[how] = values
    return rows, raw


def inline(quick):
    """What a call that does not block costs more in a program whose calls move: the deciding is what it costs more than in one that is only watched."""
    micro.OUT.mkdir(parents=True, exist_ok=True)
    rows, raw = [], {}
    for what in INLINE:
        values = pairs.interleave(("", "off", "flagged", "eager"), lambda mode, w=what: said(w, 20000, mode)["ns"], pairs.rounds(quick))
        for mode in ("flagged", "eager"):
            median, low, high = pairs.interval(pairs.differences(values, mode, "off"))
            whole = pairs.interval(pairs.differences(values, mode, ""))[0]
            rows.append({"what": f"libuv: {what} that does not block stays, {mode}", "ours": f"{median:+.0f} ns [{low:+.0f}, {high:+.0f}] to decide; {whole:+.0f} in all on "
                         f"{pairs.interval(values[''])[0]:.0f}", "limit": 150, "judged": median, "unit": " ns"})
        raw[what] = values
    return rows, raw


def suspensions(quick):
    """What the process has more while a thousand sleep."""
    micro.OUT.mkdir(parents=True, exist_ok=True)
    raw = {"callbacks of ours": said("sleepers", SLEEPERS, "eager"), "uv_queue_work": said("threads", SLEEPERS, UV_THREADPOOL_SIZE=str(SLEEPERS)),
           "by hand, a timer each": said("timers", SLEEPERS)}
    told = {}
    for name, usage in raw.items():
        assert usage["at_once"] == usage["check"] == SLEEPERS, usage
        told[name] = (f"{usage['resident_kb'] / 1024:.1f} MB resident, {usage['mapped_kb'] / (1 << 20):.1f} GB of addresses, "
                      f"{usage['maps']} mappings")
    ours = told.pop("callbacks of ours")
    return [{"what": f"libuv: {SLEEPERS} callbacks suspended", "ours": ours, "peer": "; ".join(f"{n}: {t}" for n, t in told.items())}], raw
