"""Processes that `unblock attach` does not enter: it says why, `unblock doctor PID` has said so before, and nothing happens to
them. The kinds of programs that no agent is for are in test_attach.py."""

import ctypes
import os
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

import attaching
import helpers
from attaching import Target, nothing_noticed
from helpers import PYTHON, one_line, program, unblock, wait_until

pytestmark = pytest.mark.beside

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def nobody():
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)


def refused(pid, word, **popen):
    """By attach and, in the same words, by doctor."""
    done = subprocess.run([helpers.UNBLOCK, "attach", "-o", "/dev/null", str(pid)], capture_output=True, text=True,
                          env=helpers.clean_environment(), timeout=helpers.PATIENCE, check=False, **popen)
    assert done.returncode == 125, done.stderr
    assert word in one_line(done.stderr), done.stderr
    said = subprocess.run([helpers.UNBLOCK, "doctor", str(pid)], capture_output=True, text=True,
                          env=helpers.clean_environment(), timeout=helpers.PATIENCE, check=False, **popen).stdout
    line = next(line for line in said.splitlines() if " attach " in line)
    assert "cannot be entered" in line, said
    return done.stderr, said


@needs_root
def test_chroot_without_proc(open_folder):
    needed = subprocess.run(["ldd", program("attached")], capture_output=True, text=True, check=True).stdout
    for file in [word for word in needed.split() if word.startswith("/")]:
        (open_folder / file[1:]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(os.path.realpath(file), open_folder / file[1:])
    shutil.copy(program("attached"), open_folder / "attached")
    with subprocess.Popen(["/attached"], stdout=subprocess.PIPE, text=True, env={},
                          preexec_fn=lambda: (os.chroot(open_folder), os.chdir("/"))) as target:
        try:
            assert target.stdout.readline() == "ready\n"
            before = attaching.maps(target.pid)
            said, doctor = refused(target.pid, "it has no /proc")
            assert "mount /proc" in said and "no /proc" in doctor
            assert attaching.maps(target.pid) == before
        finally:
            target.kill()


@needs_root
def test_set_user_id_program(open_folder):
    """Of its user's it is not: the kernel shows its memory to root only."""
    copy = open_folder / "attached"
    shutil.copy(program("attached"), copy)
    copy.chmod(0o4755)
    with subprocess.Popen([copy], stdout=subprocess.PIPE, text=True, env={}, preexec_fn=nobody) as target:
        try:
            assert target.stdout.readline() == "ready\n"
            refused(target.pid, "sudo unblock attach", preexec_fn=nobody)
        finally:
            target.kill()


@needs_root
def test_memory_files_are_no_code(tmp_path):
    """vm.memfd_noexec=2, in a PID namespace of its own, where it can be set for this test alone."""
    script = ("mount -t proc proc /proc && echo 2 > /proc/sys/vm/memfd_noexec || exit 77\n"
              f"{program('attached')} > {tmp_path}/said & pid=$!\n"
              f"until grep -q ready {tmp_path}/said; do sleep 0.01; done\n"
              f"{helpers.UNBLOCK} attach -o /dev/null $pid; echo attach $?\n"
              f"{helpers.UNBLOCK} doctor $pid\n"
              "kill $pid; wait $pid; echo target $?\n")
    done = subprocess.run(["unshare", "-m", "-p", "-f", "sh", "-c", script], capture_output=True, text=True,
                          env=helpers.clean_environment(), timeout=helpers.PATIENCE, check=False)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"no PID namespace with a setting of its own here: {done.stderr}")
    assert "attach 125" in done.stdout and "target 0" in done.stdout, (done.stdout, done.stderr)
    assert "memfd_noexec forbids code" in done.stderr and "sudo sysctl vm.memfd_noexec=0" in done.stderr, done.stderr
    assert "memfd_noexec forbids code" in done.stdout, done.stdout


