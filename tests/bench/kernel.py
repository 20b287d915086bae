"""The view from the kernel: throughput of a redis that is traced with full detail, and of one while another process is.

Each pair is three short loads on one running redis, the tracer attached for one of them; server and load each have a
CPU of their own where there are two.
"""

import os
import signal
import subprocess

import helpers
import pairs
import peers
import services
import test_redis

OFFCPU = ("tracepoint:sched:sched_switch {{ if (args->prev_pid == {pid}) {{ @off[args->prev_pid] = nsecs; }} "
          "if (args->next_pid == {pid} && @off[args->next_pid]) "
          "{{ @us[ustack, comm] = sum(nsecs - @off[args->next_pid]); delete(@off[args->next_pid]); }} }} "
          "tracepoint:raw_syscalls:sys_enter /pid == {pid}/ {{ @s[tid] = nsecs; }} "
          "tracepoint:raw_syscalls:sys_exit /pid == {pid} && @s[tid]/ "
          "{{ @calls[args->id] = sum(nsecs - @s[tid]); delete(@s[tid]); }}")


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

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGINT)
        self.process.communicate(timeout=20)
        assert self.process.returncode == 0


def trace(quick):
    affinity = os.sched_getaffinity(0)
    redis = test_redis.Redis(watched=False)
    other = subprocess.Popen(["sleep", "3600"])
    os.sched_setaffinity(0, {services.LOAD_CPU})
    try:
        redis.start()
        services.pin(redis.pid)
        peers.requests_per_s(redis, 20000)

        def measure(variant):
            if variant == "none":
                return peers.requests_per_s(redis, 20000)
            with Trace(redis.pid if variant == "traced" else other.pid):
                return peers.requests_per_s(redis, 20000)

        values = pairs.interleave(("none", "traced", "another"), measure, pairs.rounds(quick))
    finally:
        os.sched_setaffinity(0, affinity)
        redis.end()
        other.kill()
        other.wait()
    rows = []
    for variant, what, limit in (("traced", "redis throughput, none/traced", 1 / 0.90),
                                 ("another", "redis throughput, none/another process traced", None)):
        median, low, high = pairs.interval(pairs.ratios(values, "none", variant))
        rows.append({"what": what, "ours": f"{median:.3f} [{low:.3f}, {high:.3f}], that is x {1 / median:.3f}",
                     "limit": limit, "judged": median if limit else None,
                     "peer": "perf trace -s x 0.54, strace -c x 0.19" if limit else ""})
    return rows, values


def offcpu(quick):
    """What one would write with bpftrace for the same questions: off-CPU time by stack, time by system call."""
    path = peers.need("bpftrace")

    def beside(pid):
        return peers.Beside([path, "-e", OFFCPU.format(pid=pid)], ready_s=4)(pid)

    share, values = peers.on_redis(beside, quick)
    return [{"what": "redis throughput, bpftrace offcputime and calls", "peer": f"x {share:.2f}"}], values
