"""Every callback of the event-loop libraries is timed by itself and named.

The matrix: library x kind of callback x stall. The programs callbacks_*.c have one callback of each kind, and each
stall of the list happens in each of them; the truth is theirs (stalls.h), what counts as right is in oracle.py.
Checked that it can fail: with the kind or the function of a row changed by hand the comparison fails, and with
UNBLOCK_CALLBACKS=0 the kinds are all "turn".
"""


import subprocess

import pytest

import helpers
import oracle

STALLS = "nanosleep,pipe_read,fsync,flock,getaddrinfo,mutex,cpu,pagefault,waitpid"
LIBRARIES = {
    "libuv": ("callbacks_uv", 19),
    "libevent": ("callbacks_event", 11),
    "libev": ("callbacks_ev", 12),
    "glib": ("callbacks_glib", 9),
    "sd-event": ("callbacks_sd", 9),
}


def run(tmp_path, program, *args, env=None, timeout=120, threshold=None):
    with oracle.Sentinel() as sentinel:
        done, recording = helpers.record(tmp_path, helpers.program(program), *args,
                                         threshold=threshold or f"{oracle.THRESHOLD_MS}ms", timeout=timeout,
                                         env=helpers.clean_environment(**(env or {})))
    return done, recording, sentinel


@pytest.mark.parametrize("library", LIBRARIES)
def test_matrix(tmp_path, library):
    program, kinds = LIBRARIES[library]
    done, recording, sentinel = run(tmp_path, program, tmp_path / "truth", STALLS)
    assert done.returncode == 0, done.stderr
    truth = oracle.Truth(tmp_path / "truth")
    (tmp_path / "dirty").unlink(missing_ok=True)
    skipped = [s.split(":")[0] for s in truth.skipped]
    verdict = oracle.compare(truth, recording, program, sentinel)
    verdict.check(kinds * len(STALLS.split(",")) - len(skipped))
    assert truth.undisturbed, truth.summaries
    assert {s["loop"] for s in recording.slow if s["kind"] != "turn"} == {library}
    loops = [line for line in recording.of("loop") if line["tid"] == line["pid"]]  # GLib has a worker thread
    assert [(line["loop"], line["identity"]) for line in loops] == [(library, "callback")], loops
    assert library == "sd-event" or loops[0]["version"][0].isdigit(), loops


@pytest.mark.parametrize("library", LIBRARIES)
def test_control(tmp_path, library):
    """The same callbacks without a stall: no record; and `stats` has counted each kind."""
    program, kinds = LIBRARIES[library]
    done, recording, sentinel = run(tmp_path, program, tmp_path / "truth", "nanosleep@0",
                                    env={"STALLS_MS": "0"}, threshold="10ms")
    assert done.returncode == 0, done.stderr
    assert not oracle.but_noise(recording, sentinel), oracle.but_noise(recording, sentinel)
    counted = recording.of("stats")[-1]["kinds"]
    truth = oracle.Truth(tmp_path / "truth")
    assert set(counted) >= {s["kind"] for s in truth.stalls} and len(truth.stalls) == kinds, (counted, truth.stalls)
    for kind, sums in counted.items():
        assert sums["callbacks"] >= 1 and sums["max_ns"] <= sums["total_ns"], (kind, sums)
        if "histogram" in sums:
            assert sum(n for _, n in sums["histogram"]) == sums["callbacks"], (kind, sums)


def test_switched_off(tmp_path):
    """UNBLOCK_CALLBACKS=0: the turns are seen as before, nothing of the library is touched."""
    done, recording, _ = run(tmp_path, "callbacks_uv", tmp_path / "truth", "nanosleep", env={"UNBLOCK_CALLBACKS": "0"})
    assert done.returncode == 0, done.stderr
    assert {s["kind"] for s in recording.slow} == {"turn"}
    assert recording.of("loop")[0]["identity"] == "turn"


