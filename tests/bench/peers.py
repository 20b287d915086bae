"""Other tools on the same work: the micro-program's turn, and redis under redis-benchmark."""

import json
import re
import shutil
import subprocess
import time

import helpers
import pairs
import servers
import test_redis


class Missing(Exception):
    """The peer is not installed or not permitted here."""


def need(name):
    path = shutil.which(name)
    if not path:
        raise Missing(f"{name} is not installed")
    return path


def turns(command, count, env=None):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=300, check=False,
                          env=helpers.clean_environment(**(env or {})))
    found = re.search(r"\{\"mode\".*\}", done.stdout)
    if not found:
        raise Missing(f"{command[0]}: {(done.stderr.strip().splitlines() or ['no output'])[-1]}")
    said = json.loads(found[0])
    assert said["check"] == count, said
    return said["median_ns"]


def requests_per_s(redis, count):
    out = subprocess.run([servers.tool("redis-benchmark"), "-p", str(redis.port), "-c", "50", "-n", str(count), "-t", "get",
                          "--csv"], capture_output=True, text=True, check=True).stdout
    return float(out.strip().splitlines()[-1].split(",")[1].strip('"'))


class Beside:
    """A tool attached to a running redis for as long as the block lasts."""

    def __init__(self, command, ready_s=1.5):
        self.command, self.ready_s = command, ready_s

    def __call__(self, pid):
        self.process = subprocess.Popen([str(c).replace("PID", str(pid)) for c in self.command],
                                        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        time.sleep(self.ready_s)
        if self.process.poll() is not None:
            raise Missing(f"{self.command[0]}: {self.process.stderr.read().decode(errors='replace')[-200:].strip()}")
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(2)
        try:
            self.process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()


def on_redis(beside, quick):
    """Throughput with the tool attached, over none, in turn."""
    count = 20000

    def measure(variant):
        redis = test_redis.Redis(watched=False)
        try:
            redis.start()
            requests_per_s(redis, count // 2)
            if variant == "none":
                return requests_per_s(redis, count)
            with beside(redis.pid):
                return requests_per_s(redis, count)
        finally:
            redis.end()

    values = pairs.interleave(("none", "peer"), measure, 2 if quick else 6)
    return pairs.interval(pairs.ratios(values, "peer", "none")), values


def on_turn(wrap, count, quick, env=None):
    program = [helpers.program("turns"), "turn", count]

    def measure(variant):
        return turns(program if variant == "none" else wrap(program), count, env)

    values = pairs.interleave(("none", "peer"), measure, 2 if quick else 6)
    return pairs.interval(pairs.differences(values, "peer", "none")), values


def both(name, wrap, beside, quick, count):
    (added, low, high), raw_turn = on_turn(wrap, count, quick)
    rows = [{"what": f"epoll turn, {name}", "peer": f"{added:+.0f} ns [{low:.0f}, {high:.0f}]"}]
    (share, low, high), raw_redis = on_redis(beside, quick)
    rows.append({"what": f"redis throughput, {name}", "peer": f"x {share:.2f} [{low:.2f}, {high:.2f}]"})
    return rows, {"turn": raw_turn, "redis": raw_redis}


def strace(quick):
    path = need("strace")
    return both("strace -c", lambda program: [path, "-c", "-f", "-o", "/dev/null", *program],
                Beside([path, "-c", "-f", "-o", "/dev/null", "-p", "PID"]), quick, 20000)


def perf(quick):
    path = need("perf")
    return both("perf trace -s", lambda program: [path, "trace", "-s", "-o", "/dev/null", *program],
                Beside([path, "trace", "-s", "-o", "/dev/null", "-p", "PID"]), quick, 50000)


def bpftrace(quick):
    """A pair of tracepoints around epoll_wait, as one would write to find slow turns."""
    path = need("bpftrace")
    script = ("tracepoint:syscalls:sys_exit_epoll_wait /pid == PID/ { @b[tid] = nsecs; } "
              "tracepoint:syscalls:sys_enter_epoll_wait /pid == PID && @b[tid]/ "
              "{ @turns = hist(nsecs - @b[tid]); delete(@b[tid]); }")
    return both("bpftrace on the epoll tracepoints",
                lambda program: [path, "-c", " ".join(map(str, program)), "-e", script.replace("PID", "cpid")],
                Beside([path, "-e", script], ready_s=4), quick, 300000)


def uftrace(quick):
    """Needs the program rebuilt with -pg: then every function call is recorded."""
    path = need("uftrace")
    folder = helpers.BUILD / "bench"
    source = helpers.ROOT / "tests/programs/turns.c"
    built = folder / "turns-pg"
    subprocess.run(["cc", "-std=gnu17", "-D_GNU_SOURCE", "-O2", "-g", "-pg", source, "-o", built], check=True)
    count = 50000

    def measure(variant):
        if variant == "none":
            return turns([helpers.program("turns"), "turn", count], count)
        return turns([path, "record", "--no-libcall", "-d", folder / "uftrace.data", built, "turn", count], count)

    values = pairs.interleave(("none", "peer"), measure, 2 if quick else 5)
    shutil.rmtree(folder / "uftrace.data", ignore_errors=True)
    added = pairs.interval(pairs.differences(values, "peer", "none"))[0]
    return [{"what": "epoll turn, uftrace record (rebuilt with -pg)", "peer": f"{added:+.0f} ns"}], values
