"""A 10 ms ticker beside callbacks that block for half a second, on each event-loop library: tests/programs/offload_*.c with a disk that is slow
to sync and a resolver that is slow to answer. For test_offload_tickers.py and `make bench`."""

import json
import subprocess
import tempfile
from pathlib import Path

import helpers
from resolver import asking_it, Resolver
from servers import SlowDisk

PROGRAMS = {"libuv": "offload_uv", "libevent": "offload_event", "libev": "offload_ev", "glib": "offload_glib", "sd-event": "offload_sd"}
CALLS = {"nanosleep": "nanosleep", "pipe_read": "read", "fsync": "fsync", "flock": "flock", "connect": "connect", "recv": "recv", "send": "send",
         "getaddrinfo": "getaddrinfo", "waitpid": "waitpid", "sem_wait": "sem_wait"}  # case: the call that blocks
BLOCK_MS = 500
MODES = ("dry-run", "eager", "policy")


class Tickers:
    def __init__(self, folder):
        self.folder, self.disk = folder, SlowDisk(folder)
        self.disk.slow(fsync=BLOCK_MS)
        try:
            self.resolver = Resolver()
        except BaseException:
            self.disk.end()
            raise
        self.resolver.delay = BLOCK_MS / 2000  # it is asked twice: IPv4 and IPv6
        (folder / "all.policy").write_text("[offload]\n" + "".join(f"{call} = move\n" for call in CALLS.values()))

    def run(self, library, mode=None, idle=200):
        """(what the program says of each case, the recording or None), alone or in one of the modes."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        command = [helpers.program(PROGRAMS[library]), ",".join(CALLS), str(BLOCK_MS), str(idle)]
        recording = folder / "recording.jsonl"
        if mode:
            offload = self.folder / "all.policy" if mode == "policy" else mode
            command = [helpers.UNBLOCK, "run", "-q", "-t", "20ms", "-o", recording, f"--offload={offload}", "--", *command]
        done = subprocess.run([str(word) for word in asking_it(folder, *command)], capture_output=True, text=True, timeout=120, check=False,
                              env=helpers.clean_environment(SLOW_DISK=str(self.disk.path), SLOW_NAME="slow.test"))
        assert done.returncode == 0, (command, done)
        said = [json.loads(line) for line in done.stdout.splitlines()]
        assert [case["case"] for case in said] == list(CALLS), done.stdout
        return said, helpers.Recording(recording) if mode else None

    def end(self):
        self.resolver.end()
        self.disk.end()


def log(said, ticks=True):
    """What happened, in its order; `ticks`: with those of the ticker in the midst of a call."""
    return [(case["case"], case["result"], case["errno"], case["order"] if ticks else case["order"].replace("tick ", "")) for case in said]


def moved(recording):
    return {line["call"]: line["moved"] for line in recording.of("offload") if line["moved"]}
