"""`unblock run` is transparent: the program's input, output, status, environment and descriptors are as without."""

import json
import os
import shutil
import signal
import stat
import subprocess
from pathlib import Path

import pytest

from helpers import (AGENT, PYTHON, UNBLOCK, Recording, clean_environment, one_line, recordings, unblock, wait_until)

pytestmark = pytest.mark.beside

# Prints what a program can know of itself that unblock might have changed.
SELF_PORTRAIT = r"""
import json, os, resource, signal, sys
fds = {}
for fd in range(256):
    try:
        fds[fd] = os.readlink(f"/proc/self/fd/{fd}") if fd > 2 else "open"
    except OSError:
        pass
status = dict(l.split(":\t", 1) for l in open("/proc/self/status").read().splitlines() if ":\t" in l)
json.dump({
    "fds": fds,
    "environment": dict(os.environ),
    "signals": [status[k] for k in ("SigBlk", "SigIgn", "SigCgt")],
    "limits": [resource.getrlimit(r) for r in range(16)],
    "nice": os.nice(0),
    "umask": status["Umask"],
    "cwd": os.getcwd(),
    "session": [os.getsid(0) == os.getsid(os.getppid()), os.getpgid(0) == os.getpgid(os.getppid())],
    "timerslack": open("/proc/self/timerslack_ns").read(),
    "threads": status["Threads"],
    "affinity": sorted(os.sched_getaffinity(0)),
    "scheduler": os.sched_getscheduler(0),
    "oom": open("/proc/self/oom_score_adj").read(),
    "dumpable": os.stat("/proc/self/fd").st_uid,
    "argv": sys.argv,
}, sys.stdout)
"""


def portrait(prefix, cwd, **popen):
    done = subprocess.run([*prefix, PYTHON, "-c", SELF_PORTRAIT, "a", "-b", "--", "c d"], cwd=cwd, capture_output=True,
                          text=True, check=True, **{"env": clean_environment(), **popen})
    return json.loads(done.stdout)


# Status ------------------------------------------------------------------


@pytest.mark.parametrize("status", [0, 1, 2, 7, 124, 125, 126, 127, 128, 137, 255])
def test_exit_status_is_the_programs(workdir, status):
    assert unblock("run", "--", "sh", "-c", f"exit {status}").returncode == status
    (path,) = recordings(workdir)
    assert Recording(path).end["exit"] == status


@pytest.mark.parametrize("name", ["HUP", "INT", "QUIT", "KILL", "SEGV", "TERM", "ABRT", "USR1", "PIPE", "ALRM"])
def test_fatal_signal_is_the_programs(workdir, name):
    number = getattr(signal, "SIG" + name)
    done = unblock("run", "--", "sh", "-c", f"kill -{name} $$")
    assert done.returncode == -number
    (path,) = recordings(workdir)
    assert Recording(path).end["signal"] == number


def test_the_shell_sees_the_signal(workdir):
    done = subprocess.run(["bash", "-c", f"{UNBLOCK} run -q -- sh -c 'kill -SEGV $$'; echo status $?"],
                          capture_output=True, text=True, env=clean_environment())
    assert "status 139" in done.stdout
    assert "Segmentation fault" in done.stderr


def test_no_core_dump_of_our_own(workdir):
    done = subprocess.run(["bash", "-c", f"ulimit -c unlimited; {UNBLOCK} run -q -o r.jsonl -- sh -c 'ulimit -c 0; kill -SEGV $$'"],
                          env=clean_environment(), cwd=workdir, capture_output=True)
    assert done.returncode == -signal.SIGSEGV
    assert sorted(p.name for p in workdir.iterdir()) == ["r.jsonl"]


# Input and output --------------------------------------------------------


def test_stdin_and_stdout_are_byte_equal(workdir):
    data = os.urandom(3_000_000) + b"\r\n\x00\x1a\xff" * 1000
    done = unblock("run", "-q", "--", "cat", input=data, text=False, stdin=None)
    assert done.stdout == data
    assert done.stderr == b""


def test_stderr_is_passed_through(workdir):
    done = unblock("run", "-q", "--", "sh", "-c", "echo out; echo err >&2")
    assert (done.stdout, done.stderr) == ("out\n", "err\n")


