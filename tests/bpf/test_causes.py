"""What only the kernel can tell: who held the lock, who had the CPU, that a static or a Go program stalls at all."""

import json
import re
import shutil
import signal
import subprocess
import time

import jsonschema
import pytest

import helpers
import oracle
from tracing import starved

SCHEMA = jsonschema.Draft7Validator(json.loads((helpers.ROOT / "ui/recording.schema.json").read_text()))

LOOP = r"""
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>
#include <sched.h>
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static void ms(long n) { struct timespec t = {n / 1000, n % 1000 * 1000000}; nanosleep(&t, 0); }
__attribute__((noinline)) void hoard(void) {
    pthread_mutex_lock(&mutex); ms(60); pthread_mutex_unlock(&mutex); __asm__("");
}
static void *hoarder(void *arg) {
    pthread_setname_np(pthread_self(), "hoarder");
    for (int i = 0; i < 5; i++) { ms(100); hoard(); }
    return arg;
}
__attribute__((noinline)) void on_request(void) {
    pthread_mutex_lock(&mutex); pthread_mutex_unlock(&mutex); __asm__("");
}
__attribute__((noinline)) void on_sleep(void) { ms(40); __asm__(""); }
int main(int argc, char **argv) {
    int ep = epoll_create1(0), fd = eventfd(0, 0), lock = argv[1][0] == 'l';
    struct epoll_event e = {.events = EPOLLIN}, out;
    pthread_t t;
    epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e);
    if (lock) pthread_create(&t, 0, hoarder, 0);
    for (int i = 0; i < 400; i++) {
        epoll_wait(ep, &out, 1, 2);
        if (lock) on_request();
        else if (i % 100 == 50) on_sleep();
    }
    return 0;
}
"""

NEIGHBOUR = r"""
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>
#include <sys/eventfd.h>
static long cpu_ns(void) { struct timespec t; clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t); return t.tv_sec * 1000000000L + t.tv_nsec; }
__attribute__((noinline)) void on_work(void) { long until = cpu_ns() + 30000000; while (cpu_ns() < until) ; }
int main(void) {
    cpu_set_t one;
    CPU_ZERO(&one); CPU_SET(0, &one);
    sched_setaffinity(0, sizeof(one), &one);
    pid_t hog = fork();
    if (hog == 0) { prctl(PR_SET_PDEATHSIG, SIGKILL); prctl(PR_SET_NAME, "the_hog"); setpriority(PRIO_PROCESS, 0, -15); for (;;) ; }
    printf("%d\n", hog); fflush(stdout);
    int ep = epoll_create1(0), fd = eventfd(0, 0);
    struct epoll_event e = {.events = EPOLLIN}, out;
    epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e);
    for (int i = 0; i < 40; i++) { epoll_wait(ep, &out, 1, 2); if (i % 13 == 12) on_work(); }
    kill(hog, SIGKILL);
    return 0;
}
"""

CROWDED = NEIGHBOUR.replace("setpriority(PRIO_PROCESS, 0, -15);", "").replace(
    "if (i % 13 == 12) on_work(); }", """
        if (i == 25) { printf("soon\\n"); fflush(stdout); usleep(1000);
                       for (int k = 0; k < 3; k++) { epoll_wait(ep, &out, 1, 50); on_work(); }
                       printf("done\\n"); fflush(stdout); } }""")

