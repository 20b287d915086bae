/* What stands in the way of entering a process, found without touching it. */
#include "inject_impl.h"

#include "dump.h"
#include "pidns.h"
#include "procfile.h"
#include "symbols.h"

#include "../common/image.h"

#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define NEEDED_BYTES (4u << 20)

static const struct {
    const char *text, *mend;
} obstacle[UB_INJECT_OBSTACLES] = {
    [UB_INJECT_POSSIBLE] = {"it can be entered", ""},
    [UB_INJECT_ENDED] = {"it has ended", "take its number from ps or pgrep"},
    [UB_INJECT_DENIED] = {"its memory is closed to us", "sudo unblock attach PID"},
    [UB_INJECT_TRACED] = {"a debugger or strace holds it, and a process has one tracer at a time",
                          "end that one first (its number is TracerPid in /proc/PID/status), or unblock trace PID"},
    [UB_INJECT_STOPPED] = {"it is stopped, so no loop comes round", "kill -CONT PID"},
    [UB_INJECT_SECCOMP] = {"it runs under a seccomp filter, which may kill it for what the agent does",
                           "sudo unblock trace PID, which enters nothing; or start it under unblock run"},
    [UB_INJECT_STATIC] = {"it is statically linked: there is no loader in it to load the agent",
                          "sudo unblock trace PID, which enters nothing"},
    [UB_INJECT_MACHINE] = {"it is not an x86-64 program", "unblock dump and trace know only those, too"},
    [UB_INJECT_LIBC] = {"it uses another C library than glibc (musl), for which there is no agent",
                        "sudo unblock trace PID, which enters nothing"},
    [UB_INJECT_OLD_LIBC] = {"its glibc is older than 2.35 and lacks what the agent needs",
                            "sudo unblock trace PID, which enters nothing"},
    [UB_INJECT_SANITIZER] = {"a sanitizer stands in for libc in it", "attach to a build without"},
    [UB_INJECT_NAMESPACE] = {"our /proc shows another PID namespace than ours, so its numbers are not those we need",
                             "mount -t proc proc /proc, in a mount namespace of our own"},
    [UB_INJECT_NO_PROC] = {"it has no /proc (chroot), through which the agent is loaded",
                           "mount /proc in its root, or sudo unblock trace PID"},
    [UB_INJECT_NOEXEC] = {"sysctl vm.memfd_noexec forbids code from memory files",
                          "sudo sysctl vm.memfd_noexec=0 in its PID namespace, or sudo unblock trace PID"},
    [UB_INJECT_MEMORY] = {"it has used up its address space (ulimit -v), and the agent needs 4 MB",
                          "sudo prlimit --pid PID --as=unlimited, or sudo unblock trace PID"},
    [UB_INJECT_CPU] = {"this CPU has no XSAVE", "sudo unblock trace PID"},
};

const char *ub_inject_obstacle_text(enum ub_inject_obstacle o)
{
    return obstacle[o < UB_INJECT_OBSTACLES ? o : 0].text;
}

const char *ub_inject_obstacle_mend(enum ub_inject_obstacle o)
{
    return obstacle[o < UB_INJECT_OBSTACLES ? o : 0].mend;
}

const struct ub_map *ub_inject_module(const struct ub_maps *maps, const char *name)
{
    size_t len = strlen(name);

    for (uint32_t i = 0; i < maps->count; i++) {
        const struct ub_map *m = &maps->map[i];
        const char *slash = strrchr(m->path, '/');

        if (m->kind == UB_MAP_FILE && m->elf && slash && strncmp(slash + 1, name, len) == 0 &&
            (slash[1 + len] == '\0' || slash[1 + len] == ' '))
            return m;
    }
    return NULL;
}

static long status_number(const char *status, const char *key, int base)
{
    const char *p = strstr(status, key);

    return p ? strtol(p + strlen(key), NULL, base) : 0;
}

static char status_letter(const char *status)
{
    const char *p = strstr(status, "\nState:\t");

    return p ? p[8] : '?';
}

/* Numbers in /proc are those of the namespace that it was mounted in (unshare -p without --mount-proc). */
static bool proc_is_ours(void)
{
    char self[32];
    ssize_t n = readlink("/proc/self", self, sizeof(self) - 1);

    if (n < 0)
        return true;
    self[n] = '\0';
    return atoi(self) == (int)getpid();
}

static bool has_proc(pid_t pid)
{
    struct stat st;
    char path[64];

    snprintf(path, sizeof(path), "/proc/%d/root/proc/1", (int)pid);
    if (stat(path, &st) == 0 || errno == EACCES)
        return true;
    snprintf(path, sizeof(path), "/proc/%d/root/proc/%d", (int)pid,
             (int)ub_pidns_inner(pid, pid)); /* hidepid shows it itself only */
    return stat(path, &st) == 0 || errno == EACCES;
}

