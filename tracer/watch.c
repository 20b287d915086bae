#include "watch_impl.h"

#include "pidns.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* A look is some 20 KB: 40 MB at the most, were it only looks. */
#define UB_QUEUE_MAX 2000u

struct ub_event *ub_event_new(enum ub_event_kind kind)
{
    struct ub_event *e = calloc(1, sizeof(*e));

    if (e) {
        e->kind = kind;
        e->fd = -1;
    }
    return e;
}

void ub_event_free(struct ub_event *e)
{
    if (!e)
        return;
    ub_process_unref(e->process);
    free(e->capture);
    free(e->python);
    free(e->args);
    free(e->fd_link);
    free(e->input.link);
    for (uint32_t i = 0; i < e->waited.reads; i++)
        free(e->waited.read[i].link);
    free(e->calls);
    free(e->call_capture);
    free(e->call_python);
    if (e->stats)
        free(e->stats->kind);
    free(e->stats);
    free(e->bigs);
    free(e->pool);
    ub_reasons_free(e->reasons);
    free(e->text);
    if (e->policy)
        ub_policy_clear(e->policy);
    free(e->policy);
    free(e);
}

/* What can be left out when a sink blocks for long; ends of stalls cannot. */
static bool dispensable(const struct ub_event *e)
{
    return e->kind == UB_EVENT_SAMPLE || e->kind == UB_EVENT_GOING || e->kind == UB_EVENT_STATS ||
           e->kind == UB_EVENT_POOL;
}

void ub_watch_queue(struct ub_watch *w, struct ub_event *e)
{
    bool full;

    if (!e)
        return;
    if (e->kind == UB_EVENT_SAMPLE || e->kind == UB_EVENT_GOING) /* of what came after the ends that are held */
        ub_watch_release(w, e->slot);
    pthread_mutex_lock(&w->queue_lock);
    full = w->queue_length >= UB_QUEUE_MAX && dispensable(e);
    if (full) {
        w->queue_dropped++;
    } else {
        *w->queue_tail = e;
        w->queue_tail = &e->next;
        w->queue_length++;
        pthread_cond_signal(&w->queue_filled);
    }
    pthread_mutex_unlock(&w->queue_lock);
    if (full)
        ub_event_free(e);
}

void ub_watch_note(struct ub_watch *w, const char *level, const char *format, ...)
{
    struct ub_event *e = ub_event_new(UB_EVENT_NOTE);
    va_list ap;

    if (!e)
        return;
    va_start(ap, format);
    if (vasprintf(&e->text, format, ap) < 0)
        e->text = NULL;
    va_end(ap);
    e->level = level;
    ub_watch_queue(w, e);
}

int ub_watch_offload(struct ub_watch *w, uint32_t mode, struct ub_policy_file *policy)
{
    struct ub_event *e = ub_event_new(UB_EVENT_OFFLOAD);

    if (!e)
        return -ENOMEM;
    e->flags = mode;
    e->policy = policy;
    ub_watch_queue(w, e);
    return 0;
}

/*
 * The memory is sealed against shrinking: a target that truncated it would
 * otherwise kill the watcher with SIGBUS.
 */
