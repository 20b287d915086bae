/*
 * The recipe. A child of the program's own would show in its wait(), and
 * exec() resets clone's exit signal, so it cannot be hidden for good. It must be
 * nobody's child:
 *
 *   the program  blocks signals; clone(CLONE_VM | CLONE_VFORK, no exit signal)
 *     mid        shares our memory, has its own descriptors; clones once more
 *       child    setsid, descriptors closed, execve
 *     mid        continues when that has happened, and exits: the helper is init's
 *   the program  collects mid, which wait() and waitid() do not see (no exit
 *                signal, so __WALL or __WCLONE is needed) and SIGCHLD does not announce
 *
 * Sharing memory (rather than fork) costs nothing for large programs and calls
 * no atfork handler. Only raw system calls here: TLS and errno are the thread's.
 */
#include "helper.h"

#include "../common/tree.h"
#include "raw.h"
#include "text.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define STACK_BYTES       16384
#define KEPT_BYTES        8192
#define KEPT_VARIABLES    64
#define DESCRIPTORS_MAX   65536 /* closed one by one where there is no close_range(2) */
#define SIGNAL_MASK_BYTES 8

long ub_clone(unsigned long flags, void *stack_top, int (*f)(void *), void *argument);

/* Written by the constructor only. */
static struct {
    char bytes[KEPT_BYTES];
    size_t used;
    char *variable[KEPT_VARIABLES + 1];
    uint32_t variables;
    char folder[PATH_MAX]; /* of the agent, with a slash at its end; "" when not known */
} kept;

/* ---- what is remembered ------------------------------------------------- */

/* What the helper's own behaviour depends on. LD_PRELOAD and the program's LD_LIBRARY_PATH are left out on purpose. */
static bool is_wanted(const char *assignment)
{
    static const char *const name[] = {
        "HOME=", "XDG_STATE_HOME=", "XDG_RUNTIME_DIR=", "LOGS_DIRECTORY=",
        "TZ=",   "NO_COLOR=",       "CLICOLOR_FORCE=",  "DEBUGINFOD_",
    };

    if (strncmp(assignment, "UNBLOCK_", 8) == 0)
        return strncmp(assignment, "UNBLOCK_ARENA=", 14) != 0;
    for (size_t i = 0; i < UB_ARRAY_LEN(name); i++) {
        if (strncmp(assignment, name[i], strlen(name[i])) == 0)
            return true;
    }
    return false;
}

static void keep(const char *assignment)
{
    size_t len = strlen(assignment) + 1;

    if (kept.variables == KEPT_VARIABLES || len > KEPT_BYTES - kept.used)
        return;
    memcpy(kept.bytes + kept.used, assignment, len);
    kept.variable[kept.variables++] = kept.bytes + kept.used;
    kept.used += len;
}

/* LD_PRELOAD may name the agent relative to the folder of that moment. */
static void keep_folder(void)
{
    Dl_info info;
    const char *slash, *name;
    size_t used = 0, len;

    if (!dladdr(&kept, &info) || !info.dli_fname)
        return;
    name = info.dli_fname;
    slash = strrchr(name, '/');
    len = slash ? (size_t)(slash - name) + 1 : 0;
    if (*name != '/') {
        long n = ub_raw2(SYS_getcwd, kept.folder, PATH_MAX - 1); /* counts the NUL */

        if (n <= 1 || kept.folder[0] != '/') {
            kept.folder[0] = '\0';
            return;
        }
        kept.folder[n - 1] = '/';
        used = (size_t)n;
    }
    if (used + len >= PATH_MAX) {
        kept.folder[0] = '\0';
        return;
    }
    memcpy(kept.folder + used, name, len);
    kept.folder[used + len] = '\0';
}

void ub_helper_prepare(char *const *environment)
{
    for (; environment && *environment; environment++) {
        if (is_wanted(*environment))
            keep(*environment);
    }
    keep_folder();
}

const char *ub_helper_variable(const char *name)
{
    size_t len = strlen(name);

    for (uint32_t i = 0; i < kept.variables; i++) {
        if (strncmp(kept.variable[i], name, len) == 0 && kept.variable[i][len] == '=')
            return kept.variable[i] + len + 1;
    }
    return NULL;
}

/* ---- the child ---------------------------------------------------------- */

struct launch {
    int fd;
    uint64_t inode;
    bool keep_stdout, keep_stderr; /* asked for: the recording or the live text goes there */
    uint8_t *child_stack;
    int pid; /* of the child */
    int error;
    bool exec_failed;
};

static bool wants_output(void)
{
    const char *output = ub_helper_variable("UNBLOCK_OUTPUT");

    return output && strcmp(output, "-") == 0;
}

