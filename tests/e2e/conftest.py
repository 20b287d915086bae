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


# These go first, so that of two who share the files out none works on one of them at the end, alone.
LONGEST = ("test_stress_python", "test_surroundings", "test_offload_stress", "test_survive", "test_preload")


def pytest_collection_modifyitems(config, items):
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.path.stem not in LONGEST)


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
