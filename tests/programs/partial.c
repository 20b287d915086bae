/*
 * Calls that a signal cuts short, on a CPU that others want, too: partial SECONDS
 * A loop whose callbacks compute for a moment and then wait for a number of bytes, or for room for one, that comes in
 * pieces: at each piece the thread wakes inside its call and has to wait for the CPU, so that it seems to compute.
 * Nobody sends this program a signal of his own: every short count is the sampler's doing. Prints {"calls": n, "cut":
 * n, "which": {"NAME": n, ...}}.
 */
// libs: -lutil
#include "measure.h"

#include <errno.h>
#include <fcntl.h>
#include <pty.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <termios.h>

#define PIECES 4u
#define PIECE  2u
#define ALL    (PIECES * PIECE)
#define LARGE  (1u << 19)
#define GAP_US 500

static struct {
    int tcp, least, local, tty; /* what comes in pieces; `least`: SO_RCVLOWAT */
    int out, pipe;              /* what is drained slowly */
    int go;                     /* a byte: the descriptor that pieces are wanted on */
    int file, zero, random;
} env;

static char *block;

/* ---- the others, on the same CPU ---- */

static void stay_on_one_cpu(void)
{
    cpu_set_t set;
    int cpu = CPU_SETSIZE - 1;

    sched_getaffinity(0, sizeof(set), &set);
    while (!CPU_ISSET(cpu, &set))
        cpu--;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    sched_setaffinity(0, sizeof(set), &set);
}

static bool is_other(void)
{
    if (fork())
        return false;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    return true;
}

static void keep_busy(void)
{
    if (is_other())
        for (;;)
            __asm__ volatile("");
}

static void feed(int wanted)
{
    int fd;

    if (!is_other())
        return;
    while (read(wanted, &fd, sizeof(fd)) == sizeof(fd)) {
        for (unsigned i = 0; i < PIECES; i++) {
            usleep(GAP_US);
            if (write(fd, "ab", PIECE) != PIECE)
                _exit(1);
        }
    }
    _exit(0);
}

static void drain(int fd)
{
    static char room[1 << 15];

    if (!is_other())
        return;
    while (read(fd, room, sizeof(room)) > 0)
        usleep(GAP_US);
    _exit(0);
}

/* ---- the calls ---- */

static struct {
    const char *name;
    unsigned long calls, cut;
} seen[11];

/* `rest`: where what is missing will come, which is of no use; -1: nothing will. */
static void check(unsigned which, const char *name, ssize_t got, size_t wanted, int rest)
{
    int missing = (int)((ssize_t)wanted - (got < 0 ? 0 : got)), there = 0;
    char room[ALL];

    seen[which].name = name;
    seen[which].calls++;
    seen[which].cut += missing != 0;
    while (rest >= 0 && there < missing && ioctl(rest, FIONREAD, &there) == 0)
        usleep(GAP_US);
    if (rest < 0 || missing == 0)
        return;
    if (isatty(rest))
        tcflush(rest, TCIFLUSH);
    else if (read(rest, room, (size_t)missing) != missing)
        die("the rest");
}

static void ask_for(int fd)
{
    if (write(env.go, &fd, sizeof(fd)) != sizeof(fd))
        die("feeder");
}

static int others_end[4];

