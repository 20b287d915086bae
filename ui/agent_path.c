#include "agent_path.h"

#include "options.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BESIDE "../lib/unblock/libunblock.so"

static int candidate(char *path, size_t size, char *why)
{
    const char *set = getenv("UNBLOCK_AGENT");
    char self[PATH_MAX], *slash;
    ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);

    if (n < 0) { /* told even when UNBLOCK_AGENT spares us the link: the watcher lives on /proc */
        snprintf(why, UB_WHY_MAX,
                 "/proc cannot be read (%s), and nothing can be watched without it: mount -t proc proc /proc",
                 strerror(errno));
        return -EINVAL;
    }
    if (set != NULL && *set != '\0') {
        snprintf(path, size, "%s", set);
        return 0;
    }
    self[n] = '\0';
    slash = strrchr(self, '/');
    snprintf(path, size, "%.*s%s", (int)(slash != NULL ? slash - self + 1 : 0), self, BESIDE);
    return 0;
}

int ub_agent_path(char *path, size_t size, char *why)
{
    char wanted[PATH_MAX], found[PATH_MAX];
    int r = candidate(wanted, sizeof(wanted), why);

    if (r < 0)
        return r;
    if (realpath(wanted, found) == NULL || access(found, R_OK) != 0) {
        snprintf(why, UB_WHY_MAX, "the agent %.300s cannot be read (%s): run make, or set UNBLOCK_AGENT to its path",
                 wanted, strerror(errno));
        return -EINVAL;
    }
    if (strpbrk(found, " :") != NULL || strlen(found) >= size) {
        snprintf(why, UB_WHY_MAX,
                 "the path of the agent, %.300s, has a space or a colon, which LD_PRELOAD cannot hold: install unblock "
                 "elsewhere, or set UNBLOCK_AGENT to a copy with another path",
                 found);
        return -EINVAL;
    }
    memcpy(path, found, strlen(found) + 1);
    return 0;
}
