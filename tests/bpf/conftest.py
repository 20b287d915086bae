"""Set-up shared by the tests of the view from the kernel (`make check-bpf`). They share helpers with tests/e2e and
tests/servers.

Where BPF programs cannot be loaded everything here is skipped, each test with the reason that `unblock trace` gives.
"""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "e2e"), str(HERE.parent / "servers")]

import helpers  # noqa: E402
from session import no_inherited_settings, pytest_configure, pytest_sessionstart  # noqa: E402, F401


def why_not():
    """What `unblock trace` says when it cannot work here as it should; None when it can."""
    target = subprocess.Popen(["sleep", "60"])
    try:
        done = helpers.unblock("trace", "--duration", "10ms", "-o", "/dev/null", "-q", target.pid)
        return done.stderr.strip() if done.returncode == 125 or "reduced view" in done.stderr else None
    finally:
        target.kill()
        target.wait()


@pytest.fixture(scope="session")
def bpf_reason():
    return why_not()


@pytest.fixture(autouse=True)
def bpf(request, bpf_reason):
    if bpf_reason and not request.node.get_closest_marker("without_bpf"):
        pytest.skip(f"no BPF here: {bpf_reason}")


@pytest.fixture
def tracer(tmp_path):
    """Starts programs and traces them; ends what is left with the test."""
    import tracing

    running = []

    def start(*args, **kwargs):
        running.append(tracing.Traced(tmp_path, *args, **kwargs))
        return running[-1]

    yield start
    for t in running:
        t.end()
