"""Set-up shared by all end-to-end tests."""

import os
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import helpers  # noqa: E402
from retried import pytest_sessionfinish, pytest_terminal_summary  # noqa: E402, F401


def pytest_configure(config):
    """A shell starts what runs in the background with these ignored, and our children would inherit that."""
    for sig, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
        if signal.getsignal(sig) == signal.SIG_IGN:
            signal.signal(sig, handler)


def pytest_sessionstart(session):
    if not helpers.UNBLOCK.exists():
        pytest.exit(f"{helpers.UNBLOCK} is missing: run make first", returncode=2)


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """An empty current folder: `unblock run` writes its recording there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def no_inherited_settings(monkeypatch):
    """Tests start `unblock` with the settings they name, not with the caller's."""
    for name in list(os.environ):
        if name.startswith("UNBLOCK_") and name not in ("UNBLOCK_BUILD", "UNBLOCK_BIN", "UNBLOCK_SOAK"):
            monkeypatch.delenv(name)


@pytest.fixture
def terminal():
    """Starts programs on pseudo-terminals and ends them with the test."""
    opened = []

    def open_terminal(*argv, **kwargs):
        opened.append(helpers.Terminal(*argv, **kwargs))
        return opened[-1]

    yield open_terminal
    for t in opened:
        t.close()
