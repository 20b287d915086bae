"""Set-up shared by all end-to-end tests."""

import shutil
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import helpers  # noqa: E402
from retried import pytest_sessionfinish, pytest_terminal_summary  # noqa: E402, F401
from session import no_inherited_settings, pytest_configure, pytest_sessionstart  # noqa: E402, F401


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """An empty current folder: `unblock run` writes its recording there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def open_folder():
    """A folder that another user can come and write to."""
    folder = Path(tempfile.mkdtemp(prefix="unblock-open-"))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


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
