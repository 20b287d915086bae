/* Opening the ELF files of watched processes, and the cache of those already open. */
#include "elffile_impl.h"
#include "filemap.h"

#include "../common/attach.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>

#define BUCKETS       512u
#define FAILURES_MAX  4096u /* remembered ones; past that they are simply tried again */
#define VDSO_SIZE_MAX (1u << 20)
#define ATTACHED      "/memfd:" UB_ATTACH_LIBRARY

/*
 * A file that was looked at: open (`elf`), or not an ELF file of ours (`error`).
 * While `elf` is mapped its inode cannot be freed, so device and inode alone
 * identify it; size and mtime tell whether it was rewritten in place.
 */
struct entry {
    struct entry *next;
    dev_t dev; /* as the mapping says: on btrfs and overlayfs stat() may name another device */
    ino_t ino;
    int64_t size; /* -1 for a failure: the file was never seen */
    struct timespec mtime;
    pid_t pid; /* failures are those of one process (its root, its permissions); else 0 */
    struct ub_elf *elf;
    int error;
};

static pthread_mutex_t cache_lock = PTHREAD_MUTEX_INITIALIZER; /* everything below; taken before filemap.c's */
static struct entry *cache[BUCKETS];
static uint32_t failure_count;
static struct vdso {
    struct vdso *next;
    struct ub_elf *elf;
} * vdsos;

static struct entry **bucket_of(dev_t dev, ino_t ino)
{
    return &cache[(uint64_t)(ino * 0x9e3779b97f4a7c15ull + dev) >> 32 & (BUCKETS - 1)];
}

static struct entry *find_entry(dev_t dev, ino_t ino, const struct stat *st)
{
    for (struct entry *e = *bucket_of(dev, ino); e; e = e->next) {
        if (e->dev == dev && e->ino == ino && e->size == st->st_size && e->mtime.tv_sec == st->st_mtim.tv_sec &&
            e->mtime.tv_nsec == st->st_mtim.tv_nsec)
            return e;
    }
    return NULL;
}

/* The newest open file of this inode, whatever its size and mtime: for when it cannot be reached any more. */
static struct entry *find_open(dev_t dev, ino_t ino)
{
    for (struct entry *e = *bucket_of(dev, ino); e; e = e->next) {
        if (e->dev == dev && e->ino == ino && e->elf)
            return e;
    }
    return NULL;
}

static struct entry *find_failure(pid_t pid, dev_t dev, ino_t ino)
{
    for (struct entry *e = *bucket_of(dev, ino); e; e = e->next) {
        if (e->dev == dev && e->ino == ino && e->size == -1 && e->pid == pid)
            return e;
    }
    return NULL;
}

static int add_entry(const struct entry *entry)
{
    struct entry **head = bucket_of(entry->dev, entry->ino);
    struct entry *e = malloc(sizeof(*e));

    if (!e)
        return -ENOMEM;
    *e = *entry;
    e->next = *head;
    *head = e;
    return 0;
}

static void free_elf(struct ub_elf *elf)
{
    free(elf->path);
    free(elf);
}

static struct ub_elf *new_elf(const char *path)
{
    struct ub_elf *elf = calloc(1, sizeof(*elf));
    char *slash;

    if (!elf)
        return NULL;
    elf->path = strdup(path);
    if (!elf->path) {
        free(elf);
        return NULL;
    }
    slash = strrchr(elf->path, '/');
    elf->basename = slash ? slash + 1 : elf->path;
    return elf;
}

/* Maps and parses the file behind `fd`. */
static int load_elf(int fd, const char *path, struct ub_elf **ret)
{
    struct ub_elf *elf = new_elf(path);
    int r;

    if (!elf)
        return -ENOMEM;
    r = ub_filemap_map(fd, &elf->bytes, &elf->size);
    if (r == 0)
        r = ub_elf_parse(elf);
    if (r < 0) {
        ub_filemap_unmap(elf->bytes, elf->size);
        free_elf(elf);
        return r == -ENODATA ? -ENOEXEC : r;
    }
    *ret = elf;
    return 0;
}

