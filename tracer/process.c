#include "process.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

int ub_process_start_time(pid_t pid, uint64_t *ret_started, pid_t *ret_ppid)
{
    char path[64], text[1024], *p;
    unsigned long long started;
    ssize_t len;
    int ppid, fd;

    snprintf(path, sizeof(path), "/proc/%d/stat", pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -ESRCH;
    len = read(fd, text, sizeof(text) - 1);
    close(fd);
    if (len <= 0)
        return -ESRCH;
    text[len] = '\0';
    p = strrchr(text, ')'); /* the name may hold anything, but the last ')' ends it */
    if (!p || sscanf(p + 1, " %*c %d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu", &ppid,
                     &started) != 2)
        return -ESRCH;
    *ret_started = started;
    *ret_ppid = ppid;
    return 0;
}

int ub_process_open(pid_t pid, struct ub_process **ret)
{
    char path[64], target[PATH_MAX];
    struct ub_process *p = calloc(1, sizeof(*p));
    ssize_t len;
    int r;

    if (!p)
        return -ENOMEM;
    r = ub_process_start_time(pid, &p->started, &p->ppid);
    if (r < 0) {
        free(p);
        return r;
    }
    p->refs = 1;
    p->pid = pid;
    p->pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (p->pidfd >= 0)
        fcntl(p->pidfd, F_SETFD, FD_CLOEXEC);
    snprintf(path, sizeof(path), "/proc/%d/exe", pid);
    len = readlink(path, target, sizeof(target) - 1);
    if (len > 0) {
        target[len] = '\0';
        p->exe = strdup(target);
    }
    pthread_mutex_init(&p->lock, NULL);
    *ret = p;
    return 0;
}

struct ub_process *ub_process_ref(struct ub_process *p)
{
    __atomic_fetch_add(&p->refs, 1, __ATOMIC_RELAXED);
    return p;
}

void ub_process_unref(struct ub_process *p)
{
    if (!p || __atomic_sub_fetch(&p->refs, 1, __ATOMIC_ACQ_REL) > 0)
        return;
    if (p->pidfd >= 0)
        close(p->pidfd);
    ub_maps_unref(p->maps);
    ub_python_free(p->python);
    free(p->static_pool);
    pthread_mutex_destroy(&p->lock);
    free(p->exe);
    free(p);
}

struct ub_maps *ub_process_maps(struct ub_process *p)
{
    struct ub_maps *maps;

    pthread_mutex_lock(&p->lock);
    maps = p->maps ? ub_maps_ref(p->maps) : NULL;
    pthread_mutex_unlock(&p->lock);
    return maps;
}

int ub_process_refresh(struct ub_process *p)
{
    struct ub_maps *old = ub_process_maps(p), *fresh;
    int r = ub_maps_load(p->pid, old, &fresh);

    if (r == 0) {
        struct ub_maps *replaced;

        pthread_mutex_lock(&p->lock);
        replaced = p->maps;
        p->maps = fresh;
        pthread_mutex_unlock(&p->lock);
        ub_maps_unref(replaced);
    }
    ub_maps_unref(old);
    return r;
}

bool ub_process_ended(const struct ub_process *p)
{
    struct pollfd pfd = {.fd = p->pidfd, .events = POLLIN};
    uint64_t started;
    pid_t ppid;

    if (p->pidfd >= 0)
        return poll(&pfd, 1, 0) == 1;
    return ub_process_start_time(p->pid, &started, &ppid) < 0 || started != p->started;
}
