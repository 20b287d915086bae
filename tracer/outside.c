#include "outside.h"

#include "capture.h"
#include "outside_switches.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define THREADS_MAX   1024u
#define PROCESSES_MAX 1024u
#define TICKS_A_STALL 4u /* so many times is a thread asked within one threshold: a stall is seen at least thrice */
#define TICK_MIN_NS   1000000u
#define TICK_MAX_NS   50000000u
#define SCAN_NS       500000000u /* between looks for new threads */
#define UNDECIDED_NS  20000000u  /* between looks at a thread that is no loop as far as is known */
#define QUALIFY       8u         /* sleeps seen in one wait, as elsewhere (bpf/turns.h) */
#define RELEARN       3u         /* of a loop that waits somewhere else now */
#define TRIES         3

/* A wait call, by what the kernel tells of a sleeping thread. */
struct wait {
    int64_t nr;
    uint64_t pc, sp;
    int epfd; /* -1: not epoll */
};

struct thread {
    pid_t pid, tid; /* 0: a free entry */
    bool seen;      /* in the last scan */
    bool loop;
    struct wait wait, candidate;
    uint32_t sightings; /* of the candidate, each in a sleep of its own */
    uint32_t slot;
    struct ub_schedstat sched; /* when it was last looked at */
    bool asleep;               /* then */
    uint64_t due_ns;           /* of an undecided one */
    uint64_t since_ns;         /* the stall that goes on; 0: none */
    uint64_t sure_ns;          /* when it last was seen to go on */
    struct ub_switches switches;
};

struct ub_outside {
    struct ub_arena *arena;
    uint64_t threshold_ns, tick_ns, scan_at_ns;
    pthread_t thread;
    uint32_t stopping;

    pthread_mutex_t lock; /* protects what follows; the watching thread of here and the caller of _add */
    pid_t process[PROCESSES_MAX];
    uint32_t process_count;

    uint64_t slices[UB_SLOT_MAX]; /* of the stall that goes on: the thread's schedstat as it fell asleep */
    struct thread watched[THREADS_MAX];
    uint32_t watched_high;
    struct ub_capture capture; /* scratch */
};

/* ---- slots: what an agent would do ---- */

static struct ub_slot *slot_of(struct ub_outside *o, const struct thread *t)
{
    struct ub_slot *slot = &o->arena->slot[t->slot];

    return ub_load_acquire(&slot->state) == UB_SLOT_LIVE && slot->tid == t->tid ? slot : NULL;
}

static bool take_slot(struct ub_outside *o, struct thread *t)
{
    for (uint32_t i = 0; i < UB_SLOT_MAX; i++) {
        struct ub_slot *slot = &o->arena->slot[i];

        if (ub_load_acquire(&slot->state) != UB_SLOT_FREE)
            continue;
        memset(slot, 0, sizeof(*slot));
        slot->flags = UB_SLOT_QUALIFIED | UB_SLOT_SERVED | (t->wait.epfd >= 0 ? UB_SLOT_EPOLL : 0);
        slot->pid = t->pid;
        slot->tid = t->tid;
        slot->epfd = t->wait.epfd;
        slot->ready = UB_READY_UNKNOWN;
        ub_store_release(&slot->state, UB_SLOT_LIVE);
        if (ub_load_relaxed(&o->arena->h.slots_high) <= i)
            ub_store_release(&o->arena->h.slots_high, i + 1);
        t->slot = i;
        return true;
    }
    return false;
}

/* The store of a slot's start must be seen before `asleep` is read: see sleep_deeply() in watch_loop.c. */
static void ring_doorbell(struct ub_outside *o)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (!ub_load_relaxed(&o->arena->h.asleep))
        return;
    ub_store_relaxed(&o->arena->h.asleep, 0);
    __atomic_fetch_add(&o->arena->h.doorbell, 1, __ATOMIC_RELEASE);
    syscall(SYS_futex, &o->arena->h.doorbell, FUTEX_WAKE, 1, NULL, NULL, 0);
}

