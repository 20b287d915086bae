"""Programs in narrow surroundings: descriptors closed, chroot, set-user-ID, user namespaces, seccomp filters.

Whatever becomes of the watching there, the program must behave as without us.
"""

import os
import shutil
import subprocess

import pytest

import helpers
from helpers import PYTHON
from test_preload import (FORKS, LOOP, all_ended, environment, helpers_of, nothing_left, recordings,  # noqa: F401
                          run, start)

pytestmark = pytest.mark.beside

AS_NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


@pytest.fixture
def opened(tmp_path):
    """Open to other users."""
    helpers.let_in(tmp_path)
    tmp_path.chmod(0o777)
    return tmp_path


def under(how, folder, *argv, **popen):
    """Ends the program under `unblock run`, or with LD_PRELOAD alone; returns what it did and its stalls."""
    if how == "run":
        done = helpers.unblock("run", "-q", "-t", "20ms", "-o", folder / "r-run.jsonl", "--", *argv, text=False, **popen)
    else:
        done = run(folder, *argv, **popen)
        all_ended(folder)
    return done, [s for r in recordings(folder) for s in r.slow]


def long_stalls(slow):
    return [s for s in slow if s["duration_ns"] > 55_000_000]


# Descriptors -----------------------------------------------------------------

# Both are glibc's since 2.34; what they call is the same system call, or one by one through /proc/self/fd.
CLOSES = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def close_all(how):
    opened = os.open("/dev/null", os.O_RDONLY)
    before = set(os.listdir("/proc/self/fd"))
    if how == "closefrom":
        libc.closefrom(3)
    elif how == "close_range":
        assert libc.close_range(3, ctypes.c_uint(0xffffffff), 0) == 0
    else:
        for fd in range(3, 1024):
            libc.close(fd)
    # What listdir itself needs is the first number that is free.
    print(sorted(map(int, before)), sorted(map(int, os.listdir("/proc/self/fd"))))
"""


@pytest.mark.parametrize("watched", ["run", "preload"])
@pytest.mark.parametrize("how", ["closefrom", "close_range", "close"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_all_descriptors_closed(tmp_path, watched, how, when):
    """Before or after the first loop: the program finds the descriptors it would without us, and stays watched."""
    script = CLOSES + FORKS + f"""
if {when!r} == "after":
    loop(120)
close_all({how!r})
loop(300)
"""
    plain = subprocess.run([PYTHON, "-c", script], env=helpers.clean_environment(), stdin=subprocess.DEVNULL,
                           capture_output=True, timeout=helpers.PATIENCE)
    done, slow = under(watched, tmp_path, PYTHON, "-c", script)
    assert plain.returncode == 0 and plain.stderr == b"", plain
    assert (done.returncode, done.stdout, done.stderr) == (0, plain.stdout, b"")
    made = 10 if when == "before" else 14
    assert len(long_stalls(slow)) >= made - 5, "some while the helper started"


# chroot ------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="chroot takes root")
def test_chroot_before_the_first_loop(tmp_path):
    """Neither /proc nor the helper is there any more: nobody watches, and nobody notices."""
    jail = tmp_path / "jail"
    jail.mkdir()
    script = FORKS + f"""
os.chroot({str(jail)!r}); os.chdir("/")
loop(300)
try:
    print(os.waitpid(-1, 0))
except ChildProcessError:
    print("nobody", os.listdir("/"))
"""
    done = run(tmp_path, PYTHON, "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"nobody []\n", b"")
    assert not helpers_of(tmp_path)
    # The folder of the recording is not there either; given one, the agent writes what is over itself.
    done = run(tmp_path, PYTHON, "-c", script.replace("nobody\", os.listdir(\"/\")", "nobody\""),
               env=environment(tmp_path, UNBLOCK_OUTPUT="/r-in.jsonl"))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"nobody\n", b"")
    (r,) = recordings(jail)
    assert len(long_stalls(r.slow)) >= 8 and r.of("note")


@pytest.mark.skipif(os.geteuid() != 0, reason="chroot takes root")
def test_chroot_after_the_first_loop(tmp_path):
    """The arena is mapped by then: the helper goes on, also for children that the process forks in there."""
    jail = tmp_path / "jail"
    jail.mkdir()
    script = FORKS + f"""
loop(120)
os.chroot({str(jail)!r}); os.chdir("/")
loop(300)
if os.fork() == 0:
    loop(300)
    os._exit(0)
