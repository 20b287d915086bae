#include "drive.h"

#include "../raw.h"
#include "suspend_impl.h"

#include <errno.h>
#include <poll.h>
#include <time.h>

#define GRACE_NS 20000000ull /* a wait that is over by then disturbs nobody */
#define PARK_NS  2000000ull

static uint64_t now_ns(void)
{
    return ub_clock_monotonic_ns();
}

bool ub_drive_concerned(void)
{
    const struct mine *m = ub_suspend_mine(false);

    return m && (m->suspended || (m->current && m->current->driven));
}

const void *ub_drive_holder(void)
{
    const struct mine *m = ub_suspend_mine(false);

    return m ? ub_suspend_task(m, (uintptr_t)__builtin_frame_address(0)) : NULL;
}

/* What began before the calling callback and is not over; `done`: that can go on. */
static struct ub_task *older(const struct mine *m, bool done)
{
    const struct ub_task *self = ub_suspend_task(m, (uintptr_t)__builtin_frame_address(0));
    uint64_t limit = self ? self->born : UINT64_MAX;
    struct ub_task *first = NULL;

    for (uint32_t i = 0; i < UB_HOSTS_MAX; i++) {
        struct ub_host *h = m->host[i];

        if (!h || !h->loop || h->generation != ub_process->generation)
            continue;
        for (struct ub_task *task = h->suspended; task; task = task->next) {
            if (!task->over && !task->behind && task->born < limit && (!done || task->done) &&
                (!first || task->born < first->born))
                first = task;
        }
    }
    return first;
}

static void collect(struct mine *m)
{
    for (uint32_t i = 0; i < UB_HOSTS_MAX; i++) {
        struct ub_host *h = m->host[i];

        if (!h || !h->loop || h->generation != ub_process->generation || !h->count)
            continue;
        ub_suspend_collect(h);
        ub_suspend_arm(h);
    }
}

/* The callback that waits is not what runs meanwhile. */
static void go_on(struct mine *m, struct ub_task *task)
{
    struct ub_span_aside aside;

    ub_span_aside(&ub_thread, &aside);
    task->driven = true;
    ub_suspend_run_here(m, task);
    ub_span_back(&ub_thread, &aside);
}

static void wait_for_some(const struct mine *m, int fd, short events, uint64_t ns)
{
    struct pollfd p[UB_HOSTS_MAX + 1];
    struct timespec ts = {.tv_nsec = (long)ns};
    long n = 0;

    for (uint32_t i = 0; i < UB_HOSTS_MAX; i++) {
        if (m->host[i] && m->host[i]->loop && m->host[i]->count)
            p[n++] = (struct pollfd){.fd = m->host[i]->inbox.fd, .events = POLLIN};
    }
    if (fd >= 0)
        p[n++] = (struct pollfd){.fd = fd, .events = events};
    ub_raw6(SYS_ppoll, (long)p, n, (long)&ts, 0, 0, 0);
}

static enum ub_drove drive(struct mine *m, struct ub_drive *d, int fd, short events, uint64_t wait_ns)
{
    struct ub_task *self = ub_suspend_task(m, (uintptr_t)__builtin_frame_address(0)), *next;
    uint64_t now = now_ns();

    if (!d->begun_ns)
        d->begun_ns = now;
    if (now - d->begun_ns >= GRACE_NS) {
        collect(m);
        next = older(m, true);
        if (next) {
            go_on(m, next);
            return UB_DROVE_ON;
        }
    }
    if (self && self->driven && !self->nested_sp) {
        ub_suspend_park(self, PARK_NS);
        return UB_DROVE_ON;
    }
    if (!older(m, false))
        return UB_DROVE_NOTHING;
    if (!wait_ns)
        return UB_DROVE_WAITED;
    if (now - d->begun_ns < GRACE_NS) { /* what is done already would end the wait at once */
        struct pollfd p = {.fd = fd, .events = events};
        struct timespec ts = {.tv_nsec = (long)wait_ns};

        ub_raw6(SYS_ppoll, (long)&p, fd >= 0, (long)&ts, 0, 0, 0);
    } else {
        wait_for_some(m, fd, events, wait_ns);
    }
    return UB_DROVE_WAITED;
}

enum ub_drove ub_drive(struct ub_drive *d, int fd, short events, uint64_t wait_ns)
{
    struct mine *m = ub_suspend_mine(false);
    enum ub_drove r = UB_DROVE_NOTHING;
    int saved = errno;

    if (m && (m->suspended || (m->current && m->current->driven)))
        r = drive(m, d, fd, events, wait_ns);
    errno = saved;
    return r;
}

void ub_drive_all(void)
{
    struct mine *m = ub_suspend_mine(false);
    int saved = errno;

    while (m && m->suspended && older(m, false)) {
        struct ub_task *next;

        collect(m);
        next = older(m, true);
        if (next)
            go_on(m, next);
        else
            wait_for_some(m, -1, 0, GRACE_NS);
    }
    errno = saved;
}

void ub_drive_until_over(const struct ub_host *h, bool (*such)(const struct ub_task *task, const void *which),
                         const void *which)
{
    struct mine *m = ub_suspend_mine(false);
    int saved = errno;

    while (m && h->generation == ub_process->generation) {
        struct ub_task *some = NULL, *ready = NULL;

        collect(m);
        for (struct ub_task *task = h->suspended; task && !ready; task = task->next) {
            if (!task->over && !task->behind && such(task, which))
                some = task;
            ready = some == task && task->done ? task : NULL;
        }
        if (!some)
            break;
        if (ready)
            go_on(m, ready);
        else
            wait_for_some(m, -1, 0, GRACE_NS);
    }
    errno = saved;
}
