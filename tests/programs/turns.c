/*
 * The cost of a turn and of a call: turns MODE COUNT
 *
 *   turn      COUNT turns of an epoll loop with one ready descriptor and an empty callback
 *   serve     the same with a read and a write in each callback
 *   offloop   COUNT calls of poll(NULL, 0, 0) outside any loop
 *   call      COUNT calls of a hooked function that does next to nothing, outside any loop
 *   loopcall  the same inside a loop's callback
 *   malloc    COUNT pairs of malloc and free inside a loop's callback
 *   paced     turns at RATE a second (third argument) for COUNT turns
 *
 * Prints {"mode": , "count": , "ns": all of it, "median_ns": of one, "check": a number that depends on the work done}.
 */
#include "measure.h"

#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#define BATCH 1000

static uint64_t work, next_ns;
static int ep, bytes[2];

static NOINLINE void on_event(void)
{
    work++;
    __asm__ volatile("" ::: "memory");
}

static NOINLINE void turn(uint64_t count)
{
    struct epoll_event ev;

    for (uint64_t i = 0; i < count; i++)
        if (epoll_wait(ep, &ev, 1, -1) == 1)
            on_event();
}

static NOINLINE void serve(uint64_t count)
{
    struct epoll_event ev;
    char c = 'x';

    for (uint64_t i = 0; i < count; i++)
        if (epoll_wait(ep, &ev, 1, -1) == 1 && write(bytes[1], &c, 1) == 1 && read(bytes[0], &c, 1) == 1)
            on_event();
}

static NOINLINE void offloop(uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        work += poll(NULL, 0, 0) == 0;
}

static const char *volatile nothing = ""; /* the compiler would leave out the call */

static NOINLINE void call(uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        work += fputs_unlocked(nothing, stdout) >= 0;
}

static NOINLINE void loopcall(uint64_t count)
{
    struct epoll_event ev;

    if (epoll_wait(ep, &ev, 1, -1) != 1)
        exit(1);
    call(count);
}

static NOINLINE void allocate(uint64_t count)
{
    struct epoll_event ev;

    for (uint64_t i = 0; i < count; i++) {
        char *volatile p;

        if (i % 100 == 0 && epoll_wait(ep, &ev, 1, -1) != 1)
            exit(1);
        p = malloc(64 + i % 64);
        work += p != NULL;
        free(p);
    }
}

static uint64_t pace_ns;

static NOINLINE void paced(uint64_t count)
{
    struct epoll_event ev;

    for (uint64_t i = 0; i < count; i++) {
        next_ns += pace_ns;
        while (now_ns() < next_ns)
            ;
        if (epoll_wait(ep, &ev, 1, -1) == 1)
            on_event();
    }
}

static int ascending(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

/* Median of the batches: what a call costs when nobody else takes the CPU. */
static double measure(void (*run)(uint64_t count), uint64_t count)
{
    uint64_t batches = count / BATCH, *ns = calloc(batches + 1, sizeof(*ns)), start;
    double median;

    for (uint64_t i = 0; i < batches; i++) {
        start = now_ns();
        run(BATCH);
        ns[i] = now_ns() - start;
    }
    run(count % BATCH);
    qsort(ns, batches, sizeof(*ns), ascending);
    median = (double)ns[batches / 2] / BATCH;
    free(ns);
    return median;
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*run)(uint64_t count);
    } modes[] = {{"turn", turn},   {"serve", serve}, {"offloop", offloop},  {"malloc", allocate},
                 {"paced", paced}, {"call", call},   {"loopcall", loopcall}};
    const char *mode = argc > 1 ? argv[1] : "turn";
    uint64_t count = argc > 2 ? strtoull(argv[2], NULL, 10) : 1000, start;
    struct epoll_event ev = {.events = EPOLLIN};
    int ready = eventfd(1, EFD_CLOEXEC);
    double median;

    pace_ns = 1000000000u / (argc > 3 ? strtoull(argv[3], NULL, 10) : 100000);
    ep = epoll_create1(EPOLL_CLOEXEC);
    if (pipe2(bytes, O_CLOEXEC))
        die("pipe2");
    epoll_ctl(ep, EPOLL_CTL_ADD, ready, &ev);
    for (size_t i = 0; i < sizeof(modes) / sizeof(modes[0]); i++) {
        if (strcmp(mode, modes[i].name))
            continue;
        next_ns = now_ns();
        if (strcmp(mode, "offloop") && strcmp(mode, "call"))
            for (int k = 0; k < 100; k++)
                modes[i].run(1); /* the loop is a loop before the clock starts */
        work = 0;
        start = now_ns();
        median = measure(modes[i].run, count);
        printf("{\"mode\": \"%s\", \"count\": %llu, \"ns\": %llu, \"median_ns\": %.2f, \"check\": %llu}\n", mode,
               (unsigned long long)count, (unsigned long long)(now_ns() - start), median, (unsigned long long)work);
        return 0;
    }
    fprintf(stderr, "no such mode: %s\n", mode);
    return 99;
}
