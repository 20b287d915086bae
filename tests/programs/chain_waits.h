/* The waits of chain.c, each of which counts what disturbs it. Part of chain.c, after struct run. */

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
