"""Hostile surroundings: what works there works, what does not is said by `doctor`."""

import json
import os
import shutil
import subprocess
import sys

import pytest

import helpers

PLAIN_USER = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
SURROUNDINGS = {
    "as we are": [],
    "plain user": PLAIN_USER,
    "root without CAP_SYS_PTRACE": ["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"],
    "user namespace": ["unshare", "--user", "--map-root-user"],
    "pid namespace": ["unshare", "--pid", "--fork", "--mount-proc"],
    "pid namespace, as pid 1's child": ["unshare", "--pid", "--fork", "--mount-proc", "sh", "-c", '"$@"; exit $?', "sh"],
    "seccomp filter like Docker's": [helpers.PROGRAMS / "filtered"],
}
NEEDS_ROOT = {"plain user", "root without CAP_SYS_PTRACE", "pid namespace", "pid namespace, as pid 1's child"}


@pytest.fixture(params=SURROUNDINGS)
def surroundings(request, tmp_path):
    """A command's beginning that puts it into other surroundings; its output goes to a folder that is open there."""
    prefix = [str(x) for x in SURROUNDINGS[request.param]]
    if request.param in NEEDS_ROOT and os.getuid() != 0:
        pytest.skip(f"{request.param}: takes root to set up")
    helpers.let_in(tmp_path)
    tmp_path.chmod(0o777)
    tried = subprocess.run([*prefix, helpers.UNBLOCK, "--version"], capture_output=True, text=True)
    if tried.returncode != 0:
        pytest.skip(f"{request.param} cannot be set up here: {tried.stderr.strip()[:200]}")
    return request.param, prefix


def doctor(*args, prefix=()):
    done = subprocess.run([*prefix, str(helpers.UNBLOCK), "doctor", "--format", "json", *map(str, args)],
                          capture_output=True, text=True, timeout=helpers.PATIENCE, env=helpers.clean_environment())
    assert done.stderr == "" and done.returncode in (0, 1), done
    told = json.loads(done.stdout)
    bad = [f for f in told["findings"] if f["health"] in ("limited", "failed")]
    assert done.returncode == (1 if bad else 0)
    return {f["what"]: f for f in told["findings"]}


def test_surroundings(tmp_path, surroundings):
    name, prefix = surroundings
    found = doctor(prefix=prefix)
    expected = {"plain user": {"ptrace": "limited", "bpf": "limited"},
                "root without CAP_SYS_PTRACE": {"ptrace": "limited"},
                "user namespace": {"namespaces": "info", "bpf": "limited"},
                "pid namespace": {"namespaces": "info"},
                "pid namespace, as pid 1's child": {"namespaces": "info", "init": "info"},
                "seccomp filter like Docker's": {"seccomp": "limited", "perf": "limited", "bpf": "limited"}}.get(name, {})
    assert {what: found[what]["health"] for what in expected} == expected
    for finding in found.values():
        if finding["health"] == "limited" and finding["what"] not in ("seccomp", "membarrier"):
            assert {"host", "docker", "kubernetes"} <= finding["mend"].keys(), finding
    # What doctor says of stacks is what a run finds; the stall itself is found everywhere.
    path = tmp_path / "r.jsonl"
    done = subprocess.run([*prefix, str(helpers.UNBLOCK), "run", "-q", "-t", "1ms", "-o", path, "--",
                           helpers.program("calls"), "many", "10"], capture_output=True, text=True,
                          env=helpers.clean_environment(), timeout=helpers.PATIENCE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", ""), done
    if os.getuid() == 0:
        os.chown(path, 0, 0)
    long = [s for s in helpers.Recording(path).slow if not s.get("startup") and s["duration_ns"] >= 3_000_000]
    slow = [s for s in long if "usleep" in [c["via"] for c in s.get("calls", [])]]
    assert 0 < len(slow) <= 10 <= len(long)  # those that the watcher was told of too late are told without calls
    stacks = [s for s in slow if any(x.get("proof") == "still" for x in s["samples"])]
    assert bool(stacks) == (found["stacks"]["health"] == "ok"), (found["stacks"], slow)


def test_text_and_exit_status():
    done = helpers.unblock("doctor")
    lines = done.stdout.splitlines()
    assert any(line.startswith("ok       kernel") for line in lines) and done.stderr == ""
    for args in (("--format", "yaml"), ("1", "2"), ("x",), (str(2**22 + 1),)):
        done = helpers.unblock("doctor", *args)
        assert done.returncode == 2
        helpers.one_line(done.stderr)


def test_processes(tmp_path):
    """Bits, C library, runtime, agent, rights."""
    own = doctor(os.getpid())
    assert own["program"]["health"] == "ok" and "Python" in own["runtime"]["text"]
    assert own["access"]["health"] == "ok" and "not in it" in own["loaded"]["text"]

    target = helpers.start("run", "-q", "-o", tmp_path / "r.jsonl", "--", "sleep", "30")
    try:
        child = helpers.wait_until(lambda: [p for p in helpers.children(target.pid)
                                            if helpers.Path(f"/proc/{p}/comm").read_text() == "sleep\n"],
                                   what="sleep")[0]
        helpers.wait_until(lambda: "libunblock" in helpers.Path(f"/proc/{child}/maps").read_text(), what="the agent")
        assert doctor(child)["loaded"]["health"] == "ok"
    finally:
        target.terminate()
        target.communicate()


@pytest.mark.parametrize("kind", ["pid", "user"])
def test_process_in_another_namespace(kind):
    target = subprocess.Popen(["unshare", f"--{kind}", "--fork", "--kill-child", "sleep", "30"])
    try:
        def inside():
            assert target.poll() is None or pytest.skip("no namespaces here")
            return [p for p in helpers.children(target.pid)
                    if helpers.Path(f"/proc/{p}/comm").read_text() == "sleep\n"]

        (child,) = helpers.wait_until(inside, what="sleep")
        found = doctor(child)["namespaces"]
        assert found["health"] == "limited" and f"another {kind} namespace" in found["text"]
    finally:
        target.kill()
        target.wait()


@pytest.mark.parametrize("flags, word", [(["-static"], "statically"), (["-m32"], "x86-64"),
                                         (["-fsanitize=address"], "sanitizer")])
def test_programs_without_an_agent(tmp_path, flags, word):
    source = tmp_path / "wait.c"
    source.write_text("#include <unistd.h>\nint main(void) { write(1, \"x\", 1); pause(); }\n")
    if not shutil.which("gcc") or subprocess.run(["gcc", "-w", *flags, "-o", tmp_path / "wait", source],
                                                 capture_output=True).returncode != 0:
        pytest.skip(f"gcc {flags[0]} does not build here")
    with subprocess.Popen([tmp_path / "wait"], stdout=subprocess.PIPE) as p:
        try:
            assert p.stdout.read(1) == b"x"
            found = doctor(p.pid)
            assert word in found["program"]["text"] and found["program"]["health"] != "ok"
        finally:
            p.kill()


def test_other_users_process():
    if os.getuid() != 0:
        pytest.skip("takes root to set up")
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"]) as p:
        try:
            tried = subprocess.run([*PLAIN_USER, helpers.UNBLOCK, "--version"], capture_output=True)
            if tried.returncode != 0:
                pytest.skip("the build folder is not open to other users")
            found = doctor(p.pid, prefix=PLAIN_USER)
            assert found["access"]["health"] == "limited" and "another user" in found["access"]["text"]
        finally:
            p.kill()