/* The cached file, or the newly loaded one. `fd` is the right file, `st` its stat; dev and ino are those of the key. */
static int open_verified(int fd, const struct stat *st, const char *path, dev_t dev, ino_t ino, struct ub_elf **ret)
{
    const struct entry *known = find_entry(dev, ino, st);
    struct entry fresh = {.dev = dev, .ino = ino, .size = st->st_size, .mtime = st->st_mtim};
    int r;

    if (known) {
        *ret = known->elf;
        return known->error;
    }
    r = load_elf(fd, path, &fresh.elf);
    if (r < 0 && r != -ENOEXEC)
        return r;
    fresh.error = r;
    r = add_entry(&fresh);
    if (r < 0) {
        if (fresh.elf) {
            ub_filemap_unmap(fresh.elf->bytes, fresh.elf->size);
            free_elf(fresh.elf);
        }
        return r;
    }
    *ret = fresh.elf;
    return fresh.error;
}

/*
 * One place where the file may be. The inode decides: while it is mapped it
 * cannot be reused. (The device is not compared, see struct entry.)
 */
static int try_path(pid_t root, const char *try, const char *path, dev_t dev, ino_t ino, struct ub_elf **ret)
{
    UB_CLEANUP(ub_filemap_close) int fd = -1;
    struct stat st;
    int r = ub_filemap_find(root, try, &fd, &st);

    if (r < 0)
        return r;
    if (st.st_ino != ino)
        return -ENOENT;
    return open_verified(fd, &st, path, dev, ino, ret);
}

/* -ENOENT and friends: look elsewhere. Anything else is an answer. */
static bool is_elsewhere(int r)
{
    return r == -ENOENT || r == -ENOTDIR || r == -EACCES || r == -EPERM || r == -EINVAL || r == -ELOOP ||
           r == -ENAMETOOLONG || r == -ESRCH || r == -ENXIO;
}

static int read_memory(pid_t pid, uint64_t start, uint8_t *bytes, size_t size)
{
    struct iovec local = {bytes, size}, remote = {(void *)(uintptr_t)start, size};
    UB_CLEANUP(ub_filemap_close) int mem = -1;
    char name[40];

    if (process_vm_readv(pid, &local, 1, &remote, 1, 0) == (ssize_t)size)
        return 0;
    /* Denied by a seccomp filter, perhaps: /proc/PID/mem is plain reading. */
    snprintf(name, sizeof(name), "/proc/%d/mem", (int)pid);
    mem = open(name, O_RDONLY | O_CLOEXEC);
    if (mem < 0)
        return -errno;
    if (pread(mem, bytes, size, (off_t)start) != (ssize_t)size)
        return -EIO;
    return 0;
}

static char *stand_in;

void ub_elf_stand_in(const char *path)
{
    stand_in = strdup(path);
}

/*
 * The agent in a process that it was brought into lies in a memory file, which
 * nobody but root can open. The file it was made from will do, if its first
 * bytes, the build-id among them, are what the process has in memory.
 */
static int try_stand_in(pid_t pid, uint64_t map_start, const char *name, dev_t dev, ino_t ino, struct ub_elf **ret)
{
    UB_CLEANUP(ub_filemap_close) int fd = -1;
    uint8_t here[1024], there[1024];
    struct stat st;
    int r = stand_in ? ub_filemap_find(0, stand_in, &fd, &st) : -ENOENT;

    if (r < 0)
        return r;
    if (pread(fd, here, sizeof(here), 0) != (ssize_t)sizeof(here) ||
        read_memory(pid, map_start, there, sizeof(there)) < 0 || memcmp(here, there, sizeof(here)) != 0)
        return -ENOENT;
    return open_verified(fd, &st, name, dev, ino, ret);
}

static int search(pid_t pid, const char *path, const char *name, uint64_t map_start, uint64_t map_end, dev_t dev,
                  ino_t ino, struct ub_elf **ret)
{
    const struct entry *open;
    char link[80];
    int r, first;

    /* Before the memory file itself, which has no symbols (inject.c). */
    if (strncmp(path, ATTACHED, strlen(ATTACHED)) == 0 && try_stand_in(pid, map_start, name, dev, ino, ret) == 0)
        return 0;
    first = try_path(pid, path, path, dev, ino, ret);
    if (!is_elsewhere(first))
        return first;
    /* A chroot within our mount namespace: the kernel names files as we see them. */
    r = try_path(0, path, path, dev, ino, ret);
    if (!is_elsewhere(r))
        return r;
    open = find_open(dev, ino);
    if (open) {
        *ret = open->elf;
        return 0;
    }
    /* Deleted or replaced. map_files wants CAP_CHECKPOINT_RESTORE, exe only what maps itself wants. */
    snprintf(link, sizeof(link), "/proc/%d/map_files/%lx-%lx", (int)pid, (unsigned long)map_start,
             (unsigned long)map_end);
    r = try_path(0, link, name, dev, ino, ret);
    if (!is_elsewhere(r))
        return r;
    snprintf(link, sizeof(link), "/proc/%d/exe", (int)pid);
    r = try_path(0, link, name, dev, ino, ret);
    return is_elsewhere(r) ? first : r;
}

