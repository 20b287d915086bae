/*
 * Calls in a callback of libuv's that do not block, and some that do, on descriptors of every kind: stays_uv DIRECTORY.
 * What each said, a line each, the same with calls moved and without. DIRECTORY: of a file system on a disk; on stderr
 * how much of a file there, of a MB, is read without waiting.
 */
// libs: -luv
#include "measure.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>
#include <uv.h>

#ifndef TCP_FASTOPEN_NO_COOKIE
#define TCP_FASTOPEN_NO_COOKIE 34
#endif
#define WARM 20
#define MANY (1 << 20)

static uv_timer_t timer;
static int turns;
static volatile int signals;
static const char *folder;
static char *much, *volatile nowhere = (char *)8;

static void on_signal(int sig)
{
    signals++;
}

static void say(const char *what, long r)
{
    int error = errno;

    printf("%s: %ld %s, %d signals\n", what, r, r < 0 ? strerrorname_np(error) : "-", signals);
    signals = 0;
    errno = 0;
}

static void put(int fd, const char *text)
{
    if (write(fd, text, strlen(text)) != (long)strlen(text))
        die("write");
}

/* ---- somebody else, a little later ---- */

struct later {
    int fd;
    const char *text;
};

static void *put_later(void *arg)
{
    struct later *l = arg;

    usleep(60000);
    put(l->fd, l->text);
    free(l);
    return NULL;
}

static void later(int fd, const char *text)
{
    struct later *l = malloc(sizeof(*l));
    pthread_t thread;

    *l = (struct later){fd, text};
    pthread_create(&thread, NULL, put_later, l);
    pthread_detach(thread);
}

/* ---- what is there ---- */

static void receive_all_ways(int fd, int other)
{
    char text[8] = "", more[4] = "";
    struct iovec v[2] = {{text, 2}, {more, 4}};
    struct msghdr m = {.msg_iov = v, .msg_iovlen = 2};

    put(other, "abcdefghijklmnopqrstuvwxyz");
    say("peek", recv(fd, text, 3, MSG_PEEK));
    say("full", recv(fd, text, 3, 0));
    say("read", read(fd, text, 3));
    say("readv", readv(fd, v, 2));
    say("recvmsg", recvmsg(fd, &m, 0));
    say("recvfrom", recvfrom(fd, text, 2, 0, NULL, NULL));
    say("nothing", recv(fd, text, 0, 0));
    say("nothing read", read(fd, text, 0));
    say("short", read(fd, much, MANY));
    puts(text);
}

static void pairs(void)
{
    const int types[] = {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET};
    int s[2];

    for (size_t i = 0; i < sizeof(types) / sizeof(*types); i++) {
        socketpair(AF_UNIX, types[i], 0, s);
        if (types[i] == SOCK_STREAM) {
            receive_all_ways(s[0], s[1]);
        } else {
            put(s[1], "abcdef");
            put(s[1], "ghi");
            say("cut", recv(s[0], much, 4, 0));
            say("next", read(s[0], much, 4));
        }
        say("nowait", recv(s[0], much, 4, MSG_DONTWAIT));
        fcntl(s[0], F_SETFL, O_NONBLOCK);
        say("nonblocking", recv(s[0], much, 4, 0));
        say("nonblocking read", read(s[0], much, 4));
        close(s[1]);
        say("end", read(s[0], much, 4));
        close(s[0]);
    }
}

static void pipes(void)
{
    int p[2];

    pipe(p);
    put(p[1], "abcdef");
    say("pipe", read(p[0], much, 4));
    say("pipe, short", read(p[0], much, MANY));
    later(p[1], "later");
    say("pipe, later", read(p[0], much, MANY));
    say("bad memory", (put(p[1], "x"), read(p[0], nowhere, 1)));
    close(p[1]);
    say("pipe, rest", read(p[0], much, MANY));
    say("pipe, end", read(p[0], much, MANY));
    close(p[0]);
    say("closed", read(p[0], much, 1));
    p[0] = eventfd(7, 0);
    say("eventfd", read(p[0], much, 8));
    close(p[0]);
}

/* ---- a socket that is not ready from the first byte on ---- */

