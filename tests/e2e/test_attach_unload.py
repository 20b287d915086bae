"""`unblock detach --unload`: the agent's library goes where nothing leads into it any more, and stays, with the reason, elsewhere."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

import attaching
import helpers
from attaching import Target, attach, enter, leave, nothing_noticed
from helpers import Recording, one_line, unblock, wait_until

pytestmark = pytest.mark.beside

SOAK = os.environ.get("UNBLOCK_SOAK") == "1"
LONG = int(os.environ.get("UNBLOCK_CYCLES", 3)) >= 50
longer = pytest.mark.skipif(not (SOAK or LONG), reason="takes long: make check-attach")
CYCLES = 1000 if SOAK else 50 if LONG else 5  # what the loader reserves for TLS would be used up after 25

# A loop that keeps what it is told to keep in some place; a line it reads says where.
KEEPER = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <unistd.h>

static ssize_t (**kept)(int, void *, size_t);
static char *much;

static void *sleeper(void *unused)
{
    for (;;)
        usleep(100000000);
    return NULL;
}

int main(void)
{
    struct epoll_event event = {.events = EPOLLIN};
    int ep = epoll_create1(0), pair[2], empty[2], n;
    char line[64], byte;
    pthread_t thread;

    kept = calloc(1, sizeof(*kept));
    if (pipe(pair) || pipe(empty) || epoll_ctl(ep, EPOLL_CTL_ADD, 0, &event))
        return 1;
    printf("ready\n");
    fflush(stdout);
    for (;;) {
        n = epoll_wait(ep, &event, 1, 5);
        if (*kept && (write(pair[1], "x", 1) != 1 || (*kept)(pair[0], &byte, 1) != 1))
            return 2;
        if (n != 1)
            continue;
        n = (int)read(0, line, sizeof(line) - 1);
        if (n <= 0)
            return 0;
        line[n] = 0;
        if (!strncmp(line, "heap", 4))
            *kept = read; /* what the slot of the table says */
        if (!strncmp(line, "forget", 6))
            *kept = NULL;
        if (!strncmp(line, "exit", 4))
            atexit((void (*)(void))sync_file_range); /* mangled by glibc */
        if (!strncmp(line, "inside", 6))
            pthread_create(&thread, NULL, sleeper, NULL);
        if (!strncmp(line, "code", 4))
            mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (!strncmp(line, "much", 4) && (much = malloc(512 << 20)))
            memset(much, 1, 512 << 20);
        if (!strncmp(line, "handler", 7))
            signal(SIGUSR1, (void (*)(int))(void *)fsync);
        printf("done\n");
        fflush(stdout);
    }
}
"""


class Keeper:
    def __init__(self, program, **popen):
        self.process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
                                        **{"env": helpers.clean_environment(), **popen})
        self.pid = self.process.pid
        assert self.process.stdout.readline() == "ready\n"

    def keep(self, where):
        self.process.stdin.write(where + "\n")
        assert self.process.stdout.readline() == "done\n"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def keeper(tmp_path_factory):
    program = tmp_path_factory.mktemp("keeper") / "keeper"
    subprocess.run(["gcc", "-O1", "-w", "-pthread", "-xc", "-", "-o", program], input=KEEPER, text=True, check=True)
    return program


def is_loaded(pid):
    return bool(attaching.agent_ranges(pid))


def sleeps(pid):
    return any(Path(f"/proc/{pid}/task/{tid}/syscall").read_text().startswith("230 ") for tid in os.listdir(f"/proc/{pid}/task"))


def unload(pid, *options):
    """With time enough to look on a machine where nobody gets a CPU."""
    return unblock("detach", "--unload", *(options or ("--hold", "5s")), pid)


def test_unloaded(tmp_path):
    """Nothing of the library is mapped, the program goes on; it can be entered again."""
    with Target(60) as target:
        target.ready()
        attached = enter(target.pid, tmp_path / "a.jsonl")
        done = unload(target.pid)
        assert done.returncode == 0 and done.stderr == "", done.stderr
        assert attached.wait(helpers.PATIENCE) == 0
        attached.communicate()
        assert not is_loaded(target.pid) and not attaching.has_arena(target.pid)
        path = tmp_path / "b.jsonl"
        attached = enter(target.pid, path)
        wait_until(lambda: any(not s.get("ongoing") for s in Recording(path, torn=True).slow), what="a stall")
        leave(attached)
        assert is_loaded(target.pid)
        assert unload(target.pid).returncode == 0
        assert not is_loaded(target.pid)
        again = unload(target.pid)
        assert again.returncode == 2 and "the agent is not in it" in one_line(again.stderr)
        nothing_noticed(target.end())


def test_again_and_again(tmp_path):
    """Neither mappings nor descriptors nor the loader's reserve for TLS are used up; threads run on beside it."""
    with Target(0, "raw", "malloc", "threads") as target:
        target.ready()
        unloaded, maps = 0, []
        files = attaching.open_files(target.pid)
        for i in range(CYCLES):
            leave(enter(target.pid, tmp_path / f"{i}.jsonl"))
            done = unload(target.pid)
            assert done.returncode in (0, 1), done.stderr
            unloaded += done.returncode == 0
            if done.returncode == 0:
                maps.append(len(attaching.maps(target.pid)))
        assert attaching.open_files(target.pid) == files
        said = target.end()
    nothing_noticed(said)
    print(f"unloaded {unloaded} times of {CYCLES}")
    assert unloaded > CYCLES * 3 / 4
    assert maps[-1] <= maps[1] + 4, maps  # malloc of the program's threads has some of its own


