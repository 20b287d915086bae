"""Offload, flagged: the first call of a place blocks its loop and is told, the next ones leave it.

Checked that it can fail: with what is learned taken out nothing moves; with everything taken for learned the first
call moves; with files known by their descriptors' numbers only, `order` reads old data.
"""

import json
import subprocess

import pytest

import helpers
import oracle

PROGRAM = r"""
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <uv.h>

static const char *name;
static uv_timer_t ticker, victim, other;
static char path[] = "/tmp/unblock-flagged-XXXXXX", seen[256];
static int fd, fd2, p[2], ticks, n, inside, counted, ran[4];

static void *later(void *arg)
{
    usleep(150000);
    if (write(p[1], "x", 1) != 1) abort();
    return NULL;
}

static void tell(const char *format, long a, long b)
{
    snprintf(seen + strlen(seen), sizeof(seen) - strlen(seen), format, a, b);
}

static void act(void)
{
    char buf[8] = "";
    struct stat st;
    pthread_t thread;
    long r = -9;

    errno = 0;
    if (!strcmp(name, "nanosleep")) { struct timespec ts = {0, 150000000}; r = nanosleep(&ts, NULL); }
    if (!strcmp(name, "read")) { pthread_create(&thread, NULL, later, NULL); r = read(p[0], buf, 8); }
    if (!strcmp(name, "fsync")) r = fsync(fd);
    if (!strcmp(name, "pwrite") || !strcmp(name, "order")) r = pwrite(fd, n ? "new" : "old", 3, 0);
    if (!strcmp(name, "pread")) r = pread(fd, buf, 8, 0);
    if (!strcmp(name, "ftruncate")) r = ftruncate(fd, 5 + n);
    if (!strcmp(name, "open")) { r = open(path, O_RDONLY); if (r >= 0) { close((int)r); r = 0; } }
    if (!strcmp(name, "missing")) r = open("/nowhere/at/all", O_RDONLY);
    if (!strcmp(name, "stat")) { r = stat(path, &st); r = r ? r : st.st_size; }
    tell("%ld/%ld ", r, errno);
}

/* Through another descriptor of the file, while the second write is on its way. */
static void on_other(uv_timer_t *t)
{
    char buf[8] = "";
    long r = pread(fd2, buf, 3, 0);

    tell("%ld:", r, 0);
    strcat(seen, buf);
    strcat(seen, " ");
}

static void on_victim(uv_timer_t *t)
{
    counted = 1;
    inside = 0;
    if (!strcmp(name, "order") && n == 1)
        uv_timer_start(&other, on_other, 40, 0);
    act();
    counted = 0;
    ran[n] = inside;
    if (++n < 3)
        uv_timer_start(t, on_victim, 30, 0);
}

static void on_tick(uv_timer_t *t)
{
    inside += counted;
    if (++ticks == 20) uv_timer_start(&victim, on_victim, 1, 0);
    if (n == 3) { uv_timer_stop(t); uv_close((uv_handle_t *)&other, NULL); }
}

int main(int argc, char **argv)
{
    name = argv[1];
    fd = mkstemp(path);
    fd2 = open(path, O_RDONLY);
    if (pipe(p) || write(fd, "before", 6) != 6) abort();
    uv_timer_init(uv_default_loop(), &ticker);
    uv_timer_init(uv_default_loop(), &victim);
    uv_timer_init(uv_default_loop(), &other);
    uv_timer_start(&ticker, on_tick, 10, 10);
    uv_run(uv_default_loop(), UV_RUN_DEFAULT);
    unlink(path);
    printf("%s\n%d %d %d\n", seen, ran[0], ran[1], ran[2]);
    return 0;
}
"""

# A disk that is slow, wherever the test runs. The wait itself is nothing that the agent hooks.
SLOW = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>
static void wait_(const char *call)
{
    struct { long s, ns; } ts = {0, 150000000};
    long r;
    if (strcmp(program_invocation_short_name, "flagged") || !getenv("SLOW") || strcmp(getenv("SLOW"), call)) return;
    __asm__ volatile("syscall" : "=a"(r) : "a"(SYS_nanosleep), "D"(&ts), "S"(0) : "rcx", "r11", "memory");
}
#define NEXT(type, ...) ((type (*)(__VA_ARGS__))next)
#define SLOW(type, name, params, args, ...) \
    type name params { static void *next; if (!next) next = dlsym(RTLD_NEXT, #name); wait_(#name); return NEXT(type, __VA_ARGS__)args; }
SLOW(int, fsync, (int fd), (fd), int)
SLOW(ssize_t, pwrite, (int fd, const void *b, size_t n, off_t at), (fd, b, n, at), int, const void *, size_t, off_t)
SLOW(ssize_t, pread, (int fd, void *b, size_t n, off_t at), (fd, b, n, at), int, void *, size_t, off_t)
SLOW(int, ftruncate, (int fd, off_t n), (fd, n), int, off_t)
SLOW(int, stat, (const char *p, void *st), (p, st), const char *, void *)
SLOW(int, open, (const char *p, int flags, mode_t mode), (p, flags, mode), const char *, int, ...)
"""

CASES = {"nanosleep": "", "read": "", "fsync": "fsync", "open": "open", "missing": "open", "order": "pwrite"}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flagged")
    (folder / "flagged.c").write_text(PROGRAM)
    (folder / "slow.c").write_text(SLOW)
    subprocess.run(["cc", "-g", "-w", folder / "flagged.c", "-o", folder / "flagged", "-luv", "-lpthread"], check=True)
    subprocess.run(["cc", "-shared", "-fPIC", "-w", folder / "slow.c", "-o", folder / "slow.so"], check=True)
    return folder


def run(tmp_path, built, case, mode="flagged"):
    env = {"LD_PRELOAD": str(built / "slow.so"), "SLOW": CASES[case]}
    with oracle.Sentinel() as sentinel:
        done, recording = helpers.record(tmp_path, built / "flagged", case, threshold="100ms",
                                         options=(f"--offload={mode}",),
                                         env=helpers.clean_environment(**env))
    assert done.returncode == 0, done.stderr
    return done, recording, sentinel


@pytest.mark.parametrize("case", CASES)
def test_from_the_second_on(tmp_path, built, case):
    with subprocess.Popen([built / "flagged", case], stdout=subprocess.PIPE, text=True,
                          env=helpers.clean_environment(LD_PRELOAD=str(built / "slow.so"), SLOW=CASES[case])) as process:
        done, recording, sentinel = run(tmp_path, built, case)
        alone = process.communicate(timeout=60)[0].splitlines()[0]
    said, inside = done.stdout.splitlines()
    if case == "order":
        assert sorted(said.split()) == sorted(alone.split())
        assert "3:new" in said
    else:
        assert said == alone
    inside = [int(n) for n in inside.split()]
    assert inside[0] == 0 and inside[1] > 2 and inside[2] > 2, done.stdout
    assert recording.end["offload"]["moved"] >= 2
    stalls = [s for s in recording.slow if s["duration_ns"] >= 140_000_000
              and not sentinel.busy(s["start_ns"], s["start_ns"] + s["duration_ns"])]
    assert len(stalls) <= 1, stalls
    assert all(s.get("offload", {"state": "first"}) == {"state": "first"} for s in stalls), stalls
    places = [line for line in recording.of("offload") if line.get("first")]
    assert len(places) == 1 and places[0]["first"] == 1 and places[0]["moved"] == 2, recording.of("offload")
    assert places[0]["caller"]["function"] == "act" and places[0]["callback"]["function"] == "on_victim", places
    assert "the first from this place: it might have left the loop" in helpers.unblock("report", recording.path).stdout
