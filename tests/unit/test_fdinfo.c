/* Descriptors in words: files, connected and listening sockets, unix peers, anonymous ones. */
#include "../../tracer/fdinfo.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static const char *describe(int fd)
{
    static char buf[UB_FD_TEXT_MAX];

    assert_int_equal(ub_fd_describe(getpid(), fd, buf, sizeof(buf)), 0);
    return buf;
}

static void expect_and_close(int fd, const char *text)
{
    assert_true(fd >= 0);
    assert_string_equal(describe(fd), text);
    close(fd);
}

static void test_files(void **state)
{
    char path[] = "/tmp/unblock-fdinfo-XXXXXX", deleted[64];
    int fd = mkstemp(path);

    assert_true(fd >= 0);
    assert_string_equal(describe(fd), path);
    unlink(path);
    snprintf(deleted, sizeof(deleted), "%s (deleted)", path);
    expect_and_close(fd, deleted);
    fd = open("/tmp/unblock\n\x1b", O_RDWR | O_CREAT, 0600);
    unlink("/tmp/unblock\n\x1b");
    expect_and_close(fd, "/tmp/unblock\\n\\x1b (deleted)");
}

static void test_anonymous(void **state)
{
    int pipes[2];

    assert_int_equal(pipe(pipes), 0);
    close(pipes[1]);
    expect_and_close(pipes[0], "pipe");
    expect_and_close(eventfd(0, 0), "eventfd");
    expect_and_close(epoll_create1(0), "eventpoll");
    expect_and_close(timerfd_create(CLOCK_MONOTONIC, 0), "timerfd");
    expect_and_close(inotify_init(), "inotify");
    expect_and_close(memfd_create("wal", 0), "/memfd:wal (deleted)");
}

/* A listening socket on loopback and a connection to it. */
static void connect_pair(int family, int *listener, int *client, uint16_t *port)
{
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_in6 in6 = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    struct sockaddr *sa = family == AF_INET ? (struct sockaddr *)&in : (struct sockaddr *)&in6;
    socklen_t len = family == AF_INET ? sizeof(in) : sizeof(in6);

    *listener = socket(family, SOCK_STREAM, 0);
    *client = socket(family, SOCK_STREAM, 0);
    if (*listener < 0 || bind(*listener, sa, len) != 0)
        skip(); /* no IPv6 here */
    assert_int_equal(listen(*listener, 4), 0);
    assert_int_equal(getsockname(*listener, sa, &len), 0);
    *port = ntohs(family == AF_INET ? in.sin_port : in6.sin6_port);
    assert_int_equal(connect(*client, sa, len), 0);
}

static void check_tcp(int family, const char *host)
{
    char text[128];
    uint16_t port;
    int listener, client;

    connect_pair(family, &listener, &client, &port);
    snprintf(text, sizeof(text), "socket %s:%u", host, port);
    expect_and_close(client, text);
    snprintf(text, sizeof(text), "socket listening %s:%u", host, port);
    expect_and_close(listener, text);
}

static void test_tcp4(void **state)
{
    check_tcp(AF_INET, "127.0.0.1");
}

static void test_tcp6(void **state)
{
    check_tcp(AF_INET6, "[::1]");
}

static void test_udp(void **state)
{
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons(9)};
    int fd = socket(AF_INET, SOCK_DGRAM, 0);

    assert_int_equal(connect(fd, (struct sockaddr *)&in, sizeof(in)), 0);
    expect_and_close(fd, "socket udp 127.0.0.1:9");
}

static void test_unix(void **state)
{
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    char text[160];
    int listener = socket(AF_UNIX, SOCK_STREAM, 0), client = socket(AF_UNIX, SOCK_STREAM, 0), accepted, pair[2];

    snprintf(un.sun_path, sizeof(un.sun_path), "/tmp/unblock-fdinfo-%d.sock", getpid());
    unlink(un.sun_path);
    assert_int_equal(bind(listener, (struct sockaddr *)&un, sizeof(un)), 0);
    assert_int_equal(listen(listener, 1), 0);
    assert_int_equal(connect(client, (struct sockaddr *)&un, sizeof(un)), 0);
    accepted = accept(listener, NULL, NULL);
    unlink(un.sun_path);
    snprintf(text, sizeof(text), "socket unix %s", un.sun_path);
    assert_string_equal(describe(listener), text);
    assert_string_equal(describe(accepted), text);
    if (strcmp(describe(client), "socket unix") != 0) /* a kernel without unix_diag cannot tell */
        assert_string_equal(describe(client), text);
    close(listener);
    close(client);
    close(accepted);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    close(pair[1]);
    expect_and_close(pair[0], "socket unix");
}

static void test_other_sockets(void **state)
{
    expect_and_close(socket(AF_NETLINK, SOCK_RAW, 0), "socket netlink");
    expect_and_close(socket(AF_INET, SOCK_STREAM, 0), "socket");
}

static void test_failures(void **state)
{
    char buf[UB_FD_TEXT_MAX] = "old";
    pid_t gone = fork();

    if (gone == 0)
        _exit(0);
    waitpid(gone, NULL, 0);
    assert_int_equal(ub_fd_describe(getpid(), 1000, buf, sizeof(buf)), -EBADF);
    assert_string_equal(buf, "");
    assert_int_equal(ub_fd_describe(getpid(), -1, buf, sizeof(buf)), -EBADF);
    assert_int_equal(ub_fd_describe(gone, 0, buf, sizeof(buf)), -ESRCH);
}

static void test_small_buffer(void **state)
{
    char buf[8];

    assert_int_equal(ub_fd_describe(getpid(), memfd_create("a-long-name", 0), buf, sizeof(buf)), 0);
    assert_string_equal(buf, "/mem...");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_files),         cmocka_unit_test(test_anonymous), cmocka_unit_test(test_tcp4),
        cmocka_unit_test(test_tcp6),          cmocka_unit_test(test_udp),       cmocka_unit_test(test_unix),
        cmocka_unit_test(test_other_sockets), cmocka_unit_test(test_failures),  cmocka_unit_test(test_small_buffer),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
