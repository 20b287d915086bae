"""What the tests of offload on each event loop have in common: a program's run with calls moved beside its run alone."""

import json
import os
import subprocess

import helpers
import oracle
import pytest

# A disk and a resolver that are slow, wherever the test runs. The wait itself is nothing that the agent hooks.
SLOW = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/syscall.h>
static void wait_(void)
{
    struct { long s, ns; } ts = {0, 300000000};
    long r;
    __asm__ volatile("syscall" : "=a"(r) : "a"(SYS_nanosleep), "D"(&ts), "S"(0) : "rcx", "r11", "memory");
}
int fsync(int fd) { wait_(); return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd); }
int getaddrinfo(const char *a, const char *b, const void *c, void *d)
{
    wait_();
    return ((int (*)(const char *, const char *, const void *, void *))dlsym(RTLD_NEXT, "getaddrinfo"))(a, b, c, d);
}
"""


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """A resolver and a disk that take their time."""
    folder = tmp_path_factory.mktemp("slow")
    (folder / "slow.c").write_text(SLOW)
    subprocess.run(["cc", "-shared", "-fPIC", folder / "slow.c", "-o", folder / "slow.so"], check=True)
    return {"LD_PRELOAD": str(folder / "slow.so")}


def both(tmp_path, *command, status=0, **env):
    """What the program says alone, and with its calls moved; the recording of that."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **env}) as alone:
        done, recording = helpers.record(tmp_path, *command, threshold="40ms", options=("--offload=eager",), timeout=60,
                                         env=helpers.clean_environment(**env))
        said = alone.communicate(timeout=60)[0]
    assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
    return said, done.stdout, recording


def check_matrix(tmp_path, request, program, case, stays):
    """The same result, errno and order; meanwhile the ticker went on, or not: `stays`, why."""
    env = request.getfixturevalue("slow") if case in ("fsync", "getaddrinfo") else {}
    with oracle.Sentinel() as sentinel:
        said, moved, recording = both(tmp_path, helpers.program(program), case, "300", **env)
    alone, truth = json.loads(said), json.loads(moved)
    assert (truth["result"], truth["errno"]) == (alone["result"], alone["errno"])
    assert truth["order"].replace("tick ", "") == alone["order"]
    if stays:
        assert truth["inside"] == 0 and recording.end["offload"]["moved"] == 0
        assert [line["pinned"] for line in recording.of("offload")] == [{stays: 1}]
    else:
        assert recording.end["offload"]["moved"] >= 1 and truth["inside"] >= 5, truth
        starved_ms = sum(b - a for a, b in sentinel.late) / 1e6
        assert truth["max_gap_ms"] - starved_ms < 150, (truth, starved_ms)  # half of the block; bench, tickers, has the gate


def check_moved(recording, least):
    """So many calls at least; none: all must have stayed."""
    calls = recording.end["offload"]["moved"]
    assert calls >= least and (calls == 0 or least)