def test_the_reader_of_a_pipe_may_leave(workdir):
    """`unblock run yes | head -1` ends by SIGPIPE as `yes | head -1` does."""
    done = subprocess.run(["bash", "-c", f"{UNBLOCK} run -q -- yes | head -1; echo ${{PIPESTATUS[0]}}"],
                          capture_output=True, text=True, timeout=20, env=clean_environment())
    assert done.stdout == "y\n141\n"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_standard_descriptors(workdir, closed):
    """They stay closed in the program, nothing of ours takes their place, and the recording is whole."""
    script = 'for fd in 0 1 2; do [ -e /proc/self/fd/$fd ] && printf "$fd " >> seen; done; exit 5'
    done = subprocess.run(["bash", "-c", f"{UNBLOCK} run -v -o r.jsonl -- sh -c '{script}' {closed}"],
                          env=clean_environment(), stdin=subprocess.DEVNULL, timeout=20)
    assert done.returncode == 5
    seen = Path("seen").read_text().split() if Path("seen").exists() else []
    assert "0" in seen or "<&-" in closed
    assert [fd for fd, mark in (("0", "<&-"), ("2", "2>&-")) if mark in closed and fd in seen] == []
    assert Recording("r.jsonl").end["exit"] == 5


# What the program inherits -----------------------------------------------


def test_everything_inherited_is_the_same(workdir):
    plain, watched = portrait([], workdir), portrait([UNBLOCK, "run", "-q", "--"], workdir)
    environment = watched.pop("environment")
    assert environment.pop("LD_PRELOAD") == str(AGENT.resolve())
    assert environment.pop("UNBLOCK_ARENA")
    assert environment == plain.pop("environment")
    # Catching SIGURG is how running threads are sampled; it is ignored by default, so nobody can tell.
    assert watched["signals"][:2] == plain["signals"][:2]
    caught = int(watched.pop("signals")[2], 16) & ~int(plain.pop("signals")[2], 16)
    assert caught & ~(1 << 22) == 0
    assert watched == plain


def test_inherited_descriptors_and_limits(workdir):
    """Extra descriptors, an odd mask of signals, limits, nice and umask reach the program; ours do not."""
    def prepare():
        import resource
        os.dup2(os.open("/dev/null", os.O_RDONLY), 77)
        os.set_inheritable(77, True)
        os.umask(0o027)
        os.nice(3)
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, 4000))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2, signal.SIGTERM})
        for name in ("SIGHUP", "SIGCHLD", "SIGUSR1", "SIGTTOU"):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    plain = portrait([], workdir, preexec_fn=prepare, close_fds=False)
    watched = portrait([UNBLOCK, "run", "-q", "--"], workdir, preexec_fn=prepare, close_fds=False)
    assert plain["fds"]["77"] == "/dev/null" and plain["nice"] >= 3
    ignored = int(plain["signals"][1], 16)
    assert ignored & 1 and ignored & (1 << 16)  # SIGHUP, SIGCHLD
    for key in ("fds", "limits", "nice", "umask", "session"):
        assert watched[key] == plain[key], key
    assert watched["signals"][:2] == plain["signals"][:2]


def test_existing_preload_comes_after_the_agent(workdir):
    libm = subprocess.run("ldconfig -p | awk '/libm.so.6/ {print $NF; exit}'", shell=True, capture_output=True,
                          text=True).stdout.strip()
    env = clean_environment(LD_PRELOAD=libm)
    watched = portrait([UNBLOCK, "run", "-q", "--"], workdir, env=env)
    assert watched["environment"]["LD_PRELOAD"] == f"{AGENT.resolve()}:{libm}"


def test_nested_run_has_one_agent(workdir):
    watched = portrait([UNBLOCK, "run", "-q", "--", UNBLOCK, "run", "-q", "--"], workdir)
    assert watched["environment"]["LD_PRELOAD"] == str(AGENT.resolve())


def test_no_process_is_left_behind(workdir):
    done = unblock("run", "-q", "--", "sh", "-c", "echo $PPID")
    assert not Path(f"/proc/{done.stdout.strip()}").exists()


# Options -----------------------------------------------------------------


