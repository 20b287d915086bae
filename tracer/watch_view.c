/*
 * What others may ask a watcher while it watches: who is watched, and what the
 * loops do. Reads the arena only, from any thread.
 */
#include "watch_impl.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

pid_t ub_watch_starter(const struct ub_watch *w)
{
    return w->adopted ? ub_load_relaxed(&w->arena->h.starter_pid) : 0;
}

pid_t ub_watch_root(const struct ub_watch *w)
{
    return w->adopted ? ub_load_relaxed(&w->arena->h.root_pid) : 0;
}

/* Whose slot it is, in our numbers. False: that is not known yet. */
static bool whose(const struct ub_watch *w, uint32_t index, pid_t *pid, pid_t *tid)
{
    const struct ub_slot *slot = &w->arena->slot[index];
    uint64_t met = w->foreign ? ub_load_relaxed(&w->met[index]) : 0;

    *pid = w->foreign ? (pid_t)(met >> 32) : ub_load_relaxed(&slot->pid);
    *tid = w->foreign ? (pid_t)(uint32_t)met : ub_load_relaxed(&slot->tid);
    return *pid > 0;
}

static uint32_t slots_high(const struct ub_watch *w)
{
    uint32_t high = ub_load_acquire(&w->arena->h.slots_high);

    return high < UB_SLOT_MAX ? high : UB_SLOT_MAX;
}

static bool is_among(const pid_t *list, uint32_t count, pid_t pid)
{
    for (uint32_t i = 0; i < count; i++) {
        if (list[i] == pid)
            return true;
    }
    return false;
}

uint32_t ub_watch_owners(const struct ub_watch *w, pid_t *ret, uint32_t max)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < slots_high(w) && count < max; i++) {
        const struct ub_slot *slot = &w->arena->slot[i];
        pid_t pid, tid;

        if (ub_load_acquire(&slot->state) == UB_SLOT_LIVE && whose(w, i, &pid, &tid) && !is_among(ret, count, pid))
            ret[count++] = pid;
    }
    return count;
}

int ub_watch_is_target(const struct ub_watch *w, pid_t pid)
{
    char path[64], inode[32], *line = NULL;
    size_t size = 0;
    int found = 0;
    FILE *f;

    snprintf(path, sizeof(path), "/proc/%d/maps", (int)pid);
    snprintf(inode, sizeof(inode), " %llu ", (unsigned long long)w->arena_inode);
    f = fopen(path, "re");
    if (!f)
        return errno == EACCES || errno == EPERM ? -EACCES : 0;
    errno = 0;
    while (!found && getline(&line, &size, f) > 0)
        found = strstr(line, UB_ARENA_NAME) && strstr(line, inode);
    if (!found && errno == EACCES)
        found = -EACCES; /* the file opens, but is not read */
    free(line);
    fclose(f);
    return found;
}

/* The upper bound of the bucket that the `rank`-th count of the histogram falls into. */
static uint64_t quantile(const struct ub_histogram *h, uint64_t rank)
{
    uint64_t seen = 0;

    for (uint32_t i = 0; i < UB_HISTOGRAM_BUCKETS; i++) {
        seen += ub_load_relaxed(&h->count[i]);
        if (seen > rank)
            return ub_ticks_span_to_ns(ub_histogram_upper(i));
    }
    return 0;
}

static void look_at(const struct ub_watch *w, uint32_t index, struct ub_watch_loop *ret)
{
    const struct ub_slot *slot = &w->arena->slot[index];
    const struct ub_histogram *h = &w->arena->cold[index].turns;
    uint64_t start = ub_load_acquire(&slot->start), now = ub_ticks_now(), turns = ub_load_relaxed(&slot->turns);

    *ret = (struct ub_watch_loop){
        .turns = turns,
        .busy_ns = ub_ticks_span_to_ns(ub_load_relaxed(&slot->busy)),
        .max_ns = ub_ticks_span_to_ns(ub_load_relaxed(&slot->max)),
        .running_ns = start && now > start ? ub_ticks_span_to_ns(now - start) : 0,
        .p50_ns = quantile(h, turns / 2),
        .p99_ns = turns ? quantile(h, (99 * turns + 99) / 100 - 1) : 0,
    };
    whose(w, index, &ret->pid, &ret->tid);
}

uint32_t ub_watch_loops(const struct ub_watch *w, struct ub_watch_loop *ret, uint32_t max)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < slots_high(w) && count < max; i++) {
        const struct ub_slot *slot = &w->arena->slot[i];

        if (ub_load_acquire(&slot->state) == UB_SLOT_LIVE && ub_load_relaxed(&slot->flags) & UB_SLOT_QUALIFIED)
            look_at(w, i, &ret[count++]);
    }
    return count;
}

void ub_watch_lost(const struct ub_watch *w, struct ub_watch_lost *ret)
{
    *ret = (struct ub_watch_lost){ub_load_relaxed(&w->lost), ub_load_relaxed(&w->rate_limited),
                                  ub_load_relaxed(&w->queue_dropped)};
    /* Rings that are still in use have not been added yet. */
    for (uint32_t i = 0; i < slots_high(w); i++) {
        if (ub_load_relaxed(&w->arena->slot[i].state) == UB_SLOT_LIVE)
            ret->ring += ub_load_relaxed(&w->arena->cold[i].ring.lost);
    }
}