static void few(void)
{
    int four = 4, s[2], third;

    for (int when = 0; when < 3; when++) { /* set before it is known, after, and by another number of it */
        socketpair(AF_UNIX, SOCK_STREAM, 0, s);
        put(s[1], "x");
        if (when)
            say("one", recv(s[0], much, 10, 0));
        third = dup(s[0]);
        setsockopt(when == 2 ? third : s[0], SOL_SOCKET, SO_RCVLOWAT, &four, sizeof(four));
        put(s[1], "ab");
        later(s[1], "cdef");
        say("at least four", recv(s[0], much, 10, 0));
        put(s[1], "ab");
        later(s[1], "cdef");
        say("at least four read", read(s[0], much, 10));
        close(third);
        close(s[0]);
        close(s[1]);
    }
}

/* ---- a number that becomes a file's ---- */

/* Of which the first page only is in memory: who does not wait gets no more. */
static int cold_file(void)
{
    char path[4096];
    int fd;

    snprintf(path, sizeof(path), "%s/file", folder);
    fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    for (int i = 0; i < 4; i++) {
        if (write(fd, much, MANY) != MANY)
            die("file");
    }
    fsync(fd);
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
    if (pread(fd, path, 1, 0) != 1)
        die("pread");
    lseek(fd, 0, SEEK_SET);
    return fd;
}

static int known_pipe(void)
{
    int p[2];

    pipe(p);
    put(p[1], "x");
    say("known", read(p[0], much, 10));
    close(p[1]);
    return p[0];
}

static void numbers(void)
{
    int number = known_pipe(), file;
    FILE *stream;

    close(number);
    file = cold_file();
    say(file == number ? "after close" : "another number", read(file, much, MANY));
    close(file);

    number = known_pipe();
    stream = fdopen(number, "r");
    fclose(stream);
    file = cold_file();
    say(file == number ? "after fclose" : "another number", read(file, much, MANY));
    close(file);

    file = cold_file();
    number = known_pipe();
    dup2(file, number);
    say("after dup2", read(number, much, MANY));
    close(number);
    close(file);

    number = known_pipe();
    close_range((unsigned)number, (unsigned)number, 0);
    file = cold_file();
    say(file == number ? "after close_range" : "another number", read(file, much, MANY));
    close(file);

    number = known_pipe();
    syscall(SYS_close, number);
    file = cold_file();
    say(file == number ? "after syscall" : "another number", read(file, much, MANY));
    close(file);

    number = known_pipe();
    file = cold_file();
    syscall(SYS_dup2, file, number);
    close(file);
    say("after syscall dup2", read(number, much, MANY));
    close(number);

    number = known_pipe();
    syscall(SYS_close_range, number, number, 0);
    file = cold_file();
    say(file == number ? "after syscall close_range" : "another number", read(file, much, MANY));
    close(file);

    number = known_pipe();
    snprintf(much, 4096, "%s/file", folder);
    stream = fdopen(number, "r");
    close(cold_file());
    freopen(much, "r", stream);
    posix_fadvise(fileno(stream), 0, 0, POSIX_FADV_DONTNEED);
    posix_fadvise(fileno(stream), 0, 0, POSIX_FADV_RANDOM);
    pread(fileno(stream), much, 1, 0);
    say(fileno(stream) == number ? "after freopen" : "another number", read(fileno(stream), much, MANY));
    fclose(stream);
}

/* By no function of libc's, which nobody sees. */
static void close_unseen(int fd)
{
    long r = SYS_close;

    __asm__ volatile("syscall" : "+a"(r) : "D"((long)fd) : "rcx", "r11", "memory");
}

/* A stream's number that becomes a file's unseen: it is a socket no more. */
static void unseen(void)
{
    int s[2], file;

    socketpair(AF_UNIX, SOCK_STREAM, 0, s);
    put(s[0], "x");
    close(s[1]);
    close_unseen(s[0]);
    file = cold_file();
    say(file == s[0] ? "unseen, write" : "another number", write(file, "abc", 3));
    close(file);

    socketpair(AF_UNIX, SOCK_DGRAM, 0, s);
    put(s[1], "x");
    say("datagram", read(s[0], much, 10));
    close(s[1]);
    close_unseen(s[0]);
    file = cold_file();
    say(file == s[0] ? "unseen, read" : "another number", read(file, much, MANY));
    close(file);
}