static int create_arena(struct ub_watch *w)
{
    struct stat st;
    struct ub_arena *arena;
    ino_t inode;
    int fd = memfd_create(UB_ARENA_NAME, MFD_CLOEXEC | MFD_ALLOW_SEALING);

    if (fd < 0)
        return -errno;
    if (fchmod(fd, 0600) < 0 || ftruncate(fd, sizeof(struct ub_arena)) < 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0 || fstat(fd, &st) < 0) {
        int error = -errno;

        close(fd);
        return error;
    }
    inode = st.st_ino;
    arena = mmap(NULL, sizeof(struct ub_arena), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (arena == MAP_FAILED) {
        int error = -errno;

        close(fd);
        return error;
    }
    arena->h.version = UB_ARENA_VERSION;
    arena->h.size = UB_ARENA_LAYOUT;
    arena->h.clock = ub_ticks_clock();
    arena->h.watcher_pid = getpid();
    arena->h.threshold = w->threshold;
    arena->h.offload = w->offload;
    arena->python.yield_ns = w->yield_ns;
    if (w->python_rules) {
        arena->python.rules_size = (uint32_t)strnlen(w->python_rules, UB_PYTHON_RULES);
        memcpy(arena->python.rules, w->python_rules, arena->python.rules_size);
    }
    arena->h.python_wanted = ub_python_table_wants_steps(&arena->python);
    arena->h.offload_least_us = (uint32_t)(w->threshold_ns / 1000 < UINT32_MAX ? w->threshold_ns / 1000 : UINT32_MAX);
    ub_arena_set_floor(&arena->h, w->threshold, ub_ticks_from_span_ns(100000));
    if (stat("/proc/self/ns/pid", &st) == 0)
        arena->h.pid_namespace = st.st_ino;
    ub_store_release(&arena->h.magic, UB_ARENA_MAGIC);
    w->arena = arena;
    w->arena_fd = fd;
    w->arena_inode = inode;
    snprintf(w->address, sizeof(w->address), "%d:%d:%llu", getpid(), fd, (unsigned long long)inode);
    return 0;
}

/* Made by an agent, so it is looked at like anything from a target. */
static int adopt_arena(struct ub_watch *w, int fd)
{
    struct ub_arena *arena;
    struct stat st;

    if (fstat(fd, &st) < 0)
        return -errno;
    if (st.st_size != sizeof(struct ub_arena) || !(fcntl(fd, F_GET_SEALS) & F_SEAL_SHRINK))
        return -EINVAL;
    arena = mmap(NULL, sizeof(struct ub_arena), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (arena == MAP_FAILED)
        return -errno;
    if (!ub_arena_is_known(&arena->h) || arena->h.mode != UB_ARENA_HELPER) {
        munmap(arena, sizeof(*arena));
        return -EPROTO;
    }
    arena->h.watcher_namespace = ub_pidns_of(0);
    arena->h.watcher_pid = getpid();
    w->foreign = arena->h.pid_namespace != ub_pidns_of(0) ? arena->h.pid_namespace : 0;
    w->adopted = true;
    w->arena = arena;
    w->arena_fd = fd;
    w->arena_inode = st.st_ino;
    return 0;
}

/* The clock is settled before anything is measured in it. */
static int prepare_arena(struct ub_watch *w, const struct ub_watch_options *options)
{
    int r = options->adopt ? adopt_arena(w, options->arena_fd) : 0;

    if (r < 0)
        return r;
    if (options->adopt)
        ub_ticks_start_as(w->arena->h.clock);
    else if (options->agentless)
        ub_ticks_start_as(UB_CLOCK_VDSO); /* the kernel's programs tell the time in nanoseconds */
    else
        ub_ticks_start();
    w->threshold = ub_ticks_from_span_ns(w->threshold_ns);
    if (options->adopt) {
        w->arena->h.offload = w->offload;
        ub_arena_set_floor(&w->arena->h, w->threshold, ub_ticks_from_span_ns(100000));
        ub_store_release(&w->arena->h.threshold, w->threshold);
        return 0;
    }
    r = create_arena(w);
    return r == 0 && options->agentless && options->bpf ? ub_bpf_map_slots(options->bpf, w->arena) : r;
}

static void destroy(struct ub_watch *w)
{
    struct ub_event *e, *next;

    for (e = w->queue_head; e; e = next) {
        next = e->next;
        ub_event_free(e);
    }
    for (uint32_t i = 0; i < UB_SLOT_MAX; i++) {
        ub_process_unref(w->watched[i].process);
        if (w->watched[i].schedstat_fd >= 0)
            close(w->watched[i].schedstat_fd);
    }
    ub_outside_free(w->outside);
    if (w->arena)
        munmap(w->arena, sizeof(*w->arena));
    if (w->arena_fd >= 0 && !w->adopted)
        close(w->arena_fd);
    pthread_mutex_destroy(&w->queue_lock);
    pthread_cond_destroy(&w->queue_filled);
    free(w);
}

/* The two threads take no signals: those belong to whoever drives the watcher. */
static int start_threads(struct ub_watch *w)
{
    sigset_t all, saved;
    int r;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &saved);
    r = pthread_create(&w->explainer, NULL, ub_explain_loop, w);
    if (r == 0) {
        r = pthread_create(&w->watcher, NULL, ub_watch_loop, w);
        if (r != 0) {
            ub_watch_queue(w, ub_event_new(UB_EVENT_FINISH));
            pthread_join(w->explainer, NULL);
        }
    }
    pthread_sigmask(SIG_SETMASK, &saved, NULL);
    return -r;
}

int ub_watch_start(const struct ub_watch_options *options, struct ub_watch **ret)
{
    struct ub_watch *w = calloc(1, sizeof(*w));
    int r;

    if (!w)
        return -ENOMEM;
    w->arena_fd = -1;
    w->threshold_ns = options->threshold_ns;
    w->captures_per_s = options->captures_per_s ? options->captures_per_s : 100;
    w->tokens = w->captures_per_s;
    w->redact = options->redact;
    w->offload = options->offload;
    w->yield_ns = options->yield_ns;
    w->python_rules = options->python_rules;
    w->bpf = options->bpf;
    w->agentless = options->agentless;
    w->attached = options->attached;
    w->queue_tail = &w->queue_head;
    pthread_mutex_init(&w->queue_lock, NULL);
    pthread_cond_init(&w->queue_filled, NULL);
    for (uint32_t i = 0; i < UB_SLOT_MAX; i++)
        w->watched[i].schedstat_fd = -1;
    r = prepare_arena(w, options);
    if (r == 0)
        r = ub_explain_new(w, options, &w->explain);
    if (r == 0 && w->agentless && !w->bpf)
        r = ub_outside_start(w->arena, w->threshold_ns, &w->outside);
    if (r == 0)
        r = start_threads(w);
    if (r < 0) {
        ub_outside_stop(w->outside);
        if (w->explain)
            ub_explain_free(w->explain, NULL);
        destroy(w);
        return r;
    }
    *ret = w;
    return 0;
}

int ub_watch_add(struct ub_watch *w, pid_t pid)
{
    return ub_outside_add(w->outside, pid);
}

const char *ub_watch_address(const struct ub_watch *w)
{
    return w->address;
}

void ub_watch_stops(struct ub_watch *w, bool stopping)
{
    if (stopping) {
        ub_store_release(&w->stop_from_ns, ub_clock_monotonic_ns());
        ub_store_release(&w->stop_to_ns, UINT64_MAX);
    } else {
        ub_store_release(&w->stop_to_ns, ub_clock_monotonic_ns());
    }
}

void ub_watch_stop(struct ub_watch *w, bool has_status, int status, struct ub_watch_totals *ret_totals)
{
    struct ub_event *finish;

    ub_outside_stop(w->outside);
    ub_store_release(&w->arena->h.closed, 1);
    ub_store_release(&w->stopping, 1);
    __atomic_fetch_add(&w->arena->h.doorbell, 1, __ATOMIC_RELEASE);
    syscall(SYS_futex, &w->arena->h.doorbell, FUTEX_WAKE, 1, NULL, NULL, 0);
    if (ub_watch_from_kernel(w))
        ub_bpf_wake(w->bpf);
    pthread_join(w->watcher, NULL);
    ub_store_release(&w->arena->h.asleep, 1); /* whose turn begins next comes by, and sees that it is over */

    finish = ub_event_new(UB_EVENT_FINISH);
    if (!finish)
        abort(); /* the explaining thread would never end */
    finish->flags = has_status;
    finish->fd = status;
    ub_watch_queue(w, finish);
    pthread_join(w->explainer, NULL);
    ret_totals->lost = w->lost;
    ret_totals->images = ub_load_relaxed(&w->arena->h.images);
    ub_explain_free(w->explain, ret_totals);
    destroy(w);
}
