"""Fibers on aarch64: unit/test_fiber.c and the C++ program of e2e/test_fiber.py, built for that CPU and run by QEMU.

Checked that it can fail: with d8 not kept, or FPCR, or the CFA of ub_fiber_root one off, a test each fails.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

import helpers  # noqa: E402
import test_fiber as native  # noqa: E402

AGENT = helpers.ROOT / "agent/offload"
COMPILER, CXX = "aarch64-linux-gnu-gcc", "aarch64-linux-gnu-g++"
FLAGS = ["-std=gnu17", "-O2", "-g", "-D_GNU_SOURCE", "-Wall", "-fexceptions", "-funwind-tables"]


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    folder = tmp_path_factory.mktemp("aarch64")
    for missing in (tool for tool in (COMPILER, CXX, "qemu-aarch64") if not shutil.which(tool)):
        pytest.skip(f"{missing} is not installed: tests/deps.sh aarch64")
    for source in ("fiber.c", "fiber_aarch64.S"):
        subprocess.run([COMPILER, *FLAGS, "-c", AGENT / source, "-o", folder / f"{source}.o"], check=True)
    return [folder / "fiber.c.o", folder / "fiber_aarch64.S.o"]


def run(program, *arguments):
    return subprocess.run(["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu", program, *arguments], capture_output=True,
                          text=True, check=False, timeout=120)


def test_unit(objects, tmp_path):
    subprocess.run([COMPILER, *FLAGS, "-O1", f"-I{Path(__file__).parent}", helpers.ROOT / "tests/unit/test_fiber.c", *objects,
                    "-o", tmp_path / "unit", "-lm", "-lpthread"], check=True)
    done = run(tmp_path / "unit")
    assert done.returncode == 0 and "[  PASSED  ] 13 test(s)." in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("how, said", [("interleaved", "1 exception 0, exception 1\n"), ("escapes", "out 2 1 5 0 1\n"),
                                       ("exit", "1 2 1\n")])
def test_exceptions(objects, tmp_path, how, said):
    source = tmp_path / "fiber.cc"
    source.write_text(native.CXX)
    subprocess.run([CXX, "-std=c++17", "-O1", "-g", "-D_GNU_SOURCE", f"-I{AGENT}", source, *objects, "-o", tmp_path / "cxx"],
                   check=True)
    done = run(tmp_path / "cxx", how)
    assert (done.returncode, done.stdout) == (0, said), done.stderr
