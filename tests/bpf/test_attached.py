"""`unblock attach --bpf`: what the kernel knows, of every process that is entered, wherever it lives."""

import os
import signal
import subprocess

import pytest

import attaching
import helpers
from helpers import PYTHON, Recording, wait_until
from test_attach_children import SERVER
from test_attach_namespaces import WORKERS, Contained


@pytest.fixture(params=["here", "in a container"])
def master(request):
    """Two workers that were forked before anybody came."""
    if request.param == "here":
        with subprocess.Popen([PYTHON, "-c", SERVER], stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout.readline() == "ready\n"
                yield process.pid
            finally:
                for pid in [*helpers.children(process.pid), process.pid]:
                    os.kill(pid, signal.SIGKILL)
    else:
        with Contained(PYTHON, "-c", WORKERS) as contained:
            yield contained.pid


def seen_by_the_kernel(path):
    """Processes with a stall of which its system calls were counted."""
    if not path.exists() or not path.stat().st_size:
        return set()
    return {s["pid"] for s in Recording(path, torn=True).slow if "syscalls" in s}


def test_all_workers(master, tmp_path):
    path = tmp_path / "a.jsonl"
    workers = set(helpers.children(master))
    attached = attaching.attach(master, path, "--children", "--bpf")
    wait_until(lambda: attached.poll() is not None or seen_by_the_kernel(path) == workers,
               what="the kernel's view of both workers' stalls")
    assert attached.poll() is None, attached.communicate()
    attaching.leave(attached)
