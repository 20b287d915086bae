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
    struct ub_process *root; /* NULL: it has ended, or is the starter */
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
        if (ub_watch_root(w) > 1 && ub_watch_root(w) != ub_watch_starter(w) &&
            ub_process_open(ub_watch_root(w), &t->root) < 0)
            t->root = NULL;
    }
    return t;
}

void ub_targets_free(struct ub_targets *t)
{
    for (uint32_t i = 0; t && i < t->count; i++)
        ub_process_unref(t->process[i]);
    if (t)
        ub_process_unref(t->root);
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
    if (t->root && ub_process_ended(t->root)) {
        ub_process_unref(t->root);
        t->root = NULL;
    }
    if (t->count == 0)
        add_owners(t);
    if (t->count == 0 && !t->root)
        add_by_maps(t);
    return t->count + (t->root != NULL);
}

bool ub_targets_wait(const struct ub_targets *t, int fd, int timeout_ms)
{
    struct pollfd p[TARGETS_MAX + 2];
    uint32_t n = 0;

    p[n++] = (struct pollfd){.fd = fd, .events = POLLIN};
    for (uint32_t i = 0; i < t->count; i++)
        p[n++] = (struct pollfd){.fd = t->process[i]->pidfd, .events = POLLIN};
    if (t->root)
        p[n++] = (struct pollfd){.fd = t->root->pidfd, .events = POLLIN};
    for (uint32_t i = 1; i < n; i++) {
        if (p[i].fd < 0 && (timeout_ms < 0 || timeout_ms > NO_PIDFD_MS))
            timeout_ms = NO_PIDFD_MS;
    }
    return poll(p, n, timeout_ms) > 0 && p[0].revents;
}
