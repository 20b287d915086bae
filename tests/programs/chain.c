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

/* ---- the waits ---- */

FRAME long w_nanosleep(struct run *r)
{
    struct timespec ts = span(r->wait_ns);
    int x = nanosleep(&ts, NULL);

    saw(x == 0, (long)x, errno);
    return x;
}

FRAME long w_clock_nanosleep(struct run *r)
{
    struct timespec ts = span(r->wait_ns);
    int x = clock_nanosleep(CLOCK_MONOTONIC, 0, &ts, NULL);

    saw(x == 0, (long)x, x);
    return x;
}

FRAME long w_poll(struct run *r)
{
    struct timespec ts = span(r->wait_ns);
    struct pollfd p = {r->pair[0], POLLPRI, 0};
    int x = ppoll(&p, 1, &ts, NULL);

    saw(x == 0, (long)x, errno);
    return x;
}

FRAME long w_select(struct run *r)
{
    struct timeval tv = {0, (suseconds_t)(r->wait_ns / 1000)};
    int x = select(0, NULL, NULL, NULL, &tv);

    saw(x == 0, (long)x, errno);
    return x;
}

FRAME long w_epoll(struct run *r)
{
    struct epoll_event e;
    int x = epoll_wait(r->epoll, &e, 1, r->mode == PACED ? 1 : 0);

    saw(x == 0, (long)x, errno);
    return x;
}

FRAME long w_timer(struct run *r)
{
    struct itimerspec it = {.it_value = span(r->wait_ns + 1)};
    uint64_t expired = 0;
    ssize_t x;

    timerfd_settime(r->timer, 0, &it, NULL);
    x = read(r->timer, &expired, sizeof(expired));
    saw(x == sizeof(expired), (long)x, errno);
    return (long)expired;
}

FRAME long w_recv(struct run *r)
{
    struct timeval tv = {0, (suseconds_t)(r->wait_ns / 1000 + 1)};
    char c;
    ssize_t x;

    setsockopt(r->pair[0], SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
    x = recv(r->pair[0], &c, 1, 0);
    saw(x < 0 && errno == EAGAIN, (long)x, errno);
    return x;
}

/* Gives the helper a length; it waits a little, then takes that much: this send blocks meanwhile. */
FRAME long w_send(struct run *r)
{
    static char buf[512 * 1024];
    uint32_t delay = (uint32_t)(r->wait_ns / 1000);
    ssize_t x;

    memcpy(buf, &delay, sizeof(delay));
    x = send(r->pair[0], buf, sizeof(buf), 0);
    saw(x >= 0, (long)x, errno);
    if (x >= 0 && x != sizeof(buf)) {
        shared->short_counts++;
        while (x < (ssize_t)sizeof(buf)) {
            ssize_t n = send(r->pair[0], buf + x, sizeof(buf) - (size_t)x, 0);

            x += n > 0 ? n : 0;
        }
    }
    return x;
}

FRAME long w_sem(struct run *r)
{
    struct timespec ts = from_now(r->wait_ns);
    int x = sem_timedwait(&r->sem, &ts);

    saw(x < 0 && errno == ETIMEDOUT, (long)x, errno);
    return x;
}

FRAME long w_cond(struct run *r)
{
    struct timespec ts = from_now(r->wait_ns);
    int x;

    pthread_mutex_lock(&r->mutex);
    x = pthread_cond_timedwait(&r->cond, &r->mutex, &ts);
    pthread_mutex_unlock(&r->mutex);
    saw(x == ETIMEDOUT, (long)x, x);
    return x;
}

/*
 * A call that no libc function wraps, written as libc writes its own: the number
 * right before the instruction, where the agent's handler looks for it.
 */
#define RAW_CALL(nr, a, b, c, d, e, f)                                                                                 \
    ({                                                                                                                 \
        register long r10 __asm__("r10") = (long)(d);                                                                  \
        register long r8 __asm__("r8") = (long)(e);                                                                    \
        register long r9 __asm__("r9") = (long)(f);                                                                    \
        long ret;                                                                                                      \
                                                                                                                       \
        __asm__ volatile("movl %[number], %%eax\n\tsyscall"                                                            \
                         : "=&a"(ret)                                                                                  \
                         : [number] "i"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)                        \
                         : "rcx", "r11", "memory");                                                                    \
        ret;                                                                                                           \
    })

