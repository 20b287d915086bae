#include "order.h"

#include "../raw.h"
#include "drive.h"
#include "ready.h"

#include <errno.h>
#include <poll.h>
#include <stddef.h>
#include <sys/stat.h>
#include <time.h>

#define BEAT_NS 20000000

/* The timer fires at the next deadline; at once, if something is done already. */
void ub_suspend_arm(struct ub_host *h)
{
    uint64_t next = 0;
    bool done = false;

    for (const struct ub_task *task = h->suspended; task; task = task->next) {
        done |= task->done;
        if (task->deadline_ns && !task->done && (!next || task->deadline_ns < next))
            next = task->deadline_ns;
    }
    if (done)
        next = 1;
    ub_inbox_arm(&h->inbox, next);
}

static struct ub_task *task_of(struct ub_job *job)
{
    return (struct ub_task *)((char *)job - offsetof(struct ub_task, job));
}

static struct ub_place place_of(const struct ub_task *task)
{
    return (struct ub_place){task->fd, task->object, task->direction};
}

static uint64_t object_number(uint64_t device, uint64_t inode)
{
    return inode ^ device << 40 ^ 1ull << 63;
}

/* Of calls on descriptors of one file, whatever their numbers; locks belong to one descriptor, or (record locks) to
 * none. */
static uint64_t object_of(int fd, uint32_t direction)
{
    struct stat st = {0};

    if (fd < 0 || direction & UB_DIRECTION_LOCK || ub_raw2(SYS_fstat, fd, &st) < 0)
        return 0;
    return object_number(st.st_dev, st.st_ino);
}

uint64_t ub_order_object(const struct ub_job *job, uint32_t direction)
{
    return job->check && !(direction & UB_DIRECTION_LOCK) ? object_number(job->device, job->inode) : 0;
}

/* An earlier call on the same file that is not over. `before`: only those suspended before it. */
static struct ub_task *busy(const struct ub_host *h, struct ub_place p, const struct ub_task *before)
{
    for (struct ub_task *task = h->suspended; p.fd != -1 && task && task != before; task = task->next) {
        if (!task->done && (task->fd == p.fd || (p.object && task->object == p.object)) &&
            (task->holds_up & p.direction || p.direction == UB_DIRECTION_ALL))
            return task;
    }
    return NULL;
}

void ub_order_start(struct ub_host *h)
{
    for (struct ub_task *task = h->suspended; task; task = task->next) {
        if (task->started || busy(h, place_of(task), task))
            continue;
        task->started = true;
        task->job.inbox = &h->inbox;
        if (!task->deadline_ns && ub_pool_start(&task->job) < 0) {
            ub_pool_call_here(&task->job);
            task->done = true;
        }
    }
}

void ub_suspend_collect(struct ub_host *h)
{
    uint64_t now = ub_clock_monotonic_ns();

    for (struct ub_job *job = ub_pool_collect(&h->inbox), *next; job; job = next) {
        next = job->next;
        task_of(job)->done = true;
    }
    for (struct ub_task *task = h->suspended; task; task = task->next) {
        if (task->deadline_ns && task->deadline_ns <= now)
            task->done = true;
    }
    ub_order_start(h);
}

void ub_order_wait(const struct ub_host *h)
{
    struct pollfd p = {.fd = h->inbox.fd, .events = POLLIN};
    struct timespec beat = {.tv_nsec = BEAT_NS}; /* our descriptor may be gone */

    ub_raw6(SYS_ppoll, (long)&p, 1, (long)&beat, 0, 0, 0);
}

void ub_order_settle(struct ub_host *h, struct ub_place p)
{
    struct ub_drive d = {0};
    int saved = errno;

    while (busy(h, p, NULL)) {
        ub_suspend_arm(h);
        if (ub_drive(&d, h->inbox.fd, POLLIN, BEAT_NS) == UB_DROVE_NOTHING)
            ub_order_wait(h);
        ub_suspend_collect(h);
    }
    ub_suspend_arm(h);
    errno = saved;
}

struct ub_place ub_order_place(const struct mine *m, int fd, uint32_t direction)
{
    return (struct ub_place){fd, m->suspended ? object_of(fd, direction) : 0, direction};
}

struct ub_host *ub_order_busy(const struct mine *m, struct ub_place p)
{
    for (uint32_t i = 0; m->suspended && i < UB_HOSTS_MAX; i++) {
        if (m->host[i] && m->host[i]->loop && busy(m->host[i], p, NULL))
            return m->host[i];
    }
    return NULL;
}

void ub_suspend_settle_numbers(unsigned first, unsigned last)
{
    struct mine *m = ub_suspend_mine(false);

    for (uint32_t i = 0; m && m->suspended && i < UB_HOSTS_MAX; i++) {
        struct ub_host *h = m->host[i];
        struct ub_task *task = h && h->loop ? h->suspended : NULL;

        while (task) {
            bool uses = task->fd >= 0 && (unsigned)task->fd >= first && (unsigned)task->fd <= last && !task->done;

            ub_ready_make_way(&task->job, &task->own_fd, first, last);
            if (uses)
                ub_order_settle(h, (struct ub_place){task->fd, 0, UB_DIRECTION_ALL});
            task = uses ? h->suspended : task->next; /* those that are done stay in the list until they are resumed */
        }
    }
}
