"""The view from the kernel: throughput of a redis that is traced with full detail, and of one while another process is.

Short loads on one running redis in turn, a tracer attached for some of them; server and load each have a CPU of their own
where there are two. CPU a request is the server's own: it says what the hooks cost it, throughput also what they cost
the load.
"""

import os
import signal
import statistics
import subprocess
import time

import helpers
import pairs
import peers
import services
import test_redis
from watcher import cpu_ns

REQUESTS = 20000  # of one load; a value is the median of so many, one right after the other:
LOADS = 5

OFFCPU = ("tracepoint:sched:sched_switch { if (args->prev_pid == PID) { @off[args->prev_pid] = nsecs; } "
          "if (args->next_pid == PID && @off[args->next_pid]) "
          "{ @us[ustack, comm] = sum(nsecs - @off[args->next_pid]); delete(@off[args->next_pid]); } } "
          "tracepoint:raw_syscalls:sys_enter /pid == PID/ { @s[tid] = nsecs; } "
          "tracepoint:raw_syscalls:sys_exit /pid == PID && @s[tid]/ "
          "{ @calls[args->id] = sum(nsecs - @s[tid]); delete(@s[tid]); }")


class Trace:
    """`unblock trace` of a process, as full as it gets, until the block ends."""

    def __init__(self, pid, threshold="10ms"):
        self.process = helpers.start("trace", "-v", "-t", threshold, "--force", "-o", "/dev/null", pid)
        said = ""
        while "recording" not in said:
            line = self.process.stderr.readline()
            if not line:
                raise peers.Missing(f"unblock trace: {said.strip()}")
            said += line
        if "reduced view" in said:
            self.process.kill()
            self.process.communicate()
            raise peers.Missing(said.splitlines()[0])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGINT)
        self.process.communicate(timeout=20)
        assert self.process.returncode == 0


DOZE_S = 3.5  # until a tracer whose processes sleep has stopped looking at system calls
START_S = 2.0  # until one has read the symbols of what it met, and looked at everything for a second: that is paid once


class Nothing:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def beside(command, ready_s):
    """A peer attached to the process, as a context."""
    return lambda pid: peers.Beside(command, ready_s)(pid)


def load(redis):
    """(requests a second, ns of the server's CPU a request) of one."""
    before = cpu_ns(redis.pid)
    rate = peers.requests_per_s(redis, REQUESTS)
    return rate, (cpu_ns(redis.pid) - before) / REQUESTS


def on_redis(variants, count, loads=LOADS):
    """{variant: [(requests a second, ns of the server's CPU a request)]}, loads of one running redis in turn.

    `variants`: {name: (function(pid) -> context, seconds to wait in it)}; server and load on a CPU of their own.
    """
    affinity = os.sched_getaffinity(0)
    redis = test_redis.Redis(watched=False)
    os.sched_setaffinity(0, {services.LOAD_CPU})
    try:
        redis.start()
        services.pin(redis.pid)
        peers.requests_per_s(redis, REQUESTS)

        def measure(variant):
            attach, settle_s = variants[variant]
            with attach(redis.pid):
                time.sleep(settle_s)
                return tuple(statistics.median(column) for column in zip(*(load(redis) for _ in range(loads))))

        return pairs.interleave(variants, measure, count)
    finally:
        os.sched_setaffinity(0, affinity)
        redis.end()


def against_none(values, variant, which):
    """Median and interval of variant/none: 0 the throughput, 1 the CPU time a request."""
    column = {name: [pair[which] for pair in pair_list] for name, pair_list in values.items()}
    return pairs.interval(pairs.ratios(column, variant, "none"))


def rows_of(values, variant, what, least=None):
    share, low, high = against_none(values, variant, 0)
    cpu, cpu_low, cpu_high = against_none(values, variant, 1)
    return [{"what": f"{what}: throughput, none/it", "ours": f"{1 / share:.3f} [{1 / high:.3f}, {1 / low:.3f}], "
             f"that is x {share:.3f}", "limit": 1 / least if least else None, "judged": 1 / share},
            {"what": f"{what}: CPU a request, it/none", "ours": f"{cpu:.3f} [{cpu_low:.3f}, {cpu_high:.3f}]"}]


def trace(quick):
    values = on_redis({"none": (lambda pid: Nothing(), 0), "traced": (Trace, START_S)}, pairs.rounds(quick))
    return rows_of(values, "traced", "redis traced", 0.90), values


def beside_it(quick):
    """What the machine pays while a process that sleeps is traced."""
    other = subprocess.Popen(["sleep", "3600"])
    try:
        values = on_redis({"none": (lambda pid: Nothing(), 0), "another": (lambda pid: Trace(other.pid), DOZE_S)},
                          pairs.rounds(quick))
    finally:
        other.kill()
        other.wait()
    return rows_of(values, "another", "redis, a sleeping process traced"), values


def try_out(attach):
    """Whether a peer works here at all, on a process that sleeps: peers.Missing, if not."""
    asleep = subprocess.Popen(["sleep", "60"])
    try:
        with attach(asleep.pid):
            pass
    finally:
        asleep.kill()
        asleep.wait()


def offcpu(quick):
    """Beside what one would use for the same questions, all on the same redis in turn."""
    variants, rows = {"none": (lambda pid: Nothing(), 0), "unblock trace": (Trace, START_S)}, []
    for name, tool, arguments, ready_s in (
            ("bpftrace, off-CPU by stack and time by call", "bpftrace", ["-e", OFFCPU], 4),
            ("perf trace -s", "perf", ["trace", "-s", "-o", "/dev/null", "-p", "PID"], 1.5),
            ("strace -c", "strace", ["-c", "-f", "-o", "/dev/null", "-p", "PID"], 1.5)):
        attach = beside([tool, *arguments], ready_s)
        try:
            peers.need(tool)
            try_out(attach)
        except peers.Missing as missing:
            rows.append({"what": f"redis throughput, {name}", "peer": f"left out: {missing}"})
            continue
        variants[name] = (attach, 0)
    values = on_redis(variants, 2 if quick else 6, loads=1)  # one beside strace takes ten times as long
    for name in variants:
        if name != "none":
            share, low, high = against_none(values, name, 0)
            cell = f"x {share:.2f} [{low:.2f}, {high:.2f}], CPU a request x {against_none(values, name, 1)[0]:.2f}"
            rows.append({"what": f"redis throughput, {name}", "ours" if name == "unblock trace" else "peer": cell})
    return rows, values