FRAME long w_futex(struct run *r)
{
    struct timespec ts = span(r->wait_ns);
    uint32_t seen = __atomic_load_n(bell, __ATOMIC_RELAXED);
    long x = RAW_CALL(SYS_futex, bell, FUTEX_WAIT, seen, &ts, 0, 0);

    saw(x == 0 || x == -ETIMEDOUT || x == -EAGAIN, (long)x, (int)-x);
    return x;
}

/* The sixth argument, unused by ppoll, carries the plan's number out: the call and the stack must agree. */
FRAME long w_raw(struct run *r)
{
    struct timespec ts = span(r->wait_ns);
    long x = RAW_CALL(SYS_ppoll, 0, 0, &ts, 0, 0, r->plan->id);

    saw(x == 0, (long)x, (int)-x);
    return x;
}

static volatile double sink;

FRAME long w_spin(struct run *r)
{
    struct timespec a, b;
    double x = 1;

    clock_gettime(CLOCK_MONOTONIC, &a);
    do {
        for (int i = 0; i < 50; i++)
            x = x * 1.0000001 + 0.5;
        clock_gettime(CLOCK_MONOTONIC, &b);
    } while ((uint64_t)((b.tv_sec - a.tv_sec) * 1000000000l + b.tv_nsec - a.tv_nsec) < r->wait_ns &&
             !__atomic_load_n(&shared->stop, __ATOMIC_RELAXED));
    sink = x;
    return (long)x;
}

typedef long (*wait_function)(struct run *r);
static const wait_function waits[] = {w_nanosleep, w_clock_nanosleep, w_poll, w_select, w_epoll, w_timer, w_recv,
                                      w_send,      w_futex,           w_sem,  w_cond,   w_raw,   w_spin};
#define WAIT_SPIN (UB_ARRAY_LEN(waits) - 1)

/* ---- the chain's functions, each of another make ---- */

#define DECLARE(n) long f##n(struct run *r, int depth)
DECLARE(0);
DECLARE(1);
DECLARE(2);
DECLARE(3);
DECLARE(5);
DECLARE(6);
DECLARE(7);
DECLARE(8);
DECLARE(9);
DECLARE(10);
DECLARE(11);
DECLARE(12);
DECLARE(13);
DECLARE(14);
DECLARE(15);
long f4(struct run *r, int depth, long a, long b, long c, long d, long e, long f, long g);

typedef long (*chain_f)(struct run *r, int depth);
static const chain_f by_pointer[CHAIN_FUNCTIONS] = {f0, f1, f2,  f3,  NULL, f5,  f6,  f7,
                                                    f8, f9, f10, f11, f12,  f13, f14, f15};

static inline __attribute__((always_inline)) long call_direct(struct run *r, int depth)
{
    switch (r->plan->fn[depth]) {
    case 0:
        return f0(r, depth);
    case 1:
        return f1(r, depth);
    case 2:
        return f2(r, depth);
    case 3:
        return f3(r, depth);
    case 4:
        return f4(r, depth, 1, 2, 3, 4, 5, 6, 7);
    case 5:
        return f5(r, depth);
    case 6:
        return f6(r, depth);
    case 7:
        return f7(r, depth);
    case 8:
        return f8(r, depth);
    case 9:
        return f9(r, depth);
    case 10:
        return f10(r, depth);
    case 11:
        return f11(r, depth);
    case 12:
        return f12(r, depth);
    case 13:
        return f13(r, depth);
    case 14:
        return f14(r, depth);
    default:
        return f15(r, depth);
    }
}

/* The next link. Half of the functions call by name, half through a pointer. */
static inline __attribute__((always_inline)) long next(struct run *r, int depth, bool direct)
{
    long v;

    if (depth + 1 == r->plan->depth)
        v = waits[r->plan->wait](r);
    else if (direct || r->plan->fn[depth + 1] == 4)
        v = call_direct(r, depth + 1);
    else
        v = by_pointer[r->plan->fn[depth + 1]](r, depth + 1);
    __asm__ volatile("" : "+r"(v)); /* not a tail call */
    return v;
}

FRAME long f0(struct run *r, int depth)
{
    return next(r, depth, true) + 1;
}

FRAME long f1(struct run *r, int depth)
{
    return next(r, depth, false) + 1;
}

FRAME long f2(struct run *r, int depth)
{
    volatile char room[700];

    room[0] = (char)depth;
    room[699] = 1;
    return next(r, depth, true) + room[0] + room[699];
}

