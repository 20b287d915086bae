"""Set-up shared by the peers tier."""

import signal
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "e2e"), str(HERE.parent / "servers")]

import helpers  # noqa: E402


def pytest_configure(config):
    """A shell starts what runs in the background with these ignored, and CPython's tests would inherit that."""
    for sig, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
        if signal.getsignal(sig) == signal.SIG_IGN:
            signal.signal(sig, handler)


def pytest_sessionstart(session):
    if not helpers.UNBLOCK.exists():
        pytest.exit(f"{helpers.UNBLOCK} is missing: run make first", returncode=2)