static void begin_stall(struct ub_outside *o, struct thread *t, uint64_t now_ns)
{
    struct ub_slot *slot = slot_of(o, t);

    if (!slot)
        return;
    t->since_ns = t->switches.off_ns ? t->switches.off_ns : now_ns;
    t->sure_ns = now_ns;
    ub_store_relaxed(&o->slices[t->slot], t->sched.slices);
    ub_store_release(&slot->start, t->since_ns);
    ring_doorbell(o);
}

/* Without exact times it lasted at least until it was last seen. */
static void end_stall(struct ub_outside *o, struct thread *t)
{
    struct ub_record record = {.kind = UB_RECORD_TURN, .flags = UB_RECORD_QUALIFIED, .start = t->since_ns};
    struct ub_slot *slot = slot_of(o, t);

    record.fd = -1;
    record.ready = UB_READY_UNKNOWN;
    record.end = t->switches.on_ns ? t->switches.on_ns : t->sure_ns;
    t->since_ns = 0;
    if (!slot)
        return;
    ub_store_release(&slot->start, 0);
    if (record.end - record.start < o->threshold_ns)
        return;
    slot->turns++;
    record.turn = slot->turns;
    ub_ring_put(&o->arena->cold[t->slot].ring, &record);
    ring_doorbell(o);
}

static void forget(struct ub_outside *o, struct thread *t)
{
    struct ub_slot *slot = t->loop ? slot_of(o, t) : NULL;

    if (slot) {
        ub_store_release(&slot->start, 0);
        ub_store_release(&slot->state, UB_SLOT_RELEASED);
        ring_doorbell(o);
    }
    ub_switches_close(&t->switches);
    *t = (struct thread){.switches.fd = -1};
}

/* ---- what is a loop's wait ---- */

/* A call in which event loops wait. poll and select on one descriptor are how synchronous code does. */
static bool is_wait_call(const struct ub_capture *c, struct wait *ret)
{
    *ret = (struct wait){.nr = c->nr, .pc = c->reg[UB_REG_RIP], .sp = c->reg[UB_REG_RSP], .epfd = -1};
    switch (c->nr) {
    case SYS_epoll_wait:
    case SYS_epoll_pwait:
    case SYS_epoll_pwait2:
        ret->epfd = (int)c->arg[0];
        return true;
    case SYS_poll:
    case SYS_ppoll:
        return (uint32_t)c->arg[1] >= 2;
    case SYS_select:
    case SYS_pselect6:
        return (uint32_t)c->arg[0] >= 2;
    case SYS_io_uring_enter:
        return c->arg[2] && c->arg[3] & 1;
    default:
        return false;
    }
}

static bool same_wait(const struct wait *a, const struct wait *b)
{
    if (b->epfd >= 0 && a->epfd == b->epfd)
        return true;
    return a->nr == b->nr && a->pc == b->pc && a->sp == b->sp;
}

/* One more sleep in a wait that is not (yet) this thread's. True: from now on it is. */
static bool qualifies(struct thread *t, const struct wait *w, uint32_t enough)
{
    if (!same_wait(&t->candidate, w)) {
        t->candidate = *w;
        t->sightings = 0;
    }
    if (++t->sightings < enough)
        return false;
    t->wait = *w;
    t->sightings = 0;
    return true;
}

/* ---- looking ---- */

static bool same_sleep(const struct ub_schedstat *a, const struct ub_schedstat *b)
{
    return a->slices == b->slices && a->run_ns == b->run_ns;
}

/* What it does now, and the schedstat that goes with it. */
static int look_at(struct ub_outside *o, struct thread *t, struct ub_schedstat *ret)
{
    struct ub_schedstat after;
    int r = ub_capture_schedstat(t->pid, t->tid, ret);

    for (int i = 0; r == 0 && i < TRIES; i++) {
        r = ub_capture_peek(t->pid, t->tid, &o->capture);
        if (r == 0)
            r = ub_capture_schedstat(t->pid, t->tid, &after);
        if (r == 0 && same_sleep(ret, &after))
            return 0;
        *ret = after;
    }
    return r < 0 ? r : -EAGAIN;
}

