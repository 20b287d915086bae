"""A program and an `unblock trace` that watches it from its first instruction, or from later on."""

import itertools
import os
import signal
import subprocess
import time

import helpers

numbers = itertools.count()


def punctual(pid):
    """
    The watching thread of a tracer gets a CPU when it wants one, if that is allowed to us: what it makes of what it sees
    is judged, not what a crowded machine lets it see. It is known by its timers, which alone are exact.
    """
    for tid in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{tid}/timerslack_ns") as f:
                if int(f.read()) == 1:
                    os.sched_setscheduler(int(tid), os.SCHED_FIFO, os.sched_param(1))
        except OSError:
            pass


class Tracer:
    """`unblock trace` of processes that run already. Ready when it says so."""

    def __init__(self, folder, *pids, threshold="10ms", options=(), **popen):
        self.path = folder / f"trace{next(numbers)}.jsonl"
        self.process = helpers.start("trace", "-v", "-t", threshold, "-o", self.path, *options, *map(str, pids), **popen)
        self.said = ""
        while "recording" not in self.said:
            line = self.process.stderr.readline()
            assert line, f"unblock trace ended: {self.said}"
            self.said += line
        punctual(self.process.pid)

    def wait(self, timeout=helpers.PATIENCE):
        """It ends when its processes have, or its time is over."""
        _, more = self.process.communicate(timeout=timeout)
        self.said += more
        assert self.process.returncode == 0, self.said
        return helpers.Recording(self.path)

    def stop(self, sig=signal.SIGINT):
        self.process.send_signal(sig)
        return self.wait()

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


class Traced:
    """A program that waits before its first instruction until the tracer is there."""

    def __init__(self, folder, *command, threshold="10ms", options=(), env=None, cwd=None, tracer=None,
                 stdin=subprocess.DEVNULL):
        self.program = subprocess.Popen(["sh", "-c", 'kill -STOP $$; exec "$@"', "sh", *map(str, command)],
                                        stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                        env=env or helpers.clean_environment(), cwd=cwd)
        helpers.wait_until(lambda: helpers.process_state(self.program.pid) == "T", what="the program to be stopped")
        self.tracer = Tracer(folder, self.program.pid, threshold=threshold, options=options, **(tracer or {}))
        self.program.send_signal(signal.SIGCONT)

    @property
    def pid(self):
        return self.program.pid

    def wait(self, timeout=120):
        out, err = self.program.communicate(timeout=timeout)
        return self.program.returncode, out, err, self.tracer.wait()

    def end(self):
        if self.program.poll() is None:
            self.program.kill()
            self.program.communicate()
        self.tracer.end()


def starved(slow):
    """The machine's doing before anything else: its thread waited longer for a CPU than it blocked or computed."""
    return slow["cause"] == "runqueue" and slow["runqueue_ns"] > max(slow["blocked_ns"], slow["cpu_ns"])


def alive(pid):
    try:
        os.kill(pid, 0)
        return True
    except ProcessLookupError:
        return False


def pause(seconds):
    time.sleep(seconds)


def tracepoints(pid):
    """Where the tracer's programs are attached just now."""
    found = set()
    for fd in os.listdir(f"/proc/{pid}/fdinfo"):
        try:
            with open(f"/proc/{pid}/fdinfo/{fd}") as f:
                found.update(line.split()[1] for line in f if line.startswith("tp_name:"))
        except OSError:
            pass
    return found
