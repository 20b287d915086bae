"""The README's recipes for services and containers, as far as a machine without systemd and Docker goes.

A container here is what makes one: a mount and a PID namespace of its own and another root.
"""

import json
import os
import re
import shutil
import subprocess

import pytest

import helpers
from test_preload import LOOP

pytestmark = pytest.mark.beside

README = (helpers.ROOT / "README.md").read_text()
# Everything of the machine, but /opt, where the recipe's files are, and /unblock: the folder that is given.
BOX = """
set -e
root=$1 files=$2 recordings=$3; shift 3
mount --rbind / "$root"
mount --make-rslave "$root"
mount -t tmpfs none "$root/opt"
mkdir "$root/opt/unblock" "$root/opt/recordings"
mount --bind "$files" "$root/opt/unblock"
mount --bind "$recordings" "$root/opt/recordings"
[ -z "$PROC" ] || mount -t proc proc "$root/proc"
exec chroot "$root" "$@"
"""


@pytest.fixture
def box(tmp_path):
    """Runs a command in a container-like place; `files` (name: file) are in /opt/unblock, recordings go out."""
    if os.geteuid() != 0:
        pytest.skip("takes root")
    root, files, out = (tmp_path / name for name in ("root", "files", "out"))
    for folder in (root, files, out):
        folder.mkdir()

    def command(wanted, *argv, pid1=True):
        for name, source in wanted.items():
            (files / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, files / name)
        spaces = ["--mount", "--pid", "--fork"] if pid1 else ["--mount"]
        return ["unshare", *spaces, "sh", "-c", BOX, "box", str(root), str(files), str(out), *map(str, argv)]

    tried = subprocess.run(command({}, "true"), env=helpers.clean_environment(PROC="1"), capture_output=True, text=True)
    if tried.returncode != 0:
        pytest.skip(f"no namespaces here: {tried.stderr.strip()[:200]}")
    return command, out


PROGRAM = [helpers.PYTHON, "-c", LOOP + "print(os.getpid())", "200"]


def stalls(path):
    return [s for s in helpers.Recording(path).slow if s["duration_ns"] > 55_000_000]


def test_container_image(box):
    """ENTRYPOINT: `unblock run` as pid 1; all of it is seen, stacks too."""
    command, out = box
    entry = json.loads(re.search(r"^    ENTRYPOINT (\[.*\])$", README, re.M)[1])
    agent = re.search(r"^    ENV UNBLOCK_AGENT=(.*)$", README, re.M)[1]
    assert entry[-1] == "your-server" and entry[0].startswith("/opt/unblock/") and agent.startswith("/opt/unblock/")
    argv = [*entry[:-2], "-q", "-t", "20ms", "-o", "/opt/recordings/r.jsonl", "--", *PROGRAM]
    done = subprocess.run(command({"unblock": helpers.UNBLOCK, "libunblock.so": helpers.AGENT}, *argv),
                          env=helpers.clean_environment(PROC="1", UNBLOCK_AGENT=agent), capture_output=True, text=True,
                          timeout=helpers.PATIENCE)
    assert (done.returncode, done.stderr) == (0, "") and int(done.stdout) < 20, done
    slow = stalls(out / "r.jsonl")
    assert len(slow) >= 8
    assert any("stack" in x for s in slow for x in s["samples"])


def test_init_container(box):
    """One variable: the program is pid 1 and gets no helper; finished stalls are there, and a note says what is not."""
    command, out = box
    value = re.search(r"name: LD_PRELOAD, value: (\S+)\}", README)[1]
    assert value == "/unblock/lib/unblock/libunblock.so"
    files = {"lib/unblock/libunblock.so": helpers.AGENT, "bin/unblock": helpers.UNBLOCK}
    env = [f"LD_PRELOAD=/opt{value}", "UNBLOCK_OUTPUT=/opt/recordings/app-%p.jsonl", "UNBLOCK_THRESHOLD=20ms"]
    done = subprocess.run(command(files, "env", *env, *PROGRAM), env=helpers.clean_environment(PROC="1"),
                          capture_output=True, text=True, timeout=helpers.PATIENCE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", ""), done
    slow = stalls(out / "app-1.jsonl")
    assert len(slow) >= 8 and all(s["cause"] == "call" and not s["samples"] for s in slow)
    assert any("pid 1" in n["text"] for n in helpers.Recording(out / "app-1.jsonl").of("note"))


def test_sidecar(box):
    """Other root and mounts, the same PID namespace: `unblock dump PID` names what the program does."""
    command, out = box
    script = "import time\ndef deep():\n    print('x', flush=True)\n    time.sleep(60)\ndeep()\n"
    with subprocess.Popen(command({}, helpers.PYTHON, "-c", script, pid1=False), env=helpers.clean_environment(),
                          stdout=subprocess.PIPE) as target:
        try:
            assert target.stdout.read(1) == b"x"
            done = helpers.unblock("dump", target.pid)
            assert done.returncode == 0 and "deep" in done.stdout and "clock_nanosleep" in done.stdout, done
        finally:
            target.kill()


def test_systemd_drop_in(tmp_path):
    """The lines are understood; and a wrong one would have been told of."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    lines = re.search(r"^A systemd service.*?\n\n((?:    .*\n)+)", README, re.M)[1].replace("    ", "")
    assert lines.startswith("[Service]\n") and "Environment=UNBLOCK_OUTPUT=" in lines
    (tmp_path / "app.service").write_text("[Service]\nExecStart=/bin/true\n")
    folder = tmp_path / "app.service.d"
    folder.mkdir()
    for text, said in ((lines, ""), (lines + "Enviroment=x\n", "Unknown key")):
        (folder / "override.conf").write_text(text)
        done = subprocess.run(["systemd-analyze", "verify", tmp_path / "app.service"], capture_output=True, text=True,
                              timeout=helpers.PATIENCE)
        assert done.returncode == 0 and (said in done.stderr if said else done.stderr == ""), done
