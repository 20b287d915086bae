/*
 * Who computes for too long is asked to yield by a signal: a thread of ours sees the slice over and sends SIGURG to the
 * main thread; its handler asks the interpreter for a call of our C function at the next place where that is safe;
 * the function leaves the step as a call that blocks would. What is set aside goes on one by one, when its loop
 * has nothing else to do.
 */
#include "pysteps_impl.h"
#include "pyyield.h"

#include "../sample.h"
#include "python/yield.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define LEAST_NS    UB_PYTHON_YIELD_LEAST_NS /* even if a descriptor is ready */
#define CAP_NS      20000000ull              /* a loop that always has something to do lets one go on after so long */
#define CALL_NS     20000                    /* looking again whether a call is over */
#define AGAIN_NS    1000000ull
#define BUSY_NS     (2 * LEAST_NS) /* a descriptor was ready that soon: the next request is likely to come soon, too */
#define LINGER_NS   LEAST_NS       /* for that the loop is let turn so long after its last work */
#define AWAY_NS     500000ull      /* and for so long in all, then who computes goes on */
#define VAIN_TIMES  2u             /* if none came it is not waited for so many times */
#define SOON_NS     100000ull /* so often is looked whether the next step has begun, once one was asked or set aside */
#define SOON_ROUNDS 200u
#define IDLE_ROUNDS 8u
#define ASIDE       "no step yields: the program handles SIGURG itself"
#define OTHER_BUILD "no step moves: python3.*.so is not of the agent's build"

static void *object; /* of the interpreter; NULL: none, or it was asked already */
static const struct ub_python_yield *python;

/* What the thread looks at. Written by the main thread, but for `asleep`, `wanted` and `quit`. */
static struct {
    uint64_t step;      /* CLOCK_MONOTONIC: when what runs began or went on; 0: nothing does */
    uint64_t due;       /* when its slice is over */
    uint64_t again;     /* not before that */
    uint64_t asked;     /* when it was asked first; 0: it was not */
    uint64_t asked_cpu; /* what the thread had computed by then, ns */
    uint64_t turns;     /* of the loop, as `turn` was taken */
    uint64_t turn;      /* when that turn's first step began: the slice is the turn's */
    uint64_t lingers;   /* until then who computes is not put back as soon as the loop has nothing to do */
    uint64_t worked;    /* when the loop had something to do, last; only while it lingers */
    uint32_t vain;      /* so many times it is not lingered */
    bool rested;        /* it had nothing to do, last time; while it lingers */
    bool gained;        /* and then something came after all */
    uint32_t aside;     /* steps are, and go on soon */
    uint32_t tripped;   /* the interpreter was told */
    uint32_t wanted;    /* the signal is ours */
    uint32_t asleep;    /* futex */
    uint32_t quit;
    bool there, failed;
    pthread_t thread;
    int32_t tid, pid;
    uint64_t generation;
    const struct ub_slot *slot;
    const struct ub_slot_cold *cold;
} beat;

static uint64_t slice_ns(void)
{
    return ub_load_relaxed(&ub_process->arena->python.yield_ns);
}

static void nap(uint64_t ns)
{
    struct timespec t = {.tv_nsec = (long)(ns < 999999999 ? ns : 999999999)};

    ub_raw4(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &t, 0);
}

