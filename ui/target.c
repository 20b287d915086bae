#include "target.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#define SCRIPTS_MAX 4 /* "#!" of a "#!": the kernel follows as many */

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
}

static int check_executable(const char *path)
{
    struct stat st;

    if (stat(path, &st) != 0)
        return -errno;
    if (S_ISDIR(st.st_mode))
        return -EISDIR;
    return faccessat(AT_FDCWD, path, X_OK, AT_EACCESS) == 0 ? 0 : -errno;
}

int ub_target_find(const char *name, char *path, size_t size)
{
    const char *search = getenv("PATH");
    int found = -ENOENT;

    if (*name == '\0')
        return -ENOENT;
    if (strchr(name, '/') != NULL) {
        snprintf(path, size, "%s", name);
        return check_executable(path);
    }
    if (search == NULL)
        search = "/bin:/usr/bin"; /* what execvp takes */
    for (const char *p = search;; p++) {
        size_t len = strcspn(p, ":");
        int r;

        snprintf(path, size, "%.*s%s%s", (int)len, p, len > 0 ? "/" : "", name);
        r = check_executable(path);
        if (r == 0)
            return 0;
        if (r == -EACCES || r == -EISDIR)
            found = r == -EISDIR && found == -EACCES ? found : r;
        p += len;
        if (*p == '\0')
            break;
    }
    /* A folder of that name somewhere in PATH is no command. */
    return found == -EISDIR ? -ENOENT : found;
}

static bool gains_privileges(int fd, const struct stat *st)
{
    struct statvfs vfs;
    char capability[64];

    if (fstatvfs(fd, &vfs) == 0 && (vfs.f_flag & ST_NOSUID))
        return false;
    if ((st->st_mode & S_ISUID) && st->st_uid != geteuid())
        return true;
    if ((st->st_mode & S_ISGID) && (st->st_mode & S_IXGRP) && st->st_gid != getegid())
        return true;
    return geteuid() != 0 && fgetxattr(fd, "security.capability", capability, sizeof(capability)) > 0;
}

/* The path after "#!", as the kernel takes it. */
static bool script_interpreter(const char *text, char *ret, size_t size)
{
    const char *path = NULL;
    size_t len = ub_image_interpreter(text, &path);

    if (len > 0)
        snprintf(ret, size, "%.*s", (int)len, path);
    return len > 0;
}

static enum ub_image look(const char *path, int depth, char *ret_interpreter, size_t size)
{
    UB_CLEANUP(close_fd) int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    union {
        char text[256];
        Elf64_Ehdr elf;
    } start = {0};
    struct stat st;
    ssize_t n;

    if (fd < 0 || fstat(fd, &st) != 0 || !S_ISREG(st.st_mode))
        return UB_IMAGE_FINE;
    n = pread(fd, start.text, sizeof(start.text) - 1, 0);
    if (n > 2 && depth < SCRIPTS_MAX && script_interpreter(start.text, ret_interpreter, size)) {
        char next[PATH_MAX];

        snprintf(next, sizeof(next), "%s", ret_interpreter);
        return look(next, depth + 1, ret_interpreter, size);
    }
    if (n < (ssize_t)sizeof(start.elf) || memcmp(start.elf.e_ident, ELFMAG, SELFMAG) != 0)
        return UB_IMAGE_FINE;
    if (gains_privileges(fd, &st))
        return UB_IMAGE_SECURE;
    return ub_image_look(fd, &start.elf);
}

enum ub_image ub_target_look(const char *path, char *ret_interpreter, size_t size)
{
    *ret_interpreter = '\0';
    return look(path, 0, ret_interpreter, size);
}

const char *ub_target_warning(enum ub_image target)
{
    switch (target) {
    case UB_IMAGE_STATIC:
        return "is a static program: the agent cannot enter it and will see only dynamic programs that it starts; "
               "run a dynamically linked build of it to see its stalls";
    case UB_IMAGE_MACHINE:
        return "is not an x86-64 program: the agent cannot enter it; run a 64-bit build of it to see its stalls";
    case UB_IMAGE_LIBC:
        return "uses the musl C library, the agent is built for glibc and cannot enter it; run a glibc build of it to "
               "see its stalls";
    case UB_IMAGE_SECURE:
        return "gains privileges when executed, so its loader ignores the agent; run it directly as the user it "
               "becomes to see its stalls";
    case UB_IMAGE_SANITIZER:
        return "is linked to the shared runtime of AddressSanitizer or ThreadSanitizer, which lets no other library "
               "load "
               "before itself: the agent stays out; run a build without it to see its stalls";
    case UB_IMAGE_FINE:
    case UB_IMAGE_KINDS:
        break;
    }
    return NULL;
}
