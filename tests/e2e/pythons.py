"""The CPython interpreters of this machine: Debian's, pyenv's, those in /usr/local and /opt."""

import functools
import glob
import os
import subprocess

PATTERNS = ["/usr/bin/python{}", "/usr/local/bin/python{}", "/opt/*/bin/python{}",
            os.path.expanduser("~/.pyenv/versions/{}.*/bin/python{}"), "/root/.pyenv/versions/{}.*/bin/python{}"]

READ = ["3.8", "3.9", "3.10", "3.11", "3.12", "3.13"]
OTHERS = ["2.7", "3.6", "3.7"]


def ask(python, code):
    """What a line of Python prints, "" when it fails."""
    done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


@functools.lru_cache(None)
def installed(version):
    """Paths of all interpreters of one minor version, without repetition."""
    found = {}
    for pattern in PATTERNS:
        for path in sorted(glob.glob(pattern.replace("{}", version))):
            found.setdefault(os.path.realpath(path), path)
    return list(found.values())


def of(version):
    """Of what takes long: one interpreter of the minor version, in `make soak` all."""
    return installed(version)[:None if "UNBLOCK_SOAK" in os.environ else 1]


def moving(agent, every):
    """Those that the agent was built to move steps of: the first, or every minor version's and ("PATH uvloop") uvloop."""
    found = [path for minor in ("3.11", "3.12", "3.13") if (agent.parent / f"python{minor}.so").exists()
             for path in installed(minor)[:1]]
    debian = "/usr/bin/python3"
    if every and os.path.realpath(debian) in found and ask(debian, "import uvloop; print(1)"):
        found.append(debian + " uvloop")
    return found[:None if every else 1]
