"""Other projects' own test suites, alone and under the agent: a run is {test: result}."""

import fcntl
import os
import re
import shlex
import signal
import socket
import struct
import subprocess
import tempfile
from pathlib import Path

import helpers

GLIB = Path("/usr/share/installed-tests/glib")
# Measure the machine (seconds each), or need a desktop session.
GLIB_LEFT_OUT = re.compile(r"-performance|performance\b|desktop-app|gdbus-example|dbus-appinfo|live-g-file")


def run(command, watched, timeout, cwd, folder, extra=None, options=()):
    """(exit status or "timeout", output) of a command; its whole process group is ended with it."""
    env = helpers.clean_environment(**(extra or {}))
    if watched:
        command = [str(helpers.UNBLOCK), "run", "-q", "--force", "-o", str(folder / "recording.jsonl"), *options, "--", *command]
    with tempfile.TemporaryFile() as out:
        p = subprocess.Popen(command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=out,
                             stderr=subprocess.STDOUT, start_new_session=True)
        try:
            status = p.wait(timeout)
        except subprocess.TimeoutExpired:
            status = "timeout"
        try:
            os.killpg(p.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        p.wait()
        out.seek(0)
        return status, out.read().decode(errors="replace")


def glib_tests():
    """[(name, command)] of the installed tests, without those that measure speed or want a session."""
    tests = []
    for file in sorted(GLIB.glob("*.test")):
        exec_line = re.search(r"^Exec=(.*)$", file.read_text(), re.M)
        if exec_line and not GLIB_LEFT_OUT.search(file.stem):
            tests.append((file.stem, shlex.split(exec_line[1])))
    return tests


def glib(watched, folder, only=None, options=()):
    """{test or test/case: "ok", "not ok", "skip" or an exit status}."""
    results = {}
    for name, command in glib_tests():
        if only is not None and name not in only:
            continue
        with tempfile.TemporaryDirectory(dir=folder) as cwd:
            status, out = run(command, watched, 60, cwd, folder, options=options)
        results[name] = status
        for word, case, skip in re.findall(r"^(ok|not ok) \d+ (.*?)( # SKIP.*)?$", out, re.M):
            case = re.sub(r"seed:\d+", "seed", case.lstrip("- "))  # a new one each time
            # One test waits for a race to be lost often enough, and skips itself if luck has it otherwise.
            results[f"{name} {case}"] = "skip" if skip and "reproduce race" not in skip else word
    return results


CPYTHON = ["test_subprocess", "test_signal", "test_threading", "test_socket", "test_select", "test_ssl",
           "test_faulthandler"]


def vsock_answers():
    """Whether this machine reaches itself by vsock. In some virtual machines it does not, and CPython's test of it hangs."""
    try:
        with open("/dev/vsock", "rb") as f:
            own = struct.unpack("I", fcntl.ioctl(f, socket.IOCTL_VM_SOCKETS_GET_LOCAL_CID, b"    "))[0]
        with socket.socket(socket.AF_VSOCK) as listener, socket.socket(socket.AF_VSOCK) as s:
            listener.bind((own, socket.VMADDR_PORT_ANY))
            listener.listen()
            s.settimeout(2)
            s.connect(listener.getsockname())
        return True
    except OSError:
        return False


def cpython_left_out():
    """Arguments for regrtest: what says nothing here."""
    return [] if vsock_answers() else ["-i", "*VSOCK*"]


def cpython(watched, folder, only=CPYTHON):
    """{module or module case: result} by `python3 -m test -v`."""
    results = {}
    for module in only:
        with tempfile.TemporaryDirectory(dir=folder) as cwd:
            status, out = run([helpers.PYTHON, "-m", "test", "-v", module, *cpython_left_out()], watched, 900, cwd, folder)
        results[module] = status
        # The result may stand far behind the name, after what the test printed.
        for case, owner, word in re.findall(r"^(test\w+) \(([\w.]+)\)[^\n]*? \.\.\. .*?\b(ok|FAIL|ERROR|skipped)\b", out,
                                            re.M | re.S):
            results[f"{module} {owner}.{case}"] = word
    return results
