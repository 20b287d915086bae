#include "target.h"

#include <elf.h>
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
#define HEADERS_MAX 64

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

static enum ub_target look_at_loader(int fd, const Elf64_Phdr *ph)
{
    char loader[PATH_MAX];
    size_t len = ph->p_filesz < sizeof(loader) ? ph->p_filesz : sizeof(loader) - 1;
    ssize_t n = pread(fd, loader, len, (off_t)ph->p_offset);

    loader[n > 0 ? n : 0] = '\0';
    return strstr(loader, "/ld-musl") != NULL ? UB_TARGET_MUSL : UB_TARGET_FINE;
}

static enum ub_target look_at_elf(int fd, const Elf64_Ehdr *eh)
{
    Elf64_Phdr ph[HEADERS_MAX];
    size_t count = eh->e_phnum < HEADERS_MAX ? eh->e_phnum : HEADERS_MAX;
    ssize_t n;

    if (eh->e_ident[EI_CLASS] != ELFCLASS64 || eh->e_machine != EM_X86_64)
        return UB_TARGET_MACHINE;
    if (eh->e_phentsize != sizeof(ph[0]))
        return UB_TARGET_FINE;
    n = pread(fd, ph, count * sizeof(ph[0]), (off_t)eh->e_phoff);
    if (n < (ssize_t)sizeof(ph[0]))
        return UB_TARGET_FINE;
    for (size_t i = 0; i < (size_t)n / sizeof(ph[0]); i++)
        if (ph[i].p_type == PT_INTERP)
            return look_at_loader(fd, &ph[i]);
    return UB_TARGET_STATIC;
}

/* The path after "#!", as the kernel takes it. */
static bool script_interpreter(const char *text, char *ret, size_t size)
{
    size_t len;

    if (strncmp(text, "#!", 2) != 0)
        return false;
    text += 2 + strspn(text + 2, " \t");
    len = strcspn(text, " \t\n");
    snprintf(ret, size, "%.*s", (int)len, text);
    return len > 0;
}

static enum ub_target look(const char *path, int depth, char *ret_interpreter, size_t size)
{
    UB_CLEANUP(close_fd) int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    union {
        char text[256];
        Elf64_Ehdr elf;
    } start = {0};
    struct stat st;
    ssize_t n;

    if (fd < 0 || fstat(fd, &st) != 0 || !S_ISREG(st.st_mode))
        return UB_TARGET_FINE;
    n = pread(fd, start.text, sizeof(start.text) - 1, 0);
    if (n > 2 && depth < SCRIPTS_MAX && script_interpreter(start.text, ret_interpreter, size)) {
        char next[PATH_MAX];

        snprintf(next, sizeof(next), "%s", ret_interpreter);
        return look(next, depth + 1, ret_interpreter, size);
    }
    if (n < (ssize_t)sizeof(start.elf) || memcmp(start.elf.e_ident, ELFMAG, SELFMAG) != 0)
        return UB_TARGET_FINE;
    if (gains_privileges(fd, &st))
        return UB_TARGET_SETUID;
    return look_at_elf(fd, &start.elf);
}

enum ub_target ub_target_look(const char *path, char *ret_interpreter, size_t size)
{
    *ret_interpreter = '\0';
    return look(path, 0, ret_interpreter, size);
}

bool ub_target_may_preload(enum ub_target target)
{
    return target != UB_TARGET_MUSL && target != UB_TARGET_MACHINE;
}

const char *ub_target_warning(enum ub_target target)
{
    switch (target) {
    case UB_TARGET_STATIC:
        return "is a static program: the agent cannot enter it and will see only dynamic programs that it starts; "
               "run a dynamically linked build of it to see its stalls";
    case UB_TARGET_MACHINE:
        return "is not an x86-64 program: the agent cannot enter it; run a 64-bit build of it to see its stalls";
    case UB_TARGET_MUSL:
        return "uses the musl C library, the agent is built for glibc and cannot enter it; run a glibc build of it to "
               "see its stalls";
    case UB_TARGET_SETUID:
        return "gains privileges when executed, so its loader ignores the agent; run it directly as the user it "
               "becomes to see its stalls";
    case UB_TARGET_FINE:
        break;
    }
    return NULL;
}
