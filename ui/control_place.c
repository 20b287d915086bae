/*
 * Where control sockets are: PID.sock in a folder that only its user can enter.
 */
#include "control.h"
#include "recording.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define ROOTS_FOLDER "/run/unblock"
#define FOLDER_MAX   80 /* a socket's path has 107 bytes at most, with its name */

static bool fits(const char *path)
{
    return strlen(path) <= FOLDER_MAX;
}

static int make(const char *path)
{
    return fits(path) ? ub_private_folder(path) : -ENAMETOOLONG;
}

int ub_control_folder(char *path, size_t size)
{
    const char *runtime = getenv("XDG_RUNTIME_DIR");
    struct stat st;

    if (geteuid() == 0) {
        snprintf(path, size, ROOTS_FOLDER);
        if (make(path) == 0)
            return 0;
    }
    if (runtime != NULL && *runtime == '/' && stat(runtime, &st) == 0 && st.st_uid == geteuid()) {
        snprintf(path, size, "%s/unblock", runtime);
        if (make(path) == 0)
            return 0;
    }
    snprintf(path, size, "/tmp/unblock-%u", (unsigned)geteuid());
    return make(path);
}

struct search {
    bool (*found)(void *self, const char *path, uid_t owner);
    void *self;
    bool over;
};

/* A folder counts for the user who owns it; one that others may write to is nobody's. */
static void search_folder(struct search *s, const char *folder)
{
    struct stat st;
    const struct dirent *entry;
    DIR *dir;

    if (s->over || lstat(folder, &st) != 0 || !S_ISDIR(st.st_mode) || (st.st_mode & (S_IWGRP | S_IWOTH)) ||
        (st.st_uid != geteuid() && geteuid() != 0))
        return;
    dir = opendir(folder);
    while (dir != NULL && !s->over && (entry = readdir(dir)) != NULL) {
        const char *dot = strrchr(entry->d_name, '.');
        char path[PATH_MAX];

        if (dot == NULL || strcmp(dot, ".sock") != 0)
            continue;
        snprintf(path, sizeof(path), "%s/%s", folder, entry->d_name);
        s->over = !s->found(s->self, path, st.st_uid);
    }
    if (dir != NULL)
        closedir(dir);
}

/* `prefix` begins the names of the folders, or is "": then it is `rest` in each of them. */
static void search_below(struct search *s, const char *parent, const char *prefix, const char *rest)
{
    DIR *dir = opendir(parent);
    const struct dirent *entry;

    while (dir != NULL && !s->over && (entry = readdir(dir)) != NULL) {
        char path[PATH_MAX];

        if (entry->d_name[0] == '.' || strncmp(entry->d_name, prefix, strlen(prefix)) != 0)
            continue;
        snprintf(path, sizeof(path), "%s/%s%s", parent, entry->d_name, rest);
        search_folder(s, path);
    }
    if (dir != NULL)
        closedir(dir);
}

void ub_control_each(bool (*found)(void *self, const char *path, uid_t owner), void *self)
{
    struct search s = {.found = found, .self = self};
    const char *runtime = getenv("XDG_RUNTIME_DIR");
    char path[PATH_MAX];

    search_folder(&s, ROOTS_FOLDER);
    if (runtime != NULL && *runtime == '/' && strncmp(runtime, "/run/user/", 10) != 0) {
        snprintf(path, sizeof(path), "%s/unblock", runtime);
        search_folder(&s, path);
    }
    search_below(&s, "/run/user", "", "/unblock");
    search_below(&s, "/tmp", "unblock-", "");
}