/* Its limit leaves less than room, library and arena take. One that is in there already needs little more. */
static bool has_address_space(pid_t pid, const char *status)
{
    static const char key[] = "\nMax address space";
    char text[4096];
    const char *p;
    uint64_t used = (uint64_t)status_number(status, "\nVmSize:\t", 10) << 10;

    if (ub_procfile_read(text, sizeof(text), "/proc/%d/limits", (int)pid) == 0)
        return true;
    p = strstr(text, key);
    if (!p)
        return true;
    p += sizeof(key) - 1;
    p += strspn(p, " ");
    return *p < '0' || *p > '9' || strtoull(p, NULL, 10) >= used + NEEDED_BYTES;
}

/* Its PID namespace has a setting of its own. */
static bool memory_files_are_code(pid_t pid)
{
    return ub_pidns_number(pid, "/proc/sys/vm/memfd_noexec", 0) < 2;
}

static enum ub_inject_obstacle look_at_file(pid_t pid)
{
    enum ub_image image = UB_IMAGE_FINE;
    Elf64_Ehdr eh;
    char path[64];
    int fd;

    snprintf(path, sizeof(path), "/proc/%d/exe", (int)pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return UB_INJECT_POSSIBLE; /* its modules will tell */
    if (pread(fd, &eh, sizeof(eh), 0) == (ssize_t)sizeof(eh) && memcmp(eh.e_ident, ELFMAG, SELFMAG) == 0)
        image = ub_image_look(fd, &eh);
    close(fd);
    switch (image) {
    case UB_IMAGE_STATIC:
        return UB_INJECT_STATIC;
    case UB_IMAGE_MACHINE:
        return UB_INJECT_MACHINE;
    case UB_IMAGE_LIBC:
        return UB_INJECT_LIBC;
    case UB_IMAGE_SANITIZER:
        return UB_INJECT_SANITIZER;
    default:
        return UB_INJECT_POSSIBLE;
    }
}

static enum ub_inject_obstacle look_at_libc(pid_t pid, const char *status)
{
    enum ub_inject_obstacle o = UB_INJECT_LIBC;
    const struct ub_map *libc;
    struct ub_maps *maps;
    uint64_t at, size;
    int r = ub_maps_load(pid, NULL, &maps);

    if (r < 0)
        return r == -EACCES || r == -EPERM ? UB_INJECT_DENIED : UB_INJECT_ENDED;
    libc = ub_inject_module(maps, "libc.so.6");
    if (libc && ub_symbols_lookup(libc->elf, "dlopen", &at, &size) == 0 &&
        ub_symbols_lookup(libc->elf, "dlerror", &at, &size) == 0)
        o = UB_INJECT_POSSIBLE;
    else if (libc)
        o = UB_INJECT_OLD_LIBC;
    if (o == UB_INJECT_POSSIBLE && !ub_inject_module(maps, "memfd:" UB_ATTACH_LIBRARY) &&
        !has_address_space(pid, status))
        o = UB_INJECT_MEMORY;
    ub_maps_unref(maps);
    return o;
}

/* XSAVE, and enabled by the system. */
static bool cpu_has_xsave(void)
{
    unsigned a, b, c = 0, d;

    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_OSXSAVE);
}

enum ub_inject_obstacle ub_inject_look(pid_t pid, long *ret_detail)
{
    struct ub_dump_target target;
    enum ub_inject_obstacle o;
    char status[UB_STATUS_MAX];
    char state;

    *ret_detail = 0;
    if (!proc_is_ours())
        return UB_INJECT_NAMESPACE;
    if (ub_dump_look(pid, &target) < 0 || target.kind != UB_DUMP_PROCESS || ub_procfile_status(pid, pid, status) == 0)
        return UB_INJECT_ENDED;
    if (target.access != 0)
        return UB_INJECT_DENIED;
    *ret_detail = status_number(status, "\nTracerPid:\t", 10);
    if (*ret_detail != 0)
        return UB_INJECT_TRACED;
    o = look_at_file(pid);
    if (o != UB_INJECT_POSSIBLE)
        return o;
    if (status_number(status, "\nSeccomp:\t", 10) != 0)
        return UB_INJECT_SECCOMP;
    state = status_letter(status);
    if (state == 'T' || state == 't')
        return UB_INJECT_STOPPED;
    if (!has_proc(pid))
        return UB_INJECT_NO_PROC;
    if (!memory_files_are_code(pid))
        return UB_INJECT_NOEXEC;
    if (!cpu_has_xsave())
        return UB_INJECT_CPU;
    return look_at_libc(pid, status);
}