os.wait()
print(os.listdir("/"))
"""
    done, slow = under("preload", tmp_path, PYTHON, "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"[]\n", b"")
    assert len(long_stalls(slow)) >= 18 and len({s["pid"] for s in slow}) == 2


# Privileges ----------------------------------------------------------------------

# A loop with a stall every 30 turns; says who it is and which of our variables it sees.
PRIVILEGED = r"""
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>
int main(void)
{
    struct epoll_event ev;
    int ep = epoll_create1(0);
    for (int i = 1; i <= 120; i++) {
        epoll_wait(ep, &ev, 1, 1);
        if (i % 30 == 0)
            usleep(60000);
    }
    printf("%d %d %s\n", getuid(), geteuid(), getenv("LD_PRELOAD") ? "preloaded" : "plain");
    return 7;
}
"""


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="takes root and setpriv")
@pytest.mark.parametrize("executed_by", ["somebody", "a preloaded shell"])
def test_set_user_id_program(opened, executed_by):
    """The loader drops LD_PRELOAD there: silent, unwatched, nothing left; and so it is as a watched program's child."""
    (opened / "p.c").write_text(PRIVILEGED)
    program = opened / "p"
    subprocess.run(["gcc", "-o", program, opened / "p.c"], check=True)
    program.chmod(0o4755)
    if subprocess.run([*AS_NOBODY, "test", "-x", helpers.AGENT]).returncode != 0:
        pytest.skip("the build folder is not open to other users")
    env = environment(opened)
    nobody = {"user": 65534, "group": 65534, "extra_groups": []}
    said = subprocess.run([program], env=helpers.clean_environment(), capture_output=True, **nobody).stdout
    if said.split()[1] != b"0":
        pytest.skip("set-user-ID has no effect in this folder")
    if executed_by == "somebody":
        done = run(opened, program, env=env, **nobody)
    else:
        # By its bare name: that the loader would complain of, did the exec hook not take it out.
        env = environment(opened, LD_PRELOAD=helpers.AGENT.name, LD_LIBRARY_PATH=str(helpers.AGENT.parent))
        done = run(opened, "/bin/sh", "-c", f"{program}; exit $?", env=env, **nobody)
    assert (done.returncode, done.stdout, done.stderr) == (7, said, b"")
    assert not helpers_of(opened) and not recordings(opened)


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root")
def test_privileges_dropped_after_the_first_loop(opened):
    """root, a loop, then nobody: the helper is root's and goes on."""
    script = FORKS + """
loop(120)
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
loop(300)
print(os.getresuid())
"""
    done, slow = under("preload", opened, PYTHON, "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"(65534, 65534, 65534)\n", b"")
    assert len(long_stalls(slow)) >= 9


SUDO = {
    "env_reset": ["sudo", "-n", "-u", "nobody"],
    "preserved": ["sudo", "-n", "-E", "-u", "nobody"],
    "preserved by name": ["sudo", "-n", "--preserve-env=LD_PRELOAD,UNBLOCK_OUTPUT,UNBLOCK_THRESHOLD,UNBLOCK_ARENA",
                          "-u", "nobody"],
    "to root": ["sudo", "-n"],
    "refused": [*AS_NOBODY, "sudo", "-n"],
}


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("sudo"), reason="takes root and sudo")
@pytest.mark.parametrize("watched", ["run", "preload"])
@pytest.mark.parametrize("how", SUDO)
def test_sudo(opened, watched, how):
    """sudo clears the environment, or keeps what it is told to; it waits, passes signals on and says what it says."""
    script = LOOP + """
left = sorted(name for name in os.environ if not name.startswith(("UNBLOCK", "LD_PRELOAD")))
print(os.getuid(), os.environ.get("SUDO_USER"), left)
os.kill(os.getpid(), 15)
"""
    command = [*SUDO[how], PYTHON, "-c", script, "60"]
    plain = subprocess.run(command, env=helpers.clean_environment(), stdin=subprocess.DEVNULL, capture_output=True,
                           timeout=helpers.PATIENCE, cwd="/")
    assert (plain.returncode == 1) == (how == "refused"), plain
    done, slow = under(watched, opened, *command, cwd="/")
    assert (done.returncode, done.stdout, done.stderr) == (plain.returncode, plain.stdout, plain.stderr)
    if how == "env_reset":
        assert not slow, "sudo takes the agent out of the environment"


# User namespaces -----------------------------------------------------------------------

NAMESPACE = ["unshare", "--user", "--map-root-user"]


