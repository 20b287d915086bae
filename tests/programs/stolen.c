/*
 * What a capture takes from the program: stolen cpu|sleep COUNT MS
 *
 *   cpu    COUNT turns of MS ms each that read the clock all the time; prints the
 *          pauses between two readings, [at_ns, length_ns], all above 1 us
 *   sleep  COUNT turns that sleep MS ms; prints [start_ns, context switches, ns slept too long]
 *
 * One JSON object: {"turns": n, "pauses": [[...], ...]}.
 */
#include "measure.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>

#define PAUSES_MAX 200000

static struct {
    uint64_t at, length, extra;
} pause_seen[PAUSES_MAX];
static int pauses;

static void note(uint64_t at, uint64_t length, uint64_t extra)
{
    if (pauses < PAUSES_MAX) {
        pause_seen[pauses].at = at;
        pause_seen[pauses].length = length;
        pause_seen[pauses++].extra = extra;
    }
}

static NOINLINE void compute(uint64_t ns)
{
    uint64_t end = now_ns() + ns, last = now_ns(), now;

    for (; last < end; last = now) {
        now = now_ns();
        if (now - last > 1000)
            note(last, now - last, 0);
    }
}

static uint64_t switches(void)
{
    struct rusage use;

    getrusage(RUSAGE_THREAD, &use);
    return (uint64_t)(use.ru_nvcsw + use.ru_nivcsw);
}

static NOINLINE void doze(uint64_t ns)
{
    uint64_t before = switches(), start = now_ns(), late;

    sleep_ns(ns);
    late = now_ns() - start - ns;
    note(start, switches() - before, late);
}

int main(int argc, char **argv)
{
    int count = argc > 3 ? atoi(argv[2]) : 0;
    uint64_t ns = argc > 3 ? strtoull(argv[3], NULL, 10) * 1000000u : 0;
    struct epoll_event ev = {.events = EPOLLIN};
    int ready = eventfd(1, EFD_CLOEXEC), ep = epoll_create1(EPOLL_CLOEXEC);

    epoll_ctl(ep, EPOLL_CTL_ADD, ready, &ev);
    for (int turn = 0; turn < count + 20; turn++) {
        if (epoll_wait(ep, &ev, 1, -1) != 1)
            return 1;
        if (turn < 20)
            sleep_ns(100000);
        else if (argv[1][0] == 'c')
            compute(ns);
        else
            doze(ns);
    }
    printf("{\"turns\": %d, \"pauses\": [", count);
    for (int i = 0; i < pauses; i++)
        printf("%s[%llu, %llu, %llu]", i ? ", " : "", (unsigned long long)pause_seen[i].at,
               (unsigned long long)pause_seen[i].length, (unsigned long long)pause_seen[i].extra);
    printf("]}\n");
    return 0;
}