LEAVE = {
    "longjmp": ("timer|turn", "on_jump"),
    "cancel": ("timer", "on_count"),
    "nested": ("timer", "on_outer"),
    "fork": ("timer", "on_fork"),
    "read": ("timer", "on_count"),
    "many": ("turn", "on_count"),
}


@pytest.mark.parametrize("how", LEAVE)
def test_callbacks_that_are_left(tmp_path, how):
    """By longjmp, by cancellation, into a loop of their own, by fork; more of them than thunks: the program does what
    it does without us, and its one stall (two where both sides of a fork have it) is found in its callback."""
    kinds, function = LEAVE[how]
    done, recording, sentinel = run(tmp_path, "callbacks_leave", how)
    assert (done.returncode, done.stdout) == (0, '{"callbacks": 100}\n'), done.stderr
    slow = [s for s in recording.slow if s["duration_ns"] > 50_000_000]
    assert len(slow) == (2 if how == "fork" else 1), slow
    for s in slow:
        assert s["kind"] in kinds.split("|") and s["callback"]["function"] == function, s
    rest = [s for s in recording.slow if s not in slow and not oracle.is_noise(s)
            and not sentinel.busy(s["start_ns"], s["start_ns"] + s["duration_ns"])]
    assert not rest, rest
    notes = [n["text"] for n in recording.of("note") if "more callback functions" in n["text"]]
    assert len(notes) == (how == "many"), recording.of("note")


THROW = r"""
#include <uv.h>
#include <stdexcept>
#include <unistd.h>
#include <cstdio>
static int n;
__attribute__((noinline)) static void on_throw(uv_timer_t *t)
{
    if (++n == 40)
        usleep(60000);
    if (n < 80)
        throw std::runtime_error("out of the loop");
    uv_stop(t->loop);
}
int main()
{
    uv_timer_t t;
    int caught = 0;
    uv_timer_init(uv_default_loop(), &t);
    uv_timer_start(&t, on_throw, 1, 1);
    while (n < 80) {
        try { uv_run(uv_default_loop(), UV_RUN_DEFAULT); }
        catch (const std::exception &) { caught++; }
    }
    std::printf("%d\n", caught);
}
"""


def test_throw(tmp_path):
    """A C++ exception passes the thunk (and libuv, whose frames have unwind tables) and is caught outside the loop."""
    source = tmp_path / "throw.cc"
    source.write_text(THROW)
    built = subprocess.run(["g++", "-O1", "-g", "-o", tmp_path / "throw", source, "-luv"], capture_output=True, text=True,
                           check=False)
    if built.returncode != 0:
        pytest.skip(f"no C++ compiler: {built.stderr[:200]}")
    done, recording = helpers.record(tmp_path, tmp_path / "throw", threshold="20ms")
    assert (done.returncode, done.stdout) == (0, "79\n"), done.stderr
    slow = [s for s in recording.slow if s["duration_ns"] > 50_000_000]
    assert [s["callback"]["function"].split("(")[0] for s in slow] == ["on_throw"], recording.slow


PLUGIN = r"""
#include <uv.h>
#include <unistd.h>
static int n;
__attribute__((noinline)) static void on_plugin(uv_timer_t *t)
{
    if (++n == 40)
        usleep(60000);
    if (n == 80)
        uv_stop(t->loop);
}
int plugin(void)
{
    uv_loop_t loop;
    uv_timer_t t;
    uv_loop_init(&loop);
    uv_timer_init(&loop, &t);
    uv_timer_start(&t, on_plugin, 1, 1);
    uv_run(&loop, UV_RUN_DEFAULT);
    return n;
}
"""
HOST = r"""
#include <dlfcn.h>
#include <stdio.h>
int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        void *h = dlopen(argv[i], RTLD_NOW | RTLD_LOCAL);
        int (*plugin)(void);
        if (!h || dlsym(RTLD_DEFAULT, "uv_timer_start")) {
            printf("%s\n", h ? "visible" : dlerror());
            return 1;
        }
        plugin = (int (*)(void))dlsym(h, "plugin");
        printf("%d\n", plugin());
    }
}
"""