@needs_root
def test_memory_files_are_no_code_in_its_namespace(tmp_path):
    """The same, seen from outside: the setting is that of its PID namespace, ours says nothing."""
    script = ("mount -t proc proc /proc && echo 2 > /proc/sys/vm/memfd_noexec || exit 77\n"
              f"exec {program('attached')}\n")
    with subprocess.Popen(["unshare", "-m", "-p", "-f", "--kill-child", "sh", "-c", script], stdout=subprocess.PIPE, text=True,
                          env=helpers.clean_environment()) as outer:
        try:
            if outer.stdout.readline() != "ready\n":
                pytest.skip("no PID namespace with a setting of its own here")
            pid, = helpers.children(outer.pid)
            said, doctor = refused(pid, "memfd_noexec forbids code")
            assert "sudo sysctl vm.memfd_noexec=0 in its PID namespace" in said, said
            assert "memfd_noexec forbids code" in doctor and helpers.process_state(pid) == "S"
        finally:
            outer.kill()


@needs_root
def test_a_profile_is_told(tmp_path):
    """Of AppArmor or SELinux, whose rules nobody can read: doctor names it, and what to do where they forbid it."""
    profile = tmp_path / "profile"
    profile.write_text("the-profile (enforce)\n")
    with Target(0) as target:
        target.ready()
        assert "the-profile" not in unblock("doctor", target.pid).stdout
        script = f"mount --bind {profile} /proc/{target.pid}/attr/current || exit 77; exec {helpers.UNBLOCK} doctor {target.pid}"
        done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True,
                              env=helpers.clean_environment(), timeout=helpers.PATIENCE, check=False)
        if done.returncode == 77:
            pytest.skip(f"no file can be put there: {done.stderr}")
        assert "confines it (the-profile (enforce))" in done.stdout, done.stdout
        assert re.search("aa-complain|apparmor=unconfined|appArmorProfile", done.stdout), done.stdout
        nothing_noticed(target.end())


def test_no_static_tls_left(tmp_path):
    """
    Other libraries have used up what the loader keeps for such as the agent: it says so only when it is asked to load it,
    so doctor cannot know, and says that. The program goes on, and nothing of ours is in it.
    """
    greedy = tmp_path / "greedy.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-ftls-model=initial-exec", "-xc", "-", "-o", greedy], text=True, check=True,
                   input="__thread char block[48] = {1};\nchar *get(void) { return block; }\n")
    script = ("import ctypes, select, shutil, sys\n"
              "kept = 0\n"
              "try:\n"
              "    for i in range(200):\n"
              "        shutil.copy(sys.argv[1], f'{sys.argv[1]}.{i}')\n"
              "        ctypes.CDLL(f'{sys.argv[1]}.{i}')\n"
              "        kept += 1\n"
              "except OSError as error:\n"
              "    print('static TLS' in str(error), kept, flush=True)\n"
              "poll = select.epoll()\n"
              "while True:\n"
              "    poll.poll(0.02)\n")
    with subprocess.Popen([PYTHON, "-c", script, greedy], stdout=subprocess.PIPE, text=True) as target:
        try:
            assert target.stdout.readline().startswith("True ")
            assert "whether its loader has static TLS left" in unblock("doctor", target.pid).stdout
            done = unblock("attach", "-o", tmp_path / "a.jsonl", "--live", "none", target.pid)
            assert done.returncode == 125, done.stderr
            said = one_line(done.stderr)
            assert "goes on as before" in said and "static TLS" in said, said
            assert not attaching.has_arena(target.pid) and not attaching.agent_ranges(target.pid)
            assert not any("memfd" in file for file in attaching.open_files(target.pid))
            wait_until(lambda: helpers.process_state(target.pid) == "S", what="the loop to go on")
            assert not (tmp_path / "a.jsonl").exists()
        finally:
            target.kill()


@pytest.mark.parametrize("command", [["run", "--", "/no/such/program"], ["attach", "--live", "none", "--duration", "100ms"]],
                         ids=lambda c: c[0])
