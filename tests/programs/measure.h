/*
 * What every test program may need: a clock, a way to spend time, and how long
 * this thread has waited for a CPU (its own schedstat), so that a test can tell
 * the machine's noise from the program's doing.
 */
#ifndef MEASURE_H
#define MEASURE_H

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone))
#define UNUSED   __attribute__((unused))

UNUSED static uint64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* How long the calling thread has waited for a CPU, ever. *fd: -1 at first; one a thread. */
UNUSED static uint64_t runqueue_ns(int *fd)
{
    unsigned long long run = 0, wait = 0;
    char text[96];
    ssize_t n;

    if (*fd < 0)
        *fd = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
    n = pread(*fd, text, sizeof(text) - 1, 0);
    if (n <= 0)
        return 0;
    text[n] = 0;
    sscanf(text, "%llu %llu", &run, &wait);
    return wait;
}

UNUSED static void sleep_ns(uint64_t ns)
{
    struct timespec ts = {.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};

    while (nanosleep(&ts, &ts) && errno == EINTR)
        ;
}

UNUSED static void spin_until(uint64_t end_ns)
{
    volatile unsigned x = 0;

    while (now_ns() < end_ns)
        for (int i = 0; i < 200; i++)
            x += (unsigned)i;
}

UNUSED __attribute__((noreturn)) static void die(const char *what)
{
    perror(what);
    exit(99);
}

/* A bound socket on the loopback, listening when it is a stream; its address in *address. */
UNUSED static int loopback_socket(int type, struct sockaddr_in *address)
{
    socklen_t len = sizeof(*address);
    int fd = socket(AF_INET, type | SOCK_CLOEXEC, 0);

    memset(address, 0, sizeof(*address));
    address->sin_family = AF_INET;
    address->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(fd, (struct sockaddr *)address, len) || getsockname(fd, (struct sockaddr *)address, &len))
        die("bind");
    if (type == SOCK_STREAM && listen(fd, 4))
        die("listen");
    return fd;
}

#endif
