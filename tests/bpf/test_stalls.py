"""Every injected stall is found from the kernel, with nothing loaded into the program: duration, cause, call, callback
and innermost user frame, judged by the same oracle as the agent (tests/e2e/oracle.py).
"""

import subprocess

import pytest

import helpers
import oracle
import tracing


@pytest.mark.parametrize("loop", oracle.LOOPS)
def test_stalls(tmp_path, tracer, loop):
    program, *kind = oracle.LOOPS[loop]
    with oracle.Sentinel() as sentinel:
        traced = tracer(helpers.program(program), *kind, tmp_path / "truth", "all", 1, 1)
        status, _, err, recording = traced.wait()
    if status == 77:
        pytest.skip(err.strip())
    assert status == 0, err
    truth = oracle.Truth(tmp_path / "truth")
    oracle.compare(truth, recording, program, sentinel).check(len(oracle.table()) - len(truth.skipped))
    assert truth.undisturbed, truth.summaries
    assert recording.header["source"] == "bpf"


def test_just_below_the_threshold(tmp_path):
    """Turns that end just before they would be slow: none is told as going on, since nobody would tell its end."""
    program = subprocess.Popen([helpers.program("quiet"), "300", "9850", "100"], stdout=subprocess.DEVNULL)
    try:
        recording = tracing.Tracer(tmp_path, program.pid).wait()
    finally:
        program.kill()
        program.wait()
    assert [s for s in recording.slow if s.get("ongoing")] == []
    assert recording.of("stats")