/* What a child of vfork's finds at a number is not there in its parent, whose memory it uses. */
static void children(void)
{
    int number = 700, p[2], file = cold_file(), status;
    pid_t child;

    pipe(p);
    put(p[1], "x");
    child = vfork();
    if (child == 0) {
        dup2(p[0], number);
        _exit(read(number, much, 1) == 1 ? 7 : 8);
    }
    waitpid(child, &status, 0);
    say("child", WEXITSTATUS(status));
    say("number", fcntl(file, F_DUPFD, number));
    say("after vfork", read(number, much, MANY));
    close(number);
    close(file);
    close(p[0]);
    close(p[1]);
}

/* ---- a connection that begins with what is sent: who waits is not told that it is on its way ---- */

static void deferred(void)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(at);
    int listener = socket(AF_INET, SOCK_STREAM, 0), fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;

    if (bind(listener, (struct sockaddr *)&at, len) || listen(listener, 1) ||
        getsockname(listener, (struct sockaddr *)&at, &len))
        die("listen");
    setsockopt(fd, IPPROTO_TCP, TCP_FASTOPEN_CONNECT, &on, sizeof(on));
    setsockopt(fd, IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE, &on, sizeof(on));
    say("deferred", connect(fd, (struct sockaddr *)&at, len));
    say("nothing", send(fd, "", 0, 0));
    say("something", send(fd, "abc", 3, 0));
    close(fd);
    close(listener);
}

/* ---- a connection that was reset says so once ---- */

static int reset_socket(void)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct linger at_once = {1, 0};
    socklen_t len = sizeof(at);
    int listener = socket(AF_INET, SOCK_STREAM, 0), fd = socket(AF_INET, SOCK_STREAM, 0), peer;

    if (bind(listener, (struct sockaddr *)&at, len) || listen(listener, 1) ||
        getsockname(listener, (struct sockaddr *)&at, &len) || connect(fd, (struct sockaddr *)&at, len))
        die("connect");
    peer = accept(listener, NULL, NULL);
    setsockopt(peer, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
    close(peer);
    close(listener);
    usleep(20000);
    return fd;
}

static void resets(void)
{
    int fd = reset_socket();

    say("send", send(fd, "abc", 3, 0));
    say("send again", send(fd, "abc", 3, 0));
    say("send, no signal", send(fd, "abc", 3, MSG_NOSIGNAL));
    close(fd);
    fd = reset_socket();
    say("write", write(fd, "abc", 3));
    say("write again", write(fd, "abc", 3));
    close(fd);
    fd = reset_socket();
    say("recv", recv(fd, much, 3, 0));
    say("recv again", recv(fd, much, 3, 0));
    close(fd);
    fd = socket(AF_INET, SOCK_STREAM, 0);
    say("not connected", send(fd, "abc", 3, 0));
    say("not connected, recv", recv(fd, much, 3, 0));
    close(fd);
    say("no socket", send(0, "abc", 3, 0));
}

static void on_timer(uv_timer_t *t)
{
    if (++turns < WARM)
        return;
    uv_timer_stop(t);
    pairs();
    pipes();
    few();
    numbers();
    unseen();
    children();
    deferred();
    resets();
}

/* What a read that does not wait finds of the file: else that part proves nothing. */
static void say_whether_cold(void)
{
    struct iovec v = {much, MANY};
    int fd = cold_file();

    fprintf(stderr, "%ld\n", (long)syscall(SYS_preadv2, fd, &v, 1, -1L, -1L, RWF_NOWAIT));
    close(fd);
}

int main(int argc, char **argv)
{
    folder = argc > 1 ? argv[1] : ".";
    much = malloc(MANY);
    memset(much, 'm', MANY);
    setvbuf(stdout, NULL, _IOFBF, 1 << 16);
    signal(SIGPIPE, on_signal);
    say_whether_cold();
    uv_timer_init(uv_default_loop(), &timer);
    uv_timer_start(&timer, on_timer, 1, 1);
    return uv_run(uv_default_loop(), UV_RUN_DEFAULT);
}
