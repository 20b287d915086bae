/*
 * Nothing to report: quiet COUNT BUSY_US [IDLE_MS]
 * COUNT callbacks of BUSY_US each, then IDLE_MS in the wait. Prints what it saw
 * of itself: turns, the longest one, how many had to wait for a CPU.
 */
#include "measure.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>

static int schedstat = -1;
static uint64_t longest_ns;
static unsigned delayed; /* callbacks that waited more than 5 ms for a CPU */

static NOINLINE void on_event(uint64_t busy_ns)
{
    uint64_t start = now_ns(), delay = runqueue_ns(&schedstat), spent;

    spin_until(start + busy_ns);
    spent = now_ns() - start;
    if (spent > longest_ns)
        longest_ns = spent;
    if (spent > 5000000 && runqueue_ns(&schedstat) - delay > 5000000)
        delayed++;
}

int main(int argc, char **argv)
{
    int count = argc > 1 ? atoi(argv[1]) : 0, idle = argc > 3 ? atoi(argv[3]) : 0, turns = 0;
    uint64_t busy_ns = argc > 2 ? strtoull(argv[2], NULL, 10) * 1000u : 0;
    struct epoll_event ev = {.events = EPOLLIN};
    int ready = eventfd(1, EFD_CLOEXEC), ep = epoll_create1(EPOLL_CLOEXEC);

    epoll_ctl(ep, EPOLL_CTL_ADD, ready, &ev);
    while (epoll_wait(ep, &ev, 1, turns < count ? -1 : idle) == 1) {
        on_event(busy_ns);
        if (++turns == count)
            epoll_ctl(ep, EPOLL_CTL_DEL, ready, NULL);
    }
    printf("{\"turns\": %d, \"longest_ns\": %llu, \"delayed\": %u}\n", turns, (unsigned long long)longest_ns, delayed);
    return 0;
}
