// flags: -fno-reorder-blocks-and-partition -fexceptions
/*
 * Goes through random, known call chains for ever, each ending in a wait, and
 * publishes them (chain.h). Built several ways: see chain_*.c.
 *
 *     chain FILE paced|hard|spin main|thread SEED [nosend]
 *
 * paced: waits of a fraction of a millisecond. hard: as short as can be, with a
 * helper process that wakes it all the time. spin: burns CPU, with a short wait
 * now and then. nosend: leaves out the one call that no handler can mend, a large blocking send.
 */
#include "chain.h"

#include "../../agent/offload/pyyield.h"
#include "../../agent/process.h"
#include "../../agent/raw.h"
#include "../../agent/real.h"
#include "../../agent/sample.h"

#include <alloca.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

/* ---- the agent's handler, with the little of the agent that it needs ---- */

static struct ub_process the_process;
struct ub_process *ub_process = &the_process;
__thread struct ub_thread ub_thread;
struct ub_real ub_real;
const char ub_raw_syscall_return[1];

void ub_process_lose_sampler(void)
{
}

bool ub_pyyield_signalled(int32_t tid)
{
    return false;
}

#include "../../agent/sample.c"

/* ---- the run ---- */

#define FRAME __attribute__((noipa)) /* no inlining, cloning or guessing of results: every call is a frame */

enum mode { PACED, HARD, SPIN };

struct run {
    enum mode mode;
    bool nosend;
    uint64_t random;
    const struct chain_plan *plan;
    uint64_t wait_ns;
    int timer, pair[2], epoll;
    sem_t sem;
    pthread_mutex_t mutex;
    pthread_cond_t cond;
};

static struct chain_shared *shared;
static uint32_t waiting; /* index of the wait that goes on */
static uint32_t *bell;   /* shared with the helper */

static uint64_t rnd(struct run *r)
{
    r->random ^= r->random << 13;
    r->random ^= r->random >> 7;
    r->random ^= r->random << 17;
    return r->random;
}

