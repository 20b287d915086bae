"""Set-up shared by the peers tier."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "e2e"), str(HERE.parent / "servers")]

from session import pytest_configure, pytest_sessionstart  # noqa: E402, F401
