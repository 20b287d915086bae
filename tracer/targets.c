#include "targets.h"

#include "process.h"

#include <ctype.h>
#include <dirent.h>
#include <poll.h>
#include <stdlib.h>
#include <unistd.h>

#define TARGETS_MAX 256u /* with more, those beyond are taken up when these have ended */
#define NO_PIDFD_MS 1000 /* kernels before 5.3: their ends are looked for so often */

struct ub_targets {
    const struct ub_watch *w;
    uint32_t count;
    struct ub_process *process[TARGETS_MAX];
};

static bool has(const struct ub_targets *t, pid_t pid)
{
    for (uint32_t i = 0; i < t->count; i++) {
        if (t->process[i]->pid == pid)
            return true;
    }
    return false;
}

/* Slots name any pid they like: only a process with our arena is waited for (or one that hides its maps from us). */
static void add(struct ub_targets *t, pid_t pid, bool even_if_hidden)
{
    struct ub_process *p;
    int r;

    if (t->count == TARGETS_MAX || pid <= 0 || has(t, pid))
        return;
    r = ub_watch_is_target(t->w, pid);
    if (r == 0 || (r < 0 && !even_if_hidden) || ub_process_open(pid, &p) < 0)
        return;
    if (ub_process_ended(p))
        ub_process_unref(p);
    else
        t->process[t->count++] = p;
}

static void add_owners(struct ub_targets *t)
{
    pid_t owner[TARGETS_MAX];
    uint32_t count = ub_watch_owners(t->w, owner, TARGETS_MAX);

    for (uint32_t i = 0; i < count; i++)
        add(t, owner[i], true);
}

static void add_by_maps(struct ub_targets *t)
{
    DIR *proc = opendir("/proc");
    const struct dirent *entry;

    while (proc && (entry = readdir(proc))) {
        pid_t pid = isdigit((unsigned char)entry->d_name[0]) ? (pid_t)strtol(entry->d_name, NULL, 10) : 0;

        if (pid != getpid())
            add(t, pid, false);
    }
    if (proc)
        closedir(proc);
}

struct ub_targets *ub_targets_new(const struct ub_watch *w)
{
    struct ub_targets *t = calloc(1, sizeof(*t));

    if (t) {
        t->w = w;
        add(t, ub_watch_starter(w), true);
    }
    return t;
}

void ub_targets_free(struct ub_targets *t)
{
    for (uint32_t i = 0; t && i < t->count; i++)
        ub_process_unref(t->process[i]);
    free(t);
}

/* One that has executed something unwatched lives on, but is no target any more. */
static bool is_over(const struct ub_targets *t, const struct ub_process *p)
{
    return ub_process_ended(p) || ub_watch_is_target(t->w, p->pid) == 0;
}

uint32_t ub_targets_update(struct ub_targets *t)
{
    for (uint32_t i = 0; i < t->count;) {
        if (!is_over(t, t->process[i])) {
            i++;
            continue;
        }
        ub_process_unref(t->process[i]);
        t->process[i] = t->process[--t->count];
    }
    if (t->count == 0)
        add_owners(t);
    if (t->count == 0)
        add_by_maps(t);
    return t->count;
}

bool ub_targets_wait(const struct ub_targets *t, int fd, int timeout_ms)
{
    struct pollfd p[TARGETS_MAX + 1];

    for (uint32_t i = 0; i < t->count; i++) {
        p[i] = (struct pollfd){.fd = t->process[i]->pidfd, .events = POLLIN};
        if (p[i].fd < 0 && (timeout_ms < 0 || timeout_ms > NO_PIDFD_MS))
            timeout_ms = NO_PIDFD_MS;
    }
    p[t->count] = (struct pollfd){.fd = fd, .events = POLLIN};
    return poll(p, t->count + 1, timeout_ms) > 0 && p[t->count].revents;
}