FAULTS = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
static int uffd;
static char *memory, source[4096];
static void *slow_disk(void *arg) {
    struct uffd_msg m;
    while (read(uffd, &m, sizeof(m)) == sizeof(m)) {
        struct timespec t = {0, 40000000};
        struct uffdio_copy c = {.dst = m.arg.pagefault.address & ~4095ul, .src = (unsigned long)source, .len = 4096};
        nanosleep(&t, 0);
        ioctl(uffd, UFFDIO_COPY, &c);
    }
    return arg;
}
__attribute__((noinline)) void touch(int page) { *(volatile char *)(memory + 4096 * page); __asm__(""); }
int main(void) {
    struct uffdio_api api = {.api = UFFD_API};
    struct uffdio_register reg = {.mode = UFFDIO_REGISTER_MODE_MISSING};
    int ep = epoll_create1(0), fd = eventfd(0, 0), page = 0;
    struct epoll_event e = {.events = EPOLLIN}, out;
    pthread_t t;
    uffd = syscall(SYS_userfaultfd, O_CLOEXEC);
    if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) < 0) { perror("userfaultfd"); return 77; }
    memory = mmap(0, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    reg.range.start = (unsigned long)memory; reg.range.len = 1 << 20;
    if (ioctl(uffd, UFFDIO_REGISTER, &reg) < 0) { perror("UFFDIO_REGISTER"); return 77; }
    pthread_create(&t, 0, slow_disk, 0);
    epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e);
    for (int i = 0; i < 220; i++) {
        struct timespec a, b;
        epoll_wait(ep, &out, 1, 2);
        if (i % 50 != 49) continue;
        clock_gettime(CLOCK_MONOTONIC, &a);
        touch(page++);
        clock_gettime(CLOCK_MONOTONIC, &b);
        printf("%ld %ld\n", a.tv_sec * 1000000000L + a.tv_nsec, b.tv_sec * 1000000000L + b.tv_nsec);
    }
    return 0;
}
"""

MANY = LOOP.replace("epoll_wait(ep, &out, 1, 2);", """
        epoll_wait(ep, &out, 1, 2);
        if (i == 30) { puts("soon"); fflush(stdout); getchar(); }
        if (i > 30 && i <= 110) { struct timespec t = {0, 12000000}; nanosleep(&t, 0); }
        if (i > 110) return 0;""")

GO = r"""
package main

import ("fmt"; "net/http"; "os"; "syscall")

func flush(w http.ResponseWriter, r *http.Request) {
	f, _ := os.Create(os.Args[2])
	for i := 0; i < 8; i++ { f.Write(make([]byte, 8<<20)); syscall.Fsync(int(f.Fd())) }
	f.Close()
	fmt.Fprintln(w, "ok")
}
func quick(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "ok") }
func main() {
	http.HandleFunc("/flush", flush)
	http.HandleFunc("/quick", quick)
	http.ListenAndServe(os.Args[1], nil)
}
"""


def build(tmp_path, source, *command, name="target"):
    (tmp_path / "target.c").write_text(source)
    if not shutil.which(command[0]):
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run([*command, "-g", "-O1", "-w", "-o", tmp_path / name, tmp_path / "target.c", "-lpthread"],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return tmp_path / name


def valid(recording):
    for line in recording.lines:
        errors = [e.message for e in SCHEMA.iter_errors(line)]
        assert not errors, (errors, line)


def main_stalls(recording, least_ns):
    return [s for s in recording.slow if s["duration_ns"] >= least_ns]


KINDS = {"dynamic": ["gcc"], "static": ["gcc", "-static"], "musl": ["musl-gcc", "-static"]}


@pytest.mark.parametrize("kind", KINDS)
def test_lock_and_its_holder(tmp_path, tracer, kind):
    """The holder is a thread of the same program that sleeps 60 ms with the lock, five times."""
    target = build(tmp_path, LOOP, *KINDS[kind])
    status, _, err, recording = tracer(target, "lock", threshold="20ms").wait()
    assert status == 0, err
    valid(recording)
    locks = [s for s in main_stalls(recording, 40_000_000) if s["cause"] == "lock" or starved(s)]
    assert len(locks) >= 4, recording.slow
    for slow in locks:
        assert slow["call"]["name"] == "futex"
        assert slow["call"]["holder"]["thread"] == "hoarder", slow
        assert slow["call"]["holder"]["tid"] != slow["tid"]
        assert slow["callback"]["function"] == "on_request", slow
    holders = [recording.frames(s["call"]["holder"]["stack"]) for s in locks if "stack" in s["call"]["holder"]]
    assert holders and all("hoard" in frames for frames in holders), holders


@pytest.mark.parametrize("kind", KINDS)
def test_static_programs(tmp_path, tracer, kind):
    """Nothing could be preloaded into two of the three; each sleeps 40 ms in a callback, four times. Debian's musl has
    neither unwind tables nor frame pointers: its frames are told by their code.
    """
    target = build(tmp_path, LOOP, *KINDS[kind])
    status, _, err, recording = tracer(target, "sleep", threshold="20ms").wait()
    assert status == 0, err
    found = main_stalls(recording, 39_000_000)
    assert len(found) == 4, recording.slow
    for slow in found:
        assert slow["cause"] == "call" or starved(slow), slow
        assert slow["call"]["name"] in ("nanosleep", "clock_nanosleep"), slow
        assert slow["callback"]["function"] == "on_sleep", (slow, recording.functions(slow))
        assert any("on_sleep" in stack for stack in recording.functions(slow))
    process = recording.of("process")[0]
    assert process["how"] == "traced" and process["pid"] == found[0]["pid"]


def test_neighbour(tmp_path, tracer):
    """A process of higher priority spins on the loop's CPU: it is named, with its number."""
    target = build(tmp_path, NEIGHBOUR, "gcc")
    with oracle.Sentinel() as sentinel:
        status, out, err, recording = tracer(target, threshold="20ms").wait()
    assert status == 0, err
    hog = int(out.split()[0])
    waited = [s for s in recording.slow if s["cause"] == "runqueue"]
    assert waited, recording.slow
    named = [s for s in waited if s.get("neighbour", {}).get("pid") == hog]
    if 2 * len(named) <= len(waited) and any(sentinel.busy(s["start_ns"], s["start_ns"] + s["duration_ns"]) for s in waited):
        pytest.skip("the hog is not the only one that wants this CPU")  # nice counts within a session only (autogroup)
    assert 2 * len(named) > len(waited), [s.get("neighbour") for s in waited]
    for slow in named:
        assert slow["neighbour"]["thread"] == "the_hog"
        assert slow["neighbour"]["waited_ns"] <= slow["runqueue_ns"] * 1.1


