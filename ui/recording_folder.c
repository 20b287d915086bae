/*
 * Where recordings go that nobody named a file for.
 */
#include "recording.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define NAME "unblock"

int ub_private_folder(const char *path)
{
    struct stat st;

    if (mkdir(path, 0700) != 0 && errno != EEXIST)
        return -errno;
    if (lstat(path, &st) != 0)
        return -errno;
    if (!S_ISDIR(st.st_mode))
        return -ENOTDIR;
    return st.st_uid == geteuid() && !(st.st_mode & (S_IWGRP | S_IWOTH)) ? 0 : -EPERM;
}

/* The folders above it as well. */
static void make_parents(const char *path)
{
    char part[PATH_MAX];

    for (const char *slash = strchr(path + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        snprintf(part, sizeof(part), "%.*s", (int)(slash - path), path);
        mkdir(part, 0700);
    }
}

static bool is_usable(const char *path)
{
    make_parents(path);
    return ub_private_folder(path) == 0 && access(path, W_OK | X_OK) == 0;
}

static char *usable(const char *base, const char *rest)
{
    char *path;

    if (base == NULL || *base != '/' || asprintf(&path, "%s%s", base, rest) < 0)
        return NULL;
    if (is_usable(path))
        return path;
    free(path);
    return NULL;
}

char *ub_recording_folder(void)
{
    char *path = NULL, rest[32];

    if (geteuid() == 0)
        path = usable("/var/log", "/" NAME);
    if (path == NULL)
        path = usable(getenv("XDG_STATE_HOME"), "/" NAME);
    if (path == NULL)
        path = usable(getenv("HOME"), "/.local/state/" NAME);
    if (path == NULL) {
        snprintf(rest, sizeof(rest), "/" NAME "-%u", (unsigned)geteuid());
        path = usable("/tmp", rest);
    }
    return path;
}
