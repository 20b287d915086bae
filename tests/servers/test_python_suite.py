"""CPython's own tests of asyncio (Debian: libpython3.11-testsuite): the same result with the agent as without.

A test that fails alone too, or that fails only sometimes (they have tight timing of their own), is run again alone,
watched and not: what counts is that being watched makes no difference.
"""

import json
import signal
import subprocess

import pytest

import helpers

MODULES = ["test_base_events", "test_buffered_proto", "test_context", "test_events", "test_futures", "test_locks",
           "test_pep492", "test_protocols", "test_queues", "test_runners", "test_selector_events", "test_sendfile",
           "test_server", "test_sock_lowlevel", "test_ssl", "test_sslproto", "test_streams", "test_subprocess",
           "test_taskgroups", "test_tasks", "test_threads", "test_timeouts", "test_transports", "test_unix_events",
           "test_waitfor"]


RUNNER = r"""
import json, sys, unittest

class Result(unittest.TextTestResult):
    def startTestRun(self):
        self.outcomes = {}
    def note(self, test, what):
        self.outcomes.setdefault(test.id(), what)
    def addSuccess(self, test): self.note(test, "ok"); super().addSuccess(test)
    def addFailure(self, test, err): self.note(test, "failed"); super().addFailure(test, err)
    def addError(self, test, err): self.note(test, "error"); super().addError(test, err)
    def addSkip(self, test, why): self.note(test, "skipped"); super().addSkip(test, why)
    def addExpectedFailure(self, test, err): self.note(test, "expected"); super().addExpectedFailure(test, err)

suite = unittest.defaultTestLoader.loadTestsFromNames(sys.argv[2:])
result = unittest.TextTestRunner(resultclass=Result).run(suite)
with open(sys.argv[1], "w") as f:
    json.dump(result.outcomes, f)
"""


def outcomes(folder, names, watched):
    """{test: outcome}, and the recording when watched."""
    command = [helpers.PYTHON, "-c", RUNNER, folder / "outcomes", *names]
    path = folder / "suite.jsonl"
    if watched:
        command = [helpers.UNBLOCK, "run", "-q", "--force", "-t", "10ms", "-o", path, "--", *command]
    done = subprocess.run([str(c) for c in command], cwd=folder, env=helpers.clean_environment(), stdin=subprocess.DEVNULL,
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace", timeout=280,
                          preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # ignored in background jobs
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "outcomes").read_text()), helpers.Recording(path) if watched else None


@pytest.mark.parametrize("module", MODULES)
def test_same_result(tmp_path, module):
    name = f"test.test_asyncio.{module}"
    if subprocess.run([helpers.PYTHON, "-c", f"import {name}"], capture_output=True).returncode:
        pytest.skip("libpython3.11-testsuite is not installed")
    alone, _ = outcomes(tmp_path, [name], False)
    watched, recording = outcomes(tmp_path, [name], True)
    assert recording.end is not None and recording.end.get("exit") == 0
    assert alone.keys() == watched.keys() and len(alone) > 0
    for test in sorted(t for t in alone if alone[t] != watched[t]):
        again = [outcomes(tmp_path, [test], w)[0] for w in (True, False)]
        assert again[0] == again[1], (test, alone[test], watched[test], again)
