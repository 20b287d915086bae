"""Fibers of the agent beside C++ and gdb. (By themselves: unit/test_fiber.c.)

Checked that it can fail: without the swap of the C++ runtime's exceptions (NULL in place of them) `interleaved` ends
with the wrong exception, and without the personality's bookkeeping `escapes` leaves one uncaught behind.
"""

import re
import shutil
import subprocess

import pytest

import helpers

pytestmark = pytest.mark.beside

OBJECTS = [helpers.BUILD / "obj/agent/offload" / name for name in ("fiber.o", "fiber_x86_64.o")]

CXX = r"""
extern "C" {
#include "fiber.h"
}
#include <cstdio>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <string>
#include <cxxabi.h>
#include <pthread.h>

static ub_fiber_pool pool;
static ub_fiber *fiber[2];
#ifdef NO_SWAP
static ub_fiber_exceptions *globals() { return nullptr; }
#else
static ub_fiber_exceptions *globals() { return reinterpret_cast<ub_fiber_exceptions *>(abi::__cxa_get_globals()); }
#endif
static std::string seen[2];

struct Noisy {
    int *n;
    ~Noisy() { (*n)++; }
};

// Throws, catches, and is left in the midst of the catch block.
static uint64_t within(uint64_t i, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t)
{
    try {
        throw std::runtime_error("exception " + std::to_string(i));
    } catch (const std::exception &e) {
        ub_fiber_suspend(fiber[i]);
        try {
            throw;
        } catch (const std::exception &again) {
            seen[i] = again.what();
        }
    }
    return 0;
}

static uint64_t throws(uint64_t n, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t)
{
    Noisy noisy = {reinterpret_cast<int *>(n)};
    ub_fiber_suspend(fiber[0]);
    throw std::logic_error("out");
}

static int unwound;

static uint64_t exits(uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t)
{
    Noisy noisy = {&unwound};
    pthread_exit(&unwound);
}

static ub_fiber *start(ub_fiber_function *f, uint64_t a)
{
    const uint64_t word[UB_FIBER_WORDS] = {a};
    ub_fiber *made = ub_fiber_take(&pool);
    ub_fiber_start(made, f, word);
    return made;
}

static void *thread(void *)
{
    Noisy noisy = {&unwound};
    fiber[0] = start(exits, 0);
    ub_fiber_resume(fiber[0], globals());
    return nullptr;
}

int main(int argc, char **argv)
{
    pool.size = 1 << 20;
    pool.head = sizeof(ub_fiber);
    if (!strcmp(argv[1], "interleaved")) {
        for (uint64_t i = 0; i < 2; i++) {
            fiber[i] = start(within, i);
            ub_fiber_resume(fiber[i], globals());
        }
        std::printf("%d ", std::current_exception() == nullptr); // none is the loop's
        for (int i = 0; i < 2; i++)                              // the first one first: not the order of a stack
            ub_fiber_resume(fiber[i], globals());
        std::printf("%s, %s\n", seen[0].c_str(), seen[1].c_str());
    } else if (!strcmp(argv[1], "exit")) {
        pthread_t t;
        void *ret;
        pthread_create(&t, nullptr, thread, nullptr);
        pthread_join(t, &ret);
        std::printf("%d %d %d\n", ret == &unwound, unwound, fiber[0]->state == UB_FIBER_LEFT);
    } else {
        fiber[0] = start(throws, reinterpret_cast<uint64_t>(&unwound));
        ub_fiber_resume(fiber[0], globals());
        try {
            throw 5;
        } catch (int) {
            try {
                Noisy here = {&unwound};
                ub_fiber_resume(fiber[0], globals());
                std::puts("came back");
            } catch (const std::logic_error &e) {
                std::printf("%s %d %d ", e.what(), unwound, fiber[0]->state == UB_FIBER_LEFT);
            }
            try {
                throw;
            } catch (int n) {
                std::printf("%d ", n);
            }
        }
        std::printf("%d %d\n", std::uncaught_exceptions(), std::current_exception() == nullptr);
    }
}
"""


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Builds CXX with further flags; the path of the program."""
    if not shutil.which("g++"):
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("fiber")

    def made(name, *flags):
        source = folder / "fiber.cc"
        source.write_text(CXX)
        subprocess.run(["g++", "-std=c++17", "-O1", "-g", "-D_GNU_SOURCE", f"-I{helpers.ROOT}/agent/offload", *flags,
                        source, *OBJECTS, "-o", folder / name], check=True)
        return folder / name

    return made


def output(program, how):
    return subprocess.run([program, how], capture_output=True, text=True, check=False, timeout=60)


def test_two_fibers_in_their_catch_blocks(build):
    done = output(build("cxx"), "interleaved")
    assert (done.returncode, done.stdout) == (0, "1 exception 0, exception 1\n"), done.stderr


def test_an_exception_leaves_the_fiber(build):
    """It unwinds the fiber, then whoever resumed it; the exception that was being handled there still is."""
    done = output(build("cxx"), "escapes")
    assert (done.returncode, done.stdout) == (0, "out 2 1 5 0 1\n"), done.stderr


def test_pthread_exit(build):
    """It unwinds the fiber, then the thread's own stack."""
    done = output(build("cxx"), "exit")
    assert (done.returncode, done.stdout) == (0, "1 2 1\n"), done.stderr


@pytest.mark.parametrize("flag", ["-fsanitize=address", "-fsanitize=undefined"])
def test_sanitizers(build, flag):
    """What is ours does nothing wrong in their eyes. (ASan is not told of the switch: no program of its kind has the
    agent in it with its shared runtime, and others are refused offload.)"""
    done = output(build("cxx" + flag[-5:], flag), "interleaved")
    if "incompatible ASLR" in done.stderr or "Shadow memory range" in done.stderr:
        pytest.skip(done.stderr[:100])
    assert (done.returncode, done.stdout) == (0, "1 exception 0, exception 1\n"), done.stderr


def test_gdb(build):
    """The stack of a running fiber goes on with that of whoever resumed it, down to main."""
    if not shutil.which("gdb"):
        pytest.skip("gdb is not installed")
    done = subprocess.run(["gdb", "-q", "-nx", "-batch", "-ex", "set debuginfod enabled off", "-ex",
                           "break __cxa_throw", "-ex", "run", "-ex", "continue", "-ex", "bt", "-ex", "kill",
                           "--args", build("cxx"), "escapes"], capture_output=True, text=True, check=False, timeout=120,
                          stdin=subprocess.DEVNULL)
    if "Breakpoint 1, " not in done.stdout:
        pytest.skip(f"gdb cannot run programs here: {done.stderr[-200:]}")
    frames = re.findall(r"^#\d+ +(?:0x\w+ in )?(\w+)", done.stdout, re.M)
    order = [frames.index(name) for name in ("throws", "ub_fiber_main", "ub_fiber_root", "ub_fiber_resume", "main")]
    assert order == sorted(order), done.stdout
    assert "corrupt" not in done.stdout and "Backtrace stopped" not in done.stdout, done.stdout
