/*
 * An exec is about to come. Some programs would notice LD_PRELOAD although the
 * agent never gets into them: loaders of another machine or C library complain
 * on standard error, ASan's runtime aborts. For those the agent takes itself out
 * of the environment.
 *
 * Runs in children of vfork, which share the parent's memory, and where another
 * thread may hold any lock: nothing is written but the caller's stack and a
 * counter in the arena.
 */
#include "successor.h"

#include "process.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/prctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#define LIBRARY     "libunblock.so"
#define VARIABLE    "LD_PRELOAD="
#define COUNT_MAX   16384u          /* 128 KB of pointers */
#define BYTES_MAX   (64ul * 1024ul) /* all LD_PRELOAD there is */
#define SCRIPTS_MAX 4               /* "#!" of a "#!": the kernel follows as many */
#define NO_SUID     0x2             /* statfs f_flags: ST_NOSUID */

/* One library of LD_PRELOAD, which separates them by colons and spaces. */
static bool is_agent(const char *entry, size_t len)
{
    size_t own = sizeof(LIBRARY) - 1;

    return len >= own && memcmp(entry + len - own, LIBRARY, own) == 0 && (len == own || entry[len - own - 1] == '/');
}

static bool names_agent(const char *list)
{
    for (size_t len; *list; list += len + (list[len] != '\0')) {
        len = strcspn(list, ": ");
        if (is_agent(list, len))
            return true;
    }
    return false;
}

static const char *preload_of(const char *variable)
{
    return strncmp(variable, VARIABLE, sizeof(VARIABLE) - 1) == 0 ? variable + sizeof(VARIABLE) - 1 : NULL;
}

struct ub_successor_room ub_successor_room(char *const environment[])
{
    struct ub_successor_room room = {0};
    bool found = false;

    for (; environment && environment[room.count]; room.count++) {
        const char *list = preload_of(environment[room.count]);

        if (list && names_agent(list)) {
            found = true;
            room.bytes += strlen(environment[room.count]) + 1;
        }
    }
    room.count++;
    return found && room.count <= COUNT_MAX && room.bytes <= BYTES_MAX ? room : (struct ub_successor_room){0};
}

/* `list` without the agent and the separator behind it, to `to`. Returns the end of what was written. */
static char *copy_others(char *to, const char *list)
{
    char *begin = to;

    for (size_t len; *list; list += len + (list[len] != '\0')) {
        len = strcspn(list, ": ");
        if (is_agent(list, len))
            continue;
        memcpy(to, list, len + (list[len] != '\0'));
        to += len + (list[len] != '\0');
    }
    if (to > begin && (to[-1] == ':' || to[-1] == ' '))
        to--; /* the agent was the last one */
    *to = '\0';
    return to;
}

void ub_successor_environment(char *const environment[], char **copy, char *text)
{
    for (; *environment; environment++) {
        const char *list = preload_of(*environment);
        char *begin = text;

        if (!list || !names_agent(list)) {
            *copy++ = *environment;
            continue;
        }
        memcpy(begin, VARIABLE, sizeof(VARIABLE) - 1);
        text = copy_others(begin + sizeof(VARIABLE) - 1, list);
        if (text == begin + sizeof(VARIABLE) - 1)
            continue; /* nothing else was in it: as if it had never been set */
        *copy++ = begin;
        text++;
    }
    *copy = NULL;
}

/*
 * As the kernel has it: the loader of a program that gains privileges ignores
 * and removes LD_PRELOAD, but complains of a library without a slash.
 */
static bool gains_privileges(int fd, const struct stat *st)
{
    struct statfs fs = {0};
    char capability[64];
    uid_t uid = (uid_t)ub_raw0(SYS_getuid);

    if (!(st->st_mode & (S_ISUID | S_ISGID)) && uid == 0)
        return false;
    if (ub_raw2(SYS_fstatfs, fd, &fs) == 0 && (fs.f_flags & NO_SUID))
        return false;
    if (ub_raw6(SYS_prctl, PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0, 0) == 1)
        return false;
    if ((st->st_mode & S_ISUID) && st->st_uid != uid)
        return true;
    if ((st->st_mode & S_ISGID) && (st->st_mode & S_IXGRP) && st->st_gid != (gid_t)ub_raw0(SYS_getgid))
        return true;
    return uid != 0 && ub_raw4(SYS_fgetxattr, fd, "security.capability", capability, sizeof(capability)) > 0;
}

