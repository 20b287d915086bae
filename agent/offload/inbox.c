/*
 * Where a loop finds what was done for it, and what waits for descriptors without a thread: the inbox is an epoll that
 * the loop watches, and so may hold whatever a call of the loop's waits for.
 */
#include "pool.h"

#include "../../common/clock.h"
#include "../raw.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <time.h>

/* Told so often that its descriptor is ready, which it was not for this call: a thread may wait for what it is. */
#define VAIN_MAX 16u

/* What no descriptor tells is looked for so often while something is watched. */
#define BEAT_NS 50000000u

#define NUMBERS 4096u /* of higher ones it would not be known whose they are: not used */
static uint64_t ours[NUMBERS / 64];
static uint32_t takings;

bool ub_inbox_owns(int fd)
{
    return (uint32_t)fd < NUMBERS && ub_load_relaxed(&ours[(uint32_t)fd / 64]) & 1ull << (uint32_t)fd % 64;
}

void ub_inbox_gives_up(unsigned first, unsigned last)
{
    for (unsigned i = first; i < NUMBERS && i <= last; i++)
        __atomic_fetch_and(&ours[i / 64], ~(1ull << i % 64), __ATOMIC_RELAXED);
}

void ub_inbox_taken(void)
{
    __atomic_fetch_add(&takings, 1, __ATOMIC_RELEASE);
}

bool ub_inbox_is_whole(const struct ub_inbox *inbox)
{
    return ub_inbox_owns(inbox->fd) && ub_inbox_owns(inbox->bell) && ub_inbox_owns(inbox->timer);
}

/*
 * Not by writing: had the program closed our descriptors and opened files under their numbers, nothing would happen to
 * them. Nor by a timer that is set to be over: its interrupt took 20 us of the ringing thread on a virtual machine, and
 * as much until the loop woke.
 */
static void ring(int fd, int bell)
{
    struct epoll_event once = {.events = EPOLLIN | EPOLLONESHOT};

    if (ub_inbox_owns(fd) && ub_inbox_owns(bell))
        ub_raw4(SYS_epoll_ctl, fd, EPOLL_CTL_MOD, bell, &once);
}

/* The first of several rings. */
void ub_pool_deliver(struct ub_job *job)
{
    struct ub_inbox *inbox = job->inbox; /* the job is the loop's once it is in */
    int fd = inbox->fd, bell = inbox->bell;
    struct ub_job *first = ub_load_relaxed(&inbox->done);

    do
        job->next = first;
    while (!__atomic_compare_exchange_n(&inbox->done, &first, job, true, __ATOMIC_RELEASE, __ATOMIC_RELAXED));
    if (!first)
        ring(fd, bell);
}

/* High, where the program's numbers do not get to as a rule. */
static int high(long fd)
{
    long number;

    if (fd < 0)
        return -1;
    number = ub_raw3(SYS_fcntl, fd, 1030 /* F_DUPFD_CLOEXEC */, 900);
    if (number < 0)
        number = fd;
    else
        ub_raw1(SYS_close, fd);
    if (number >= (long)NUMBERS) {
        ub_raw1(SYS_close, number);
        return -1;
    }
    __atomic_fetch_or(&ours[number / 64], 1ull << number % 64, __ATOMIC_RELAXED);
    return (int)number;
}

static bool is_added(int to, int fd, uint32_t events)
{
    struct epoll_event e = {.events = events};

    return fd >= 0 && ub_raw4(SYS_epoll_ctl, to, EPOLL_CTL_ADD, fd, &e) == 0;
}

/*
 * In a forked child: what the epolls hold is registered in them by its parent, which shares them, and would be told
 * here for ever once the parent is gone. The loop still watches the number: it finds an epoll that holds nothing.
 */
static void empty_in_child(void)
{
    long none = ub_raw1(SYS_epoll_create1, EPOLL_CLOEXEC);

    for (uint32_t i = 0; none >= 0 && i < UB_ARRAY_LEN(ours); i++) {
        for (uint64_t left = ours[i]; left; left &= left - 1)
            ub_raw3(SYS_dup3, none, i * 64 + (uint32_t)__builtin_ctzll(left), O_CLOEXEC);
    }
    if (none >= 0)
        ub_raw1(SYS_close, none);
}

static void see_inbox_forks(void)
{
    pthread_atfork(NULL, NULL, empty_in_child);
}

