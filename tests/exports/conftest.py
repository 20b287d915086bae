"""The consumers of the export formats: found, or the tests that need them are skipped, with the reason."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

import helpers  # noqa: E402

NPM = helpers.BUILD / "npm"
SAMPLE = helpers.ROOT / "tests/data/sample.jsonl"


def needs(command):
    path = shutil.which(command)
    if not path:
        pytest.skip(f"{command} is not installed: tests/deps.sh exports")
    return path


def npm(package):
    path = NPM / "node_modules" / package
    if not path.exists():
        pytest.skip(f"npm package {package} is not there: make check-exports fetches it")
    return path


@pytest.fixture
def browser():
    """browser(check, file, ...) -> what browser.js saw."""
    chromium = needs("chromium")
    npm("playwright-core")

    def drive(check, file, *more):
        env = {**os.environ, "UNBLOCK_NPM": str(NPM), "UNBLOCK_CHROMIUM": chromium}
        done = subprocess.run([needs("node"), Path(__file__).with_name("browser.js"), check, file, *map(str, more)],
                              capture_output=True, text=True, env=env, timeout=120)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)
    return drive


@pytest.fixture
def export(tmp_path):
    """export(format, recording) -> the file."""
    def make(name, *recordings):
        out = tmp_path / f"out.{name}"
        done = helpers.unblock("report", "-f", name, "-o", out, *(recordings or [SAMPLE]))
        assert done.returncode == 0, done.stderr
        return out
    return make
