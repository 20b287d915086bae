"""Which functions of libc can block, and which of them the agent times: nothing is left out without a reason.

The list of those that can is not written by hand: they are the functions of this machine's libc that contain a
system call that can block (found by disassembling it), and all other names of the hooked ones.
"""

import bisect
import ctypes.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import helpers

pytestmark = pytest.mark.beside

ROOT = helpers.ROOT
BLOCKING = set("""read write pread64 pwrite64 readv writev preadv pwritev preadv2 pwritev2 open openat openat2 creat close
fsync fdatasync sync syncfs sync_file_range msync flock fcntl truncate ftruncate fallocate copy_file_range sendfile splice
tee vmsplice stat lstat fstat newfstatat statx statfs fstatfs access faccessat faccessat2 readlink readlinkat rename
renameat renameat2 unlink unlinkat mkdir mkdirat rmdir link linkat symlink symlinkat getdents getdents64 connect accept
accept4 recvfrom recvmsg recvmmsg sendto sendmsg sendmmsg poll ppoll select pselect6 epoll_wait epoll_pwait epoll_pwait2
nanosleep clock_nanosleep pause rt_sigsuspend rt_sigtimedwait wait4 waitid msgrcv msgsnd semop semtimedop mq_timedreceive
mq_timedsend io_getevents ioctl execve execveat""".split())

INTERNAL = "libc's own, called by its libraries only"
OLD_STREAMS = "names of libio before 2000; no compiler of today writes them"
LEFT_OUT = {
    "__close_nocancel": INTERNAL, "__open_nocancel": INTERNAL, "__open64_nocancel": INTERNAL,
    "__pread64_nocancel": INTERNAL, "__read_nocancel": INTERNAL, "__write_nocancel": INTERNAL,
    "__libc_fcntl64": INTERNAL, "__libc_msgrcv": INTERNAL, "__libc_msgsnd": INTERNAL, "__libc_pread": INTERNAL,
    "__libc_pwrite": INTERNAL, "__libc_system": INTERNAL, "__libc_fork": INTERNAL,
    "_IO_fclose": OLD_STREAMS, "_IO_fflush": OLD_STREAMS, "_IO_fgets": OLD_STREAMS, "_IO_fopen": OLD_STREAMS,
    "_IO_fputs": OLD_STREAMS, "_IO_fread": OLD_STREAMS, "_IO_fwrite": OLD_STREAMS, "_IO_popen": OLD_STREAMS,
    "_IO_puts": OLD_STREAMS,
    "getentropy": "blocks only until the machine has booted",
    "herror": "a message on standard error",
    "ioctl": "too many meanings for one name and one cost; the watcher sees the call",
    "tcgetattr": "answers at once", "tcsetattr": "waits only for a slow terminal; the watcher sees the call",
    "mq_close": "answers at once",
    "syscall": "hooked by hand (agent/calls/syscall.S)",
    "tee": "pipes only; the watcher sees the call", "vmsplice": "pipes only; the watcher sees the call",
}
# Reads of a clock or a table that stand in these functions by the disassembler's guess of the number.
LOCKS = re.compile(r"pthread_(mutex|cond|barrier|rwlock|spin)_|sem_")


def libc():
    for line in subprocess.run(["ldd", helpers.UNBLOCK], capture_output=True, text=True, check=True).stdout.splitlines():
        if "libc.so.6" in line:
            return line.split()[2]
    pytest.skip("no glibc here")


def hooked():
    text = (ROOT / "agent/hooks.def").read_text() + (ROOT / "common/calls.def").read_text()
    names = set(re.findall(r"^UB_(?:HOOK|CALLV?|CALL_OFTEN)\([^,]*, (\w+),", text, re.M)) | set(
        re.findall(r"^UB_EXPORT\((\w+)\)", text, re.M))
    assert len(names) > 200
    return names


