/*
 * Event loops without a library: loop_bare KIND TRUTH [STALLS [ROUNDS [SEED]]]
 * KIND: epoll epoll_pwait epoll_pwait2 poll ppoll select pselect io_uring wrapped two_sites.
 * Each loop waits and dispatches in one function, as redis and nginx do;
 * "wrapped" waits in a function of its own, "two_sites" with one of two calls:
 * one that only looks, one that may sleep.
 */
#include "stalls.h"

#include <linux/io_uring.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>

static NOINLINE bool on_tick(struct stalls *s)
{
    bool done = stalls_tick(s);

    __asm__ volatile(""); /* stay on the stack: no tail call */
    return done;
}

static int timer_new(void)
{
    struct itimerspec every = {.it_interval.tv_nsec = STALLS_TICK_NS, .it_value.tv_nsec = STALLS_TICK_NS};
    int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);

    timerfd_settime(fd, 0, &every, NULL);
    return fd;
}

static void timer_read(int fd)
{
    uint64_t count;

    if (read(fd, &count, sizeof(count)) < 0 && errno != EAGAIN)
        die("timerfd");
}

static int epoll_new(int timer)
{
    struct epoll_event ev = {.events = EPOLLIN};
    int fd = epoll_create1(EPOLL_CLOEXEC);

    epoll_ctl(fd, EPOLL_CTL_ADD, timer, &ev);
    return fd;
}

#define EPOLL_LOOP(name, WAIT)                                                                                         \
    static NOINLINE void run_##name(struct stalls *s)                                                                  \
    {                                                                                                                  \
        int timer = timer_new(), ep = epoll_new(timer);                                                                \
        struct epoll_event events[8];                                                                                  \
                                                                                                                       \
        for (;;) {                                                                                                     \
            int n = WAIT;                                                                                              \
                                                                                                                       \
            if (n <= 0)                                                                                                \
                continue;                                                                                              \
            timer_read(timer);                                                                                         \
            if (on_tick(s))                                                                                            \
                return;                                                                                                \
        }                                                                                                              \
    }

static const struct timespec one_second = {.tv_sec = 1};

EPOLL_LOOP(epoll, epoll_wait(ep, events, 8, -1))
EPOLL_LOOP(epoll_pwait, epoll_pwait(ep, events, 8, 1000, NULL))
EPOLL_LOOP(epoll_pwait2, epoll_pwait2(ep, events, 8, &one_second, NULL))

static NOINLINE void run_two_sites(struct stalls *s)
{
    int timer = timer_new(), ep = epoll_new(timer), n;
    struct epoll_event events[8];

    for (unsigned turn = 0;; turn++) {
        n = epoll_wait(ep, events, 8, 0);
        if (n == 0)
            n = epoll_wait(ep, events, 8, -1);
        if (n <= 0)
            continue;
        timer_read(timer);
        if (on_tick(s))
            return;
    }
}

static NOINLINE int wait_for_events(int ep, struct epoll_event *events)
{
    int n = epoll_wait(ep, events, 8, -1);

    __asm__ volatile("");
    return n;
}

EPOLL_LOOP(wrapped, wait_for_events(ep, events))

/*
 * A real loop watches more than one descriptor: a poll of a single one is how
 * straight-line code waits with a timeout. So each has an idle one beside the timer.
 */
static NOINLINE void run_poll(struct stalls *s)
{
    struct pollfd p[2] = {{.fd = timer_new(), .events = POLLIN}, {.fd = eventfd(0, EFD_CLOEXEC), .events = POLLIN}};

    for (;;) {
        if (poll(p, 2, -1) <= 0)
            continue;
        timer_read(p[0].fd);
        if (on_tick(s))
            return;
    }
}

/* Never a ready descriptor: the time-out is the timer. */
static NOINLINE void run_ppoll(struct stalls *s)
{
    struct pollfd p[2] = {{.fd = eventfd(0, EFD_CLOEXEC), .events = POLLIN},
                          {.fd = eventfd(0, EFD_CLOEXEC), .events = POLLIN}};

    for (;;) {
        struct timespec tick = {.tv_nsec = STALLS_TICK_NS};

        ppoll(p, 2, &tick, NULL);
        if (on_tick(s))
            return;
    }
}

