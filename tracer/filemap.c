#include "filemap.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>

/*
 * Mapped ranges, newest first. Never freed, so that the signal handler may
 * walk the list while another thread pushes; `size` 0 marks one to be reused.
 */
struct range {
    const uint8_t *bytes;
    uint64_t size;
    struct range *next;
};

static pthread_mutex_t ranges_lock = PTHREAD_MUTEX_INITIALIZER; /* writers of `ranges`; a leaf lock */
static struct range *ranges;
static struct sigaction previous_sigbus;

static bool range_holds(uintptr_t address)
{
    for (const struct range *r = ub_load_acquire(&ranges); r; r = r->next) {
        uint64_t size = ub_load_acquire(&r->size);

        if (address - (uintptr_t)ub_load_relaxed(&r->bytes) < size)
            return true;
    }
    return false;
}

/* Signal-safe: reads the list, one mmap system call. */
static void on_sigbus(int signal, siginfo_t *info, void *context)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t address = (uintptr_t)info->si_addr;
    int saved_errno = errno;

    if (range_holds(address)) {
        void *hole = (void *)(address & ~(page - 1));

        if (mmap(hole, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED) {
            errno = saved_errno;
            return;
        }
    }
    errno = saved_errno;
    if (previous_sigbus.sa_flags & SA_SIGINFO) {
        previous_sigbus.sa_sigaction(signal, info, context);
        return;
    }
    /* Back to what it was; the faulting instruction runs again and meets it. */
    sigaction(SIGBUS, &previous_sigbus, NULL);
}

static void install_sigbus(void)
{
    struct sigaction action = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART};

    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, &previous_sigbus);
}

static int range_add(const uint8_t *bytes, uint64_t size)
{
    struct range *r;

    pthread_mutex_lock(&ranges_lock);
    for (r = ranges; r && r->size; r = r->next)
        ;
    if (!r) {
        r = calloc(1, sizeof(*r));
        if (!r) {
            pthread_mutex_unlock(&ranges_lock);
            return -ENOMEM;
        }
        r->next = ranges;
        ub_store_release(&ranges, r);
    }
    ub_store_relaxed(&r->bytes, bytes);
    ub_store_release(&r->size, size);
    pthread_mutex_unlock(&ranges_lock);
    return 0;
}

static void range_remove(const uint8_t *bytes)
{
    pthread_mutex_lock(&ranges_lock);
    for (struct range *r = ranges; r; r = r->next) {
        if (r->size && r->bytes == bytes)
            ub_store_release(&r->size, 0);
    }
    pthread_mutex_unlock(&ranges_lock);
}

/* openat2 keeps absolute symbolic links of a container inside it; kernels before 5.6 and some seccomp filters lack it.
 */
static int open_in_root(pid_t pid, const char *path)
{
    struct open_how how = {.flags = O_PATH | O_CLOEXEC, .resolve = RESOLVE_IN_ROOT};
    UB_CLEANUP(ub_filemap_close) int root = -1;
    char name[40];
    long fd;

    snprintf(name, sizeof(name), "/proc/%d/root", (int)pid);
    root = open(name, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (root < 0)
        return -errno;
    fd = syscall(SYS_openat2, root, path, &how, sizeof(how));
    if (fd < 0 && (errno == ENOSYS || errno == EPERM)) {
        while (*path == '/')
            path++;
        fd = openat(root, path, O_PATH | O_CLOEXEC);
    }
    return fd < 0 ? -errno : (int)fd;
}

int ub_filemap_find(pid_t pid, const char *path, int *ret_fd, struct stat *ret_stat)
{
    UB_CLEANUP(ub_filemap_close) int fd = -1;
    struct stat st;

    if (pid > 0) {
        fd = open_in_root(pid, path);
        if (fd < 0)
            return fd;
    } else {
        fd = open(path, O_PATH | O_CLOEXEC);
        if (fd < 0)
            return -errno;
    }
    if (fstat(fd, &st) < 0)
        return -errno;
    if (!S_ISREG(st.st_mode))
        return -EINVAL;
    *ret_stat = st;
    *ret_fd = ub_filemap_keep(&fd);
    return 0;
}

int ub_filemap_open(int path_fd)
{
    char name[40];
    int fd;

    snprintf(name, sizeof(name), "/proc/self/fd/%d", path_fd);
    fd = open(name, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

int ub_filemap_map(int fd, const uint8_t **ret_bytes, uint64_t *ret_size)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    UB_CLEANUP(ub_filemap_close) int readable = ub_filemap_open(fd);
    struct stat st;
    void *bytes;
    int r;

    if (readable < 0)
        return readable;
    if (fstat(readable, &st) < 0)
        return -errno;
    if (st.st_size <= 0)
        return -ENODATA;
    bytes = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE | MAP_NORESERVE, readable, 0);
    if (bytes == MAP_FAILED)
        return -errno;
    pthread_once(&once, install_sigbus);
    r = range_add(bytes, (uint64_t)st.st_size);
    if (r < 0) {
        munmap(bytes, (size_t)st.st_size);
        return r;
    }
    *ret_bytes = bytes;
    *ret_size = (uint64_t)st.st_size;
    return 0;
}

int ub_filemap_make_writable(const uint8_t *bytes, uint64_t size)
{
    return mprotect((void *)bytes, size, PROT_READ | PROT_WRITE) < 0 ? -errno : 0;
}

void ub_filemap_unmap(const uint8_t *bytes, uint64_t size)
{
    if (!bytes)
        return;
    range_remove(bytes);
    munmap((void *)bytes, size);
}