static bool is_regular(int dirfd, const char *path, int flags)
{
    struct stat st = {0};

    return ub_raw4(SYS_newfstatat, dirfd, path, &st, flags) == 0 && S_ISREG(st.st_mode) && (st.st_mode & 0111);
}

static enum ub_image look_at(int dirfd, const char *path, int depth);

/*
 * Under a seccomp filter that came with exec the files are looked at all the
 * same, with calls that the loader has made before us and will make after the
 * exec; privileges are not asked for: where there is a filter there are none to gain.
 */
static enum ub_image look_at_file(int fd, int depth)
{
    union {
        char text[256];
        Elf64_Ehdr elf;
    } start = {0};
    struct stat st = {0};
    const char *interpreter = NULL;
    long n = ub_image_pread(fd, start.text, sizeof(start.text) - 1, 0);
    size_t len = n > 2 && depth < SCRIPTS_MAX ? ub_image_interpreter(start.text, &interpreter) : 0;

    if (len > 0) {
        start.text[(size_t)(interpreter - start.text) + len] = '\0';
        return look_at(AT_FDCWD, interpreter, depth + 1);
    }
    if (n < (long)sizeof(start.elf) || memcmp(start.elf.e_ident, ELFMAG, SELFMAG) != 0)
        return UB_IMAGE_FINE;
    if (ub_process_quiet() == UB_QUIET_NOT && ub_raw2(SYS_fstat, fd, &st) == 0 && gains_privileges(fd, &st))
        return UB_IMAGE_SECURE;
    return ub_image_look(fd, &start.elf);
}

static enum ub_image look_at(int dirfd, const char *path, int depth)
{
    enum ub_image image;
    long fd;

    /* Asked before it is opened: opening something else than a file can wait or do something. */
    if (!is_regular(dirfd, path, 0))
        return UB_IMAGE_FINE;
    fd = ub_raw4(SYS_openat, dirfd, path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0);
    if (fd < 0)
        return UB_IMAGE_FINE;
    image = look_at_file((int)fd, depth);
    ub_raw1(SYS_close, fd);
    return image;
}

static bool refuses(enum ub_image image)
{
    if (image != UB_IMAGE_FINE)
        ub_process_count_image(image);
    return !ub_image_may_preload(image);
}

/* "/proc/self/fd/N": a descriptor opened anew, so that its offset and O_PATH do not matter. */
static void descriptor_path(int fd, char *ret)
{
    static const char prefix[] = "/proc/self/fd/";
    char digits[12];
    int n = 0;

    memcpy(ret, prefix, sizeof(prefix));
    ret += sizeof(prefix) - 1;
    do
        digits[n++] = (char)('0' + fd % 10);
    while ((fd /= 10) > 0);
    while (n > 0)
        *ret++ = digits[--n];
    *ret = '\0';
}

bool ub_successor_refuses(int dirfd, const char *path)
{
    char own[32];

    if (ub_process_quiet() == UB_QUIET_STRICT || !path)
        return false;
    if (*path)
        return refuses(look_at(dirfd, path, 0));
    if (dirfd < 0)
        return false;
    descriptor_path(dirfd, own);
    return refuses(look_at(AT_FDCWD, own, 0));
}

static const char *search_path(void)
{
    for (char **v = environ; v && *v; v++) {
        if (strncmp(*v, "PATH=", 5) == 0)
            return *v + 5;
    }
    return "/bin:/usr/bin"; /* what execvp takes */
}

bool ub_successor_refuses_name(const char *name)
{
    char path[PATH_MAX];
    const char *p = search_path();
    size_t name_len = name ? strlen(name) : 0, len;

    if (!name_len || memchr(name, '/', name_len))
        return ub_successor_refuses(AT_FDCWD, name);
    if (ub_process_quiet() == UB_QUIET_STRICT)
        return false;
    for (;; p += len + 1) {
        len = strcspn(p, ":");
        if (len + name_len + 2 <= sizeof(path)) {
            memcpy(path, p, len);
            path[len] = '/';
            memcpy(path + len + (len > 0), name, name_len + 1);
            if (is_regular(AT_FDCWD, path, 0))
                return refuses(look_at(AT_FDCWD, path, 0));
        }
        if (!p[len])
            return false;
    }
}
