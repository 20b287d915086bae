#include "trace_targets.h"

#include "options.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define CGROUPS       "/sys/fs/cgroup"
#define CGROUP_LEVELS 16

static struct ub_trace_target *find(const struct ub_trace_targets *t, pid_t pid)
{
    for (uint32_t i = 0; i < t->count; i++) {
        if (t->process[i].pid == pid)
            return &t->process[i];
    }
    return NULL;
}

/* A number that a new process has taken over is told anew. */
static int add_one(struct ub_trace_targets *t, pid_t pid)
{
    struct ub_trace_target *entry = find(t, pid);
    int fd;

    if (entry && entry->pidfd >= 0)
        return 0;
    fd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (fd < 0)
        return errno == ESRCH ? 0 : -errno;
    if (!entry) {
        if (t->count == t->size) {
            uint32_t size = t->size ? 2 * t->size : 16;
            struct ub_trace_target *more = realloc(t->process, size * sizeof(*more));

            if (!more) {
                close(fd);
                return -ENOMEM;
            }
            t->process = more;
            t->size = size;
        }
        entry = &t->process[t->count++];
    }
    *entry = (struct ub_trace_target){.pid = pid, .pidfd = fd};
    t->fresh = true;
    return 0;
}

static int failed(int error, char *why)
{
    if (error < 0)
        snprintf(why, UB_WHY_MAX, "cannot watch over the processes: %s", strerror(-error));
    return error;
}

static pid_t parent_of(pid_t pid)
{
    char path[40], text[512], *p;
    int parent = 0;
    FILE *f;

    snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    f = fopen(path, "re");
    if (!f)
        return 0;
    p = fgets(text, sizeof(text), f) ? strrchr(text, ')') : NULL;
    if (p && sscanf(p + 1, " %*c %d", &parent) != 1)
        parent = 0;
    fclose(f);
    return parent;
}

/* One pass over /proc finds the children of all that are known; repeated until a pass finds none. */
static int add_descendants(struct ub_trace_targets *t)
{
    uint32_t before;
    int r = 0;

    do {
        DIR *proc = opendir("/proc");
        struct dirent *d;

        before = t->count;
        while (proc && r == 0 && (d = readdir(proc))) {
            pid_t pid = (pid_t)strtol(d->d_name, NULL, 10);

            if (pid > 0 && !find(t, pid) && find(t, parent_of(pid)))
                r = add_one(t, pid);
        }
        if (proc)
            closedir(proc);
    } while (r == 0 && t->count > before);
    return r;
}

int ub_trace_targets_add(struct ub_trace_targets *t, pid_t pid, bool children, char *why)
{
    int r = add_one(t, pid);

    if (r == 0 && children)
        r = add_descendants(t);
    return failed(r, why);
}

static int add_cgroup(struct ub_trace_targets *t, const char *folder, int level)
{
    char path[PATH_MAX];
    struct dirent *d;
    int pid, r = 0;
    DIR *dir;
    FILE *f;

    snprintf(path, sizeof(path), "%s/cgroup.procs", folder);
    f = fopen(path, "re");
    if (!f)
        return -errno;
    while (r == 0 && fscanf(f, "%d", &pid) == 1) {
        if (pid > 0 && pid != getpid())
            r = add_one(t, pid);
    }
    fclose(f);
    dir = level < CGROUP_LEVELS ? opendir(folder) : NULL;
    while (dir && r == 0 && (d = readdir(dir))) {
        if (d->d_type != DT_DIR || d->d_name[0] == '.')
            continue;
        if (snprintf(path, sizeof(path), "%s/%s", folder, d->d_name) < (int)sizeof(path))
            (void)add_cgroup(t, path, level + 1); /* one that is just being removed is no trouble */
    }
    if (dir)
        closedir(dir);
    return r;
}

int ub_trace_targets_cgroup(struct ub_trace_targets *t, const char *path, char *why)
{
    char folder[PATH_MAX];
    int r;

    snprintf(folder, sizeof(folder), "%s%s",
             *path == '/' && strncmp(path, CGROUPS, strlen(CGROUPS)) == 0 ? "" : CGROUPS "/", path);
    r = add_cgroup(t, folder, 0);
    if (r == -ENOENT || r == -ENOTDIR)
        snprintf(why, UB_WHY_MAX, "there is no control group %.256s: see systemd-cgls, or " CGROUPS, folder);
    else if (r < 0)
        snprintf(why, UB_WHY_MAX, "the control group %.256s cannot be read: %s", folder, strerror(-r));
    return r;
}

uint32_t ub_trace_targets_left(struct ub_trace_targets *t)
{
    uint32_t left = 0;

    for (uint32_t i = 0; i < t->count; i++) {
        struct pollfd p = {.fd = t->process[i].pidfd, .events = POLLIN};

        if (p.fd >= 0 && poll(&p, 1, 0) > 0) {
            close(p.fd);
            t->process[i].pidfd = -1;
            t->process[i].told = false;
        }
        left += t->process[i].pidfd >= 0;
    }
    return left;
}

bool ub_trace_targets_wait(const struct ub_trace_targets *t, int fd, int timeout_ms)
{
    struct pollfd *p = calloc(t->count + 1, sizeof(*p));
    bool readable;

    if (!p)
        return true;
    p[0] = (struct pollfd){.fd = fd, .events = POLLIN};
    for (uint32_t i = 0; i < t->count; i++)
        p[i + 1] = (struct pollfd){.fd = t->process[i].pidfd, .events = POLLIN};
    poll(p, t->count + 1, timeout_ms);
    readable = p[0].revents & POLLIN;
    free(p);
    return readable;
}

void ub_trace_targets_clear(struct ub_trace_targets *t)
{
    for (uint32_t i = 0; i < t->count; i++) {
        if (t->process[i].pidfd >= 0)
            close(t->process[i].pidfd);
    }
    free(t->process);
    *t = (struct ub_trace_targets){0};
}
