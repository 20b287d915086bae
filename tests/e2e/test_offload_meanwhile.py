"""What ran while moved calls were away, by name: as the program itself has counted it.

Checked that it can fail: with the counts of who is suspended not taken along, with who goes on counted as its own
neighbour, with names asked for at the end only (the process is gone), and with the rest not counted.
"""

import os
import subprocess

import helpers
import pythons
import pytest

PROGRAM = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <uv.h>

static int away, ran[20], rounds; /* on_2 to on_19; 0: on_other */
static uv_timer_t timer[22];

static void on_work(uv_timer_t *t)
{
    struct timespec rest = {0, 150000000};
    away++;
    nanosleep(&rest, NULL);
    away--;
    if (++rounds < 3) return;
    for (int i = 0; i < 22; i++) uv_timer_stop(&timer[i]);
}
static void on_other(uv_timer_t *t)
{
    struct timespec rest = {0, 60000000};
    ran[0] += away;
    nanosleep(&rest, NULL);
    ran[0] += away;
}
#define ON(n) static void on_##n(uv_timer_t *t) { if (away) ran[n]++; }
ON(2) ON(3) ON(4) ON(5) ON(6) ON(7) ON(8) ON(9) ON(10) ON(11) ON(12) ON(13) ON(14) ON(15) ON(16) ON(17) ON(18) ON(19)

int main(int argc, char **argv)
{
    static void (*const on[])(uv_timer_t *) = {on_2, on_3, on_4, on_5, on_6, on_7, on_8, on_9, on_10, on_11, on_12,
                                                on_13, on_14, on_15, on_16, on_17, on_18, on_19};
    int n = atoi(argv[1]);
    for (int i = 0; i < 22; i++) uv_timer_init(uv_default_loop(), &timer[i]);
    for (int i = 0; i < n; i++) uv_timer_start(&timer[i], on[i], 5 + i, i == 0 ? 5 : 20 + i);
    uv_timer_start(&timer[20], on_work, 50, 1);
    if (argc > 2) uv_timer_start(&timer[21], on_other, 30, 1);
    uv_run(uv_default_loop(), UV_RUN_DEFAULT);
    printf("on_other %d\n", ran[0]);
    for (int i = 2; i < 2 + n; i++) printf("on_%d %d\n", i, ran[i]);
    return 0;
}
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("meanwhile")
    (folder / "ran.c").write_text(PROGRAM)
    subprocess.run(["cc", "-g", "-O1", "-w", "ran.c", "-o", "ran", "-luv"], check=True, cwd=folder)
    return folder / "ran"


def place(recording, function, role="callback"):
    """The line of the one place of this function's."""
    (line,) = [line for line in recording.of("offload") if line["moved"] and line[role]["function"] == function]
    return line


def counted(done):
    return {name: int(n) for name, n in (line.split() for line in done.stdout.splitlines()) if int(n)}


@pytest.mark.parametrize("n", [3, 18])
def test_named(tmp_path, built, n):
    """Three functions by name, each as often as it ran, the most frequent first; of eighteen eight have a name, and the rest is counted."""
    done, recording = helpers.record(tmp_path, built, n, threshold="50ms", options=("--offload=eager",))
    ran, line = counted(done), place(recording, "on_work")
    named = {one["function"]: one["count"] for one in line["meanwhile"]}
    assert len(named) == len(line["meanwhile"]) == min(n, 8) and set(named) <= set(ran), (named, ran)
    assert all(named[function] == ran[function] for function in named), (named, ran)
    assert sum(named.values()) + line.get("meanwhile_others", 0) == sum(ran.values()) == line["beside"], (line, ran)
    assert list(named.values()) == sorted(named.values(), reverse=True)
    assert all((one["kind"], one["file"].rsplit("/")[-1]) == ("timer", "ran.c") for one in line["meanwhile"])
    first, rest = line["meanwhile"][0], line["beside"] - sum(one["count"] for one in line["meanwhile"][:4])
    assert f"    {first['function']}() (ran.c:{first['line']}), timer: {first['count']}; " in done.stderr
    assert f"; and {rest} others\n" in done.stderr if n > 4 else " other" not in done.stderr


def test_of_each(tmp_path, built):
    """Two callbacks are suspended at once: each has what ran while it was, and the other is among them."""
    done, recording = helpers.record(tmp_path, built, 2, "other", threshold="50ms", options=("--offload=eager",))
    ran, line = counted(done), place(recording, "on_work")
    assert {one["function"]: one["count"] for one in line["meanwhile"]} == ran and set(ran) == {"on_2", "on_3", "on_other"}, (line, ran)
    assert {one["function"] for one in place(recording, "on_other")["meanwhile"]} == {"on_2", "on_3", "on_work"}


STEPS = """
import asyncio, sys, time
away, ran = 0, {}

async def ticks(name, delay):
    while True:
        await asyncio.sleep(delay)
        if away:
            ran[name] = ran.get(name, 0) + 1

async def fast():
    await ticks("fast", 0.01)

async def seldom():
    await ticks("seldom", 0.04)

async def other():
    while True:
        ran["other"] = ran.get("other", 0) + away
        time.sleep(0.06)
        ran["other"] += away
        await asyncio.sleep(0)

async def works():
    global away
    await asyncio.sleep(0.05)
    for _ in range(3):
        away += 1
        time.sleep(0.15)
        away -= 1
        await asyncio.sleep(0)

async def main():
    others = [asyncio.ensure_future(f()) for f in (fast, seldom, other)]
    await asyncio.ensure_future(works())
    for name in ran:
        print(name, ran[name])

if sys.argv[1:] == ["uvloop"]:
    import uvloop
    uvloop.install()
asyncio.run(main())
"""


@pytest.mark.parametrize("python", pythons.moving(helpers.AGENT, "UNBLOCK_SOAK" in os.environ) or [
    pytest.param(None, marks=pytest.mark.skip(reason="no headers of CPython 3.11 to 3.13: not built"))])
def test_steps_named(tmp_path, python):
    """Of asyncio: the steps of tasks, by their coroutines."""
    (tmp_path / "steps.py").write_text(STEPS)
    python, *loop = python.split()
    done, recording = helpers.record(tmp_path, python, tmp_path / "steps.py", *loop, threshold="50ms", options=("--offload=eager",))
    assert done.returncode == 0, done.stderr
    ran, line = counted(done), place(recording, "works", "caller")
    assert {one["function"]: one["count"] for one in line["meanwhile"]} == ran and sum(ran.values()) == line["beside"], (line, ran)
    assert set(ran) == {"fast", "seldom", "other"} and all((one["kind"], one["file"]) == ("task", str(tmp_path / "steps.py")) for one in line["meanwhile"])
