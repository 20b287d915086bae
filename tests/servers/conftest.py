"""Set-up shared by the tests on real servers (`make check-servers`). They share helpers with tests/e2e."""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "e2e")]

import oracle  # noqa: E402
from retried import pytest_sessionfinish, pytest_terminal_summary  # noqa: E402, F401
from session import pytest_configure, pytest_sessionstart  # noqa: E402, F401
import servers  # noqa: E402


@pytest.fixture
def sentinel():
    with oracle.Sentinel() as running:
        yield running


@pytest.fixture
def server():
    """Starts servers and always ends them, their children included, and removes their files."""
    started = []

    def start(kind, **options):
        started.append(kind(**options))
        started[-1].start()
        return started[-1]

    yield start
    for s in started:
        s.end()


@pytest.fixture
def either():
    """Runs the same scripted conversation with a server watched and alone: the replies must be equal."""

    def compare(kind, talk, **options):
        said = []
        for watched in (True, False):
            s = kind(watched=watched, **options)
            try:
                s.start()
                said.append(talk(s))
            finally:
                s.end()
        assert said[0] == said[1]
        return said[0]

    return compare


assert servers
