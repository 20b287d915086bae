"""GLib's and CPython's own tests end under the agent as they do without it.

What differs between the sides runs once more on both; what then differs from its own side's first run is flaky by
itself, is printed, and bounded. Everything else must be the same.
"""

import collections
import tempfile
from pathlib import Path

import pytest

import suites


def tell(results):
    """What there was to compare, by suite: `pytest -s` shows it."""
    for suite in sorted({name.split()[0] for name in results}):
        of = [result for name, result in results.items() if name.split()[0] == suite]
        print(f"{suite}: {', '.join(f'{n} {word}' for word, n in sorted(collections.Counter(map(str, of)).items()))}")


def compare(one_run, least, again):
    folder = Path(tempfile.mkdtemp(prefix="unblock-peers-"))
    folder.chmod(0o777)
    plain, watched = one_run(False, folder), one_run(True, folder)
    assert len(plain) >= least, f"only {len(plain)} results: the suite did not run"
    tell(plain)
    suspects = {name for name in plain.keys() | watched.keys() if plain.get(name) != watched.get(name)}
    if not suspects:
        return
    # Whatever differed runs once more on both sides: a difference that is ours shows again.
    plain2, watched2 = (one_run(side, folder, only=again(suspects)) for side in (False, True))
    flaky = {n for n in suspects if plain.get(n) != plain2.get(n) or watched.get(n) != watched2.get(n)}
    print(f"flaky by themselves: {sorted(flaky)}")
    ours = {n: (plain.get(n), watched.get(n)) for n in suspects - flaky}
    assert not ours, f"without and with the agent: {ours}"
    assert len(flaky) <= len(plain) // 50, f"{len(flaky)} of {len(plain)} results differ from run to run"


def test_glib():
    if not suites.GLIB.exists():
        pytest.skip("libglib2.0-tests is not installed")
    compare(suites.glib, 300, lambda suspects: {name.split()[0] for name in suspects})


def test_cpython():
    if not Path("/usr/lib/python3.11/test/test_socket.py").exists():
        pytest.skip("libpython3.11-testsuite is not installed")
    compare(suites.cpython, 500, lambda suspects: sorted({name.split()[0] for name in suspects}))
