"""A server that is linked statically against musl: nothing could be loaded into it, and its libc has neither unwind tables nor
frame pointers. What it says itself of each request is the truth.

Debian has no such server, and its mirrors no sources to make one of, so it is a small one of our own.
"""

import os
import subprocess
import threading
import time

import servers
from servers import http_get, near, run_delay_ns
from test_causes import build, valid
from test_servers import longest
from tracing import starved

SERVER = r"""
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
static long clock_ns(int id) { struct timespec t; clock_gettime(id, &t); return t.tv_sec * 1000000000L + t.tv_nsec; }
static long now(void) { return clock_ns(CLOCK_MONOTONIC); }
__attribute__((noinline)) void read_settings(void)
{
    char buf[16];
    int fd = open("settings.fifo", O_RDONLY);
    if (fd < 0 || read(fd, buf, sizeof(buf)) <= 0) abort();
    close(fd);
}
__attribute__((noinline)) void back_off(void) { nanosleep(&(struct timespec){0, 80000000}, NULL); __asm__(""); }
/* Nothing of libc in it: how far that can be followed while it runs is not what is asked here. */
static long rounds = 1000000;
__attribute__((noinline)) void compute(void) { for (volatile long i = 0; i < rounds; i++) ; }
static void calibrate(void)
{
    long start = clock_ns(CLOCK_THREAD_CPUTIME_ID);
    compute();
    rounds = rounds * 100000000 / (clock_ns(CLOCK_THREAD_CPUTIME_ID) - start);
}
static int by_name(const void *a, const void *b)
{
    static int slept;
    if (!slept++) back_off();
    return strcmp(*(char *const *)a, *(char *const *)b);
}
__attribute__((noinline)) void sort_files(void)
{
    const char *names[] = {"b", "a"};
    qsort(names, 2, sizeof(*names), by_name);
    __asm__("");
}
__attribute__((noinline)) void on_request(int fd)
{
    char in[4096] = "", out[256], body[64];
    long start = now();
    if (read(fd, in, sizeof(in) - 1) <= 0) { close(fd); return; }
    if (strstr(in, "GET /settings ")) read_settings();
    else if (strstr(in, "GET /wait ")) back_off();
    else if (strstr(in, "GET /compute ")) compute();
    else if (strstr(in, "GET /sorted ")) sort_files();
    snprintf(body, sizeof(body), "%ld %ld", start, now());
    snprintf(out, sizeof(out), "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\n\r\n%s", strlen(body), body);
    if (write(fd, out, strlen(out)) < 0) abort();
}
int main(int argc, char **argv)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int ep = epoll_create1(0), door = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    struct epoll_event e = {.events = EPOLLIN, .data.fd = door}, got[8];
    calibrate();
    setsockopt(door, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (bind(door, (void *)&to, sizeof(to)) || listen(door, 8)) { perror("listen"); return 1; }
    epoll_ctl(ep, EPOLL_CTL_ADD, door, &e);
    puts("ready"); fflush(stdout);
    for (;;) {
        int n = epoll_wait(ep, got, 8, -1);
        for (int i = 0; i < n; i++) {
            if (got[i].data.fd != door) { on_request(got[i].data.fd); continue; }
            e.data.fd = accept(door, NULL, NULL);
            epoll_ctl(ep, EPOLL_CTL_ADD, e.data.fd, &e);
        }
    }
}
"""


def test_static_musl_server(tmp_path, tracer):
    """Blocked in the open of a file, asleep, computing, asleep below libc's own qsort: cause, call, path, stack, duration."""
    os.mkfifo(tmp_path / "settings.fifo")
    target = build(tmp_path, SERVER, "musl-gcc", "-static")
    kind = subprocess.run(["readelf", "-ld", target], capture_output=True, text=True, check=True).stdout
    assert "INTERP" not in kind and "NEEDED" not in kind, kind
    port = servers.free_port()
    traced = tracer(target, port, threshold="20ms", cwd=tmp_path)
    assert traced.program.stdout.readline() == "ready\n"

    def feed():
        time.sleep(0.15)
        (tmp_path / "settings.fifo").write_text("x")

    truth, noise = {}, {}
    with servers.socket.create_connection(("127.0.0.1", port)) as connection:
        for _ in range(20):
            http_get(connection, "/", port)
        for what in ("settings", "wait", "compute", "sorted"):
            if what == "settings":
                feeder = threading.Thread(target=feed)
                feeder.start()
            noise[what] = run_delay_ns(traced.pid)
            truth[what] = tuple(map(int, http_get(connection, f"/{what}", port)[1].split()))
            noise[what] = run_delay_ns(traced.pid) - noise[what]
        feeder.join()
    traced.program.terminate()
    _, _, _, recording = traced.wait()
    valid(recording)
    slow = {what: longest(recording, *span) for what, span in truth.items()}
    assert all(slow.values()), recording.slow
    for what, (start, end) in truth.items():
        assert near(slow[what]["duration_ns"], end - start, noise[what]), (what, truth[what], slow[what])
        assert slow[what]["callback"]["function"] == "on_request" or what == "sorted", (what, slow[what])
    for what in ("settings", "wait", "sorted"):
        assert slow[what]["cause"] == "call" or starved(slow[what]), slow[what]
    assert slow["settings"]["call"]["name"] in ("open", "openat", "read"), slow["settings"]
    assert any("settings.fifo" in c.get("args", "") + c.get("fd_path", "") for c in slow["settings"]["calls"]), slow["settings"]
    assert slow["wait"]["call"]["name"] in ("nanosleep", "clock_nanosleep"), slow["wait"]
    assert slow["compute"]["cause"] in ("cpu", "runqueue"), slow["compute"]
    functions = {"settings": "read_settings", "wait": "back_off", "compute": "compute", "sorted": "by_name"}
    for what, function in functions.items():
        assert any(function in stack for stack in recording.functions(slow[what])), (what, recording.functions(slow[what]))
