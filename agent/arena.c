#include "arena.h"

#include "raw.h"
#include "text.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#define HELPER_MARK   ":helper"
#define JOIN_NS       50000000
#define JOIN_NAME_MAX 7

/* "PID:FD:INODE", alone or with what marks a helper's behind it. */
static bool parse_address(const char *address, uint64_t *ret_pid, uint64_t *ret_fd, uint64_t *ret_inode)
{
    if (!ub_text_number(&address, ret_pid, ':') || !ub_text_number(&address, ret_fd, ':'))
        return false;
    return ub_text_number(&address, ret_inode, ub_arena_is_helpers(address) ? ':' : '\0');
}

bool ub_arena_is_helpers(const char *address)
{
    size_t len = strlen(address), mark = sizeof(HELPER_MARK) - 1;

    return len > mark && strcmp(address + len - mark, HELPER_MARK) == 0;
}

/*
 * The memory is shared with whoever made it: a file that could be truncated
 * under us, or is a stranger's, is not mapped.
 */
static bool is_trustworthy(int fd, uint64_t inode)
{
    struct stat st = {0};
    long uid = ub_raw0(SYS_geteuid);

    return ub_raw2(SYS_fstat, fd, &st) == 0 && st.st_ino == inode && (uint64_t)st.st_size == sizeof(struct ub_arena) &&
           (st.st_uid == 0 || st.st_uid == (uid_t)uid || st.st_uid == (uid_t)ub_raw0(SYS_getuid)) &&
           (ub_raw3(SYS_fcntl, fd, F_GET_SEALS, 0) & F_SEAL_SHRINK);
}

/* The watcher's descriptor of the arena, or -errno. */
static int open_arena(const char *address, pid_t *ret_watcher)
{
    char path[64], *p = path;
    uint64_t pid, fd, inode;
    int ret;

    if (!parse_address(address, &pid, &fd, &inode))
        return -EINVAL;
    p = ub_text_put(p, "/proc/");
    p = ub_text_put_number(p, pid);
    p = ub_text_put(p, "/fd/");
    ub_text_put_number(p, fd);
    ret = (int)ub_raw4(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0);
    if (ret < 0)
        return ret;
    if (!is_trustworthy(ret, inode)) { /* the pid is another process's by now, as a rule */
        ub_raw1(SYS_close, ret);
        return -ENOENT;
    }
    *ret_watcher = (pid_t)pid;
    return ret;
}

uint64_t ub_arena_pid_namespace(void)
{
    struct stat st = {0};

    return ub_raw4(SYS_newfstatat, AT_FDCWD, "/proc/self/ns/pid", &st, 0) == 0 ? st.st_ino : 0;
}

/*
 * In another PID namespace our pid means nothing to the watcher, or worse,
 * another process. Without /proc/self/ns nothing is known, and we step aside.
 */
static bool same_pid_namespace(struct ub_arena *arena)
{
    uint64_t ours = ub_arena_pid_namespace();

    if (ours && ours == arena->h.pid_namespace)
        return true;
    __atomic_fetch_add(&arena->h.elsewhere, 1, __ATOMIC_RELAXED);
    return false;
}

static size_t mapped = UB_ARENA_HOT;
static struct ub_arena *alone; /* always mapped as a whole: it is no file */

/* Cold parts by slot. Only who holds the slot writes an entry; a forked child inherits them with what they point to. */
static struct {
    struct ub_arena *arena;
    struct ub_slot_cold *cold;
} cold_part[UB_SLOT_MAX];

void ub_arena_map_whole(void)
{
    mapped = sizeof(struct ub_arena);
}

/*
 * An arena that was left keeps its place: a thread may have been stopped in the
 * middle of a hook, and its last stores must meet memory. The next one is mapped there.
 */
static struct ub_arena *place;

static int map(int fd, int flags, size_t size, struct ub_arena **ret)
{
    long at;

    if (place)
        flags |= MAP_FIXED;
    at = ub_raw6(SYS_mmap, (long)place, (long)size, PROT_READ | PROT_WRITE, MAP_SHARED | flags, fd, 0);

    if (at < 0 && at > -4096)
        return (int)at;
    ub_raw3(SYS_madvise, at, size, MADV_DONTDUMP); /* no business of the program's core files */
    *ret = (struct ub_arena *)at;
    return 0;
}