FRAME long f3(struct run *r, int depth)
{
    size_t n = 16 + (size_t)(r->random % 300);
    volatile char *room = alloca(n);
    long v;

    room[0] = (char)depth;
    v = next(r, depth, true);
    return v + room[0];
}

FRAME long f4(struct run *r, int depth, long a, long b, long c, long d, long e, long f, long g)
{
    return next(r, depth, true) + a + b + c + d + e + f + g;
}

static __thread struct {
    struct run *r;
    int depth;
    bool gone;
    long v;
} pass; /* what qsort's callback has no parameter for */

FRAME int via5(const void *a, const void *b)
{
    if (!pass.gone) {
        pass.gone = true;
        pass.v = next(pass.r, pass.depth, true);
    }
    return 0;
}

FRAME long f5(struct run *r, int depth)
{
    int pair[2] = {1, 2};

    pass.r = r;
    pass.depth = depth;
    pass.gone = false;
    qsort(pair, 2, sizeof(pair[0]), via5);
    return pass.v + pair[0];
}

/* More values alive over the call than there are registers to keep them: rbp is one of them. */
FRAME long f6(struct run *r, int depth)
{
    long a = depth * 3, b = depth ^ 5, c = (long)r->random, d = c >> 3, e = a * b, f = c ^ e, g = d + 7, h = e | 9;
    long v;

    __asm__ volatile("" : "+r"(a), "+r"(b), "+r"(c), "+r"(d), "+r"(e), "+r"(f));
    v = next(r, depth, false);
    __asm__ volatile("" : "+r"(a), "+r"(b), "+r"(c), "+r"(d), "+r"(e), "+r"(f));
    return v + a + b + c + d + e + f + g + h;
}

FRAME long f7(struct run *r, int depth)
{
    double x = depth, y = x * 1.5, z = y + 2;
    long v = next(r, depth, true);

    return v + (long)(x + y + z);
}

FRAME long f8(struct run *r, int depth)
{
    volatile char room[64] __attribute__((aligned(64)));

    room[0] = (char)depth;
    return next(r, depth, true) + room[0];
}

FRAME long f9(struct run *r, int depth)
{
    long v = next(r, depth, false);

    return depth & 1 ? v - 1 : v + 1;
}

FRAME long f10(struct run *r, int depth)
{
#ifdef CHAIN_ALLOCA
    volatile char room[8 + r->random % 200];

    room[depth & 7] = 2;
    return next(r, depth, true) + room[depth & 7];
#else
    return next(r, depth, true) + 10;
#endif
}

FRAME long f11(struct run *r, int depth)
{
    if (r->random % 3)
        return next(r, depth, false) + 2;
    return next(r, depth, true) - 2;
}

FRAME long f12(struct run *r, int depth)
{
    volatile char room[1500];

    room[1499] = room[0] = (char)depth;
    return next(r, depth, true) + room[1499];
}

FRAME long f13(struct run *r, int depth)
{
    jmp_buf env;
    volatile long v = 0;

    if (setjmp(env) == 0)
        v = next(r, depth, true);
    return v;
}

static void forget(long *v)
{
    *v = 0;
}

FRAME long f14(struct run *r, int depth)
{
    long kept __attribute__((cleanup(forget))) = depth;
    long v;

    __asm__ volatile("" : "+m"(kept));
    v = next(r, depth, false);
    return v + kept;
}

FRAME __attribute__((optimize("no-omit-frame-pointer"))) long f15(struct run *r, int depth)
{
    return next(r, depth, true) + 15;
}

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
    return r->mode == SPIN && rnd(r) % 16 ? WAIT_SPIN : w;
}

static void make_plan(struct run *r, struct chain_plan *p, uint64_t id)
{
    __atomic_store_n(&p->id, 0, __ATOMIC_SEQ_CST);
    p->depth = (uint8_t)(CHAIN_DEPTH_MIN + rnd(r) % (CHAIN_DEPTH_MAX - CHAIN_DEPTH_MIN + 1));
    for (int i = 0; i < p->depth; i++)
        p->fn[i] = pick_function(r);
    p->wait = pick_wait(r);
    r->wait_ns = r->mode == PACED ? 100000 + rnd(r) % 300000 : r->mode == SPIN ? 300000 : rnd(r) % 3000;
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
        tell_one(i == 4 ? (const void *)f4 : (const void *)by_pointer[i], CHAIN_F, i);
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
