#include "strangers.h"

#include "preloaded.h"

#include "../tracer/preamble.h"
#include "../tracer/procfile.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define PROCESSES_MAX 256
#define CHILDREN_MAX  4096 /* bytes of their numbers */

static bool is_another_users(pid_t pid)
{
    char path[32];
    struct stat st;

    snprintf(path, sizeof(path), "/proc/%d", (int)pid);
    return stat(path, &st) == 0 && st.st_uid != geteuid();
}

/* Whoever is in one cannot open what belongs to a process outside, whatever its user. */
static bool is_in_another_user_namespace(pid_t pid)
{
    char path[48];
    struct stat own, its;

    snprintf(path, sizeof(path), "/proc/%d/ns/user", (int)pid);
    return stat("/proc/self/ns/user", &own) == 0 && stat(path, &its) == 0 && own.st_ino != its.st_ino;
}

static bool is_told(const struct ub_strangers *s, pid_t pid)
{
    for (uint32_t i = 0; i < s->count; i++)
        if (s->told[i] == pid)
            return true;
    return s->count == UB_STRANGERS_MAX;
}

static void look_at(struct ub_strangers *s, struct ub_watch *watch, pid_t pid)
{
    bool namespace = is_in_another_user_namespace(pid);
    struct ub_preloaded p;
    char name[64];

    if ((!namespace && !is_another_users(pid)) || is_told(s, pid) || ub_preloaded_look(pid, &p) != 1)
        return;
    s->told[s->count++] = pid;
    ub_preamble_thread_name(pid, pid, name, sizeof(name));
    ub_watch_note(watch, "warning",
                  namespace ? "process %d (%s) is not watched: it was executed in another user namespace (unshare, "
                              "bwrap, podman), from which this run's memory cannot be reached: start unblock in there, "
                              "as in `unshare ... unblock run -- CMD`"
                            : "process %d (%s) is not watched: it was executed after a change of user (setpriv, gosu, "
                              "su-exec), and this run's memory is closed to that user: start unblock behind the "
                              "launcher, as in `setpriv ... unblock run -- CMD`",
                  (int)pid, name);
}

void ub_strangers_look(struct ub_strangers *s, struct ub_watch *watch, pid_t pid)
{
    pid_t queue[PROCESSES_MAX];
    uint32_t n = 0;

    queue[n++] = pid;
    for (uint32_t i = 0; i < n; i++) {
        char text[CHILDREN_MAX], *p = text, *end;
        size_t len =
            ub_procfile_read(text, sizeof(text) - 1, "/proc/%d/task/%d/children", (int)queue[i], (int)queue[i]);

        look_at(s, watch, queue[i]);
        text[len] = '\0';
        for (long child; n < PROCESSES_MAX && (child = strtol(p, &end, 10)) > 0; p = end)
            queue[n++] = (pid_t)child;
    }
}
