"""What a watched program executes: whatever it is, it must behave as without us."""

import os
import resource
import shutil
import subprocess

import pytest

import helpers

pytestmark = pytest.mark.beside

HOWS = ["execve", "execv", "execvp", "execvpe", "execl", "execlp", "execle", "fexecve", "fexecve_path", "execveat",
        "posix_spawn", "posix_spawnp", "vfork"]

# Prints its arguments and environment, in their order, and says something on standard error.
CHILD = r"""
#include <stdio.h>
#include <string.h>
#include <unistd.h>
extern char **environ;
int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        puts(argv[i]);
    for (char **e = environ; *e; e++)
        if (strncmp(*e, "UNBLOCK", 7))
            puts(*e);
    fputs("done\n", stderr);
    return 7;
}
"""

KINDS = {
    "plain": ["gcc"],
    "static": ["gcc", "-static"],
    "32-bit": ["gcc", "-m32"],
    "musl": ["musl-gcc"],
    "musl static": ["musl-gcc", "-static"],
    "asan": ["gcc", "-fsanitize=address"],
    "tsan": ["gcc", "-fsanitize=thread"],
    "asan static runtime": ["gcc", "-fsanitize=address", "-static-libasan"],
}
ENTERED = {"plain", "static", "musl static", "asan static runtime"}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Builds the child once a kind; skips where the compiler for it is not installed."""
    folder = tmp_path_factory.mktemp("children")
    (folder / "child.c").write_text(CHILD)
    made = {}

    def build(kind):
        if kind not in made:
            path = folder / kind.replace(" ", "-")
            compiler = KINDS[kind]
            done = shutil.which(compiler[0]) and subprocess.run(
                [*compiler, "-o", path, folder / "child.c"], capture_output=True, text=True)
            if not done or done.returncode != 0:
                pytest.skip(f"{' '.join(compiler)} does not build here (gcc-multilib, musl-tools, libasan8, libtsan2)")
            if subprocess.run([path], capture_output=True).returncode != 7:
                pytest.skip(f"a {kind} program does not run here")
            made[kind] = path
        return made[kind]

    return build


def both(tmp_path, *command, env=None, **options):
    """Runs a command without and with the agent: (plain CompletedProcess, watched CompletedProcess, recording)."""
    env = helpers.clean_environment(**(env or {}))
    plain = subprocess.run([str(c) for c in command], env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                           timeout=helpers.PATIENCE, **options)
    watched, recording = helpers.record(tmp_path, *command, env=env, options=("-q",), **options)
    return plain, watched, recording


def without_preload(text):
    return "".join(line for line in text.splitlines(True) if not line.startswith("LD_PRELOAD="))


def assert_equal(plain, watched):
    assert watched.returncode == plain.returncode
    assert watched.stderr == plain.stderr
    assert without_preload(watched.stdout) == without_preload(plain.stdout)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", HOWS)
def test_child(tmp_path, built, kind, how):
    plain, watched, recording = both(tmp_path, helpers.program("execs"), how, built(kind))
    assert plain.returncode == 7 and "one\ntwo\n" in plain.stdout
    assert_equal(plain, watched)
    assert (f"LD_PRELOAD={helpers.AGENT}" in watched.stdout) == (kind in ENTERED), watched.stdout
    if kind not in ENTERED:
        assert "LD_PRELOAD=" not in watched.stdout
        assert any("not watched" in n["text"] for n in recording.of("note")), recording.of("note")


def test_others_in_ld_preload_stay(tmp_path, built):
    """Only our entry goes, whatever its place and the separators."""
    child = built("32-bit")
    library = tmp_path / "lib32.so"
    (tmp_path / "lib.c").write_text("int unblock_test;\n")
    subprocess.run(["gcc", "-m32", "-shared", "-o", library, tmp_path / "lib.c"], check=True)
    for value, left in ((f"{helpers.AGENT}", None), (f"{helpers.AGENT}:{library}", f"{library}"),
                        (f"{library}:{helpers.AGENT}", f"{library}"),
                        (f"{library} {helpers.AGENT}:{library}", f"{library} {library}"),
                        (f"{library}", f"{library}")):
        env = helpers.clean_environment(LD_PRELOAD=value)
        # The 64-bit parent complains of the 32-bit library, the child must not complain of anything.
        done = subprocess.run([helpers.program("execs"), "execve", child], env=env, capture_output=True, text=True)
        shown = [line for line in done.stdout.splitlines() if line.startswith("LD_PRELOAD=")]
        assert shown == ([f"LD_PRELOAD={left}"] if left else []), value
        complaints = [line for line in done.stderr.splitlines() if "cannot be preloaded" in line]
        assert not any("libunblock" in line for line in complaints), complaints


def test_scripts_are_followed(tmp_path, built):
    """A script whose interpreter cannot be entered, and a script of that script."""
    child = built("musl")
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text(f"#!{child} argument\n")
    second.write_text(f"#! {first}\n")
    for script in (first, second):
        script.chmod(0o755)
        plain, watched, _ = both(tmp_path, helpers.program("execs"), "execvp", script)
        assert plain.returncode == 7
        assert_equal(plain, watched)


@pytest.mark.parametrize("how", HOWS)
def test_errors_are_the_same(tmp_path, how):
    data, folder, broken = tmp_path / "data", tmp_path / "folder", tmp_path / "broken"
    data.write_text("no program\n")
    folder.mkdir()
    broken.write_bytes(b"\x7fELF" + bytes(60))
    broken.chmod(0o755)
    os.mkfifo(tmp_path / "fifo", 0o755)
    for name in (tmp_path / "missing", data, folder, broken, data / "below", "", "no-such-command"):
        plain, watched, _ = both(tmp_path, helpers.program("execs"), how, name, cwd=tmp_path)
        assert plain.returncode in (1, 127), (how, name, plain)
        assert_equal(plain, watched)
    if not how.startswith("fexecve"):  # the program itself would wait to open it
        plain, watched, _ = both(tmp_path, helpers.program("execs"), how, tmp_path / "fifo")
        assert_equal(plain, watched)


def test_found_in_path(tmp_path, built):
    """execvp and its kin take what PATH says, of the parent."""
    child = built("32-bit")
    (tmp_path / "bin").mkdir()
    shutil.copy(child, tmp_path / "bin" / "unblock-test-child")
    env = {"PATH": f"/nonexistent::{tmp_path}/bin:{os.environ['PATH']}"}
    for how in ("execvp", "execvpe", "execlp", "posix_spawnp"):
        plain, watched, _ = both(tmp_path, helpers.program("execs"), how, "unblock-test-child", env=env)
        assert plain.returncode == 7
        assert_equal(plain, watched)
        assert "LD_PRELOAD" not in watched.stdout


def test_no_environment(tmp_path, built):
    """As with `env -i`: nothing is added to it."""
    plain, watched, _ = both(tmp_path, helpers.program("execs"), "no_environment", built("plain"))
    assert plain.stdout == watched.stdout == "one\ntwo\n"


def test_privileged_programs(tmp_path_factory, built):
    """Set-user-ID, set-group-ID and file capabilities, executed by a plain user."""
    if os.getuid() != 0 or not shutil.which("setpriv") or not shutil.which("setcap"):
        pytest.skip("needs root, setpriv and setcap (libcap2-bin)")
    folder = tmp_path_factory.mktemp("secure")
    tmp_path = folder / "out"
    tmp_path.mkdir()
    helpers.let_in(folder)
    tmp_path.chmod(0o777)
    reached = subprocess.run(["setpriv", "--reuid=65534", "--clear-groups", "test", "-x", helpers.UNBLOCK])
    if reached.returncode != 0:
        pytest.skip("the build folder is not open to other users")
    for name, mark in (("suid", lambda p: p.chmod(0o4755)), ("sgid", lambda p: p.chmod(0o2755)),
                       ("capable", lambda p: subprocess.run(["setcap", "cap_net_raw+ep", p], check=True))):
        path = folder / name
        shutil.copy(built("plain"), path)
        path.chmod(0o755)
        mark(path)
        as_user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        env = helpers.clean_environment()
        plain = subprocess.run([*as_user, helpers.program("execs"), "execve", path], env=env, capture_output=True,
                               text=True)
        recording = tmp_path / f"{name}.jsonl"
        watched = subprocess.run([*as_user, helpers.UNBLOCK, "run", "-q", "-o", recording, "--",
                                  helpers.program("execs"), "execve", path], env=env, capture_output=True, text=True)
        assert plain.returncode == 7
        assert_equal(plain, watched)
        assert "LD_PRELOAD" not in watched.stdout
        assert any("gain privileges" in n["text"] for n in helpers.Recording(recording).of("note"))
        # For root nothing is gained: it is entered as any other.
        if name != "capable":
            plain, watched, _ = both(tmp_path, helpers.program("execs"), "execve", path)
            assert_equal(plain, watched)
            assert f"LD_PRELOAD={helpers.AGENT}" in watched.stdout


def test_address_space(tmp_path):
    """A program that locks its memory or has little of it: the agent takes little."""
    look = ("import os, resource\n"
            "line = [x for x in open('/proc/self/status') if x.startswith('VmSize')][0]\n"
            "print(int(line.split()[1]))\n")
    plain, watched, _ = both(tmp_path, helpers.PYTHON, "-c", look)
    assert int(watched.stdout) - int(plain.stdout) < 3300, "kilobytes more than without"
    done, recording = helpers.record(tmp_path, helpers.program("calls"), "many", 10, threshold="1ms", options=("-q",),
                                     preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33)))
    assert done.returncode == 0 and recording.slow


def test_two_loops_and_a_fork_find_their_cold_parts(tmp_path):
    """Each slot's part is mapped at its first use; children inherit them and map their own."""
    code = ("import asyncio, os, threading, time\n"
            "async def main():\n"
            "    for i in range(15):\n"
            "        await asyncio.sleep(0.001)\n"
            "        time.sleep(0.005)\n"
            "ts = [threading.Thread(target=asyncio.run, args=(main(),)) for _ in range(5)]\n"
            "[t.start() for t in ts]; [t.join() for t in ts]\n"
            "pid = os.fork()\n"
            "asyncio.run(main())\n"
            "if pid: os.waitpid(pid, 0)\n")
    done, recording = helpers.record(tmp_path, helpers.PYTHON, "-c", code, threshold="2ms", options=("-q",))
    assert done.returncode == 0, done
    assert len({(s["pid"], s["tid"]) for s in recording.slow}) == 7
    assert len({s["pid"] for s in recording.slow}) == 2
