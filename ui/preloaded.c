#include "preloaded.h"

#include "../common/arena.h"
#include "../tracer/procfile.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static bool read_tree(pid_t pid, uint64_t address, struct ub_tree *ret)
{
    struct iovec local = {ret, sizeof(*ret)}, remote = {(void *)(uintptr_t)address, sizeof(*ret)};

    return process_vm_readv(pid, &local, 1, &remote, 1, 0) == (ssize_t)sizeof(*ret) && ret->magic == UB_TREE_MAGIC &&
           ret->version == UB_TREE_VERSION;
}

/* What its maps hold of ours. */
struct parts {
    bool agent, arena, tree_found;
    struct ub_tree tree;
};

static int read_maps(pid_t pid, struct parts *ret)
{
    char path[64], *line = NULL;
    size_t size = 0;
    FILE *f;

    snprintf(path, sizeof(path), "/proc/%d/maps", (int)pid);
    f = fopen(path, "re");
    if (f == NULL)
        return -errno;
    while (getline(&line, &size, f) > 0) {
        uint64_t from, to;

        ret->agent |= strstr(line, "/libunblock.so") != NULL;
        ret->arena |= strstr(line, "/memfd:" UB_ARENA_NAME) != NULL;
        if (!ret->tree_found && strstr(line, "/dev/zero") != NULL && strstr(line, " rw-s ") != NULL &&
            sscanf(line, "%" SCNx64 "-%" SCNx64, &from, &to) == 2)
            ret->tree_found = read_tree(pid, from, &ret->tree);
    }
    free(line);
    fclose(f);
    return 0;
}

int ub_preloaded_look(pid_t pid, struct ub_preloaded *ret)
{
    struct parts parts = {0};
    size_t len;
    int r = read_maps(pid, &parts);

    if (r < 0)
        return r;
    if (!parts.agent || parts.arena)
        return 0; /* an arena without a watcher is anonymous memory: it does not count here */
    *ret = (struct ub_preloaded){.pid = pid};
    len = ub_procfile_read(ret->program, sizeof(ret->program), "/proc/%d/comm", (int)pid);
    if (len > 0 && ret->program[len - 1] == '\n')
        ret->program[len - 1] = '\0';
    if (parts.tree_found) {
        ret->state = parts.tree.state;
        ret->reason = parts.tree.reason;
        ret->error = parts.tree.error;
        ret->written = parts.tree.written;
        ret->lost = parts.tree.lost;
        ret->write_error = parts.tree.write_error;
    } else {
        ret->state = UB_TREE_OFF;
    }
    return 1;
}

static const char *reason(const struct ub_preloaded *p)
{
    switch (p->reason) {
    case UB_TREE_SECCOMP:
        return "a seccomp filter might kill it for starting a helper: start it with `unblock run`, or set "
               "UNBLOCK_HELPER to the path of unblock if the filter allows clone and execve";
    case UB_TREE_PID1:
        return "it is pid 1 and would be the helper's parent: start it with `unblock run`, or under an init";
    case UB_TREE_SUBREAPER:
        return "it adopts orphans and would be the helper's parent: start it with `unblock run`";
    case UB_TREE_INIT:
        return "pid 1 of its container is preloaded, too: start that one with `unblock run`";
    case UB_TREE_EXEC:
        return "the helper could not be executed: set UNBLOCK_HELPER to a path of unblock that its user may execute";
    case UB_TREE_RESOURCES:
        return "there was no memory, descriptor or process left for a helper: raise its limits";
    case UB_TREE_DIED:
        return "its helpers were killed again and again: see the kernel's log for the OOM killer";
    case UB_TREE_NO_REASON:
        break;
    }
    return "the agent stepped aside: UNBLOCK=0, /run/unblock/disabled, another user's watcher, or a run that is over";
}

static void put_reason(const struct ub_preloaded *p, char *buf)
{
    size_t used = (size_t)snprintf(buf, UB_PRELOADED_WHY, "%s", reason(p));

    if (p->error != 0)
        used += (size_t)snprintf(buf + used, UB_PRELOADED_WHY - used, " (%s)", strerror(p->error));
    if (p->state == UB_TREE_ALONE)
        used += (size_t)snprintf(buf + used, UB_PRELOADED_WHY - used,
                                 "; %" PRIu64 " stalls were recorded by the agent itself, without stacks", p->written);
    if (p->lost > 0)
        snprintf(buf + used, UB_PRELOADED_WHY - used, ", %" PRIu64 " could not be (%s)", p->lost,
                 strerror(p->write_error));
}

void ub_preloaded_why(const struct ub_preloaded *p, char *buf)
{
    if (p->state == UB_TREE_IDLE || p->state == UB_TREE_STARTING)
        snprintf(buf, UB_PRELOADED_WHY, "no event loop seen yet");
    else if (p->state == UB_TREE_READY)
        snprintf(buf, UB_PRELOADED_WHY, "no event loop of its own; others of its tree are watched");
    else
        put_reason(p, buf);
}
