"""Programs that are linked in unusual ways: their calls reach libc as without us."""

import shutil
import subprocess
from pathlib import Path

import pytest

import helpers

# Called by the loader before any constructor, ours included: a resolver of an IFUNC, then DT_PREINIT_ARRAY.
EARLY = r"""
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <unistd.h>
static char found[3][16];
static void look(int n)
{
    int fd = open("/proc/self/stat", O_RDONLY);
    if (fd >= 0 && read(fd, found[n], 8) == 8 && close(fd) == 0 && poll(NULL, 0, 0) == 0)
        found[n][8] = '!';
    errno = 0;
    if (close(-1) != -1 || errno != EBADF)
        found[n][8] = '?';
}
static int one(void) { return 1; }
static void *resolve(void) { look(0); return one; }
int chosen(void) __attribute__((ifunc("resolve")));
static void preinit(void) { look(1); }
__attribute__((section(".preinit_array"), used)) static void (*pre)(void) = preinit;
__attribute__((constructor(101))) static void early(void) { look(2); }
int main(void)
{
    printf("%d %c%c%c\n", chosen(), found[0][8], found[1][8], found[2][8]);
    return 0;
}
"""

# A program with a `read` and a `usleep` of its own that calls the next one, as interposing programs do.
OWN = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>
static int calls;
ssize_t read(int fd, void *buf, size_t n)
{
    ssize_t (*next)(int, void *, size_t) = dlsym(RTLD_NEXT, "read");
    calls++;
    return next(fd, buf, n);
}
int usleep(useconds_t us)
{
    int (*next)(useconds_t) = dlsym(RTLD_NEXT, "usleep");
    calls++;
    return next(us);
}
int main(void)
{
    char c;
    int fd = open("/dev/zero", O_RDONLY);
    printf("%zd %d %d\n", read(fd, &c, 1), usleep(1), calls);
    return 0;
}
"""

LIBRARY = r"""
#include <fcntl.h>
#include <unistd.h>
int fsync(int fd) { return 4242; }              /* the library's own name for something else */
int work(void)
{
    char c;
    int fd = open("/dev/zero", O_RDONLY), ok = read(fd, &c, 1) == 1 && usleep(1) == 0;
    close(fd);
    return ok * 10000 + fsync(1);
}
"""

LOADER = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
int main(int argc, char **argv)
{
    void *h = !strcmp(argv[2], "dlmopen") ? dlmopen(LM_ID_NEWLM, argv[1], RTLD_NOW)
                                          : dlopen(argv[1], RTLD_NOW | (!strcmp(argv[2], "local") ? RTLD_LOCAL : RTLD_GLOBAL));
    int (*work)(void) = h ? (int (*)(void))dlsym(h, "work") : 0;
    if (!work)
        return puts(dlerror()), 1;
    printf("%d\n", work());
    return dlclose(h);
}
"""

# A handler that throws out of a call: the exception passes our frames, in a turn and outside.
THROWS = r"""
#include <csignal>
#include <cstdio>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/time.h>
#include <unistd.h>
static void on_alarm(int) { throw 42; }
static int thrown;
static void nap()
{
    struct itimerval in = {{0, 0}, {0, 2000}};
    sigset_t set;
    try {
        setitimer(ITIMER_REAL, &in, nullptr);
        usleep(1000000);
    } catch (int n) {
        thrown += n == 42;
    }
    sigemptyset(&set);
    sigaddset(&set, SIGALRM);
    sigprocmask(SIG_UNBLOCK, &set, nullptr);
}
int main()
{
    struct epoll_event ev = {EPOLLIN, {}};
    int ep = epoll_create1(0);
    signal(SIGALRM, on_alarm);
    epoll_ctl(ep, EPOLL_CTL_ADD, eventfd(1, 0), &ev);
    for (int i = 0; i < 40; i++) {
        nap();
        epoll_wait(ep, &ev, 1, -1);
    }
    printf("%d\n", thrown);
}
"""


def compile(folder, name, source, *flags, compiler="gcc"):
    if not shutil.which(compiler):
        pytest.skip(f"{compiler} is not installed")
    file = folder / f"{name}.{'cc' if compiler == 'g++' else 'c'}"
    file.write_text(source)
    subprocess.run([compiler, "-O2", "-w", *flags, "-o", folder / name, file], check=True)
    return folder / name


def same(tmp_path, *command, threshold="1ms"):
    """Output and status of a command, checked to be the same with and without the agent."""
    plain = subprocess.run([str(c) for c in command], capture_output=True, text=True, env=helpers.clean_environment())
    watched, recording = helpers.record(tmp_path, *command, threshold=threshold, options=("-q",))
    assert (watched.returncode, watched.stdout, watched.stderr) == (plain.returncode, plain.stdout, plain.stderr)
    return plain, recording


@pytest.mark.parametrize("flags", [(), ("-fno-plt", "-Wl,-z,now"), ("-no-pie", "-Wl,-z,lazy")])
def test_before_any_constructor(tmp_path, flags):
    program = compile(tmp_path, "early", EARLY, *flags)
    plain, _ = same(tmp_path, program)
    assert plain.stdout == "1 !!!\n" or "now" in str(flags)


def test_program_with_its_own_interposers(tmp_path):
    plain, _ = same(tmp_path, compile(tmp_path, "own", OWN))
    assert plain.stdout.startswith("1 0")


@pytest.mark.parametrize("flags", [(), ("-Wl,-Bsymbolic",)])
@pytest.mark.parametrize("how", ["local", "global", "dlmopen"])
def test_loaded_libraries(tmp_path, flags, how):
    """A library that is loaded later, into another namespace, or bound to its own names."""
    library = compile(tmp_path, "work.so", LIBRARY, "-shared", "-fPIC", *flags)
    plain = subprocess.run([compile(tmp_path, "loader", LOADER), library, how], capture_output=True, text=True)
    watched, _ = helpers.record(tmp_path, tmp_path / "loader", library, how, options=("-q",))
    assert watched.returncode == plain.returncode == 0, watched
    assert watched.stdout == plain.stdout
    assert not flags or plain.stdout == "14242\n"


@pytest.mark.parametrize("library", ["libjemalloc.so.2", "libeatmydata.so", "faketime/libfaketime.so.1"])
@pytest.mark.parametrize("first", [True, False])
def test_beside_another_preloaded_library(tmp_path, library, first):
    """Both work: the other one's wrappers and ours call each other in whatever order."""
    path = f"/usr/lib/x86_64-linux-gnu/{library}"
    if not Path(path).exists():
        pytest.skip(f"{path} is not installed")
    preload = path if first else f"{helpers.AGENT}:{path}"
    done, recording = helpers.record(tmp_path, helpers.program("calls"), "many", 20, threshold="1ms", options=("-q",),
                                     env=helpers.clean_environment(LD_PRELOAD=preload, FAKETIME="+1d"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
    slow = [s for s in recording.slow if s["duration_ns"] >= 3000000]
    timed = [s for s in slow if "usleep" in [c["via"] for c in s.get("calls", [])]]
    assert len(slow) >= 20 and (len(timed) == 20 or library.startswith("faketime"))


def test_exceptions_pass_through_hooks(tmp_path):
    program = compile(tmp_path, "throws", THROWS, "-fnon-call-exceptions", compiler="g++")
    plain, recording = same(tmp_path, program)
    assert plain.stdout == "40\n"
    assert recording.slow, "the throws were to happen in a watched loop"