/*
 * The descriptor is long closed, and may not be had again (chroot, another
 * user). But a shared mapping can be mapped once more without one, by mremap
 * from a length of 0, and further into the file than it reached: from the last
 * page that we have to the end of the part that is wanted. What lies before it
 * goes at once.
 */
static struct ub_slot_cold *map_cold(struct ub_arena *arena, uint32_t index)
{
    uintptr_t last = (uintptr_t)arena + UB_ARENA_HOT - 4096;
    size_t before = 4096 + index * sizeof(struct ub_slot_cold);
    long at = ub_raw6(SYS_mremap, (long)last, 0, (long)(before + sizeof(struct ub_slot_cold)), MREMAP_MAYMOVE, 0, 0);

    if (at < 0 && at > -4096)
        return NULL;
    ub_raw2(SYS_munmap, at, before);
    ub_raw3(SYS_madvise, (uintptr_t)at + before, sizeof(struct ub_slot_cold), MADV_DONTDUMP);
    return (struct ub_slot_cold *)((uintptr_t)at + before);
}

/*
 * Some who stand in for a kernel (valgrind) know mremap, but not from nothing:
 * there all of it is mapped at once, while there is a descriptor. Asked before
 * the first slot is wanted, as a program may forbid mremap later.
 */
static int map_all_if_need_be(int fd, struct ub_arena **arena)
{
    static bool asked;
    struct ub_slot_cold *probe;

    if (asked || mapped != UB_ARENA_HOT)
        return 0;
    asked = true;
    probe = map_cold(*arena, 0);
    if (probe) {
        ub_raw2(SYS_munmap, probe, sizeof(*probe));
        return 0;
    }
    ub_arena_unmap(*arena);
    ub_arena_map_whole();
    return map(fd, 0, mapped, arena);
}

struct ub_slot_cold *ub_arena_cold(struct ub_arena *arena, uint32_t index)
{
    if (arena == alone || mapped == sizeof(struct ub_arena))
        return &arena->cold[index];
    if (cold_part[index].arena != arena) {
        cold_part[index].arena = NULL;
        cold_part[index].cold = map_cold(arena, index);
        if (!cold_part[index].cold)
            return NULL;
        cold_part[index].arena = arena;
    }
    return cold_part[index].cold;
}

void ub_arena_unmap(struct ub_arena *arena)
{
    ub_raw2(SYS_munmap, arena, arena == alone ? sizeof(*arena) : mapped);
}

int ub_arena_map(const char *address, struct ub_arena **ret, pid_t *ret_watcher)
{
    struct ub_arena *arena;
    int fd = open_arena(address, ret_watcher), r;

    if (fd < 0)
        return fd;
    r = map(fd, 0, mapped, &arena);
    if (r == 0)
        r = map_all_if_need_be(fd, &arena);
    ub_raw1(SYS_close, fd);
    if (r < 0)
        return r;
    if (!ub_arena_is_known(&arena->h))
        r = -EINVAL;
    else if (arena->h.closed)
        r = -ENOENT;
    else if (!same_pid_namespace(arena))
        r = -EXDEV;
    if (r < 0) {
        ub_arena_unmap(arena);
        return r;
    }
    *ret = arena;
    return 0;
}

/* A file beyond the limit would bring the program SIGXFSZ. */
static bool may_have_the_size(void)
{
    struct rlimit limit = {0};

    return ub_raw4(SYS_prlimit64, 0, RLIMIT_FSIZE, 0, &limit) == 0 && limit.rlim_cur >= sizeof(struct ub_arena);
}