static bool wants_text(void)
{
    const char *live = ub_helper_variable("UNBLOCK_LIVE");

    return live && (strcmp(live, "full") == 0 || strcmp(live, "line") == 0);
}

static void close_from(int first)
{
    struct rlimit limit = {0};
    long last;

    if (ub_raw3(SYS_close_range, first, ~0u, 0) == 0)
        return;
    ub_raw4(SYS_prlimit64, 0, RLIMIT_NOFILE, 0, &limit);
    last = limit.rlim_cur < DESCRIPTORS_MAX ? (long)limit.rlim_cur : DESCRIPTORS_MAX;
    for (long fd = first; fd < last; fd++)
        ub_raw1(SYS_close, fd);
}

/* The descriptors are a copy of the program's: what is closed here stays open there. */
static int arrange_descriptors(const struct launch *l)
{
    struct stat st = {0};
    long arena = ub_raw3(SYS_fcntl, l->fd, F_DUPFD, UB_HELPER_FD + 1), null;

    /* Another thread may just have closed all descriptors it did not know, and opened others in their place. */
    if (arena < 0 || ub_raw2(SYS_fstat, arena, &st) < 0 || st.st_ino != l->inode)
        return -EBADF;
    null = ub_raw4(SYS_openat, AT_FDCWD, "/dev/null", O_RDWR, 0);
    for (int fd = 0; fd <= 2; fd++) {
        if ((fd == 1 && l->keep_stdout) || (fd == 2 && l->keep_stderr))
            continue;
        if (null < 0)
            ub_raw1(SYS_close, fd);
        else if (null != fd)
            ub_raw3(SYS_dup3, null, fd, 0);
    }
    ub_raw3(SYS_dup3, arena, UB_HELPER_FD, 0);
    close_from(UB_HELPER_FD + 1);
    return 0;
}

static long try(const char *folder, const char *rest)
{
    static char *const argument[] = {(char *)"unblock", (char *)UB_HELPER_COMMAND, NULL};
    char path[PATH_MAX + 32];

    ub_text_put(ub_text_put(path, folder), rest);
    return ub_raw3(SYS_execve, path, argument, kept.variable);
}

/* Returns only when there is none that can be executed: the most telling error. */
static long execute(void)
{
    static const char *const beside[] = {"../../bin/unblock", "unblock"};
    const char *set = ub_helper_variable("UNBLOCK_HELPER");
    long r = -ENOENT;

    if (set && *set && strlen(set) < PATH_MAX)
        return try(set, "");
    for (size_t i = 0; i < UB_ARRAY_LEN(beside) && *kept.folder; i++) {
        long one = try(kept.folder, beside[i]);

        if (r == -ENOENT)
            r = one;
    }
    return r;
}

static int child_main(void *argument)
{
    struct launch *l = argument;

    ub_raw0(SYS_setsid);
    l->error = arrange_descriptors(l);
    if (l->error < 0)
        return 127;
    l->pid = (int)ub_raw0(SYS_getpid);
    l->error = (int)execute();
    l->exec_failed = true;
    return 127;
}

static int mid_main(void *argument)
{
    struct launch *l = argument;
    long pid = ub_clone(CLONE_VM | CLONE_VFORK, l->child_stack, child_main, l);

    if (pid < 0)
        l->error = (int)pid;
    else if (l->error < 0) /* leave no zombie to an init that may not collect it */
        ub_raw4(SYS_wait4, pid, 0, __WALL, 0);
    return 0;
}

int ub_helper_start(int fd, uint64_t inode, pid_t *ret_pid, bool *ret_exec)
{
    struct launch l = {.fd = fd, .inode = inode, .keep_stdout = wants_output(), .keep_stderr = wants_text()};
    uint64_t all = ~0ull, saved = 0;
    long stack = ub_raw6(SYS_mmap, 0, 2 * STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    long mid;

    *ret_exec = false;
    if (stack < 0 && stack > -4096)
        return (int)stack;
    l.child_stack = (uint8_t *)stack + STACK_BYTES;
    ub_raw4(SYS_rt_sigprocmask, SIG_SETMASK, &all, &saved, SIGNAL_MASK_BYTES);
    mid = ub_clone(CLONE_VM | CLONE_VFORK, (uint8_t *)stack + 2 * STACK_BYTES, mid_main, &l);
    if (mid > 0) {
        while (ub_raw4(SYS_wait4, mid, 0, __WALL, 0) == -EINTR)
            ;
    }
    ub_raw4(SYS_rt_sigprocmask, SIG_SETMASK, &saved, 0, SIGNAL_MASK_BYTES);
    ub_raw2(SYS_munmap, stack, 2 * STACK_BYTES);
    if (mid < 0)
        return (int)mid;
    *ret_exec = l.exec_failed;
    if (l.error < 0)
        return l.error;
    *ret_pid = l.pid;
    return 0;
}
