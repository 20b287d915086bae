"""A stall in a hand-written loop: the descriptor that its thread had read from last.

Checked that it can fail: with the check for files left out of the tracer the file is told instead of the socket, without
the note of what was closed the socket that came later under the same number; with an entry for each read of one
descriptor the other one is forgotten; without the turn's beginning what was read in an earlier one is told.
"""

import subprocess

import pytest

import helpers
import oracle

# Each case reads in a turn of its own, then sleeps; the truth is what it prints: the descriptor, or -1.
SOURCE = r"""
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

enum { A, B, BOTH, FILE_AFTER, CLOSED, REUSED, ACCEPTED, NOTHING, EMPTY, VECTOR, CASES };
static const char *const name[] = {"a", "b", "both", "file", "closed", "reused", "accepted", "nothing", "empty", "vector"};
static int a[2], b[2], listener, client = -1;

static void fill(int *pair)
{
    if (write(pair[1], "x", 1) != 1)
        _exit(3);
}

static int take(int *pair)
{
    char c[8];

    if (read(pair[0], c, sizeof(c)) < 1)
        _exit(4);
    return pair[0];
}

static int read_file(void)
{
    char text[64];
    int fd = open("/proc/self/comm", O_RDONLY | O_CLOEXEC);

    if (read(fd, text, sizeof(text)) < 1)
        _exit(5);
    return fd;
}

__attribute__((noinline)) static int serve(int which)
{
    struct iovec v[1];
    char c[8];
    int fd, file;

    switch (which) {
    case A:
        fill(a);
        return take(a);
    case B:
        fill(b);
        return recv(b[0], c, sizeof(c), 0) == 1 ? b[0] : -2;
    case BOTH:
        fill(a), fill(b);
        take(a), take(b);
        for (int i = 0; i < 12; i++)
            fill(a), take(a);
        return a[0];
    case FILE_AFTER: /* left open */
        fill(a);
        fd = take(a);
        read_file();
        return fd;
    case CLOSED:
        fill(a);
        fd = take(a);
        file = dup(b[0]);
        fill(b);
        if (read(file, c, sizeof(c)) != 1)
            return -2;
        close(file);
        return fd;
    case REUSED: /* a file's number is then a socket's, from which nothing was read */
        fill(a);
        fd = take(a);
        file = read_file();
        close(file);
        return dup(b[0]) == file ? fd : -2;
    case ACCEPTED: {
        struct sockaddr_in at;
        socklen_t size = sizeof(at);

        getsockname(listener, (struct sockaddr *)&at, &size);
        client = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(client, (struct sockaddr *)&at, size) < 0 || accept4(listener, NULL, NULL, 0) < 0)
            return -2;
        return listener;
    }
    case EMPTY: /* nothing came */
        fill(a);
        fd = take(a);
        return recv(b[0], c, sizeof(c), MSG_DONTWAIT) < 0 ? fd : -2;
    case VECTOR:
        fill(b);
        v[0] = (struct iovec){c, sizeof(c)};
        return readv(b[0], v, 1) == 1 ? b[0] : -2;
    default:
        return -1;
    }
}

int main(void)
{
    struct epoll_event e = {.events = EPOLLIN};
    int ep = epoll_create1(0);

    socketpair(AF_UNIX, SOCK_STREAM, 0, a);
    socketpair(AF_UNIX, SOCK_STREAM, 0, b);
    listener = socket(AF_INET, SOCK_STREAM, 0);
    listen(listener, 8);
    epoll_ctl(ep, EPOLL_CTL_ADD, eventfd(1, 0), &e); /* ready for ever, never read */
    for (int round = 0; round < 20 + 2 * CASES; round++) {
        if (epoll_wait(ep, &e, 1, -1) != 1)
            return 2;
        if (round >= 20 && round % 2 == 0) {
            int fd = serve((round - 20) / 2);

            printf("%s %d\n", name[(round - 20) / 2], fd);
            usleep(60000);
        } else {
            fill(b), take(b); /* of another turn: not told */
        }
    }
}
"""


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """By case: the descriptor that it read from last, and the stall's record."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "inputs.c").write_text(SOURCE)
    subprocess.run(["cc", "-O1", "-g", "-o", folder / "inputs", folder / "inputs.c"], check=True)
    done, recording = helpers.record(folder, folder / "inputs", threshold="20ms")
    assert done.returncode == 0, done.stderr
    truth = [(line.split()[0], int(line.split()[1])) for line in done.stdout.splitlines()]
    slow = [s for s in recording.slow if s["duration_ns"] > 55_000_000 and not oracle.is_noise(s)]
    assert len(slow) == len(truth) == 10, recording.slow
    return {name: (fd, s) for (name, fd), s in zip(truth, slow)} | {"report": recording.path}


CASES = {"a": 0, "b": 0, "both": 1, "file": 0, "closed": 0, "reused": 0, "accepted": 0, "empty": 0, "vector": 0}


@pytest.mark.parametrize("name", CASES)
def test_last_input(case, name):
    fd, slow = case[name]
    assert fd > 2 and (slow["loop"], slow["kind"]) == ("turn", "turn")
    if not slow["samples"] or "stack" not in slow["samples"][0]:
        pytest.skip("no look was in time")
    given = slow["input"]
    assert (given["fd"], given["others"]) == (fd, CASES[name]), given
    assert 0 < given["at_ns"] < slow["samples"][0]["at_ns"], slow
    path = "socket listening 0.0.0.0:" if name == "accepted" else "socket unix"
    assert given["fd_path"].startswith(path) and given["call"] in ("read", "recv", "readv", "accept4"), given


def test_nothing_was_read(case):
    assert "input" not in case["nothing"][1]


def test_report_tells_it(case):
    done = helpers.unblock("report", case["report"])
    told = [line.split(None, 1)[1] for line in done.stdout.splitlines() if line.strip().startswith("input ")]
    assert told and all(line.startswith("fd ") and " = socket " in line and "into the turn)" in line for line in told), \
        done.stdout
