/*
 * The cases of offload_uv.c that may be moved: what each needs beforehand, who lets its call end, the call. What takes
 * the loop's time and is not the call (a fork, a buffer's first touch) is done beforehand.
 */
#ifndef OFFLOAD_CASES_H
#define OFFLOAD_CASES_H

#include "measure.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <pthread.h>
#include <semaphore.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define MUCH (4 << 20)

static const char *name;
static uint64_t ms = 200;
static long result;
static char order[256];

static int is(const char *what)
{
    return !strcmp(name, what);
}

static void note(const char *what)
{
    strncat(order, what, sizeof(order) - strlen(order) - 1);
}

static const char *setting(const char *variable, const char *otherwise)
{
    const char *value = getenv(variable);

    return value ? value : otherwise;
}

static void sleep_ms(void)
{
    struct timespec ts = {(time_t)(ms / 1000), (long)(ms % 1000) * 1000000};

    result = nanosleep(&ts, NULL);
}

/* ---- who lets the call end ------------------------------------------------------------- */

static int pair[2] = {-1, -1};
static int told[2] = {-1, -1}; /* the child, what to do */
static sem_t given;

static void put(int fd, const char *what)
{
    if (write(fd, what, strlen(what)) != (ssize_t)strlen(what))
        die("write");
}

static void *later(void *what)
{
    char buf[65536];

    usleep((useconds_t)ms * 1000);
    if (!strcmp(what, "write")) {
        put(pair[1], "hello");
    } else if (!strcmp(what, "accept")) {
        for (int i = 0; i < 2; i++)
            close(accept(pair[0], NULL, NULL));
    } else if (!strcmp(what, "post")) {
        sem_post(&given);
    } else if (!strcmp(what, "tell")) {
        put(told[1], "x");
    } else if (!strcmp(what, "drain")) {
        for (long n = 0, all = 0; all < MUCH && (n = read(pair[1], buf, sizeof(buf))) > 0; all += n)
            ;
    }
    return NULL;
}

static void help(const char *what)
{
    pthread_t thread;

    pthread_create(&thread, NULL, later, (void *)what);
    pthread_detach(thread);
}

/* ---- beforehand -------------------------------------------------------------------------- */

static char path[4096];
static pid_t child;
static int file = -1;
static char *much;

static struct sockaddr_in silent = {.sin_family = AF_INET};

/* A listener whose queue is full: the next connection gets no answer before somebody is accepted. */
static void listen_in_silence(void)
{
    socklen_t len = sizeof(silent);

    silent.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    silent.sin_port = 0;
    pair[0] = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(pair[0], (struct sockaddr *)&silent, len) || listen(pair[0], 0) ||
        getsockname(pair[0], (struct sockaddr *)&silent, &len))
        die("listen");
    pair[1] = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(pair[1], (struct sockaddr *)&silent, len))
        die("connect");
}

/* On a disk that is slow to sync, if the test has one. */
static void make_file(void)
{
    snprintf(path, sizeof(path), "%s/unblock-offload-XXXXXX", setting("SLOW_DISK", "/tmp"));
    file = mkstemp(path);
    if (file < 0)
        die(path);
}

/* Holds the lock, if it is about one, until it is told; then it is over. */
static void start_child(void)
{
    char c = 'x';
    int ready[2];

    if (pipe(told) || pipe(ready))
        die("pipe");
    child = fork();
    if (child == 0) {
        int fd = is("flock") ? open(path, O_RDWR) : -1;

        if (is("flock"))
            flock(fd, LOCK_EX);
        _exit(write(ready[1], &c, 1) != 1 || read(told[0], &c, 1) != 1 ? 1 : 7);
    }
    if (read(ready[0], &c, 1) != 1)
        die("the child");
    close(ready[0]);
    close(ready[1]);
}

static void prepare_case(void)
{
    if ((is("pipe_read") || is("signal")) && pipe(pair))
        die("pipe");
    if ((is("recv") || is("send")) && socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
        die("socketpair");
    if (is("send"))
        much = memset(malloc(MUCH), 'x', MUCH);
    if (is("fsync") || is("flock"))
        make_file();
    if (is("fsync"))
        put(file, "dirty");
    if (is("flock") || is("waitpid"))
        start_child();
    if (is("connect"))
        listen_in_silence();
    if (is("sem_wait"))
        sem_init(&given, 0, 0);
}

static void close_pair(int *two)
{
    for (int i = 0; i < 2; i++) {
        if (two[i] >= 0)
            close(two[i]);
        two[i] = -1;
    }
}

static void clean_up(void)
{
    if (child)
        waitpid(child, NULL, 0);
    if (file >= 0) {
        unlink(path);
        close(file);
    }
    close_pair(pair);
    close_pair(told);
    free(much);
    child = 0;
    file = -1;
    much = NULL;
}

/* ---- the call ---------------------------------------------------------------------------- */

static void look_up(void)
{
    struct addrinfo *list = NULL;

    result = getaddrinfo(setting("SLOW_NAME", "localhost"), "80", NULL, &list);
    note(list ? " some" : " none");
    if (list)
        freeaddrinfo(list);
}

static void connect_to_silence(void)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    help("accept");
    result = connect(fd, (struct sockaddr *)&silent, sizeof(silent));
    close(fd);
}

static void wait_for_child(void)
{
    int status = 0;

    help("tell");
    result = waitpid(child, &status, 0) == child ? WEXITSTATUS(status) : -1;
    child = 0;
}

/* False: it is none of these. */
static int block_in_call(void)
{
    char buf[16] = "";

    if (is("nanosleep")) {
        sleep_ms();
    } else if (is("pipe_read") || is("recv") || is("signal")) {
        help("write");
        result = name[0] != 'r' ? read(pair[0], buf, sizeof(buf)) : recv(pair[0], buf, sizeof(buf), 0);
        note(buf);
    } else if (is("send")) {
        help("drain");
        result = send(pair[0], much, MUCH, 0);
    } else if (is("flock")) {
        help("tell");
        result = flock(file, LOCK_EX);
    } else if (is("waitpid")) {
        wait_for_child();
    } else if (is("fsync")) {
        result = fsync(file);
    } else if (is("getaddrinfo")) {
        look_up();
    } else if (is("connect")) {
        connect_to_silence();
    } else if (is("sem_wait")) {
        help("post");
        result = sem_wait(&given);
    } else {
        return 0;
    }
    return 1;
}

#endif