def test_output_template(workdir):
    done = unblock("run", "-q", "-o", "x-%p-%h-%%.jsonl", "--", "sh", "-c", "echo $$")
    (path,) = workdir.glob("x-*.jsonl")
    assert path.name == f"x-{done.stdout.strip()}-{os.uname().nodename}-%.jsonl"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_default_name_has_the_programs_pid(workdir):
    done = unblock("run", "-q", "--", "/bin/sh", "-c", "echo $$")
    (path,) = recordings(workdir)
    assert path.name.startswith(f"unblock-sh-{done.stdout.strip()}-")
    header = Recording(path).header
    assert header["command"] == ["/bin/sh", "-c", "echo $$"]
    assert header["threshold_ns"] == 50_000_000


def test_recording_on_standard_output(workdir):
    done = unblock("run", "-q", "-o", "-", "--", "true")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[0]["type"] == "header" and lines[-1]["type"] == "end"
    assert recordings(workdir) == []


def test_environment_sets_what_flags_do_not(workdir):
    env = clean_environment(UNBLOCK_THRESHOLD="30ms", UNBLOCK_OUTPUT="env.jsonl")
    unblock("run", "-q", "--", "true", env=env)
    assert Recording("env.jsonl").header["threshold_ns"] == 30_000_000
    unblock("run", "-q", "-t", "1.5ms", "-o", "flag.jsonl", "--", "true", env=env)
    assert Recording("flag.jsonl").header["threshold_ns"] == 1_500_000


def test_existing_recording(workdir):
    assert unblock("run", "-q", "-o", "r.jsonl", "--", "true").returncode == 0
    before = Path("r.jsonl").read_bytes()
    done = unblock("run", "-q", "-o", "r.jsonl", "--", "touch", "ran")
    assert done.returncode == 125
    assert "r.jsonl exists" in one_line(done.stderr) and "--force" in done.stderr and "--append" in done.stderr
    assert not Path("ran").exists(), "nothing runs before the recording is known to work"
    assert Path("r.jsonl").read_bytes() == before
    assert unblock("run", "-q", "--append", "-o", "r.jsonl", "--", "true").returncode == 0
    assert Path("r.jsonl").read_bytes().startswith(before)
    assert Path("r.jsonl").read_text().count('"type":"header"') + Path("r.jsonl").read_text().count('"type": "header"') == 2
    assert unblock("run", "-q", "--force", "-o", "r.jsonl", "--", "true").returncode == 0
    assert len(Recording("r.jsonl").of("header")) == 1


def test_live_modes(workdir):
    assert "unblock" not in unblock("run", "-q", "--", "true").stderr
    verbose = unblock("run", "-v", "--live=none", "--", "true").stderr
    assert str(AGENT.resolve()) in verbose
    assert "\x1b[" not in verbose
    assert "\x1b[" in unblock("run", "--color=always", "--", "true").stderr


def test_duration_leaves_the_program_alone(workdir):
    done = unblock("run", "--duration", "200ms", "-o", "r.jsonl", "--", "sh", "-c", "sleep 1; echo done; exit 3")
    assert (done.returncode, done.stdout) == (3, "done\n")
    assert "goes on" in done.stderr
    end = Recording("r.jsonl").end
    assert "exit" not in end and "signal" not in end


# Programs that cannot be entered ------------------------------------------


def compile_c(path, *flags, text="int main(void) { return 7; }"):
    built = subprocess.run(["gcc", "-x", "c", "-", "-o", path, *flags], input=text, text=True, capture_output=True)
    if built.returncode != 0:
        pytest.skip(f"cannot build with {flags}: {built.stderr.splitlines()[-1:]}")


def test_static_program_runs_with_a_warning(workdir):
    compile_c("static", "-static")
    done = unblock("run", "-q", "--", "./static")
    assert done.returncode == 7
    assert "is a static program" in one_line(done.stderr)
    compile_c("pie", "-static-pie")
    assert "is a static program" in unblock("run", "-q", "--", "./pie").stderr


def test_32_bit_program_runs_without_the_loaders_complaint(workdir):
    compile_c("small", "-m32", "-static", "-nostdlib",
              text="void _start(void) { __asm__(\"mov $1,%eax; mov $7,%ebx; int $0x80\"); }")
    done = unblock("run", "-q", "--", "./small")
    if done.returncode == 126:
        pytest.skip("this kernel runs no 32-bit programs")
    assert done.returncode == 7
    assert "not an x86-64 program" in one_line(done.stderr)


