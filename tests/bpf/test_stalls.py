"""Every injected stall is found from the kernel, with nothing loaded into the program: duration, cause, call, callback
and innermost user frame, judged by the same oracle as the agent (tests/e2e/oracle.py).
"""

import pytest

import helpers
import oracle

LOOPS = {
    "epoll": ["loop_bare", "epoll"],
    "epoll_pwait2": ["loop_bare", "epoll_pwait2"],
    "poll": ["loop_bare", "poll"],
    "ppoll": ["loop_bare", "ppoll"],
    "select": ["loop_bare", "select"],
    "pselect": ["loop_bare", "pselect"],
    "io_uring": ["loop_bare", "io_uring"],
    "libuv": ["loop_uv"],
    "libevent": ["loop_event"],
    "libev": ["loop_ev"],
    "glib": ["loop_glib"],
    "sd-event": ["loop_sd"],
}


@pytest.mark.parametrize("loop", LOOPS)
def test_stalls(tmp_path, tracer, loop):
    program, *kind = LOOPS[loop]
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