static void one_call(unsigned which)
{
    char text[ALL];
    struct iovec v[2] = {{text, 3}, {text + 3, ALL - 3}}, large[2] = {{block, LARGE / 2}, {block, LARGE / 2}};
    struct msghdr m = {.msg_iov = v, .msg_iovlen = 2};
    off_t at = 0;

    switch (which) {
    case 0:
        ask_for(others_end[0]);
        check(which, "recv, MSG_WAITALL", recv(env.tcp, text, ALL, MSG_WAITALL), ALL, env.tcp);
        break;
    case 1:
        ask_for(others_end[1]);
        check(which, "read, SO_RCVLOWAT", read(env.least, text, ALL), ALL, env.least);
        break;
    case 2:
        ask_for(others_end[2]);
        check(which, "recvmsg of a local socket", recvmsg(env.local, &m, MSG_WAITALL), ALL, env.local);
        break;
    case 3:
        ask_for(others_end[1]);
        check(which, "readv, SO_RCVLOWAT", readv(env.least, v, 2), ALL, env.least);
        break;
    case 4:
        ask_for(others_end[3]);
        check(which, "read of a terminal", read(env.tty, text, ALL), ALL, env.tty);
        break;
    case 5:
        check(which, "send", send(env.out, block, LARGE, MSG_NOSIGNAL), LARGE, -1);
        break;
    case 6:
        check(which, "write to a pipe", write(env.pipe, block, LARGE), LARGE, -1);
        break;
    case 7:
        check(which, "writev to a pipe", writev(env.pipe, large, 2), LARGE, -1);
        break;
    case 8:
        check(which, "sendfile", sendfile(env.out, env.file, &at, LARGE), LARGE, -1);
        break;
    case 9:
        check(which, "read of /dev/zero", read(env.zero, block, 16 * LARGE), 16 * LARGE, -1);
        break;
    case 10:
        check(which, "read of /dev/urandom", read(env.random, block, LARGE), LARGE, -1);
        break;
    }
}

static void connection(int *ours, int *theirs)
{
    struct sockaddr_in address;
    int listener = loopback_socket(SOCK_STREAM, &address);

    *ours = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(*ours, (struct sockaddr *)&address, sizeof(address)))
        die("connect");
    *theirs = accept(listener, NULL, NULL);
    close(listener);
}

static void make_all(void)
{
    int least = ALL, drained, local[2], pipes[2], go[2];
    char name[] = "/tmp/partial.XXXXXX";
    struct termios raw;

    block = malloc(16 * LARGE);
    memset(block, 1, 16 * LARGE);
    connection(&env.tcp, &others_end[0]);
    socketpair(AF_UNIX, SOCK_STREAM, 0, local); /* not TCP's, where who has read a part may never be woken */
    env.least = local[0];
    others_end[1] = local[1];
    setsockopt(env.least, SOL_SOCKET, SO_RCVLOWAT, &least, sizeof(least));
    socketpair(AF_UNIX, SOCK_STREAM, 0, local);
    env.local = local[0];
    others_end[2] = local[1];
    if (openpty(&others_end[3], &env.tty, NULL, NULL, NULL))
        die("openpty");
    tcgetattr(env.tty, &raw);
    cfmakeraw(&raw);
    raw.c_cc[VMIN] = ALL;
    tcsetattr(env.tty, TCSANOW, &raw);
    env.file = mkstemp(name);
    unlink(name);
    if (write(env.file, block, LARGE) != LARGE || pipe(pipes) || pipe(go))
        die("files");
    env.zero = open("/dev/zero", O_RDONLY);
    env.random = open("/dev/urandom", O_RDONLY);
    env.pipe = pipes[1];
    env.go = go[1];
    connection(&env.out, &drained);
    feed(go[0]);
    drain(drained);
    drain(pipes[0]);
}

int main(int argc, char **argv)
{
    uint64_t end = now_ns() + (argc > 1 ? strtoull(argv[1], NULL, 10) : 3) * 1000000000u;
    int ep = epoll_create1(EPOLL_CLOEXEC), ready = eventfd(1, EFD_CLOEXEC);
    struct epoll_event ev = {.events = EPOLLIN};
    unsigned long calls = 0, cut = 0;
    const char *comma = "";

    stay_on_one_cpu();
    make_all();
    keep_busy();
    keep_busy();
    epoll_ctl(ep, EPOLL_CTL_ADD, ready, &ev);
    for (unsigned turn = 0; now_ns() < end; turn++) {
        if (epoll_wait(ep, &ev, 1, -1) != 1)
            die("epoll_wait");
        if (turn < 20)
            continue;
        spin_until(now_ns() + 700000);
        one_call(turn % 11);
    }
    printf("{\"which\": {");
    for (size_t i = 0; i < sizeof(seen) / sizeof(*seen); i++) {
        calls += seen[i].calls;
        cut += seen[i].cut;
        if (seen[i].cut) {
            printf("%s\"%s\": %lu", comma, seen[i].name, seen[i].cut);
            comma = ", ";
        }
    }
    printf("}, \"calls\": %lu, \"cut\": %lu}\n", calls, cut);
    return 0;
}
