"""What every tier's conftest.py takes over: how a session of tests begins, and that nobody's settings leak into it."""

import os
import signal

import pytest

import helpers


def pytest_configure(config):
    """A shell starts what runs in the background with these ignored, and our children would inherit that."""
    for sig, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
        if signal.getsignal(sig) == signal.SIG_IGN:
            signal.signal(sig, handler)
    config.addinivalue_line("markers", "without_bpf: needs no BPF")
    config.addinivalue_line("markers", "beside: says nothing of how long things take; `make check` runs two such files at a time")
    config.addinivalue_line("markers", "alone: does say that, in a file of which the rest is `beside`")


def pytest_sessionstart(session):
    if not helpers.UNBLOCK.exists():
        pytest.exit(f"{helpers.UNBLOCK} is missing: run make first", returncode=2)


@pytest.fixture(autouse=True)
def no_inherited_settings(monkeypatch):
    """Tests start `unblock` with the settings they name, not with the caller's."""
    for name in list(os.environ):
        if name.startswith("UNBLOCK_") and name not in ("UNBLOCK_BUILD", "UNBLOCK_BIN", "UNBLOCK_SOAK", "UNBLOCK_CYCLES"):
            monkeypatch.delenv(name)
