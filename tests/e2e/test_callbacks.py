"""Every callback of the event-loop libraries is timed by itself and named.

The matrix: library x kind of callback x stall. The programs callbacks_*.c have one callback of each kind, and each
stall of the list happens in each of them; the truth is theirs (stalls.h), what counts as right is in oracle.py.
Checked that it can fail: with the kind or the function of a row changed by hand the comparison fails, and with
UNBLOCK_CALLBACKS=0 the kinds are all "turn".
"""


import pytest

import helpers
import oracle

STALLS = "nanosleep,pipe_read,fsync,flock,getaddrinfo,mutex,cpu,pagefault,waitpid"
LIBRARIES = {
    "libuv": ("callbacks_uv", 19),
}


def run(tmp_path, program, *args, env=None, timeout=120, threshold=None):
    with oracle.Sentinel() as sentinel:
        done, recording = helpers.record(tmp_path, helpers.program(program), *args,
                                         threshold=threshold or f"{oracle.THRESHOLD_MS}ms", timeout=timeout,
                                         env=helpers.clean_environment(**(env or {})))
    return done, recording, sentinel


@pytest.mark.parametrize("library", LIBRARIES)
def test_matrix(tmp_path, library):
    program, kinds = LIBRARIES[library]
    done, recording, sentinel = run(tmp_path, program, tmp_path / "truth", STALLS)
    assert done.returncode == 0, done.stderr
    truth = oracle.Truth(tmp_path / "truth")
    (tmp_path / "dirty").unlink(missing_ok=True)
    skipped = [s.split(":")[0] for s in truth.skipped]
    verdict = oracle.compare(truth, recording, program, sentinel)
    verdict.check(kinds * len(STALLS.split(",")) - len(skipped))
    assert truth.undisturbed, truth.summaries
    assert {s["loop"] for s in recording.slow if s["kind"] != "turn"} == {library}
    loops = recording.of("loop")
    assert [(line["loop"], line["identity"]) for line in loops] == [(library, "callback")], loops
    assert library == "sd-event" or loops[0]["version"][0].isdigit(), loops


@pytest.mark.parametrize("library", LIBRARIES)
def test_control(tmp_path, library):
    """The same callbacks without a stall: no record; and `stats` has counted each kind."""
    program, kinds = LIBRARIES[library]
    done, recording, sentinel = run(tmp_path, program, tmp_path / "truth", "nanosleep@0",
                                    env={"STALLS_MS": "0"}, threshold="10ms")
    assert done.returncode == 0, done.stderr
    assert not oracle.but_noise(recording, sentinel), oracle.but_noise(recording, sentinel)
    counted = recording.of("stats")[-1]["kinds"]
    truth = oracle.Truth(tmp_path / "truth")
    assert set(counted) >= {s["kind"] for s in truth.stalls} and len(counted) >= kinds
    for kind, sums in counted.items():
        assert sums["callbacks"] >= 1 and sums["max_ns"] <= sums["total_ns"], (kind, sums)
        if "histogram" in sums:
            assert sum(n for _, n in sums["histogram"]) == sums["callbacks"], (kind, sums)


def test_switched_off(tmp_path):
    """UNBLOCK_CALLBACKS=0: the turns are seen as before, nothing of the library is touched."""
    done, recording, _ = run(tmp_path, "callbacks_uv", tmp_path / "truth", "nanosleep", env={"UNBLOCK_CALLBACKS": "0"})
    assert done.returncode == 0, done.stderr
    assert {s["kind"] for s in recording.slow} == {"turn"}
    assert recording.of("loop")[0]["identity"] == "turn"
