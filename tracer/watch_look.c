/*
 * One look at a thread: what vanishes is taken here, in a few microseconds, and
 * explained later by another thread.
 */
#include "static_pool.h"
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
#define UB_LOOK_SETTLE_NS 20000u
/* The second look at it takes about so long, and is done so much earlier. */
#define UB_LOOK_PEEK_NS 10000u
/* A signal is never sent earlier than this before it is due. */
#define UB_LEAD_MAX_NS 50000u

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
    return ub_schedstat_parse(text, ret);
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

bool ub_watch_still(const struct ub_slot *slot, uint64_t start, uint64_t until)
{
    while ((int64_t)(until - ub_ticks_now()) > 0) {
        if (ub_load_relaxed(&slot->start) != start)
            return false;
    }
    return ub_load_relaxed(&slot->start) == start;
}

/*
 * A signal takes 2 us to arrive on bare metal and 30 or more between two virtual
 * CPUs. It is sent so much earlier than it is due as it took at least of late:
 * it must not come before the turn is overdue, or hardly ever.
 */
static uint64_t lead(const struct ub_watch *w)
{
    uint64_t ns = w->delivery_ns * 3 / 4;

    return ub_ticks_from_span_ns(ns < UB_LEAD_MAX_NS ? ns : UB_LEAD_MAX_NS);
}

static void learn_delivery(struct ub_watch *w, uint64_t sent, uint64_t arrived)
{
    uint64_t ns = ub_ticks_to_ns(arrived) - ub_ticks_to_ns(sent);

    if ((int64_t)(arrived - sent) <= 0)
        return;
    if (ns > 2 * UB_LEAD_MAX_NS) /* it got no CPU: says nothing of signals */
        ns = 2 * UB_LEAD_MAX_NS;
    if (w->delivery_ns == 0 || ns < w->delivery_ns)
        w->delivery_ns = ns;
    else
        w->delivery_ns += (ns - w->delivery_ns) / 64;
}

/*
 * The thread runs: sample it at `due`, or when it was seen running for a while,
 * whichever is later; everything that takes time is done before.
 */
static int take_running(struct ub_watch *w, uint32_t index, const struct ub_maps *maps, uint64_t due,
                        struct ub_capture *c)
{
    struct ub_watched *t = &w->watched[index];
    const struct ub_slot *slot = &w->arena->slot[index];
    struct ub_sample *sample = &w->arena->cold[index].sample;
    uint64_t settled = ub_ticks_now() + ub_ticks_from_span_ns(UB_LOOK_SETTLE_NS);
    uint64_t send = due - lead(w), peek = send - ub_ticks_from_span_ns(UB_LOOK_PEEK_NS), asked;
    bool sampler = ub_load_relaxed(&slot->flags) & UB_SLOT_SAMPLER;
    int r = sampler ? ub_capture_signal_ready(t->pid, t->tid, sample) : -ENOTSUP;

    if (ub_watch_from_kernel(w) && !t->sampled)
        t->sampled = ub_bpf_sample(w->bpf, index, t->tid) == 0;
    if (t->sampled)
        return -EBUSY;
    if (r < 0 && r != -ENOTSUP)
        return r;
    if (!ub_watch_still(slot, t->start, (int64_t)(settled - peek) > 0 ? settled : peek))
        return -EAGAIN;
    if (r == -ENOTSUP)
        return ub_watch_still(slot, t->start, due) ? ub_capture_perf(t->pid, t->tid, maps, c) : -EAGAIN;
    ub_capture_signal_ask(sample);
    asked = ub_ticks_now() + ub_ticks_from_span_ns(UB_CAPTURE_ASK_NS);
    r = ub_capture_peek(t->pid, t->tid, c);
    if (r < 0 || c->state != UB_THREAD_RUNNING)
        return r < 0 ? r : -EAGAIN;
    if (!ub_watch_still(slot, t->start, (int64_t)(asked - send) > 0 ? asked : send)) {
        ub_capture_signal_withdraw(sample);
        return -EAGAIN;
    }
    send = ub_ticks_now();
    r = ub_capture_signal_send(t->pid, t->tid, sample, t->start, ub_ticks_to_ns, c);
    if (r < 0)
        return r;
    learn_delivery(w, send, ub_load_relaxed(&sample->at));
    return ub_watch_still(slot, t->start, due) ? 0 : -EAGAIN; /* it came a little early, and the turn ended in time */
}

