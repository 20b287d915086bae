/*
 * One look at a thread: what vanishes is taken here, in a few microseconds, and
 * explained later by another thread.
 */
#include "watch_impl.h"

#include "fdinfo.h"
#include "syscalls.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* How long a thread that seems to run is given to enter the call it may be entering. */
#define UB_LOOK_SETTLE_NS 20000

static uint64_t read_majflt(pid_t pid, pid_t tid)
{
    char path[64], text[1024], *p;
    unsigned long long majflt = 0;
    ssize_t len;
    int fd;

    snprintf(path, sizeof(path), "/proc/%d/task/%d/stat", pid, tid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    len = read(fd, text, sizeof(text) - 1);
    close(fd);
    text[len > 0 ? len : 0] = '\0';
    p = strrchr(text, ')');
    if (p && sscanf(p + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %llu", &majflt) != 1)
        majflt = 0;
    return majflt;
}

static bool read_schedstat(struct ub_watched *t, struct ub_schedstat *ret)
{
    unsigned long long run, wait, slices;
    char text[96];
    ssize_t len;

    if (t->schedstat_fd < 0) {
        char path[64];

        snprintf(path, sizeof(path), "/proc/%d/task/%d/schedstat", t->pid, t->tid);
        t->schedstat_fd = open(path, O_RDONLY | O_CLOEXEC);
        if (t->schedstat_fd < 0)
            return false;
    }
    len = pread(t->schedstat_fd, text, sizeof(text) - 1, 0);
    if (len <= 0)
        return false;
    text[len] = '\0';
    if (sscanf(text, "%llu %llu %llu", &run, &wait, &slices) != 3 || (run | wait | slices) == 0)
        return false;
    *ret = (struct ub_schedstat){run, wait, slices};
    return true;
}

void ub_watch_account(struct ub_watched *t, bool faults, struct ub_accounting *ret)
{
    memset(ret, 0, sizeof(*ret));
    if (!read_schedstat(t, &ret->sched))
        return;
    ret->at_ns = ub_clock_monotonic_ns();
    if (faults)
        ret->majflt = read_majflt(t->pid, t->tid);
}

/* Spinning, since a sleep this short lasts three times as long. */
static void settle(void)
{
    uint64_t until = ub_clock_monotonic_ns() + UB_LOOK_SETTLE_NS;

    while (ub_clock_monotonic_ns() < until)
        ;
}

static void bound_sample(struct ub_sample *sample, const struct ub_maps *maps)
{
    const struct ub_map *map = NULL;

    /* The last sample's stack pointer is the best guess of where the next one will be. */
    if (maps)
        map = ub_maps_find(maps, sample->reg[UB_REG_RSP]);
    sample->stack_start = map ? map->start : 0;
    sample->stack_end = map ? map->end : 0;
}

static int sample_running(struct ub_watch *w, uint32_t index, const struct ub_maps *maps, struct ub_capture *c)
{
    struct ub_watched *t = &w->watched[index];
    int r = -ENOTSUP;

    if (ub_load_relaxed(&w->arena->slot[index].flags) & UB_SLOT_SAMPLER) {
        struct ub_sample *sample = &w->arena->cold[index].sample;

        bound_sample(sample, maps);
        r = ub_capture_signal(t->pid, t->tid, sample, maps, ub_ticks_to_ns, c);
    }
    if (r == -ENOTSUP)
        r = ub_capture_perf(t->pid, t->tid, maps, c);
    return r;
}

/*
 * Running and blocked change places at any moment, so: look, take the stack in
 * the way that fits, and when that no longer fits look again.
 */
static int take(struct ub_watch *w, uint32_t index, bool running_too, const struct ub_maps *maps, struct ub_capture *c)
{
    struct ub_watched *t = &w->watched[index];
    int r = -EAGAIN;

    for (int tries = 0; tries < 4 && r == -EAGAIN; tries++) {
        r = ub_capture_peek(t->pid, t->tid, c);
        if (r < 0)
            return r;
        if (c->state == UB_THREAD_RUNNING && !running_too)
            return -EAGAIN;
        if (c->state == UB_THREAD_RUNNING) {
            settle();
            r = ub_capture_peek(t->pid, t->tid, c);
            if (r < 0)
                return r;
        }
        if (c->state == UB_THREAD_DEAD)
            return -ESRCH;
        r = c->state == UB_THREAD_RUNNING ? sample_running(w, index, maps, c)
                                          : ub_capture_blocked(t->pid, t->tid, maps, c);
    }
    return r;
}

/* Arguments and file of the blocking call, while it still blocks. */
static void describe_call(struct ub_watch *w, struct ub_event *e)
{
    const struct ub_capture *c = e->capture;
    char buf[UB_SYSCALL_ARGS_MAX];
    int arg;

    if (c->state != UB_THREAD_BLOCKED || c->nr < 0 || w->redact)
        return;
    ub_syscall_format(e->pid, c->nr, c->arg, buf, sizeof(buf));
    e->args = strdup(buf);
    arg = ub_syscall_fd_arg(c->nr);
    if (arg < 0)
        return;
    e->fd = (int)c->arg[arg];
    if (ub_fd_describe(e->pid, e->fd, buf, sizeof(buf)) == 0)
        e->fd_path = strdup(buf);
}

/* Some 70 KB that no thread keeps: only a capture's used bytes are worth queueing. */
static struct ub_capture *trimmed(struct ub_capture *c)
{
    size_t used = offsetof(struct ub_capture, bytes);
    struct ub_capture *small;

    for (uint32_t i = 0; i < c->region_count && i < 2; i++) {
        size_t end = offsetof(struct ub_capture, bytes) + c->region[i].offset + c->region[i].len;

        if (end > used)
            used = end;
    }
    if (used > sizeof(*c))
        used = sizeof(*c);
    small = realloc(c, used);
    return small ? small : c;
}

static struct ub_event *new_look(struct ub_watched *t, uint32_t index, enum ub_event_kind kind, uint64_t now)
{
    struct ub_event *e = ub_event_new(kind);

    if (!e)
        return NULL;
    e->capture = malloc(sizeof(*e->capture));
    if (!e->capture) {
        ub_event_free(e);
        return NULL;
    }
    memset(e->capture, 0, offsetof(struct ub_capture, bytes));
    e->slot = index;
    e->pid = t->pid;
    e->tid = t->tid;
    e->process = ub_process_ref(t->process);
    e->start = t->start;
    e->end = now;
    e->baseline = t->baseline;
    return e;
}

int ub_watch_look(struct ub_watch *w, uint32_t index, enum ub_event_kind kind, uint64_t now)
{
    struct ub_watched *t = &w->watched[index];
    struct ub_slot *slot = &w->arena->slot[index];
    struct ub_event *e = new_look(t, index, kind, now);
    struct ub_maps *maps;
    int r;

    if (!e)
        return -ENOMEM;
    maps = ub_process_maps(t->process);
    r = take(w, index, kind == UB_EVENT_SAMPLE, maps, e->capture);
    ub_maps_unref(maps);
    if (r < 0 && e->capture->error == 0)
        e->capture->error = r;
    if (ub_load_acquire(&slot->start) != t->start || (r == -EAGAIN && kind == UB_EVENT_LOOP)) {
        ub_event_free(e); /* over meanwhile: what was taken belongs to something else */
        return -EAGAIN;
    }
    if (kind == UB_EVENT_SAMPLE) {
        ub_watch_account(t, true, &e->account);
        describe_call(w, e);
    }
    e->ready = ub_load_relaxed(&slot->ready);
    e->flags = ub_load_relaxed(&slot->flags);
    e->capture = trimmed(e->capture);
    ub_watch_queue(w, e);
    return 0;
}