static int create_file(uint64_t *ret_inode)
{
    struct stat st = {0};
    int fd, r;

    if (!may_have_the_size())
        return -EFBIG;
    fd = (int)ub_raw2(SYS_memfd_create, UB_ARENA_NAME, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return fd;
    r = (int)ub_raw2(SYS_fchmod, fd, 0600);
    if (r == 0)
        r = (int)ub_raw2(SYS_ftruncate, fd, sizeof(struct ub_arena));
    if (r == 0)
        r = (int)ub_raw3(SYS_fcntl, fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
    if (r == 0)
        r = (int)ub_raw2(SYS_fstat, fd, &st);
    if (r < 0) {
        ub_raw1(SYS_close, fd);
        return r;
    }
    *ret_inode = st.st_ino;
    return fd;
}

/* The same question as the tracer's ub_ticks_start, without reading all of /proc/cpuinfo. */
static uint32_t best_clock(void)
{
    char name[8] = "";
    uint32_t a = 0x80000007, b = 0, c = 0, d = 0;
    int fd = (int)ub_raw4(SYS_openat, AT_FDCWD, "/sys/devices/system/clocksource/clocksource0/current_clocksource",
                          O_RDONLY | O_CLOEXEC, 0);

    if (fd < 0)
        return UB_CLOCK_VDSO;
    ub_raw3(SYS_read, fd, name, sizeof(name) - 1);
    ub_raw1(SYS_close, fd);
    __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    /* Bit 8: the TSC runs at one rate in all states of the CPU. */
    return strcmp(name, "tsc\n") == 0 && (d & 1u << 8) ? UB_CLOCK_TSC : UB_CLOCK_VDSO;
}

static void fill_header(struct ub_arena *arena, enum ub_arena_mode mode, uint32_t clock)
{
    arena->h.version = UB_ARENA_VERSION;
    arena->h.size = UB_ARENA_LAYOUT;
    arena->h.clock = clock;
    arena->h.starter_pid = (int32_t)ub_raw0(SYS_getpid);
    arena->h.mode = mode;
    arena->h.pid_namespace = ub_arena_pid_namespace();
    arena->h.threshold = UINT64_MAX;
    ub_arena_set_floor(&arena->h, UINT64_MAX, 0);
    arena->h.images = 1;
    ub_store_release(&arena->h.magic, UB_ARENA_MAGIC);
}

/* The cold parts that were mapped before, from the new file. */
static int map_cold_again(int fd, struct ub_arena *arena)
{
    for (uint32_t i = 0; i < UB_SLOT_MAX; i++) {
        long at = (long)cold_part[i].cold;
        long offset = (long)offsetof(struct ub_arena, cold) + i * (long)sizeof(struct ub_slot_cold);

        if (!at)
            continue;
        at = ub_raw6(SYS_mmap, at, sizeof(struct ub_slot_cold), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd,
                     offset);
        if (at < 0 && at > -4096)
            return (int)at;
        ub_raw3(SYS_madvise, at, sizeof(struct ub_slot_cold), MADV_DONTDUMP);
        cold_part[i].arena = arena;
    }
    return 0;
}

static void blank(void *at, size_t size)
{
    ub_raw6(SYS_mmap, (long)at, (long)size, PROT_READ | PROT_WRITE,
            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
}

void ub_arena_leave(struct ub_arena *arena)
{
    if (arena == alone)
        return;
    place = arena;
    blank(arena, mapped);
    for (uint32_t i = 0; i < UB_SLOT_MAX; i++) {
        if (cold_part[i].cold)
            blank(cold_part[i].cold, sizeof(struct ub_slot_cold));
    }
}

void ub_arena_forget(void)
{
    if (place)
        ub_raw2(SYS_munmap, place, mapped);
    place = NULL;
    for (uint32_t i = 0; i < UB_SLOT_MAX; i++) {
        if (cold_part[i].cold)
            ub_raw2(SYS_munmap, cold_part[i].cold, sizeof(struct ub_slot_cold));
        cold_part[i].cold = NULL;
        cold_part[i].arena = NULL;
    }
}

/* Where the last one was, if there was one. */
static int map_attached(int fd, struct ub_arena **ret)
{
    int r = map(fd, 0, mapped, ret);

    if (r == 0 && !place)
        r = map_all_if_need_be(fd, ret);
    if (r == 0 && place)
        r = map_cold_again(fd, *ret);
    return r;
}

int ub_arena_create(struct ub_arena **ret, int *ret_fd, uint64_t *ret_inode)
{
    int fd = create_file(ret_inode), r;

    if (fd < 0)
        return fd;
    r = map_attached(fd, ret);
    if (r < 0) {
        ub_raw1(SYS_close, fd);
        return r;
    }
    fill_header(*ret, UB_ARENA_HELPER, best_clock());
    *ret_fd = fd;
    return 0;
}

/* One message with one descriptor; the injector is just waiting for us to come. */
static int receive(int s)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {0};
    char byte;
    struct iovec data = {&byte, 1};
    struct msghdr message = {
        .msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    struct pollfd ready = {.fd = s, .events = POLLIN};
    struct timespec most = {.tv_nsec = JOIN_NS};
    const struct cmsghdr *c;
    int fd;

    if (ub_raw6(SYS_ppoll, (long)&ready, 1, (long)&most, 0, 0, 0) != 1 ||
        ub_raw3(SYS_recvmsg, s, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) != 1)
        return -EAGAIN;
    c = CMSG_FIRSTHDR(&message);
    if (!c || c->cmsg_type != SCM_RIGHTS || c->cmsg_len != CMSG_LEN(sizeof(int)))
        return -EAGAIN;
    memcpy(&fd, CMSG_DATA(c), sizeof(fd));
    return fd;
}

/* There is no socket that both know: the injector, who may, takes the other end out of our descriptors. */
static int ask_by_pair(int32_t *told)
{
    int s[2] = {-1, -1}, r = (int)ub_raw4(SYS_socketpair, AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, s);

    if (r < 0)
        return r;
    ub_store_release(told, s[1]);
    r = receive(s[0]);
    ub_store_release(told, -1);
    ub_raw1(SYS_close, s[0]);
    ub_raw1(SYS_close, s[1]);
    return r;
}

static int ask_for_arena(const char *name)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t len = 0;
    long s = ub_raw3(SYS_socket, AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int r;

    if (s < 0)
        return (int)s;
    for (; len < JOIN_NAME_MAX && name[len]; len++)
        address.sun_path[1 + len] = name[len];
    r = (int)ub_raw3(SYS_connect, s, &address, offsetof(struct sockaddr_un, sun_path) + 1 + len);
    r = r < 0 ? r : receive((int)s);
    ub_raw1(SYS_close, s);
    return r;
}

int ub_arena_join(const char *name, int32_t *told, uint64_t inode, struct ub_arena **ret)
{
    int fd = *name ? ask_for_arena(name) : ask_by_pair(told), r;

    if (fd < 0)
        return fd;
    r = is_trustworthy(fd, inode) ? map_attached(fd, ret) : -EPERM;
    ub_raw1(SYS_close, fd);
    if (r < 0)
        return r;
    r = !ub_arena_is_known(&(*ret)->h)       ? -EINVAL
        : ub_load_relaxed(&(*ret)->h.closed) ? -ENOENT
        : same_pid_namespace(*ret)           ? 0
                                             : -EXDEV;
    if (r < 0)
        ub_arena_leave(*ret);
    else
        __atomic_fetch_add(&(*ret)->h.images, 1, __ATOMIC_RELAXED);
    return r;
}

struct ub_arena *ub_arena_alone(void)
{
    struct ub_arena *arena;

    if (map(-1, MAP_ANONYMOUS | MAP_NORESERVE, sizeof(struct ub_arena), &arena) < 0)
        return NULL;
    alone = arena;
    fill_header(arena, UB_ARENA_ALONE, UB_CLOCK_VDSO);
    return arena;
}

void ub_arena_address(char *buf, pid_t pid, int fd, uint64_t inode)
{
    char *p = ub_text_put_number(buf, (uint64_t)pid);

    p = ub_text_put(p, ":");
    p = ub_text_put_number(p, (uint64_t)fd);
    p = ub_text_put(p, ":");
    p = ub_text_put_number(p, inode);
    ub_text_put(p, HELPER_MARK);
}
