"""Set-up shared by the long comparisons with calls moved (`make check-offload-suites`)."""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "e2e")]

import helpers  # noqa: E402


def pytest_sessionstart(session):
    if not helpers.UNBLOCK.exists():
        pytest.exit(f"{helpers.UNBLOCK} is missing: run make first", returncode=2)
