/*
 * A CPU-bound loop that replaces itself: execself COUNT BUSY_US
 * Each image runs a few loop turns (so that it counts as a loop), one that
 * computes for BUSY_US, and then one in the middle of which, after 0.5 to 1.5
 * times BUSY_US, it executes itself with COUNT - 1. The last one says "done".
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

static __attribute__((noinline)) void compute(uint64_t ns)
{
    struct timespec ts;
    uint64_t start;
    volatile unsigned x = 0;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    start = (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
    do {
        for (int i = 0; i < 100; i++)
            x += (unsigned)i;
        clock_gettime(CLOCK_MONOTONIC, &ts);
    } while ((uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec - start < ns);
}

int main(int argc, char **argv)
{
    int left = argc > 2 ? atoi(argv[1]) : 0;
    uint64_t busy_ns = argc > 2 ? strtoull(argv[2], NULL, 10) * 1000u : 0;
    struct epoll_event ev = {.events = EPOLLIN};
    int ready = eventfd(1, EFD_CLOEXEC), ep = epoll_create1(EPOLL_CLOEXEC);
    char next[16];

    epoll_ctl(ep, EPOLL_CTL_ADD, ready, &ev);
    for (int turn = 0; turn < 14; turn++) {
        if (epoll_wait(ep, &ev, 1, 0) != 1)
            return 1;
        if (turn == 12 && left > 0)
            compute(busy_ns);
    }
    if (left <= 0) {
        puts("done");
        return 0;
    }
    compute(busy_ns / 2 + (uint64_t)(left * 7919 % 1000) * busy_ns / 1000);
    snprintf(next, sizeof(next), "%d", left - 1);
    execv("/proc/self/exe", (char *[]){argv[0], next, argv[2], NULL});
    perror("execv");
    return 2;
}