/* Lack of descriptors or memory passes; everything else will be the same next time. */
static bool is_lasting(int r)
{
    return r != -EMFILE && r != -ENFILE && r != -ENOMEM && r != -EINTR && r != -EAGAIN && r != -ESRCH;
}

/* "x (deleted)" is how the kernel names an unlinked x. (A file may also be called that: then it was found at once.) */
static char *name_before_deletion(const char *path)
{
    static const char suffix[] = " (deleted)";
    size_t len = strlen(path), cut = sizeof(suffix) - 1;

    if (len > cut && strcmp(path + len - cut, suffix) == 0)
        len -= cut;
    if (len == strlen(ATTACHED) && strncmp(path, ATTACHED, len) == 0)
        return strdup(UB_ATTACH_LIBRARY);
    return strndup(path, len);
}

int ub_elf_open(pid_t pid, const char *path, uint64_t map_start, uint64_t map_end, dev_t dev, ino_t ino,
                struct ub_elf **ret_elf)
{
    char *name = name_before_deletion(path);
    const struct entry *failure;
    struct ub_elf *elf = NULL;
    int r;

    if (!name)
        return -ENOMEM;
    pthread_mutex_lock(&cache_lock);
    failure = find_failure(pid, dev, ino);
    if (failure) {
        r = failure->error;
    } else {
        r = search(pid, path, name, map_start, map_end, dev, ino, &elf);
        if (r < 0 && r != -ENOEXEC && is_lasting(r) && failure_count < FAILURES_MAX) {
            struct entry e = {.dev = dev, .ino = ino, .size = -1, .pid = pid, .error = r};

            if (add_entry(&e) == 0)
                failure_count++;
        }
    }
    pthread_mutex_unlock(&cache_lock);
    free(name);
    if (r < 0)
        return is_elsewhere(r) ? -ENOENT : r;
    *ret_elf = elf;
    return 0;
}

int ub_elf_open_file(const char *path, struct ub_elf **ret_elf)
{
    UB_CLEANUP(ub_filemap_close) int fd = -1;
    struct ub_elf *elf = NULL;
    struct stat st;
    int r = ub_filemap_find(0, path, &fd, &st);

    if (r < 0)
        return r;
    pthread_mutex_lock(&cache_lock);
    r = open_verified(fd, &st, path, st.st_dev, st.st_ino, &elf);
    pthread_mutex_unlock(&cache_lock);
    if (r < 0)
        return r;
    *ret_elf = elf;
    return 0;
}

/* ---- vdso ---- */

/* Takes over `bytes` when it succeeds with a new one. */
static int adopt_vdso(uint8_t *bytes, size_t size, struct ub_elf **ret)
{
    struct vdso *v;
    int r;

    for (v = vdsos; v; v = v->next) {
        if (v->elf->size == size && memcmp(v->elf->bytes, bytes, size) == 0) {
            free(bytes);
            *ret = v->elf;
            return 0;
        }
    }
    v = malloc(sizeof(*v));
    if (!v)
        return -ENOMEM;
    v->elf = new_elf("[vdso]");
    if (!v->elf) {
        free(v);
        return -ENOMEM;
    }
    v->elf->bytes = bytes;
    v->elf->size = size;
    v->elf->vdso = true;
    r = ub_elf_parse(v->elf);
    if (r < 0) {
        free_elf(v->elf);
        free(v);
        return r;
    }
    v->next = vdsos;
    vdsos = v;
    *ret = v->elf;
    return 0;
}

int ub_elf_open_vdso(pid_t pid, uint64_t start, uint64_t end, struct ub_elf **ret_elf)
{
    size_t size = end - start;
    uint8_t *bytes;
    int r;

    if (end <= start || size > VDSO_SIZE_MAX)
        return -EINVAL;
    bytes = malloc(size);
    if (!bytes)
        return -ENOMEM;
    r = read_memory(pid, start, bytes, size);
    if (r == 0) {
        pthread_mutex_lock(&cache_lock);
        r = adopt_vdso(bytes, size, ret_elf);
        pthread_mutex_unlock(&cache_lock);
    }
    if (r < 0)
        free(bytes);
    return r;
}