static void became_loop(struct ub_outside *o, struct thread *t)
{
    if (!take_slot(o, t))
        return;
    t->loop = true;
    ub_switches_open(t->tid, &t->switches);
}

/* It sleeps, and did not in this place when it was last looked at. */
static void fell_asleep(struct ub_outside *o, struct thread *t, uint64_t now_ns)
{
    const struct ub_capture *c = &o->capture;
    struct wait w;
    bool waits = c->state == UB_THREAD_BLOCKED && is_wait_call(c, &w);

    if (!t->loop) {
        if (waits && qualifies(t, &w, w.epfd >= 0 ? 1 : QUALIFY))
            became_loop(o, t);
        return;
    }
    if (waits && same_wait(&t->wait, &w))
        return;
    /* The same call deeper in the stack: the loop runs nested. */
    if (waits && w.nr == t->wait.nr && w.pc == t->wait.pc && w.sp < t->wait.sp)
        return;
    if (waits && qualifies(t, &w, RELEARN))
        return;
    begin_stall(o, t, now_ns);
}

static void visit(struct ub_outside *o, struct thread *t)
{
    uint64_t now = ub_clock_monotonic_ns();
    struct ub_schedstat sched;
    int r;

    if (!t->loop && now < t->due_ns)
        return;
    t->due_ns = now + (t->sightings ? 0 : UNDECIDED_NS);
    r = ub_capture_schedstat(t->pid, t->tid, &sched);
    if (r == 0 && t->asleep && same_sleep(&sched, &t->sched)) {
        t->sure_ns = now;
        return;
    }
    ub_switches_read(&t->switches, t->since_ns);
    if (t->since_ns)
        end_stall(o, t);
    if (r == 0)
        r = look_at(o, t, &sched);
    if (r == -ESRCH) {
        forget(o, t);
        return;
    }
    t->sched = sched;
    t->asleep = r == 0 && (o->capture.state == UB_THREAD_BLOCKED || o->capture.state == UB_THREAD_FAULT);
    if (t->asleep) {
        ub_switches_read(&t->switches, 0);
        fell_asleep(o, t, now);
    }
}

/* ---- threads ---- */

static struct thread *entry_of(struct ub_outside *o, pid_t pid, pid_t tid)
{
    struct thread *vacant = NULL;

    for (uint32_t i = 0; i < o->watched_high; i++) {
        struct thread *t = &o->watched[i];

        if (t->pid == pid && t->tid == tid)
            return t;
        if (t->tid == 0 && !vacant)
            vacant = t;
    }
    if (!vacant && o->watched_high < THREADS_MAX)
        vacant = &o->watched[o->watched_high++];
    if (vacant)
        *vacant = (struct thread){.pid = pid, .tid = tid, .switches.fd = -1};
    return vacant;
}

static bool scan_process(struct ub_outside *o, pid_t pid)
{
    char path[40];
    struct dirent *d;
    DIR *dir;

    snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
    dir = opendir(path);
    if (!dir)
        return false;
    while ((d = readdir(dir))) {
        long tid = strtol(d->d_name, NULL, 10);
        struct thread *t = tid > 0 && tid <= INT_MAX ? entry_of(o, pid, (pid_t)tid) : NULL;

        if (t)
            t->seen = true;
    }
    closedir(dir);
    return true;
}

static void scan(struct ub_outside *o)
{
    pthread_mutex_lock(&o->lock);
    for (uint32_t i = 0; i < o->watched_high; i++)
        o->watched[i].seen = false;
    for (uint32_t i = 0; i < o->process_count;) {
        if (scan_process(o, o->process[i]))
            i++;
        else
            o->process[i] = o->process[--o->process_count];
    }
    pthread_mutex_unlock(&o->lock);
    for (uint32_t i = 0; i < o->watched_high; i++) {
        if (o->watched[i].tid && !o->watched[i].seen)
            forget(o, &o->watched[i]);
    }
}

