"""Programs that manage processes see the same children with LD_PRELOAD as without: no helper in wait, SIGCHLD or jobs."""

import os
import statistics
import subprocess
import time

import pytest

import helpers
from helpers import PYTHON, clean_environment, program, wait_until
from test_preload import FORKS, LOOP, all_ended, environment, helpers_of, recordings


def either(tmp_path, *argv, needs_helper=True):
    """Runs it alone and preloaded: status, output and errors are equal."""
    said = []
    for env in (clean_environment(HOME=str(tmp_path)), environment(tmp_path)):
        done = subprocess.run([str(a) for a in argv], env=env, capture_output=True, stdin=subprocess.DEVNULL,
                              timeout=helpers.PATIENCE, cwd=tmp_path)
        said.append((done.returncode, done.stdout, done.stderr))
    assert said[0] == said[1]
    all_ended(tmp_path)
    if needs_helper:
        assert recordings(tmp_path), "there was no helper, so nothing was tested"
    return said[0]


def test_waitid_and_sigchld(tmp_path):
    status, out, err = either(tmp_path, program("manager"), 7)
    assert (status, err) == (0, b"")
    assert b"before any child: sigchld 0, waitpid -1 errno ECHILD" in out and b"ended 7, strangers 0" in out


PYTHON_MANAGER = FORKS + """
import subprocess, signal
loop(40)
caught = 0
def on(sig, frame):
    global caught
    caught += 1
signal.signal(signal.SIGCHLD, on)
p = subprocess.Popen([sys.executable, "-c", "print(1)"], stdout=subprocess.PIPE)
print(p.communicate(), p.returncode)
print(subprocess.run(["sh", "-c", "exit 7"]).returncode, subprocess.call(["true"]))
with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=()) as cat:
    print(cat.communicate(b"through"))
print(os.system("exit 3"))
with os.popen("echo popen") as pipe:
    print(pipe.read())
print(caught)
loop(40)
try:
    print(os.wait())
except ChildProcessError as e:
    print(e)
print(sorted(os.listdir("/proc/self/fd")))
print(open("/proc/self/status").read().split("SigBlk:")[1].split()[0], len(os.listdir("/proc/self/task")))
"""


def test_python_subprocess(tmp_path):
    status, out, err = either(tmp_path, PYTHON, "-c", PYTHON_MANAGER)
    assert (status, err) == (0, b"") and b"through" in out and b"No child" in out


ASYNCIO_MANAGER = """
import asyncio, sys
async def one(i):
    p = await asyncio.create_subprocess_exec("sh", "-c", f"sleep 0.0{i}; echo {i}; exit {i}", stdout=asyncio.subprocess.PIPE)
    out, _ = await p.communicate()
    return out, p.returncode
async def main():
    for i in range(30):
        await asyncio.sleep(0.002)
    print(await asyncio.gather(*(one(i) for i in range(8))))
asyncio.run(main())
"""


def test_asyncio_subprocess(tmp_path):
    either(tmp_path, PYTHON, "-W", "ignore", "-c", ASYNCIO_MANAGER)


def test_multiprocessing(tmp_path):
    script = "import multiprocessing as m, time\n" + FORKS + """
def f(x):
    loop(30)
    return x * x
if __name__ == "__main__":
    loop(40)
    with m.get_context("fork").Pool(3) as pool:
        print(pool.map(f, range(9)))
    print(m.active_children())
"""
    path = tmp_path / "pool.py"
    path.write_text(script)
    either(tmp_path, PYTHON, path)


def test_bash_jobs(tmp_path):
    looping = f"{PYTHON} -c '{LOOP}'"
    script = f"""
set -m
{looping} 60 & {looping} 200 & sleep 0.05 &
jobs -p | wc -l
wait -n; echo first $?
wait; echo all $?
jobs | wc -l
(exit 4) & wait $!; echo $?
trap 'echo child' CHLD
{looping} 40
echo end
"""
    status, out, _ = either(tmp_path, "bash", "-c", script)
    assert status == 0 and out.endswith(b"end\n")


def test_pipelines_end_when_the_program_does(tmp_path):
    """The helper holds no end of a pipe: readers see the end of file at once."""
    env = environment(tmp_path)
    script = LOOP + "print(time.monotonic(), flush=True)"
    done = subprocess.run(["bash", "-c", f"{PYTHON} -c '{script}' 60 | ({PYTHON} -c 'import sys, time; d = sys.stdin.read(); "
                           "print(time.monotonic() - float(d))')"], env=env, capture_output=True, text=True, timeout=30)
    assert float(done.stdout) < 1.0, done


def test_environment_and_session_of_children(tmp_path):
    script = FORKS + """
loop(40)
import subprocess
e = dict(os.environ)
for name in ("LD_PRELOAD", "UNBLOCK_OUTPUT", "UNBLOCK_THRESHOLD"):
    e.pop(name, None)
print(sorted(e.items()), os.getsid(0) == os.getsid(os.getppid()), os.getpgid(0) == os.getpgid(os.getppid()), os.getcwd())
"""
    either(tmp_path, PYTHON, "-c", script)


# Programs that never loop -----------------------------------------------------------


def test_500_short_children(tmp_path):
    script = "for i in $(seq 500); do /bin/true; done; echo done"
    begun = time.monotonic()
    assert either(tmp_path, "sh", "-c", script, needs_helper=False)[1] == b"done\n"
    assert time.monotonic() - begun < helpers.PATIENCE
    assert not helpers_of(tmp_path) and not recordings(tmp_path)


def test_start_of_a_program_that_never_loops(tmp_path):
    """Median of pairs; the gate is 0.5 ms, and a busy machine is given twice that. In CPU time: others' is not ours."""
    def once(env):
        begun = time.perf_counter()
        pid = os.posix_spawn("/bin/true", ["true"], env)
        usage = os.wait4(pid, 0)[2]
        return usage.ru_utime + usage.ru_stime, time.perf_counter() - begun
    alone, preloaded = clean_environment(), environment(tmp_path)
    cpu, wall = [], []
    for i in range(300):
        took = {}
        for env in (alone, preloaded) if i % 2 else (preloaded, alone):
            took[env is preloaded] = once(env)
        cpu.append(took[True][0] - took[False][0])
        wall.append(took[True][1] - took[False][1])
    median = statistics.median(cpu) * 1e6
    print(f"added to the start of a program: {median:.0f} us of CPU, {statistics.median(wall) * 1e6:.0f} us in all "
          f"(medians of {len(cpu)} pairs)")
    assert median < 1000, f"{median:.0f} us"


@pytest.mark.parametrize("command", ["git --version", "make --version", "perl -e 'print 1'", "gcc --version", "ls /",
                                     "sh -c 'echo a | cat'", "find /usr/share/doc -maxdepth 1 -name 'a*'"])
def test_tools_get_no_helper(tmp_path, command):
    either(tmp_path, "sh", "-c", command, needs_helper=False)
    assert not recordings(tmp_path)
