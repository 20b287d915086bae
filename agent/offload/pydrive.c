/*
 * Where a thread waits in a place that cannot be left (a callback that is no task's, an import, a step inside a step)
 * what it waits for may be in the hands of a step that is suspended: without us that one would have been
 * over before this one began. So while such a place waits, suspended steps go on right there, on their own
 * stacks, above it; each as far as its next await.
 */
#include "pysteps_impl.h"

#include <errno.h>
#include <poll.h>
#include <stddef.h>
#include <time.h>

#define BEAT_NS 20000000ull /* what nobody tells us of: our descriptors may be gone, locks may be posted elsewhere */

static void collect_places(struct mine *m)
{
    for (struct ub_job *job = ub_pool_collect(&m->place), *next; job; job = next) {
        struct ub_place *p = (struct ub_place *)((char *)job - offsetof(struct ub_place, job));

        next = job->next;
        p->done = true;
    }
}

static struct step *first_done(const struct mine *m)
{
    struct step *s = m->suspended;

    while (s && (!s->done || s->over))
        s = s->next;
    return s;
}

static void arm_all(struct mine *m)
{
    for (uint32_t i = 0; i < HOSTS_MAX; i++) {
        if (m->host[i].loop)
            ub_pysteps_arm(m, &m->host[i]);
    }
}

static long wait_for_some(struct mine *m, int fd, short events, uint64_t until_ns)
{
    struct pollfd p[HOSTS_MAX + 2];
    struct timespec beat = {.tv_nsec = BEAT_NS};
    uint64_t now = ub_clock_monotonic_ns();
    nfds_t n = 0;

    for (uint32_t i = 0; i < HOSTS_MAX; i++) {
        if (!m->host[i].loop)
            continue;
        ub_pysteps_arm(m, &m->host[i]);
        p[n++] = (struct pollfd){.fd = m->host[i].inbox.fd, .events = POLLIN};
    }
    if (m->place.fd >= 0)
        p[n++] = (struct pollfd){.fd = m->place.fd, .events = POLLIN};
    if (fd >= 0)
        p[n++] = (struct pollfd){.fd = fd, .events = events};
    if (until_ns && until_ns < now + BEAT_NS)
        beat.tv_nsec = until_ns > now ? (long)(until_ns - now) : 0;
    return ub_raw6(SYS_ppoll, (long)p, (long)n, (long)&beat, 0, 0, 0);
}

/*
 * What a signal's handler raises belongs to who waits here, not to a step that goes on above. Nor is anybody left in
 * one: who was to go on would be over by the time that this place is come back to.
 */
static bool interrupted(struct mine *m)
{
    bool raised;

    m->own++;
    raised = ub_pysteps_python->interrupted();
    m->own--;
    return raised;
}

/* The first that can, if there is one. */
static int go_on(struct mine *m, bool gil)
{
    struct ub_holder *own = ub_pysteps_holder_of(m);
    struct step *s;
    int r = 0;

    if (!gil)
        ub_pysteps_python->take_gil();
    if (!gil && interrupted(m)) {
        r = -EINTR;
    } else if ((s = first_done(m)) != NULL) {
        ub_holder_leaves(own);
        ub_pysteps_run_here(m, s);
        ub_holder_returns(own);
        arm_all(m); /* the rings of other loops were taken in, too */
    }
    if (!gil)
        ub_pysteps_python->give_gil();
    return r;
}

bool ub_pydrive_has_some(struct mine *m)
{
    for (uint32_t i = 0; i < HOSTS_MAX; i++) {
        if (m->host[i].loop)
            ub_pysteps_collect(m, &m->host[i], false);
    }
    return first_done(m) != NULL;
}

int ub_pydrive_once(struct mine *m, bool gil, int fd, short events, uint64_t until_ns)
{
    long r;

    if (ub_pydrive_has_some(m)) {
        r = go_on(m, gil);
    } else {
        if (gil)
            ub_pysteps_python->give_gil();
        r = wait_for_some(m, fd, events, until_ns);
        if (gil)
            ub_pysteps_python->take_gil();
        else if (r == 0 && go_on(m, false) < 0) /* it came just before the wait */
            r = -EINTR;
    }
    collect_places(m);
    if (r == -EINTR)
        arm_all(m); /* nobody may come here again */
    return r == -EINTR ? -EINTR : 0;
}

int ub_pydrive_wait(struct mine *m, const struct ub_lock_wait *what, uint64_t deadline_ns, bool gil)
{
    struct ub_holder *own = ub_pysteps_holder_of(m);
    struct ub_place place = {.wait = *what, .job = {.inbox = &m->place}};
    const void *outer = own->waits;
    int error = 0;

    if (m->place.fd >= 0 && !ub_inbox_is_whole(&m->place))
        ub_inbox_close(&m->place);
    if (m->place.fd < 0)
        ub_inbox_open(&m->place);
    place.wait.holder = own;
    place.wait.job = &place.job;
    own->waits = what->lock;
    if (!ub_lock_park(&place.wait))
        place.done = true;
    while (!place.done && !error) {
        if (ub_pydrive_once(m, gil, -1, 0, deadline_ns) == -EINTR && !gil)
            error = EINTR;
        if (!place.done && !error && deadline_ns && ub_clock_monotonic_ns() >= deadline_ns)
            error = ETIMEDOUT;
        if (!place.done && !error && (ub_lock_look(&place.wait) || !m->suspended))
            break;
    }
    if (!place.done && place.wait.state == UB_LOCK_WAITS && !ub_lock_withdraw(&place.wait)) {
        while (!place.done) /* it is on its way: a moment */
            collect_places(m);
    }
    own->waits = outer;
    if (place.wait.state == UB_LOCK_HAD)
        return 0;
    if (!error)
        return 1;
    errno = error;
    return -1;
}

static struct step *first_of(const struct mine *m, const struct host *h, bool holding)
{
    struct step *s = m->suspended;

    while (s && (s->over || (h && s->host != h) || (holding && !s->holder.count)))
        s = s->next;
    return s;
}

void ub_pydrive_drain(struct mine *m, const struct host *h, bool holding)
{
    while (first_of(m, h, holding))
        ub_pydrive_once(m, true, -1, 0, 0);
}
