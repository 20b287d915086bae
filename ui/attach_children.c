#include "attach_children.h"

#include "options.h"
#include "say.h"

#include "../common/clock.h"
#include "../tracer/bpf/bpf.h"
#include "../tracer/maps.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define TRY_NS 200000000u

int ub_family_find(struct ub_family *f, pid_t root, char *why)
{
    f->root = root;
    return ub_trace_targets_add(&f->processes, root, true, why);
}

static void tell(const struct ub_family *f, pid_t pid, const struct ub_inject_result *r)
{
    if (f->verbose)
        ub_say("attach", "process %d, thread %d was kept from its work for %.2f ms in %u pieces", (int)pid, (int)r->tid,
               (double)r->held_all_ns / 1e6, r->holds);
}

/* It was there before the kernel's programs were; what it forks they follow by themselves. */
static void see_from_kernel(struct ub_family *f, pid_t pid)
{
    if (f->bpf && (ub_bpf_add(f->bpf, pid) < 0 || ub_bpf_find(f->bpf) < 0))
        ub_say("attach", "warning: without --bpf for process %d: the kernel does not take it", (int)pid);
}

void ub_family_see_from_kernel(struct ub_family *f, struct ub_bpf *bpf)
{
    f->bpf = bpf;
    for (uint32_t i = 0; i < f->processes.count; i++) {
        if (f->processes.process[i].told && f->processes.process[i].pidfd >= 0)
            see_from_kernel(f, f->processes.process[i].pid);
    }
}

/* -EACCES: something stands in the way that waiting does not mend. */
static int enter(struct ub_family *f, struct ub_trace_target *t, struct ub_inject_options options, uint64_t each_ns,
                 struct ub_inject_result *ret)
{
    enum ub_inject_obstacle obstacle;
    long detail;
    int r;

    obstacle = ub_inject_look(t->pid, &detail);
    if (obstacle != UB_INJECT_POSSIBLE) {
        snprintf(ret->why, sizeof(ret->why), "%s", ub_inject_obstacle_text(obstacle));
        return obstacle == UB_INJECT_ENDED || obstacle == UB_INJECT_STOPPED ? -EAGAIN : -EACCES;
    }
    options.pid = t->pid;
    options.deadline_ns = ub_clock_monotonic_ns() + each_ns;
    r = ub_inject_enter(&options, ret);
    if (r == 0) {
        t->told = true;
        f->entered++;
        see_from_kernel(f, t->pid);
        tell(f, t->pid, ret);
    }
    return r;
}

int ub_family_enter_one(struct ub_family *f, const struct ub_inject_options *options, struct ub_inject_result *ret)
{
    for (;;) {
        uint32_t hopeful = 0;
        int r = -ESRCH;

        for (uint32_t i = 0; i < f->processes.count; i++) {
            if (f->processes.process[i].pidfd < 0)
                continue;
            memset(ret, 0, sizeof(*ret));
            r = enter(f, &f->processes.process[i], *options, TRY_NS, ret);
            if (r == 0 || r == -ECANCELED || r == -EBUSY)
                return r;
            hopeful += r == -ETIME || r == -EAGAIN;
        }
        if (hopeful == 0 || (options->deadline_ns && ub_clock_monotonic_ns() >= options->deadline_ns))
            return r;
        if (ub_trace_targets_left(&f->processes) == 0 ||
            ub_trace_targets_add(&f->processes, f->root, true, ret->why) < 0)
            return -ESRCH;
    }
}

void ub_family_enter_others(struct ub_family *f, struct ub_watch *watch, const struct ub_inject_options *options,
                            uint64_t each_ns)
{
    struct ub_inject_result result;
    char why[UB_WHY_MAX];

    ub_trace_targets_left(&f->processes); /* whose numbers may be others' by now */
    ub_trace_targets_add(&f->processes, f->root, true, why);
    for (uint32_t i = 0; i < f->processes.count; i++) {
        struct ub_trace_target *t = &f->processes.process[i];
        int r;

        if (t->told || t->pidfd < 0)
            continue;
        if (ub_watch_is_target(watch, t->pid) > 0) { /* forked by one that is watched */
            t->told = true;
            f->entered++;
            continue;
        }
        memset(&result, 0, sizeof(result));
        r = enter(f, t, *options, each_ns, &result);
        if (r == -ECANCELED)
            return;
        if (r < 0 && r != -ETIME && r != -EAGAIN && r != -ESRCH) {
            t->told = true; /* told once */
            f->refused++;
            ub_watch_note(watch, "warning", "process %d is not watched: %s", (int)t->pid,
                          r == -EBUSY   ? "somebody else watches it"
                          : *result.why ? result.why
                                        : strerror(-r));
        }
    }
}

static bool has_arena(pid_t pid)
{
    struct ub_maps *maps;
    bool found;

    if (ub_maps_load(pid, NULL, &maps) < 0)
        return false;
    found = maps->has_arena;
    ub_maps_unref(maps);
    return found;
}

uint32_t ub_family_leave(struct ub_family *f, const struct ub_inject_options *options, uint64_t each_ns)
{
    struct ub_inject_options leave = *options;
    struct ub_inject_result result;
    uint32_t left = 0;

    ub_trace_targets_left(&f->processes);
    for (uint32_t i = 0; i < f->processes.count; i++) {
        const struct ub_trace_target *t = &f->processes.process[i];

        if (t->pidfd < 0 || !has_arena(t->pid))
            continue;
        leave.pid = t->pid;
        leave.join_fd = 0;
        leave.deadline_ns = ub_clock_monotonic_ns() + each_ns;
        left += ub_inject_leave(&leave, &result) < 0 && has_arena(t->pid);
    }
    return left;
}