void ub_inbox_open(struct ub_inbox *inbox)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    pthread_once(&once, see_inbox_forks);
    inbox->timer = high(ub_raw2(SYS_timerfd_create, CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
    inbox->bell = high(ub_raw2(SYS_eventfd2, 1, EFD_CLOEXEC | EFD_NONBLOCK));
    inbox->fd = high(ub_raw1(SYS_epoll_create1, EPOLL_CLOEXEC));
    inbox->armed_ns = 0;
    inbox->takings = __atomic_load_n(&takings, __ATOMIC_ACQUIRE);
    inbox->watched = NULL;
    inbox->limited = 0;
    if (!is_added(inbox->fd, inbox->timer, EPOLLIN) || !is_added(inbox->fd, inbox->bell, 0))
        ub_inbox_close(inbox);
}

void ub_inbox_close(struct ub_inbox *inbox)
{
    int *const all[] = {&inbox->fd, &inbox->bell, &inbox->timer};

    inbox->watched = NULL;
    inbox->limited = 0;
    for (uint32_t i = 0; i < UB_ARRAY_LEN(all); i++) {
        if (ub_inbox_owns(*all[i]))
            ub_raw1(SYS_close, *all[i]);
        if (*all[i] >= 0)
            ub_inbox_gives_up((unsigned)*all[i], (unsigned)*all[i]);
        *all[i] = -1;
    }
}

/* ---- calls that wait for a descriptor ------------------------------------------------------ */

/*
 * It is told of once each time. Had its descriptor been closed behind our back, nobody could take it out any more: so
 * it is not told of without end, and may still be there when the number is used again.
 */
static bool put(struct ub_job *job, int how)
{
    struct epoll_event e = {.events = job->wait_events | EPOLLONESHOT, .data.ptr = job};
    long r = ub_raw4(SYS_epoll_ctl, job->inbox->fd, how, job->wait_fd, &e);

    if (r == -EEXIST)
        r = ub_raw4(SYS_epoll_ctl, job->inbox->fd, EPOLL_CTL_MOD, job->wait_fd, &e);
    return r == 0;
}

/* The program may have taken our number before the call is begun. */
static bool has_its_number(struct ub_job *job)
{
    return !job->check || (ub_pool_is_still_there(job) && (int)job->word[0] == job->wait_fd);
}

bool ub_inbox_watch(struct ub_job *job)
{
    struct ub_inbox *inbox = job->inbox;

    if (!ub_inbox_is_whole(inbox) || !has_its_number(job) || !put(job, EPOLL_CTL_ADD))
        return false; /* not for an epoll: a thread waits */
    job->queued_ns = job->begun_ns = ub_clock_monotonic_ns();
    job->until_ns = job->limit_ns ? job->begun_ns + job->limit_ns : 0;
    job->signal = 0;
    job->vain = 0;
    job->watched = true;
    job->previous = NULL;
    job->next = inbox->watched;
    if (job->next)
        job->next->previous = job;
    else
        inbox->beat_ns = job->begun_ns + BEAT_NS;
    inbox->watched = job;
    inbox->limited += job->until_ns != 0;
    return true;
}

static void unwatch(struct ub_job *job)
{
    struct ub_inbox *inbox = job->inbox;

    if (ub_inbox_owns(inbox->fd))
        ub_raw4(SYS_epoll_ctl, inbox->fd, EPOLL_CTL_DEL, job->wait_fd, 0);
    if (job->next)
        job->next->previous = job->previous;
    if (job->previous)
        job->previous->next = job->next;
    else
        inbox->watched = job->next;
    inbox->limited -= job->until_ns != 0;
    job->watched = false;
}

/* A thread makes it. */
static void hand_on(struct ub_job *job)
{
    unwatch(job);
    if (ub_pool_submit(job) == 0)
        return;
    ub_pool_call_here(job); /* no thread: as without us */
    ub_pool_deliver(job);
}

void ub_inbox_move(struct ub_job *job, int fd)
{
    ub_raw4(SYS_epoll_ctl, job->inbox->fd, EPOLL_CTL_DEL, job->wait_fd, 0);
    job->wait_fd = fd;
    if (!put(job, EPOLL_CTL_ADD))
        hand_on(job);
}

enum why {
    TOLD,
    UNTOLD,
    LATE, /* its time is over, and whatever it says now is the answer */
};

/* True: it is over. */
static bool try_now(struct ub_job *job, enum why why)
{
    enum ub_attempt r;

    if (job->check && !ub_pool_is_still_there(job)) {
        job->result = -1;
        job->error = EBADF;
        r = UB_ATTEMPT_OVER;
    } else {
        r = job->attempt(job);
    }
    if (r == UB_ATTEMPT_NOT_YET &&
        (why == UNTOLD || (why == TOLD && ++job->vain < VAIN_MAX && put(job, EPOLL_CTL_MOD))))
        return false;
    if (r != UB_ATTEMPT_OVER && why != LATE) {
        hand_on(job);
        return false;
    }
    if (r != UB_ATTEMPT_OVER && job->result < 0)
        job->error = EAGAIN;
    unwatch(job);
    job->ended_ns = ub_clock_monotonic_ns();
    return true;
}

/* In front of what is there already. */
static void try_one(struct ub_job *job, enum why why, struct ub_job **list)
{
    if (!try_now(job, why))
        return;
    job->next = *list;
    *list = job;
}

/* The program has closed what we wait with: threads do. */
static void hand_all_on(struct ub_inbox *inbox)
{
    while (inbox->watched)
        hand_on(inbox->watched);
}

static bool is_watched(const struct ub_inbox *inbox, const struct ub_job *job)
{
    return job->watched && job->inbox == inbox;
}

/* What is ready is tried; what else rang is known by that alone. */
static struct ub_job *look(struct ub_inbox *inbox)
{
    struct epoll_event event[64];
    struct ub_job *done = NULL;
    long n;

    do {
        n = ub_raw6(SYS_epoll_pwait, inbox->fd, (long)event, UB_ARRAY_LEN(event), 0, 0, 0);
        for (long i = 0; i < n; i++) {
            /* NOLINTNEXTLINE(clang-analyzer-core.uninitialized.Assign): the kernel has filled as many as it says */
            struct ub_job *job = event[i].data.ptr;

            if (job && is_watched(inbox, job))
                try_one(job, TOLD, &done);
        }
    } while (n == (long)UB_ARRAY_LEN(event));
    return done;
}

/* Those whose own time is over. */
static void end_late(struct ub_inbox *inbox, uint64_t now, struct ub_job **list)
{
    struct ub_job *next;

    for (struct ub_job *job = inbox->limited ? inbox->watched : NULL; job; job = next) {
        next = job->next;
        if (job->until_ns && job->until_ns <= now)
            try_one(job, LATE, list);
    }
}

/* What is told by no descriptor, or by one whose number the program has taken. */
static void on_beat(struct ub_inbox *inbox, uint64_t now, struct ub_job **list)
{
    uint32_t known = __atomic_load_n(&takings, __ATOMIC_ACQUIRE);
    struct ub_job *next;

    for (struct ub_job *job = inbox->watched; job; job = next) {
        next = job->next;
        if (known != inbox->takings && !put(job, EPOLL_CTL_MOD))
            hand_on(job);
        else if (job->unsure)
            try_one(job, UNTOLD, list);
    }
    inbox->takings = known;
    inbox->beat_ns = now + BEAT_NS;
}

/* The earlier of that, of what the calls here have left, and of the beat. 0: none. */
static uint64_t first_limit(const struct ub_inbox *inbox, uint64_t next_ns)
{
    if (inbox->watched && (!next_ns || inbox->beat_ns < next_ns))
        next_ns = inbox->beat_ns;
    for (const struct ub_job *job = inbox->limited ? inbox->watched : NULL; job; job = job->next) {
        if (job->until_ns && (!next_ns || job->until_ns < next_ns))
            next_ns = job->until_ns;
    }
    return next_ns;
}

/* ---- the loop's side -------------------------------------------------------------------- */

void ub_inbox_arm(struct ub_inbox *inbox, uint64_t next_ns)
{
    struct itimerspec at;

    next_ns = first_limit(inbox, next_ns);
    at = (struct itimerspec){
        .it_value = {.tv_sec = (time_t)(next_ns / 1000000000u), .tv_nsec = (long)(next_ns % 1000000000u)}};
    if (next_ns == 1 || ub_pool_has_done(inbox)) {
        ring(inbox->fd, inbox->bell);
    } else if (inbox->armed_ns != next_ns) {
        inbox->armed_ns = next_ns;
        if (ub_inbox_owns(inbox->timer))
            ub_raw4(SYS_timerfd_settime, inbox->timer, TFD_TIMER_ABSTIME, &at, 0);
    }
}

struct ub_job *ub_pool_collect(struct ub_inbox *inbox)
{
    struct ub_job *job, *list = NULL, *next;

    if (ub_inbox_owns(inbox->fd)) /* before the look at `done`: who puts something in after it rings once more */
        list = look(inbox);
    if (inbox->watched && !ub_inbox_is_whole(inbox))
        hand_all_on(inbox);
    if (inbox->watched) {
        uint64_t now = ub_clock_monotonic_ns();

        end_late(inbox, now, &list);
        if (inbox->beat_ns <= now)
            on_beat(inbox, now, &list);
    }
    job = __atomic_exchange_n(&inbox->done, NULL, __ATOMIC_ACQUIRE);
    for (; job; job = next) {
        next = job->next;
        job->next = list;
        list = job;
    }
    return list;
}