def test_samples_without_the_tracer(tmp_path, tracer):
    """Three turns on a crowded CPU while the tracer gets none at all (it is stopped): all are told once, with their stacks."""
    traced = tracer(build(tmp_path, CROWDED, "gcc"), threshold="10ms")
    out = traced.program.stdout
    assert out.readline().strip().isdigit() and out.readline() == "soon\n"
    traced.tracer.process.send_signal(signal.SIGSTOP)
    helpers.wait_until(lambda: helpers.process_state(traced.tracer.process.pid) == "T", what="the tracer to be stopped")
    stopped = time.monotonic_ns()
    assert out.readline() == "done\n"
    traced.tracer.process.send_signal(signal.SIGCONT)
    status, _, err, recording = traced.wait()
    assert status == 0, err
    late = [s for s in recording.slow if s["duration_ns"] >= 30_000_000 and s["start_ns"] + s["duration_ns"] > stopped]
    assert len(late) == len({s["start_ns"] for s in late}) == 3, recording.slow
    if min(s["start_ns"] for s in late) < stopped:
        pytest.skip("a turn began before the tracer was stopped: the machine is too busy")
    for slow in late:
        assert not slow.get("ongoing") and any("on_work" in stack for stack in recording.functions(slow)), slow


def test_nothing_is_lost_while_the_tracer_gets_no_cpu(tmp_path, tracer):
    """80 stalls, and the program is gone when the tracer comes to read of them: each is told, with its reasons."""
    target = build(tmp_path, MANY, "gcc")
    traced = tracer(target, "many", threshold="10ms", stdin=subprocess.PIPE)
    assert traced.program.stdout.readline() == "soon\n"
    time.sleep(0.3)  # the tracer has met it
    traced.tracer.process.send_signal(signal.SIGSTOP)
    helpers.wait_until(lambda: helpers.process_state(traced.tracer.process.pid) == "T", what="the tracer to be stopped")
    traced.program.communicate("\n", timeout=helpers.PATIENCE)
    traced.tracer.process.send_signal(signal.SIGCONT)
    recording = traced.tracer.wait()
    asleep = [s for s in recording.slow if [c for c in s.get("calls", ()) if "nanosleep" in c["name"]]]
    assert len(asleep) == len({s["start_ns"] for s in asleep}) == 80, (len(asleep), recording.end, recording.of("note"))
    assert all(s["blocked_ns"] > 11_000_000 for s in asleep), asleep


