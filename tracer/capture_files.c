/* The /proc files of the threads looked at lately, kept open. */
#include "capture_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

/*
 * 64 threads, at most four descriptors each: as many as one watcher looks at in
 * the same second with room to spare, and far from the usual limit of 1024.
 * An entry is taken out while it is used, so the lock is held for a scan only.
 */
#define CACHE_THREADS 64u

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* protects `cache` and `now`; nests in nothing */
static struct ub_thread_files cache[CACHE_THREADS];
static uint64_t now;

static void close_all(struct ub_thread_files *f)
{
    for (int i = 0; i < UB_THREAD_FILES; i++) {
        if (f->fd[i] >= 0)
            close(f->fd[i]);
        f->fd[i] = -1;
    }
}

void ub_thread_files_take(pid_t pid, pid_t tid, struct ub_thread_files *ret)
{
    *ret = (struct ub_thread_files){.pid = pid, .tid = tid, .fd = {-1, -1, -1, -1}};
    pthread_mutex_lock(&lock);
    for (uint32_t i = 0; i < CACHE_THREADS; i++)
        if (cache[i].tid == tid && cache[i].pid == pid) {
            *ret = cache[i];
            cache[i].tid = 0;
            break;
        }
    pthread_mutex_unlock(&lock);
}

void ub_thread_files_put(struct ub_thread_files *f)
{
    struct ub_thread_files out = {0};
    uint32_t oldest = 0;

    pthread_mutex_lock(&lock);
    for (uint32_t i = 0; i < CACHE_THREADS; i++) {
        if (cache[i].tid == 0) {
            oldest = i;
            break;
        }
        if (cache[i].used < cache[oldest].used)
            oldest = i;
    }
    out = cache[oldest];
    f->used = ++now;
    cache[oldest] = *f;
    pthread_mutex_unlock(&lock);
    if (out.tid)
        close_all(&out);
    f->tid = 0;
}

static int open_file(const struct ub_thread_files *f, enum ub_thread_file which)
{
    static const char *const name[UB_THREAD_FILES] = {"syscall", "schedstat", "status", "stat"};
    char path[64];
    int fd;

    snprintf(path, sizeof(path), "/proc/%d/task/%d/%s", (int)f->pid, (int)f->tid, name[which]);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0)
        return fd;
    return errno == ENOENT ? -ESRCH : errno == EPERM ? -EACCES : -errno;
}

int ub_thread_files_read(struct ub_thread_files *f, enum ub_thread_file which, char *buf, uint32_t size)
{
    bool fresh = false;
    ssize_t n;

    for (;;) {
        if (f->fd[which] < 0) {
            int fd = open_file(f, which);

            if (fd < 0)
                return fd;
            f->fd[which] = fd;
            fresh = true;
        }
        n = pread(f->fd[which], buf, size - 1, 0);
        if (n > 0) {
            buf[n] = '\0';
            return (int)n;
        }
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno != ESRCH)
            return errno == EPERM ? -EACCES : -errno;
        /* That thread is gone, but its number may belong to another one by now. */
        close_all(f);
        if (fresh)
            return -ESRCH;
    }
}
