#include "pidns.h"

#include "procfile.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

uint64_t ub_pidns_of(pid_t pid)
{
    struct stat st;
    char path[64] = "/proc/self/ns/pid";

    if (pid)
        snprintf(path, sizeof(path), "/proc/%d/ns/pid", (int)pid);
    return stat(path, &st) == 0 ? st.st_ino : 0;
}

bool ub_pidns_is_foreign(pid_t pid)
{
    uint64_t its = ub_pidns_of(pid);

    return its && its != ub_pidns_of(0);
}

/* The last of the numbers in NSpid: those of the namespaces from ours inwards. */
pid_t ub_pidns_inner(pid_t pid, pid_t tid)
{
    static const char key[] = "\nNSpid:";
    char status[UB_STATUS_MAX], *p, *end;
    long number = 0, next;

    if (ub_procfile_status(pid, tid, status) == 0)
        return 0;
    p = strstr(status, key);
    if (!p)
        return tid; /* a kernel without: it has no other number that we could learn */
    p += sizeof(key) - 1;
    while (*p == '\t') {
        next = strtol(p, &end, 10);
        if (end == p)
            break;
        number = next;
        p = end;
    }
    return (pid_t)number;
}

pid_t ub_pidns_thread(pid_t pid, pid_t inner)
{
    const struct dirent *entry;
    pid_t found = 0;
    char path[64];
    DIR *dir;

    if (inner <= 0)
        return 0;
    snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
    dir = opendir(path);
    while (dir && !found && (entry = readdir(dir))) {
        pid_t tid = isdigit((unsigned char)entry->d_name[0]) ? (pid_t)strtol(entry->d_name, NULL, 10) : 0;

        if (tid > 0 && ub_pidns_inner(pid, tid) == inner)
            found = tid;
    }
    if (dir)
        closedir(dir);
    return found;
}

pid_t ub_pidns_process(uint64_t ns, pid_t inner)
{
    DIR *proc = opendir("/proc");
    const struct dirent *entry;
    pid_t found = 0;

    while (proc && !found && inner > 0 && (entry = readdir(proc))) {
        pid_t pid = isdigit((unsigned char)entry->d_name[0]) ? (pid_t)strtol(entry->d_name, NULL, 10) : 0;

        if (pid > 0 && ub_pidns_inner(pid, pid) == inner && ub_pidns_of(pid) == ns)
            found = pid;
    }
    if (proc)
        closedir(proc);
    return found;
}

/* ---- what is told per namespace ------------------------------------------------------- */

#define CANNOT 255 /* an exit status: numbers are smaller here */

static int read_number(const char *file)
{
    char text[16] = "";
    int fd = open(file, O_RDONLY | O_CLOEXEC), n = fd >= 0 ? (int)read(fd, text, sizeof(text) - 1) : -1;

    return n > 0 && isdigit((unsigned char)text[0]) ? atoi(text) : CANNOT;
}

static int status_of(pid_t child)
{
    int status;

    return child > 0 && waitpid(child, &status, __WALL) == child && WIFEXITED(status) ? WEXITSTATUS(status) : CANNOT;
}

int ub_pidns_number(pid_t pid, const char *file, int unknown)
{
    pid_t child;
    char path[64];
    int r, fd;

    if (!ub_pidns_is_foreign(pid)) {
        r = read_number(file);
        return r == CANNOT ? unknown : r;
    }
    snprintf(path, sizeof(path), "/proc/%d/ns/pid", (int)pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return unknown;
    child = fork();
    if (child == 0) { /* a namespace is entered by one's children only */
        pid_t inside = setns(fd, CLONE_NEWPID) == 0 ? fork() : -1;

        _exit(inside == 0 ? read_number(file) : status_of(inside));
    }
    close(fd);
    r = status_of(child);
    return r == CANNOT ? unknown : r;
}
