#include "sleeptime.h"

#include "procfile.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* When the thread was last charged for running: "se.exec_start : 2669211.691000", milliseconds of its CPU's clock. */
static int exec_start(const char *path, uint64_t *ret_ns)
{
    char text[1024], *p;
    double ms;

    if (ub_procfile_read(text, sizeof(text), "%s", path) == 0)
        return -ENOTSUP;
    p = strstr(text, "se.exec_start");
    p = p != NULL ? strchr(p, ':') : NULL;
    if (p == NULL || (ms = strtod(p + 1, NULL)) <= 0)
        return -ENOTSUP;
    *ret_ns = (uint64_t)(ms * 1e6);
    return 0;
}

/* The CPU it last ran on: field 39 of /proc/PID/stat, the 37th after the name. */
static int last_cpu(pid_t pid, pid_t tid)
{
    char stat[UB_STAT_MAX], *p = stat, *rest, *field = NULL;

    ub_procfile_stat(pid, tid, stat);
    if (*stat == '\0')
        return -ESRCH;
    for (int i = 0; i < 37; i++, p = NULL) {
        field = strtok_r(p, " ", &rest);
        if (field == NULL)
            return -ENOTSUP;
    }
    return atoi(field);
}

/* The clock of a CPU, read by going there. */
static int clock_of_cpu(int cpu, uint64_t *ret_ns)
{
    cpu_set_t before, there;
    int r;

    CPU_ZERO(&there);
    if (cpu < 0 || cpu >= CPU_SETSIZE || sched_getaffinity(0, sizeof(before), &before) != 0)
        return -ENOTSUP;
    CPU_SET(cpu, &there);
    if (sched_setaffinity(0, sizeof(there), &there) != 0)
        return -ENOTSUP;
    r = exec_start("/proc/thread-self/sched", ret_ns);
    sched_setaffinity(0, sizeof(before), &before);
    return r;
}

int ub_sleep_time(pid_t pid, pid_t tid, uint64_t *ret_ns)
{
    int cpu = last_cpu(pid, tid), r;
    uint64_t since, now;
    char path[64];

    if (cpu < 0)
        return cpu;
    snprintf(path, sizeof(path), "/proc/%d/task/%d/sched", (int)pid, (int)tid);
    r = exec_start(path, &since);
    if (r == 0)
        r = clock_of_cpu(cpu, &now);
    if (r < 0)
        return r;
    *ret_ns = now > since ? now - since : 0;
    return 0;
}