/* By this thread, ever: what waits for a CPU is nobody's fault here. */
static uint64_t computed_ns(void)
{
    struct timespec t = {0};

    ub_raw2(SYS_clock_gettime, CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* ---- our thread ------------------------------------------------------------------------------- */

/* The system call that it is in, or "running": a tenth of what the kernel takes for all that `stat` has. */
static int open_state(void)
{
    static const char *const file[] = {"syscall", "stat"}; /* the former: not of processes that cannot be traced */
    int fd = -1;

    for (size_t i = 0; i < sizeof(file) / sizeof(file[0]) && fd < 0; i++) {
        char path[64];

        snprintf(path, sizeof(path), "/proc/self/task/%d/%s", beat.tid, file[i]);
        fd = (int)ub_raw4(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
    }
    return fd;
}

/* In a call that said so (common/slot.h): who waits for a CPU there "runs", too. */
static bool is_in_call(void)
{
    uint64_t call = ub_load_acquire(&beat.cold->sample.call);

    return call && (int64_t)(call - ub_load_relaxed(&beat.slot->start)) >= 0;
}

/* Many calls are short, and who makes nothing but calls is to be asked between two of them. */
static bool await_call(void)
{
    for (uint64_t ns = 0; is_in_call(); ns += CALL_NS) {
        if (ns >= AGAIN_NS)
            return false;
        nap(CALL_NS);
    }
    return true;
}

/* A signal into a call would end it (EINTR), or cut it short. EINTR that slips through is set back by the handler. */
static bool is_running(int fd)
{
    char text[256];
    long n = ub_raw4(SYS_pread64, fd, text, sizeof(text) - 1, 0);
    const char *end;

    if (n <= 0)
        return false;
    text[n] = '\0';
    end = strrchr(text, ')');
    return end ? end[1] == ' ' && end[2] == 'R' : text[0] == 'r';
}

/* Until `until`, or until a descriptor of the loop's is ready, which is then let have `least`. */
static void wait_for_slice(uint64_t now, uint64_t least, uint64_t until)
{
    struct pollfd p = {.fd =
                           ub_load_relaxed(&beat.slot->flags) & UB_SLOT_EPOLL ? ub_load_relaxed(&beat.slot->epfd) : -1,
                       .events = POLLIN};
    struct timespec t = {.tv_nsec = (long)(until - now)};
    long r;

    if (now < least && least <= until) {
        nap(least - now);
        now = ub_clock_monotonic_ns();
        t.tv_nsec = until > now ? (long)(until - now) : 0;
    }
    if (p.fd < 0) {
        nap((uint64_t)t.tv_nsec);
        return;
    }
    r = ub_raw6(SYS_ppoll, (long)&p, 1, (long)&t, 0, 0, 0);
    if (r < 0)
        nap(AGAIN_NS);
}

static void sleep_deeply(void)
{
    __atomic_store_n(&beat.asleep, 1, __ATOMIC_SEQ_CST);
    if (!__atomic_load_n(&beat.step, __ATOMIC_SEQ_CST) && !ub_load_relaxed(&beat.quit))
        ub_raw6(SYS_futex, (long)&beat.asleep, FUTEX_WAIT | FUTEX_PRIVATE_FLAG, 1, 0, 0, 0);
    __atomic_store_n(&beat.asleep, 0, __ATOMIC_SEQ_CST);
}

/* The step that goes on next may have to be asked at once: an answer that is waited for comes in its midst. */
static void wait_for_answer(uint64_t step)
{
    for (uint64_t ns = 0; ns < AGAIN_NS && __atomic_load_n(&beat.step, __ATOMIC_SEQ_CST) == step; ns += SOON_NS)
        nap(SOON_NS);
}

static void ask(int state, uint64_t step)
{
    if (!ub_load_relaxed(&ub_process->sampler))
        ub_python_table_row(&ub_process->arena->python, UB_PYTHON_NOTE, "", "", ASIDE);
    if (!ub_load_relaxed(&ub_process->sampler) || ub_process->quiet != UB_QUIET_NOT || !await_call() ||
        !is_running(state) || is_in_call()) {
        nap(AGAIN_NS);
        return;
    }
    ub_store_release(&beat.wanted, 1);
    ub_raw3(SYS_tgkill, beat.pid, beat.tid, UB_SAMPLE_SIGNAL);
    wait_for_answer(step);
}

static void *beats(void *unused)
{
    uint32_t idle = 0;
    int state = open_state();

    while (!ub_load_relaxed(&beat.quit)) {
        uint64_t step = __atomic_load_n(&beat.step, __ATOMIC_SEQ_CST), now, until, least, again;

        if (!step) {
            if (ub_load_relaxed(&beat.aside) && ++idle < SOON_ROUNDS) /* no more if its loop was left for good */
                nap(SOON_NS);
            else if (++idle > IDLE_ROUNDS)
                sleep_deeply();
            else
                nap(slice_ns() / 2);
            continue;
        }
        idle = 0;
        if (ub_load_acquire(&beat.tripped)) {
            wait_for_answer(step);
            continue;
        }
        now = ub_clock_monotonic_ns();
        again = ub_load_relaxed(&beat.again);
        least = step + LEAST_NS > again ? step + LEAST_NS : again;
        until = ub_load_relaxed(&beat.due);
        if (until < least)
            until = least;
        if (now < until)
            wait_for_slice(now, least, until);
        if (__atomic_load_n(&beat.step, __ATOMIC_SEQ_CST) == step)
            ask(state, step);
    }
    ub_raw1(SYS_close, state);
    return NULL;
}

static bool start_thread(const struct mine *m)
{
    sigset_t all, saved;
    pthread_attr_t attr;

    beat.tid = m->tid;
    beat.pid = ub_process->pid;
    beat.generation = ub_process->generation;
    beat.slot = ub_thread.slot;
    beat.cold = ub_thread.cold;
    beat.quit = beat.asleep = beat.tripped = beat.wanted = 0;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, PTHREAD_STACK_MIN + 65536);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &saved);
    beat.there = pthread_create(&beat.thread, &attr, beats, NULL) == 0;
    pthread_sigmask(SIG_SETMASK, &saved, NULL);
    pthread_attr_destroy(&attr);
    beat.failed = !beat.there;
    return beat.there;
}

static void wake_thread(void)
{
    if (__atomic_exchange_n(&beat.asleep, 0, __ATOMIC_SEQ_CST))
        ub_raw6(SYS_futex, (long)&beat.asleep, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, 1, 0, 0, 0);
}

/* Python 3.12 and later tell a program that forks of threads it does not know. */
void ub_pyyield_before_fork(void)
{
    if (!beat.there || beat.generation != ub_process->generation)
        return;
    ub_store_relaxed(&beat.quit, 1);
    wake_thread();
    pthread_join(beat.thread, NULL);
    beat.there = false;
}

bool ub_pyyield_signalled(int32_t tid)
{
    int saved = errno;

    if (!ub_load_relaxed(&beat.wanted) || tid != beat.tid || !python)
        return false;
    ub_store_relaxed(&beat.wanted, 0);
    if (!ub_load_relaxed(&beat.step) || ub_load_relaxed(&beat.tripped))
        return true;
    if (!beat.asked) {
        beat.asked = ub_clock_monotonic_ns();
        beat.asked_cpu = computed_ns();
    }
    ub_store_release(&beat.tripped, 1);
    python->interrupt(UB_SAMPLE_SIGNAL);
    errno = saved;
    return true;
}

/* ---- around a step ------------------------------------------------------------------------------- */

static void start_python(void);

bool ub_pyyield_is_of_this_build(void *handle)
{
    const uint64_t *build = dlsym(handle, "ub_python_build");

    if (build && *build == UB_PYTHON_BUILD)
        return true;
    if (ub_process->arena)
        ub_python_table_row(&ub_process->arena->python, UB_PYTHON_NOTE, "", "", OTHER_BUILD);
    return false;
}

void ub_pyyield_start(void *handle)
{
    if (ub_process->arena && ub_python_table_wants_steps(&ub_process->arena->python))
        object = handle;
}

void ub_pyyield_begins(struct mine *m, struct step *s)
{
    uint64_t now;

    if (ub_unlikely(object != NULL) && m->tid == ub_process->pid)
        start_python();
    if (!python || m->tid != ub_process->pid || m->here || beat.failed)
        return;
    if (ub_unlikely(!beat.there || beat.generation != ub_process->generation) && !start_thread(m))
        return;
    now = ub_clock_monotonic_ns();
    if (beat.turns != ub_load_relaxed(&beat.slot->turns)) {
        beat.turns = ub_load_relaxed(&beat.slot->turns);
        beat.turn = now;
    }
    beat.due = beat.turn + slice_ns();
    if (s->yields && beat.gained) { /* what uvloop has read since its turn came is behind it, and no descriptor tells */
        beat.due = now + BUSY_NS;
        beat.gained = false;
    }
    beat.asked = beat.again = 0;
    __atomic_store_n(&beat.step, now, __ATOMIC_SEQ_CST);
    if (ub_unlikely(ub_load_relaxed(&beat.asleep)))
        wake_thread();
}

/* Whoever yields has a turn after this one. */
static void pump_all(struct mine *m)
{
    uint32_t aside = 0;

    for (uint32_t i = 0; i < HOSTS_MAX; i++)
        aside += m->host[i].loop ? m->host[i].yielders : 0;
    ub_store_relaxed(&beat.aside, aside);
    for (uint32_t i = 0; i < HOSTS_MAX && aside; i++) {
        struct host *h = &m->host[i];

        if (!h->loop || h->yielders == h->picked || h->picked || h->pumping || h->stopping)
            continue;
        h->ran = UINT64_MAX;
        h->pumping = python->call_soon(h->loop, h);
    }
}

void ub_pyyield_ends(struct mine *m)
{
    if (!python || m->tid != ub_process->pid)
        return;
    if (!m->here)
        __atomic_store_n(&beat.step, 0, __ATOMIC_SEQ_CST);
    pump_all(m);
}

/* ---- whose turn it is -------------------------------------------------------------------------------- */

/* Since the last lap. */
static bool is_idle(const struct mine *m, struct host *h)
{
    long ready = python->ready(h->loop);
    bool quiet = ready == 0 || (ready < 0 && h->ran == m->beside.ran);

    h->ran = m->beside.ran;
    return quiet;
}

/*
 * Who asks at once again would else wait for the next step to be over its least. Only after a step that a descriptor
 * cut short: the loop's own turns, with nothing to do, are taken from those who compute.
 */
static bool lingers(bool idle)
{
    uint64_t now;

    if (!beat.lingers)
        return false;
    now = ub_clock_monotonic_ns();
    if (!idle) {
        beat.gained |= beat.rested;
        beat.worked = now;
    }
    beat.rested = idle;
    if (now < beat.lingers && now < beat.worked + LINGER_NS)
        return true;
    beat.vain = beat.gained ? 0 : VAIN_TIMES;
    beat.lingers = 0;
    return false;
}

/* `now` a step is set aside. */
static void may_linger(uint64_t now)
{
    beat.lingers = 0;
    if (now >= beat.step + BUSY_NS || now >= beat.due)
        return;
    if (beat.vain) {
        beat.vain--;
        return;
    }
    beat.lingers = now + AWAY_NS;
    beat.worked = now;
    beat.rested = beat.gained = false;
}

static void pump(void *of)
{
    struct mine *m = ub_pysteps_mine(false);
    struct host *h = of;
    struct step *s;
    bool idle;

    if (!m || h < m->host || h >= m->host + HOSTS_MAX || !h->loop)
        return;
    h->pumping = false;
    s = m->suspended;
    while (s && !(s->host == h && s->yields && !s->told))
        s = s->next;
    if (!s || h->picked)
        return;
    idle = is_idle(m, h);
    if (lingers(idle) || (!idle && ub_clock_monotonic_ns() < s->yielded_ns + CAP_NS)) {
        h->pumping = python->call_soon(h->loop, h);
        return;
    }
    s->told = s->picked = true;
    h->picked++;
    ub_pysteps_python->set_done(s->future);
}

/* ---- in the interpreter ------------------------------------------------------------------------------ */

static uint64_t ran(void)
{
    struct mine *m = ub_pysteps_mine(false);
    uint64_t lock, now = ub_clock_monotonic_ns();
    uintptr_t sp = (uintptr_t)__builtin_frame_address(0);

    ub_store_release(&beat.tripped, 0);
    if (!m || !m->current || m->here || m->tid != beat.tid || !beat.step || beat.asked < beat.step ||
        m->current->holder.count || ub_pysteps_judge_place(m, sp, true, &lock) != UB_PIN_MOVABLE) {
        ub_store_relaxed(&beat.again, now + AGAIN_NS);
        beat.asked = 0;
        return 0;
    }
    return now - beat.turn;
}

static uint64_t waited(void)
{
    return beat.asked ? computed_ns() - beat.asked_cpu : 0;
}

static void later(uint64_t ns)
{
    ub_store_relaxed(&beat.again, ub_clock_monotonic_ns() + ns);
    beat.asked = 0;
}

static uint64_t yield(void)
{
    struct mine *m = ub_pysteps_mine(false);
    struct step *s = m->current;
    struct host *h;
    uint64_t now;

    s->wait.lock = NULL;
    s->fd = -1;
    s->direction = s->holds_up = 0;
    s->deadline_ns = 0;
    s->yields = true;
    s->yielded_ns = ub_clock_monotonic_ns();
    may_linger(s->yielded_ns);
    if (!ub_pysteps_leave(m, s, true)) {
        s->yields = false;
        later(AGAIN_NS);
        return 0;
    }
    h = s->host;
    s->yields = false;
    if (h->loop && h->yielders)
        h->yielders--;
    now = ub_clock_monotonic_ns();
    return now > s->yielded_ns ? now - s->yielded_ns : 1;
}

static struct ub_python_yield_agent agent = {.own = ub_pysteps_own,
                                             .reserve = ub_sample_reserve,
                                             .ran = ran,
                                             .waited = waited,
                                             .yield = yield,
                                             .later = later,
                                             .pump = pump};

/* Once, in the main thread, at its first step. */
static void start_python(void)
{
    const struct ub_python_yield *(*start)(const struct ub_python_yield_agent *) =
        (const struct ub_python_yield *(*)(const struct ub_python_yield_agent *))dlsym(object, "ub_python_yield_start");
    struct mine *m = ub_pysteps_mine(false);

    object = NULL;
    agent.table = &ub_process->arena->python;
    if (!start || !m || !slice_ns())
        return;
    if (!ub_load_relaxed(&ub_process->sampler)) {
        ub_python_table_row(agent.table, UB_PYTHON_NOTE, "", "", ASIDE);
        return;
    }
    python = start(&agent);
}
