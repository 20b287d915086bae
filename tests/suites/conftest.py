"""Set-up shared by the long comparisons with calls moved (`make check-offload-suites`)."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "e2e")]

from session import pytest_configure, pytest_sessionstart  # noqa: E402, F401