def test_setuid_program_is_warned_of(workdir):
    if os.geteuid() != 0:
        pytest.skip("takes root")
    shutil.copy("/bin/true", "suid")
    os.chown("suid", 65534, 65534)
    os.chmod("suid", 0o4755)
    done = unblock("run", "-q", "--", "./suid")
    assert done.returncode == 0 and "gains privileges" in one_line(done.stderr)


def test_scripts_run(workdir):
    Path("shebang").write_text("#!/bin/sh\nexit 9\n")
    Path("bare").write_text("exit 8\n")  # no "#!": execvp gives it to the shell
    for name in ("shebang", "bare"):
        os.chmod(name, 0o755)
    assert unblock("run", "-q", "--", "./shebang").returncode == 9
    assert unblock("run", "-q", "--", "./bare").returncode == 8


# Installed elsewhere ------------------------------------------------------


def install(folder):
    """The command and its agent in another place, as `make install` puts them."""
    (folder / "bin").mkdir(parents=True)
    (folder / "lib" / "unblock").mkdir(parents=True)
    shutil.copy(UNBLOCK, folder / "bin" / "unblock")
    shutil.copy(AGENT, folder / "lib" / "unblock" / "libunblock.so")
    return folder / "bin" / "unblock"


def run_installed(command, *args, env=None):
    return subprocess.run([str(command), "run", "-q", *args], capture_output=True, text=True,
                          env=env or clean_environment())


def test_agent_is_found_beside_the_command(workdir):
    command = install(workdir / "prefix")
    done = run_installed(command, "--", "sh", "-c", "echo $LD_PRELOAD")
    assert done.stdout.strip() == str(workdir / "prefix/lib/unblock/libunblock.so")
    os.symlink(command, workdir / "link")
    assert run_installed(workdir / "link", "--", "sh", "-c", "echo $LD_PRELOAD").stdout == done.stdout


@pytest.mark.parametrize("name", ["with space", "with:colon"])
def test_agent_path_that_ld_preload_cannot_hold(workdir, name):
    done = run_installed(install(workdir / name), "--", "touch", "ran")
    assert done.returncode == 125
    assert "space or a colon" in one_line(done.stderr)
    assert not Path("ran").exists()
    done = run_installed(workdir / name / "bin/unblock", "--", "true", env=clean_environment(UNBLOCK_AGENT=str(AGENT)))
    assert (done.returncode, done.stderr) == (0, "")


def test_missing_agent(workdir):
    done = unblock("run", "--", "touch", "ran", env=clean_environment(UNBLOCK_AGENT="/nonexistent/u.so"))
    assert done.returncode == 125
    assert "/nonexistent/u.so cannot be read" in one_line(done.stderr)
    assert not Path("ran").exists()


# Containers --------------------------------------------------------------


def pid_namespace(*args):
    """A command line that runs `args` as pid 1 of a new PID namespace, or a skip."""
    prefix = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if subprocess.run([*prefix, "true"], capture_output=True).returncode != 0:
        pytest.skip("PID namespaces are not permitted here")
    return [*prefix, *map(str, args)]


def test_as_pid_1_orphans_are_reaped(workdir):
    script = "(sh -c 'sleep 0.1' &) ; sleep 0.5; grep -h '^State' /proc/[0-9]*/status; exit 4"
    done = subprocess.run(pid_namespace(UNBLOCK, "run", "-q", "-o", workdir / "r.jsonl", "--", "sh", "-c", script),
                          capture_output=True, text=True, timeout=20, env=clean_environment())
    assert done.returncode == 4
    assert "zombie" not in done.stdout and "sleeping" in done.stdout


def test_as_pid_1_sigterm_reaches_the_program(workdir):
    popen = subprocess.Popen(pid_namespace(UNBLOCK, "run", "-q", "-o", workdir / "r.jsonl", "--", "sh", "-c",
                                           "trap 'echo got; exit 6' TERM; touch ready; while :; do sleep 0.05; done"),
                             stdout=subprocess.PIPE, text=True, env=clean_environment())
    try:
        wait_until(Path("ready").exists, what="the program to be ready")
        inner = subprocess.run(["pgrep", "-P", str(popen.pid)], capture_output=True, text=True).stdout.split()
        os.kill(int(inner[0]), 15)  # from outside the namespace, as `docker stop` does
        assert popen.communicate(timeout=20)[0] == "got\n"
        assert popen.returncode == 6
    finally:
        popen.kill()