/*
 * Running and blocked change places at any moment, so: look, take the stack in
 * the way that fits, and when that no longer fits look again.
 */
static int take(struct ub_watch *w, uint32_t index, const struct ub_maps *maps, uint64_t due, struct ub_capture *c)
{
    struct ub_watched *t = &w->watched[index];
    int r = -EAGAIN;

    for (int tries = 0; tries < 4 && r == -EAGAIN; tries++) {
        r = ub_capture_peek(t->pid, t->tid, c);
        if (r < 0)
            return r;
        if (c->state == UB_THREAD_DEAD)
            return -ESRCH;
        if (c->state == UB_THREAD_RUNNING) {
            r = take_running(w, index, maps, due, c);
            continue;
        }
        ub_capture_signal_withdraw(&w->arena->cold[index].sample);
        if (!ub_watch_still(&w->arena->slot[index], t->start, due))
            return -EAGAIN;
        r = ub_capture_blocked(t->pid, t->tid, maps, c);
    }
    return r;
}

/* The stack of a loop in its wait, if it is there just now: nothing is done to a loop that runs. */
static int take_waiting(struct ub_watched *t, const struct ub_maps *maps, struct ub_capture *c)
{
    int r = ub_capture_peek(t->pid, t->tid, c);

    if (r < 0 || c->state != UB_THREAD_BLOCKED)
        return r < 0 ? r : -EAGAIN;
    return ub_capture_blocked(t->pid, t->tid, maps, c);
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
    e->fd_link = ub_fd_link(e->pid, e->fd);
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

static struct ub_event *new_look(struct ub_watch *w, uint32_t index, enum ub_event_kind kind, uint64_t now)
{
    struct ub_watched *t = &w->watched[index];
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
    ub_watch_callback(w, index, t->start, e);
    ub_watch_library(w, index, e);
    return e;
}

bool ub_watch_loop_over(pid_t pid, const struct ub_slot *slot)
{
    char path[64], target[64] = "";

    if (!(ub_load_relaxed(&slot->flags) & UB_SLOT_EPOLL))
        return false;
    snprintf(path, sizeof(path), "/proc/%d/fd/%d", pid, ub_load_relaxed(&slot->epfd));
    if (readlink(path, target, sizeof(target) - 1) < 0)
        return errno == ENOENT;
    return strstr(target, "eventpoll") == NULL;
}

/* Frames that were read when the turn had ended are those of another one. */
static void add_python(struct ub_watch *w, uint32_t index, struct ub_event *e, bool late)
{
    const struct ub_slot *slot = &w->arena->slot[index];

    if (ub_load_acquire(&slot->start) != e->start)
        return;
    e->python = ub_watch_python(w, &w->watched[index], e->capture, late);
    if (ub_load_acquire(&slot->start) != e->start) {
        free(e->python);
        e->python = NULL;
    }
    if (!e->python || late || e->kind != UB_EVENT_SAMPLE)
        return;
    ub_watch_python_more(w, &w->watched[index], e->python);
    if (ub_load_acquire(&slot->start) != e->start) { /* the frames were the turn's, the rest may be of another */
        memset(&e->python->request, 0, sizeof(e->python->request));
        memset(&e->python->waiting, 0, sizeof(e->python->waiting));
        memset(&e->python->pool, 0, sizeof(e->python->pool));
    }
}

/* What was read when the turn had ended, the memory of its call, its descriptors, a pool, may be another one's. */
static void forget_late(struct ub_event *e)
{
    free(e->args);
    free(e->fd_link);
    e->args = e->fd_link = NULL;
    e->input.input.at = 0;
    e->pool_now = (struct ub_uv_pool_now){0};
}

/* What the agent itself cannot know: the thread's accounts, and what its call works on. */
static void complete(struct ub_watch *w, uint32_t index, struct ub_event *e)
{
    const struct ub_slot *slot = &w->arena->slot[index];

    add_python(w, index, e, false);
    if (e->kind == UB_EVENT_SAMPLE) {
        ub_watch_account(&w->watched[index], true, &e->account);
        e->loop_over = ub_watch_loop_over(e->pid, slot);
        describe_call(w, e);
        if (e->callback.kind == UB_CALLBACK_TURN)
            ub_watch_input(w, index, e->start, e->end, &e->input);
        if (!ub_watch_pool_state(w, e->pid, &e->pool_now))
            ub_static_pool_read(e->process, &e->pool_now);
        if (ub_load_acquire(&slot->start) != e->start)
            forget_late(e);
    }
    e->ready = ub_load_relaxed(&slot->ready);
    e->flags = ub_load_relaxed(&slot->flags);
    e->capture = trimmed(e->capture);
}

/* What was seen is a moment of a turn of short segments: nobody's in particular. */
static void make_whole(const struct ub_watched *t, struct ub_event *e)
{
    e->whole = true;
    e->start = t->turn;
    e->baseline = t->turn_baseline;
    e->callback = (struct ub_callback){.fd = -1};
    e->code = NULL;
    e->input.input.at = 0; /* nor is what was read */
}

int ub_watch_look(struct ub_watch *w, uint32_t index, enum ub_event_kind kind, uint64_t due, bool whole)
{
    struct ub_watched *t = &w->watched[index];
    struct ub_slot *slot = &w->arena->slot[index];
    struct ub_event *e = new_look(w, index, kind, due);
    struct ub_maps *maps;
    int r;

    if (!e)
        return -ENOMEM;
    maps = ub_process_maps(t->process);
    r = kind == UB_EVENT_LOOP ? take_waiting(t, maps, e->capture) : take(w, index, maps, due, e->capture);
    ub_maps_unref(maps);
    if (r == -ESRCH || e->capture->state == UB_THREAD_DEAD) {
        ub_event_free(e);
        return -ESRCH;
    }
    if (r == -EBUSY) { /* the kernel takes its samples */
        ub_event_free(e);
        return r;
    }
    if (kind == UB_EVENT_SAMPLE && w->outside && !ub_outside_same_sleep(w->outside, index, e->capture)) {
        ub_event_free(e);
        return -EAGAIN;
    }
    if (r < 0 && e->capture->error == 0)
        e->capture->error = r;
    if (ub_load_acquire(&slot->start) != t->start || ub_load_acquire(&slot->state) != UB_SLOT_LIVE ||
        (int64_t)(ub_ticks_now() - due) < 0 || (r < 0 && kind == UB_EVENT_LOOP)) {
        ub_event_free(e); /* over meanwhile, or another image: what was taken belongs to something else */
        return -EAGAIN;
    }
    e->end = ub_ticks_now();
    complete(w, index, e);
    if (kind == UB_EVENT_LOOP && !e->python && ub_watch_is_python(w, t)) {
        ub_event_free(e); /* its frames say whether this is a loop: the next wait will do */
        return -EAGAIN;
    }
    if (whole)
        make_whole(t, e);
    ub_watch_queue(w, e);
    return 0;
}

void ub_watch_collect(struct ub_watch *w, uint32_t index, uint64_t start, uint64_t end)
{
    struct ub_sample *sample = &w->arena->cold[index].sample;
    uint32_t request = ub_load_relaxed(&sample->request);
    struct ub_event *e;
    uint64_t at;

    if (request == 0 || ub_sample_open(request, ub_load_acquire(&sample->done)))
        return;
    at = ub_load_relaxed(&sample->at);
    e = new_look(w, index, UB_EVENT_SAMPLE, at);
    if (!e)
        return;
    if (ub_capture_signal_collect(sample, ub_ticks_to_ns, e->capture) < 0 || at < start || at > end) {
        ub_event_free(e);
        return;
    }
    e->start = start;
    e->ready = ub_load_relaxed(&w->arena->slot[index].ready);
    e->flags = ub_load_relaxed(&w->arena->slot[index].flags);
    e->capture->proc_state = 'R';
    add_python(w, index, e, true);
    e->capture = trimmed(e->capture);
    ub_watch_queue(w, e);
}