@pytest.fixture(scope="module")
def functions():
    """Of libc: [(address, size, {names})], sorted."""
    found = {}
    out = subprocess.run(["readelf", "--dyn-syms", "-W", libc()], capture_output=True, text=True, check=True).stdout
    for line in out.splitlines():
        field = line.split()
        if len(field) >= 8 and field[3] in ("FUNC", "IFUNC") and field[6] != "UND":
            entry = found.setdefault(int(field[1], 16), [int(field[2]), set()])
            entry[1].add(field[7].split("@")[0])
    assert len(found) > 1500
    return [(address, *found[address]) for address in sorted(found)]


@pytest.fixture(scope="module")
def waiting(functions):
    """Names of libc's functions that contain a system call that can block."""
    number = {int(n): name for n, name in
              re.findall(r"X\((\d+), (\w+),", (ROOT / "tracer/syscalls.def").read_text())}
    starts = [f[0] for f in functions]
    names, last = set(), None
    out = subprocess.run(["objdump", "-d", "--no-show-raw-insn", libc()], capture_output=True, text=True,
                         check=True).stdout
    for line in out.splitlines():
        match = re.match(r"\s+([0-9a-f]+):\s+(.*)", line)
        if not match:
            continue
        moved = re.match(r"mov\s+\$0x([0-9a-f]+),%eax", match[2])
        if moved:
            last = int(moved[1], 16)
        elif re.match(r"xor\s+%eax,%eax", match[2]):
            last = 0
        elif match[2].startswith("syscall") and number.get(last) in BLOCKING:
            at = int(match[1], 16)
            address, size, owners = functions[bisect.bisect_right(starts, at) - 1]
            if at < address + size:
                names |= owners
    assert {"read", "fsync", "connect", "wait4", "epoll_wait"} <= names, "the disassembly was not understood"
    return {n for n in names if not LOCKS.match(n)}


def test_every_function_that_waits_is_hooked(waiting):
    missing = waiting - hooked() - LEFT_OUT.keys()
    assert not missing, f"neither hooked nor left out for a reason: {sorted(missing)}"


def test_every_other_name_of_a_hook_is_hooked(functions):
    ours = hooked()
    missing = {n for _, _, names in functions if names & ours for n in names - ours} - LEFT_OUT.keys()
    assert not missing, f"the same function under another name: {sorted(missing)}"


def test_no_hook_is_unknown_to_libc(functions):
    known = set().union(*(names for _, _, names in functions))
    assert not hooked() - known


def targets():
    """Programs and libraries that people watch, as far as they are installed."""
    for name in ("redis-server", "nginx", "memcached", "mosquitto", "haproxy", "node", "python3", "bash", "make", "git",
                 "curl", "ssh", "perl", "openssl", "dbus-daemon", "systemctl", "psql", "gcc"):
        path = shutil.which(name, path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        if path:
            yield Path(path).resolve()
    yield from Path("/usr/lib/postgresql").glob("*/bin/postgres")
    folder = Path(libc()).parent
    for name in ("uv", "event-2.1", "ev", "glib-2.0", "systemd", "stdc++", "ssl", "curl", "resolv"):
        found = ctypes.util.find_library(name)
        if found and (folder / found).exists():
            yield folder / found


def test_targets_want_the_hooked_versions(functions):
    """Our hooks have no version: they answer for each. One that a target wants must be libc's current one."""
    ours, seen, other = hooked(), 0, set()
    out = subprocess.run(["nm", "-D", "--defined-only", libc()], capture_output=True, text=True, check=True).stdout
    current = dict(re.findall(r"\b(\w+)@@([\w.]+)$", out, re.M))
    for path in targets():
        wanted = subprocess.run(["nm", "-D", "--undefined-only", path], capture_output=True, text=True).stdout
        for name, version in re.findall(r"\b(\w+)@([\w.]+)$", wanted, re.M):
            if name in ours:
                seen += 1
                if version != current.get(name):
                    other.add((path.name, name, version))
    assert seen > 200, "hardly a target is installed here"
    # GLIBC_2.34 merged libpthread, libdl and libresolv: what they had is the same function still.
    assert not {o for o in other if (o[1], o[2]) not in MERGED}, other


MERGED = {(name, version) for name in hooked() for version in ("GLIBC_2.2.5", "GLIBC_2.3.2")
          if not name.startswith("posix_spawn")}