@pytest.mark.parametrize("watched", ["run", "preload"])
@pytest.mark.parametrize("user", ["as we are", "nobody"])
@pytest.mark.parametrize("when", ["before", "inside"])
def test_user_namespace(opened, watched, user, when):
    """The program enters one (`unshare -Ur program`), or both it and the watcher are in there."""
    popen = {}
    if user == "nobody":
        if os.geteuid() != 0 or subprocess.run([*AS_NOBODY, "test", "-x", helpers.UNBLOCK]).returncode != 0:
            pytest.skip("takes root, and a build folder that is open to other users")
        popen = {"user": 65534, "group": 65534, "extra_groups": [], "cwd": "/"}
    if subprocess.run([*NAMESPACE, "true"], capture_output=True, **popen).returncode != 0:
        pytest.skip("no user namespaces here")
    script = LOOP + "print(os.getuid(), open('/proc/self/uid_map').read().split()[0])"
    program = [PYTHON, "-c", script, "200"]
    if when == "before":
        done, slow = under(watched, opened, *NAMESPACE, *program, **popen)
    elif watched == "run":
        path = opened / "r-in.jsonl"
        done = run(opened, *NAMESPACE, helpers.UNBLOCK, "run", "-q", "-t", "20ms", "-o", path, "--", *program,
                   env=helpers.clean_environment(), **popen)
        slow = helpers.Recording(path).slow
    else:
        env = environment(opened)
        done = run(opened, *NAMESPACE, "env", f"LD_PRELOAD={env.pop('LD_PRELOAD')}", *program, env=env, **popen)
        all_ended(opened)
        slow = [s for r in recordings(opened) for s in r.slow]
    assert (done.returncode, done.stdout, done.stderr) == (0, b"0 0\n", b""), done
    if (when, watched) == ("before", "run"):
        # The kernel opens nothing of a process outside to one in there; so it is said.
        (r,) = recordings(opened)
        (note,) = [n for n in r.of("note") if "user namespace" in n["text"]]
        assert "python3" in note["text"] and not slow
        return
    assert len(long_stalls(slow)) >= 6, "10 were made, some while the helper started"


# Seccomp -----------------------------------------------------------------------------------


@pytest.mark.parametrize("helper", [False, True])
def test_under_a_filter(tmp_path, helper):
    """A filter that came with exec: nothing is started unless the user names the helper, who so vouches for it."""
    env = environment(tmp_path, **({"UNBLOCK_HELPER": str(helpers.UNBLOCK)} if helper else {}))
    script = LOOP + """
try:
    print(os.waitpid(-1, 0))
except ChildProcessError:
    print("nobody")
"""
    p = start(tmp_path, helpers.program("filtered"), PYTHON, "-c", script, 200, env=env, stderr=subprocess.PIPE)
    if helper:
        helpers.wait_until(lambda: helpers_of(tmp_path), what="the helper")
    out, errors = p.communicate(timeout=helpers.PATIENCE)
    assert (p.returncode, out, errors) == (0, b"nobody\n", b"")
    all_ended(tmp_path)
    if not helper:
        assert not recordings(tmp_path)
        return
    (r,) = recordings(tmp_path)
    assert len(long_stalls(r.slow)) >= 6


# Loops, then installs a filter: any call but the three that it makes itself from then on kills the process.
FILTER = r"""
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
#define ALLOW(nr) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
#include <time.h>
static void spin(long count)
{
    for (volatile long n = 0; n < count; n++)
        ;
}
/* How many make 60 ms on this machine: afterwards the clock may be a call that kills. */
static long measure(void)
{
    struct timespec a, b;
    clock_gettime(CLOCK_MONOTONIC, &a);
    spin(10000000);
    clock_gettime(CLOCK_MONOTONIC, &b);
    return (long)(10000000 * 60e6 / ((b.tv_sec - a.tv_sec) * 1e9 + b.tv_nsec - a.tv_nsec));
}
static void loop(int ep, int turns, long count)
{
    struct epoll_event ev;
    for (int i = 1; i <= turns; i++) {
        epoll_wait(ep, &ev, 1, 1);
        if (i % 30 == 0)
            spin(count);
    }
}
int main(int argc, char **argv)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        ALLOW(SYS_epoll_wait), ALLOW(SYS_write), ALLOW(SYS_exit_group),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
    };
    struct sock_fprog program = {sizeof(code) / sizeof(code[0]), code};
    int ep = epoll_create1(0);
    long count = measure();
    loop(ep, argc > 1 ? atoi(argv[1]) : 0, count);
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
        return 77;
    loop(ep, 240, count);
    write(1, "alive\n", 6);
    _exit(5);
}
"""


@pytest.mark.parametrize("turns", [0, 5, 120])
@pytest.mark.parametrize("watched", ["run", "preload"])
def test_filter_that_kills(tmp_path, watched, turns):
    """Installed before the first wait, between, and after the loop was found: no system call of ours from then on."""
    (tmp_path / "f.c").write_text(FILTER)
    subprocess.run(["gcc", "-O1", "-o", tmp_path / "f", tmp_path / "f.c"], check=True)
    plain = subprocess.run([tmp_path / "f", str(turns)], capture_output=True, env=helpers.clean_environment())
    if plain.returncode == 77:
        pytest.skip("no seccomp here")
    done, slow = under(watched, tmp_path, tmp_path / "f", str(turns))
    assert (plain.returncode, plain.stdout) == (5, b"alive\n")
    assert (done.returncode, done.stdout, done.stderr) == (5, b"alive\n", b"")
    if turns == 120 and watched == "run":
        assert len(slow) >= 4