static struct timespec span(uint64_t ns)
{
    return (struct timespec){(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
}

static struct timespec from_now(uint64_t ns)
{
    struct timespec ts;

    clock_gettime(CLOCK_REALTIME, &ts);
    ns += (uint64_t)ts.tv_nsec;
    ts.tv_sec += (time_t)(ns / 1000000000u);
    ts.tv_nsec = (long)(ns % 1000000000u);
    return ts;
}

/* `ok`: the call ended as such calls end. */
static void saw(bool ok, long result, int error)
{
    if (ok)
        return;
    if (error == EINTR)
        shared->interrupted++;
    else
        shared->wrong_results++;
    shared->last_wrong.wait = waiting;
    shared->last_wrong.result = (int32_t)result;
    shared->last_wrong.error = error;
}

#include "chain_waits.h"
#include "chain_functions.h"

/* ---- root ---- */

static uint8_t pick_function(struct run *r)
{
    uint8_t f = (uint8_t)(rnd(r) % CHAIN_FUNCTIONS);

#ifndef CHAIN_ALLOCA
    if (f == 3 && rnd(r) % 8) /* alloca is rare in real programs */
        f = 0;
#endif
    return f;
}

static uint8_t pick_wait(struct run *r)
{
    uint8_t w = (uint8_t)(rnd(r) % WAIT_SPIN);

    if (r->nosend && waits[w] == w_send)
        w = 0;
    if (r->mode == HARD && waits[w] == w_recv && rnd(r) % 32) /* its timeout is at least a tick: milliseconds */
        w = 0;
    return r->mode == SPIN && rnd(r) % 16 ? WAIT_SPIN : w;
}

static void make_plan(struct run *r, struct chain_plan *p, uint64_t id)
{
    __atomic_store_n(&p->id, 0, __ATOMIC_SEQ_CST);
    p->depth = (uint8_t)(CHAIN_DEPTH_MIN + rnd(r) % (CHAIN_DEPTH_MAX - CHAIN_DEPTH_MIN + 1));
    for (int i = 0; i < p->depth; i++)
        p->fn[i] = pick_function(r);
    p->wait = pick_wait(r);
    r->wait_ns = r->mode == PACED  ? 100000 + rnd(r) % 300000
                 : r->mode == SPIN ? 300000
                                   : rnd(r) % (rnd(r) % 2 ? 4000 : 60000);
    waiting = p->wait;
    r->plan = p;
    __atomic_store_n(&p->id, id, __ATOMIC_SEQ_CST);
}

FRAME long root(struct run *r)
{
    volatile struct chain_mark mark = {CHAIN_MAGIC, 0};
    long v = 0;

    shared->mark = (uint64_t)(uintptr_t)&mark;
    shared->tid = (int32_t)syscall(SYS_gettid);
    __atomic_store_n(&shared->ready, 1, __ATOMIC_RELEASE);
    for (uint64_t id = 1; !__atomic_load_n(&shared->stop, __ATOMIC_RELAXED); id++) {
        make_plan(r, &shared->plan[id % CHAIN_PLANS], id);
        __atomic_store_n(&mark.id, id, __ATOMIC_SEQ_CST);
        v += call_direct(r, 0);
        __atomic_store_n(&mark.id, 0, __ATOMIC_SEQ_CST);
        shared->chains = id;
    }
    return v;
}

FRAME void *base(void *arg)
{
    struct run *r = arg;
    long v;

    ub_thread = (struct ub_thread){.cold = &shared->cold, .generation = 1};
    the_process.generation = 1;
    v = root(r);
    __asm__ volatile("" : "+r"(v)); /* not a tail call */
    return (void *)v;
}

/* ---- set-up ---- */

static void tell_one(const void *function, enum chain_kind kind, uint32_t index)
{
    shared->function[shared->count++] = (struct chain_function){(uint64_t)(uintptr_t)function, kind, index};
}

static void tell_functions(void *main_function)
{
    for (uint32_t i = 0; i < CHAIN_FUNCTIONS; i++)
        tell_one(i == 3   ? (const char *)f2 + f3_from_f2
                 : i == 4 ? (const void *)f4
                          : (const void *)by_pointer[i],
                 CHAIN_F, i);
    for (uint32_t i = 0; i < UB_ARRAY_LEN(waits); i++)
        tell_one((const void *)waits[i], CHAIN_WAIT, i);
    tell_one((const void *)via5, CHAIN_VIA, 5);
    shared->via[5] = 1;
    tell_one((const void *)root, CHAIN_ROOT, 0);
    tell_one((const void *)base, CHAIN_BASE, 0);
    tell_one(main_function, CHAIN_BASE, 1);
}

static bool take_all(int fd, char *buf, size_t len)
{
    while (len) {
        ssize_t n = read(fd, buf, len < 65536 ? len : 65536);

        if (n <= 0)
            return false;
        len -= (size_t)n;
    }
    return true;
}

/* Takes what w_send sends, late; in hard mode another one rings the bell without pause. Ends with the program. */
static void helper(int fd, bool ring)
{
    static char buf[65536];
    uint32_t delay;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() == 1)
        _exit(0);
    while (ring) {
        struct timespec ts = {0, 1000};

        __atomic_add_fetch(bell, 1, __ATOMIC_RELAXED);
        syscall(SYS_futex, bell, FUTEX_WAKE, 1, NULL, NULL, 0);
        nanosleep(&ts, NULL);
    }
    while (read(fd, &delay, sizeof(delay)) == sizeof(delay)) {
        usleep(delay);
        if (!take_all(fd, buf, 512 * 1024 - sizeof(delay)))
            break;
    }
    _exit(0);
}

static void start_helpers(struct run *r)
{
    if (fork() == 0)
        helper(r->pair[1], false);
    if (r->mode == HARD && fork() == 0) {
        prctl(PR_SET_TIMERSLACK, 1);
        helper(-1, true);
    }
}

static void *map_shared(const char *path)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    void *p = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    if (p == MAP_FAILED) {
        perror(path);
        exit(2);
    }
    close(fd);
    return p;
}

static void set_up(struct run *r)
{
    ub_real.sigaction = sigaction;
    bell = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    r->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
    r->epoll = epoll_create1(EPOLL_CLOEXEC);
    socketpair(AF_UNIX, SOCK_STREAM, 0, r->pair);
    sem_init(&r->sem, 0, 0);
    pthread_mutex_init(&r->mutex, NULL);
    pthread_cond_init(&r->cond, NULL);
    start_helpers(r);
    if (r->mode == HARD)
        prctl(PR_SET_TIMERSLACK, 1);
    the_process.clock = (uint32_t)shared->clock;
    ub_sample_install();
}

int main(int argc, char **argv)
{
    static struct run r;
    pthread_t thread;
    void *v;

    ub_sample_main_stack(argv);
    if (argc < 5) {
        fprintf(stderr, "usage: %s FILE paced|hard|spin main|thread SEED [nosend]\n", argv[0]);
        return 2;
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    shared = map_shared(argv[1]);
    shared->pid = getpid();
    r.mode = argv[2][0] == 'p' ? PACED : argv[2][0] == 'h' ? HARD : SPIN;
    r.random = 88172645463325252ull ^ strtoull(argv[4], NULL, 0) << 17;
    r.nosend = argc > 5;
    set_up(&r);
    tell_functions((void *)main);
    if (argv[3][0] == 't') {
        pthread_create(&thread, NULL, base, &r);
        pthread_join(thread, &v);
    } else {
        v = base(&r);
    }
    return 0;
}