static NOINLINE void run_select(struct stalls *s)
{
    int timer = timer_new(), idle = eventfd(0, EFD_CLOEXEC);

    for (;;) {
        struct timeval second = {.tv_sec = 1};
        fd_set set;

        FD_ZERO(&set);
        FD_SET(timer, &set);
        FD_SET(idle, &set);
        if (select(idle + 1, &set, NULL, NULL, &second) <= 0)
            continue;
        timer_read(timer);
        if (on_tick(s))
            return;
    }
}

static NOINLINE void run_pselect(struct stalls *s)
{
    int timer = timer_new(), idle = eventfd(0, EFD_CLOEXEC);

    for (;;) {
        fd_set set;

        FD_ZERO(&set);
        FD_SET(timer, &set);
        FD_SET(idle, &set);
        if (pselect(idle + 1, &set, NULL, NULL, &one_second, NULL) <= 0)
            continue;
        timer_read(timer);
        if (on_tick(s))
            return;
    }
}

/* The smallest io_uring: one poll request in flight, entered through syscall(). */
static NOINLINE void run_io_uring(struct stalls *s)
{
    struct io_uring_params p = {0};
    int timer = timer_new();
    int ring = (int)syscall(SYS_io_uring_setup, 4, &p);
    unsigned *sq_tail, *sq_mask, *sq_array, *cq_head, *cq_tail;
    struct io_uring_sqe *sqe;
    char *sq, *cq;

    if (ring < 0) {
        fprintf(stderr, "io_uring is not permitted here: %s\n", strerror(errno));
        exit(77);
    }
    sq = mmap(NULL, p.sq_off.array + p.sq_entries * sizeof(unsigned), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
              ring, IORING_OFF_SQ_RING);
    cq = mmap(NULL, p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe), PROT_READ | PROT_WRITE,
              MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_CQ_RING);
    sqe = mmap(NULL, p.sq_entries * sizeof(*sqe), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring,
               IORING_OFF_SQES);
    sq_tail = (unsigned *)(sq + p.sq_off.tail);
    sq_mask = (unsigned *)(sq + p.sq_off.ring_mask);
    sq_array = (unsigned *)(sq + p.sq_off.array);
    cq_head = (unsigned *)(cq + p.cq_off.head);
    cq_tail = (unsigned *)(cq + p.cq_off.tail);

    for (;;) {
        unsigned tail = *sq_tail, at = tail & *sq_mask;

        memset(&sqe[at], 0, sizeof(*sqe));
        sqe[at].opcode = IORING_OP_POLL_ADD;
        sqe[at].fd = timer;
        sqe[at].poll32_events = POLLIN;
        sq_array[at] = at;
        __atomic_store_n(sq_tail, tail + 1, __ATOMIC_RELEASE);
        if (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0)
            stalls_expect(s, false);
        __atomic_store_n(cq_head, __atomic_load_n(cq_tail, __ATOMIC_ACQUIRE), __ATOMIC_RELEASE);
        timer_read(timer);
        if (on_tick(s))
            return;
    }
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*run)(struct stalls *s);
    } kinds[] = {
        {"epoll", run_epoll},
        {"epoll_pwait", run_epoll_pwait},
        {"epoll_pwait2", run_epoll_pwait2},
        {"poll", run_poll},
        {"ppoll", run_ppoll},
        {"select", run_select},
        {"pselect", run_pselect},
        {"io_uring", run_io_uring},
        {"wrapped", run_wrapped},
        {"two_sites", run_two_sites},
    };

    for (size_t i = 0; argc > 1 && i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        if (strcmp(argv[1], kinds[i].name))
            continue;
        kinds[i].run(stalls_new(argc - 1, argv + 1));
        return 0;
    }
    fprintf(stderr, "usage: %s KIND TRUTH ...\n", argv[0]);
    return 99;
}