def test_recording_into_a_device(tmp_path, command):
    """Nothing was watched, so the file that was begun is removed; one that is not ours to remove is not: -o /dev/null."""
    with subprocess.Popen(["sleep", "100"]) as sleeper:
        try:
            command = [*command, *([str(sleeper.pid)] if command[0] == "attach" else [])]
            os.mkfifo(tmp_path / "pipe")
            with open(os.open(tmp_path / "pipe", os.O_RDWR), "rb", buffering=0):
                assert unblock(command[0], "-o", tmp_path / "pipe", *command[1:]).returncode in (125, 127)
            assert (tmp_path / "pipe").is_fifo()
            assert unblock(command[0], "-o", tmp_path / "file", *command[1:]).returncode in (125, 127)
            assert not (tmp_path / "file").exists()
        finally:
            sleeper.kill()


def test_yama(tmp_path):
    """Where only a process's ancestors may trace it."""
    try:
        scope = Path("/proc/sys/kernel/yama/ptrace_scope").read_text()
    except OSError:
        pytest.skip("no Yama in this kernel")
    if scope.strip() == "0" or os.geteuid() == 0:
        pytest.skip(f"ptrace_scope is {scope.strip()}, user {os.geteuid()}: nothing is forbidden")
    with Target(0) as target:
        target.ready()
        refused(target.pid, "sudo unblock attach")
        nothing_noticed(target.end())


@needs_root
def test_without_capabilities():
    """Root, but in a container that was not given CAP_SYS_PTRACE."""
    setpriv = shutil.which("setpriv")
    if not setpriv:
        pytest.skip("setpriv is not installed")
    without = [setpriv, "--bounding-set", "-sys_ptrace", "--inh-caps", "-sys_ptrace", helpers.UNBLOCK]
    with Target(0) as target:
        target.ready()
        done = subprocess.run([*without, "attach", "-o", "/dev/null", str(target.pid)], capture_output=True, text=True,
                              env=helpers.clean_environment(), timeout=helpers.PATIENCE, check=False)
        assert done.returncode == 125 and "CAP_SYS_PTRACE is missing" in one_line(done.stderr), done.stderr
        said = subprocess.run([*without, "doctor", str(target.pid)], capture_output=True, text=True,
                              env=helpers.clean_environment(), timeout=helpers.PATIENCE, check=False).stdout
        assert "cannot be entered" in next(line for line in said.splitlines() if " attach " in line), said
        assert "--cap-add=SYS_PTRACE" in said, said
        nothing_noticed(target.end())


def forbid_ptrace():
    """As AppArmor's or SELinux's rules do: the kernel answers EPERM, and shows nothing of it beforehand."""
    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
    code = struct.pack("<" + "HBBI" * 4, 0x20, 0, 0, 0, 0x15, 0, 1, 101, 6, 0, 0, 0x00050001, 6, 0, 0, 0x7fff0000)
    libc = ctypes.CDLL(None)
    kept = ctypes.create_string_buffer(code)
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, ctypes.byref(Program(4, ctypes.addressof(kept)))) == 0


def test_a_security_module_forbids_it(tmp_path):
    """Found out when it is tried; the program goes on, and nothing of ours is in it."""
    with Target(0) as target:
        target.ready()
        before = attaching.maps(target.pid)
        done = subprocess.run([helpers.UNBLOCK, "attach", "-o", tmp_path / "a.jsonl", "--live", "none", str(target.pid)],
                              capture_output=True, text=True, env=helpers.clean_environment(), timeout=helpers.PATIENCE,
                              check=False, preexec_fn=forbid_ptrace)
        assert done.returncode == 125, done.stderr
        said = one_line(done.stderr)
        assert "goes on as before" in said and "a security module (Yama, AppArmor, SELinux) forbids it" in said, said
        assert attaching.maps(target.pid) == before
        nothing_noticed(target.end())