def build(tmp_path, name, text, *flags):
    source = tmp_path / f"{name}.c"
    source.write_text(text)
    subprocess.run(["cc", "-O1", "-g", "-o", tmp_path / name, source, *flags], check=True)
    return tmp_path / name


@pytest.mark.parametrize("copies", [1, 2, 3])
def test_loaded_late_and_privately(tmp_path, copies):
    """Plugins with RTLD_LOCAL, each with a libuv of its own: found when its loop is made, named, and invisible to
    others. Of a third copy only the turns are known, and a note says so."""
    host = build(tmp_path, "host", HOST, "-ldl")
    plain = build(tmp_path, "plugin.so", PLUGIN, "-shared", "-fPIC", "-luv")
    libuv = next(line.split()[2] for line in subprocess.run(["ldd", plain], capture_output=True, text=True,
                                                            check=True).stdout.splitlines() if "libuv" in line)
    plugins = []
    for i in range(copies):
        folder = tmp_path / f"copy{i}"
        folder.mkdir()
        # Another file with another name: the loader takes it for another library.
        copy = folder / f"libuv.so.1.{i}"
        copy.write_bytes(open(libuv, "rb").read().replace(b"libuv.so.1\0", b"libuv.so.%d\0" % (5 + i)))
        (folder / f"libuv.so.{5 + i}").symlink_to(copy)
        plugins.append(build(tmp_path, f"plugin{i}.so", PLUGIN, "-shared", "-fPIC",
                             f"-L{folder}", f"-l:libuv.so.{5 + i}", f"-Wl,-rpath,{folder}"))
    done, recording = helpers.record(tmp_path, host, *plugins, threshold="20ms")
    assert (done.returncode, done.stdout) == (0, "80\n" * copies), (done.stdout, done.stderr)
    slow = [s for s in recording.slow if s["duration_ns"] > 50_000_000]
    assert [s["kind"] for s in slow] == (["timer", "timer", "turn"])[:copies], recording.slow
    # A turn's callback is known from looks alone, for which a busy machine may leave no time.
    assert [s["callback"]["function"] for s in slow[:2]] == ["on_plugin"] * len(slow[:2]), recording.slow
    assert all(s["callback"].get("function", "on_plugin") == "on_plugin" for s in slow), recording.slow
    assert len([n for n in recording.of("note") if "copies" in n["text"]]) == (copies > 2)


INNER = r"""
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include <stdio.h>
static int inner, n, looks;
__attribute__((noinline)) static void on_inner(void)
{
    struct epoll_event e;
    for (int i = 0; i < looks; i++)
        epoll_wait(inner, &e, 1, 0);
    if (++n == 60)
        usleep(60000);
}
int main(int argc, char **argv)
{
    struct epoll_event e = {.events = EPOLLIN};
    int outer = epoll_create1(0);
    looks = argc;
    inner = epoll_create1(0);
    epoll_ctl(outer, EPOLL_CTL_ADD, eventfd(1, 0), &e);
    while (n < 100 && epoll_wait(outer, &e, 1, -1) == 1)
        on_inner();
    printf("%d\n", n);
}
"""


@pytest.mark.parametrize("looks", [1, 4])
def test_waits_inside_callbacks_from_the_start(tmp_path, looks):
    """A library that looks at an epoll descriptor of its own in each callback: the loop is the wait outside."""
    done, recording = helpers.record(tmp_path, build(tmp_path, "inner", INNER), *["x"] * (looks - 1), threshold="20ms")
    assert (done.returncode, done.stdout) == (0, "100\n"), done.stderr
    slow = [s for s in recording.slow if s["duration_ns"] > 50_000_000]
    assert [s["callback"]["function"] for s in slow] == ["on_inner"], recording.slow
    assert 90 <= recording.of("stats")[-1]["turns"] <= 101, recording.of("stats")
