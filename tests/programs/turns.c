/*
 * The cost of a turn and of a call: turns MODE COUNT
 *
 *   turn      COUNT turns of an epoll loop with one ready descriptor and an empty callback
 *   serve     the same with a read and a write in each callback
 *   offloop   COUNT calls of poll(NULL, 0, 0) outside any loop
 *   malloc    COUNT pairs of malloc and free inside a loop's callback
 *   paced     turns at RATE a second (third argument) for COUNT turns
 *
 * Prints {"mode": , "count": , "ns": , "check": }; `check` is a number that depends on the work done.
 */
#include "measure.h"

#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

static uint64_t work;

static NOINLINE void on_event(void)
{
    work++;
    __asm__ volatile("" ::: "memory");
}

int main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "turn";
    uint64_t count = argc > 2 ? strtoull(argv[2], NULL, 10) : 1000,
             rate = argc > 3 ? strtoull(argv[3], NULL, 10) : 100000;
    struct epoll_event ev = {.events = EPOLLIN};
    int ready = eventfd(1, EFD_CLOEXEC), ep = epoll_create1(EPOLL_CLOEXEC), bytes[2];
    uint64_t start, next;
    char c = 'x';

    if (pipe2(bytes, O_CLOEXEC))
        die("pipe2");
    epoll_ctl(ep, EPOLL_CTL_ADD, ready, &ev);
    /* The loop is a loop before the clock starts. */
    for (int i = 0; i < 100 && strcmp(mode, "offloop"); i++)
        if (epoll_wait(ep, &ev, 1, -1) != 1)
            return 1;
    start = next = now_ns();
    if (!strcmp(mode, "turn")) {
        for (uint64_t i = 0; i < count; i++)
            if (epoll_wait(ep, &ev, 1, -1) == 1)
                on_event();
    } else if (!strcmp(mode, "serve")) {
        for (uint64_t i = 0; i < count; i++)
            if (epoll_wait(ep, &ev, 1, -1) == 1 && write(bytes[1], &c, 1) == 1 && read(bytes[0], &c, 1) == 1)
                on_event();
    } else if (!strcmp(mode, "offloop")) {
        for (uint64_t i = 0; i < count; i++)
            work += poll(NULL, 0, 0) == 0;
    } else if (!strcmp(mode, "malloc")) {
        for (uint64_t i = 0; i < count; i++) {
            char *volatile p;

            if (i % 100 == 0 && epoll_wait(ep, &ev, 1, -1) != 1)
                return 1;
            p = malloc(64 + i % 64);
            work += p != NULL;
            free(p);
        }
    } else if (!strcmp(mode, "paced")) {
        for (uint64_t i = 0; i < count; i++) {
            next += 1000000000u / rate;
            while (now_ns() < next)
                ;
            if (epoll_wait(ep, &ev, 1, -1) == 1)
                on_event();
        }
    } else {
        fprintf(stderr, "no such mode: %s\n", mode);
        return 99;
    }
    printf("{\"mode\": \"%s\", \"count\": %llu, \"ns\": %llu, \"check\": %llu}\n", mode, (unsigned long long)count,
           (unsigned long long)(now_ns() - start), (unsigned long long)work);
    return 0;
}