def test_page_faults(tmp_path, tracer):
    """Memory that takes 40 ms to come, four times: asleep outside any call, where, and for how long, by its own clock."""
    status, out, err, recording = tracer(build(tmp_path, FAULTS, "gcc"), threshold="20ms").wait()
    if status == 77:
        pytest.skip(err.strip())
    assert status == 0, err
    valid(recording)
    truth = [tuple(map(int, line.split())) for line in out.splitlines()]
    assert len(truth) == 4
    for start, end in truth:
        found = [s for s in recording.slow if s["start_ns"] <= start and s["start_ns"] + s["duration_ns"] >= end]
        assert len(found) == 1, (start, end, recording.slow)
        slow = found[0]
        assert slow["cause"] in ("pagefault", "runqueue") and "call" not in slow, slow
        if slow["cause"] == "pagefault":
            assert 0.9 * 40_000_000 <= slow["pagefaults"]["blocked_ns"] <= slow["duration_ns"], slow
            assert slow["callback"]["function"] == "touch", (slow, recording.functions(slow))
    assert [s for s in recording.slow if s["cause"] == "pagefault"], recording.slow


def test_accounts_add_up(tmp_path, tracer):
    """Every nanosecond of a turn is CPU, blocked or run queue."""
    status, _, err, recording = tracer(helpers.program("loop_bare"), "epoll", tmp_path / "truth",
                                       "nanosleep,cpu,mutex,fsync,syscall_storm").wait()
    assert status == 0, err
    assert len(recording.slow) >= 5
    for slow in recording.slow:
        total = slow["cpu_ns"] + slow["blocked_ns"] + slow["runqueue_ns"]
        assert abs(total - slow["duration_ns"]) < 100_000 + slow["duration_ns"] // 1000, slow
        for call in slow.get("calls", []):
            assert call["duration_ns"] <= slow["duration_ns"] and call["count"] >= 1
            assert call.get("max_ns", 0) <= call["duration_ns"]


def test_calls_name_their_file(tmp_path, tracer):
    """The file of fsync, as the kernel saw it: by its inode, not by what the number means later."""
    status, _, err, recording = tracer(helpers.program("loop_bare"), "epoll", tmp_path / "truth", "fsync").wait()
    assert status == 0, err
    slow = [s for s in recording.slow if s.get("call", {}).get("name") == "fsync"]
    assert slow, recording.slow
    assert any(re.search(r"dirty|/", s["call"].get("fd_path", "")) for s in slow), slow


def test_go(tmp_path, tracer):
    """A Go server: idle threads parked in futex are no stalls; a handler that writes and syncs in one go is."""
    if not shutil.which("go"):
        pytest.skip("go is not installed")
    (tmp_path / "server.go").write_text(GO)
    env = helpers.clean_environment(GOCACHE=str(tmp_path / "cache"), GOFLAGS="-mod=mod")
    built = subprocess.run(["go", "build", "-o", "server", "server.go"], cwd=tmp_path, env=env, capture_output=True,
                           text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    import servers
    port = servers.free_port()
    traced = tracer(tmp_path / "server", f"127.0.0.1:{port}", tmp_path / "data", threshold="20ms")

    def get(path):
        return subprocess.run(["curl", "-sf", f"http://127.0.0.1:{port}/{path}"], capture_output=True).stdout

    helpers.wait_until(lambda: get("quick") == b"ok\n", what="the server")
    for _ in range(30):
        get("quick")
    for _ in range(2):
        assert get("flush") == b"ok\n"
    traced.program.terminate()
    _, _, _, recording = traced.wait()
    idle = [s for s in recording.slow if s.get("call", {}).get("name") in ("futex", "nanosleep", "epoll_pwait")
            and s["cause"] == "call"]
    assert not idle, idle
    found = [s for s in recording.slow if any("main.flush" in stack for stack in recording.functions(s))]
    assert found, [(s["cause"], s.get("call"), recording.functions(s)) for s in recording.slow]
