"""Offload, what waits in its place while callbacks are suspended: no program hangs that does not hang alone.

programs/offload_waits.c has one case for each way to wait. Checked that they can fail: without agent/offload/drive.c
going on with what is suspended every case of WAITS hangs; with the locks known by their thread only "recursive" and "tried"
have both callbacks inside; so has "recursive" where a callback that goes on above another is not left when it has to wait.
"""

import concurrent.futures
import subprocess

import helpers

# What the callbacks say, in an order that the program alone would have, too, or in any.
WAITS = ["cond", "once", "mutex", "rwlock", "join", "barrier", "semaphore", "read", "send", "poll", "poll_time", "select",
         "child", "chain", "recursive", "tried", "timed", "flagged"]


def run_both(folder, case):
    program = helpers.program("offload_waits")
    mode = "flagged" if case == "flagged" else "eager"
    with subprocess.Popen([program, case], stdout=subprocess.PIPE, text=True) as alone:
        folder.mkdir()
        try:
            done, recording = helpers.record(folder, program, case, threshold="100ms", options=(f"--offload={mode}",),
                                             timeout=40)
        except subprocess.TimeoutExpired:
            return f"{case}: hangs"
        finally:
            words = alone.communicate(timeout=40)[0].split()
    if done.returncode or sorted(done.stdout.split()) != sorted(words) or not recording.end["offload"]["moved"]:
        return f"{case}: {done.returncode} {done.stdout!r} {words} {recording.end['offload']} {done.stderr}"
    return None


def test_nothing_hangs(tmp_path):
    """All at once: they mostly sleep."""
    with concurrent.futures.ThreadPoolExecutor(len(WAITS)) as pool:
        failed = [line for line in pool.map(lambda case: run_both(tmp_path / case, case), WAITS) if line]
    assert not failed, "\n".join(failed)