static void *watch(void *self)
{
    struct ub_outside *o = self;
    uint64_t next = ub_clock_monotonic_ns(), now;

    prctl(PR_SET_TIMERSLACK, 1UL);
    while (!ub_load_acquire(&o->stopping)) {
        struct timespec until;

        now = ub_clock_monotonic_ns();
        if (now >= ub_load_relaxed(&o->scan_at_ns)) {
            ub_store_relaxed(&o->scan_at_ns, now + SCAN_NS);
            scan(o);
        }
        for (uint32_t i = 0; i < o->watched_high; i++) {
            if (o->watched[i].tid)
                visit(o, &o->watched[i]);
        }
        now = ub_clock_monotonic_ns();
        next = next + o->tick_ns > now ? next + o->tick_ns : now + o->tick_ns;
        until = (struct timespec){(time_t)(next / 1000000000u), (long)(next % 1000000000u)};
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
    }
    for (uint32_t i = 0; i < o->watched_high; i++)
        ub_switches_close(&o->watched[i].switches);
    return NULL;
}

/* ---- from outside this file ---- */

int ub_outside_start(struct ub_arena *arena, uint64_t threshold_ns, struct ub_outside **ret)
{
    struct ub_outside *o = calloc(1, sizeof(*o));
    sigset_t all, saved;
    int r;

    if (!o)
        return -ENOMEM;
    o->arena = arena;
    o->threshold_ns = threshold_ns;
    o->tick_ns = threshold_ns / TICKS_A_STALL;
    if (o->tick_ns < TICK_MIN_NS)
        o->tick_ns = TICK_MIN_NS;
    if (o->tick_ns > TICK_MAX_NS)
        o->tick_ns = TICK_MAX_NS;
    pthread_mutex_init(&o->lock, NULL);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &saved);
    r = pthread_create(&o->thread, NULL, watch, o);
    pthread_sigmask(SIG_SETMASK, &saved, NULL);
    if (r != 0) {
        pthread_mutex_destroy(&o->lock);
        free(o);
        return -r;
    }
    *ret = o;
    return 0;
}

void ub_outside_stop(struct ub_outside *o)
{
    if (!o)
        return;
    ub_store_release(&o->stopping, 1);
    pthread_join(o->thread, NULL);
}

void ub_outside_free(struct ub_outside *o)
{
    if (!o)
        return;
    pthread_mutex_destroy(&o->lock);
    free(o);
}

int ub_outside_may_look(pid_t pid)
{
    struct ub_capture *c = malloc(sizeof(*c));
    struct ub_schedstat sched;
    int r = c ? ub_capture_peek(pid, pid, c) : -ENOMEM;

    free(c);
    if (r == -EPERM)
        r = -EACCES;
    return r < 0 ? r : ub_capture_schedstat(pid, pid, &sched);
}

int ub_outside_add(struct ub_outside *o, pid_t pid)
{
    int r = ub_outside_may_look(pid);

    if (r < 0)
        return r;
    pthread_mutex_lock(&o->lock);
    for (uint32_t i = 0; i < o->process_count && r == 0; i++)
        r = o->process[i] == pid;
    if (r == 0 && o->process_count == PROCESSES_MAX)
        r = -ENOSPC;
    if (r == 0)
        o->process[o->process_count++] = pid;
    pthread_mutex_unlock(&o->lock);
    ub_store_relaxed(&o->scan_at_ns, 0);
    return r < 0 ? r : 0;
}

bool ub_outside_same_sleep(const struct ub_outside *o, uint32_t slot, const struct ub_capture *c)
{
    return c->has_sched && c->sched.slices == ub_load_relaxed(&o->slices[slot]);
}

bool ub_outside_exact(void)
{
    struct ub_switches s;
    bool exact = ub_switches_open(getpid(), &s) == 0;

    ub_switches_close(&s);
    return exact;
}