@pytest.mark.parametrize("where, why", [("heap", "into it remain"), ("exit", "into it remain"),
                                        ("inside", "its thread"), ("code", "makes code while it runs"),
                                        ("handler", "a signal handler of its")])
def test_kept(tmp_path, keeper, where, why):
    """What leads into it is found, and then it stays; the plain detach has been done."""
    with Keeper(keeper) as program:
        attached = enter(program.pid, tmp_path / "a.jsonl")
        assert "kept from its work" in attached.stderr.readline()  # its table has been written to the end
        assert attaching.words_into_agent(program.pid, "/keeper") > 0
        program.keep(where)
        if where == "inside":
            wait_until(lambda: sleeps(program.pid), what="the thread's sleep")
        done = unload(program.pid)
        attached.communicate(timeout=helpers.PATIENCE)
        assert done.returncode == 1, done.stderr
        assert "was left, but the agent stays loaded in it, asleep: " in one_line(done.stderr) and why in done.stderr, done.stderr
        assert is_loaded(program.pid) and not attaching.has_arena(program.pid)
        time.sleep(0.05)
        program.keep("nothing")  # it calls what it has kept each 5 ms, and lives
        if where == "heap":
            program.keep("forget")
            assert unload(program.pid).returncode == 0
            assert not is_loaded(program.pid)
            program.keep("nothing")


@pytest.mark.parametrize("variable, value, why", [("inherited", 1, "somebody else has entered the process meanwhile"),
                                                  ("coming_or_going", 1, "another thread of it is just entering or leaving")])
def test_each_refusal_has_its_own_reason(tmp_path, variable, value, why):
    """These last for moments, or come about by other ways than attach: they are written into the agent's own variables."""
    with Target(0) as target:
        target.ready()
        leave(enter(target.pid, tmp_path / "a.jsonl"))
        symbols = subprocess.run(["nm", helpers.AGENT], capture_output=True, text=True, check=True).stdout.split("\n")
        at = next(int(line.split()[0], 16) for line in symbols if line.endswith(f" {variable}"))
        with open(f"/proc/{target.pid}/mem", "r+b", buffering=0) as mem:
            for content in (value, 0):
                mem.seek(min(start for start, _ in attaching.agent_ranges(target.pid)) + at)
                mem.write(content.to_bytes(4, "little"))
                done = unload(target.pid)
                assert done.returncode == (1 if content else 0), done.stderr
                assert not content or why in one_line(done.stderr), done.stderr
        nothing_noticed(target.end())


@longer
def test_not_held_for_long(tmp_path, keeper):
    """512 MB of heap in a tenth of a millisecond: not even begun."""
    with Keeper(keeper) as program:
        program.keep("much")
        leave(enter(program.pid, tmp_path / "a.jsonl"))
        done = unload(program.pid, "--hold", "100us")
        assert done.returncode == 1 and "cannot be looked through in the 0.1 ms" in one_line(done.stderr), done.stderr
        assert is_loaded(program.pid)
        assert unload(program.pid).returncode == 0
        program.keep("nothing")


def test_preloaded(keeper):
    """Its names lead to it for good. (Switched off: with a watcher this would take until that one has ended.)"""
    with Keeper(keeper, env={**helpers.clean_environment(), "LD_PRELOAD": helpers.AGENT, "UNBLOCK": "0"}) as program:
        done = unload(program.pid)
        assert done.returncode == 1 and "loaded with the program (LD_PRELOAD)" in one_line(done.stderr), done.stderr
        assert is_loaded(program.pid)
        program.keep("nothing")


@longer
def test_killed_at_any_moment(tmp_path):
    """SIGKILL of the one who unloads: loaded or not, the program goes on, and the next one comes to an end."""
    rand = random.Random(time.time_ns())
    rounds = 1000 if SOAK else 200 if LONG else 8
    with Target(0, "raw", "two") as target:
        target.ready()
        for i in range(rounds):
            attached = attach(target.pid, tmp_path / f"{i}.jsonl", "--duration", "50ms", stderr=subprocess.DEVNULL)
            attached.communicate()
            unloading = helpers.start("detach", "--unload", target.pid, stderr=subprocess.DEVNULL)
            time.sleep(rand.uniform(0.003, 0.03))
            unloading.send_signal(signal.SIGKILL)
            unloading.communicate()
            assert target.process.poll() is None, f"round {i}"
        leave(enter(target.pid, tmp_path / "last.jsonl"))
        assert unload(target.pid).returncode in (0, 1)
        said = target.end()
    # As in test_attach.py: a wait that was interrupted when its tracer died answers EINTR.
    assert said["eintr"] <= rounds, said
    said["eintr"] = 0
    nothing_noticed(said)
