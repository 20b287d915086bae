/*
 * Separate debug files, looked for where gdb looks: by build-id under the debug
 * directories, then by the name in .gnu_debuglink beside the file, in .debug/
 * beside it, and under the debug directories. A candidate must prove that it
 * belongs: same build-id, or else the checksum of the link.
 *
 * The debug directories are /usr/lib/debug, or the list in UNBLOCK_DEBUG_PATH
 * (separated by colons).
 */
#include "filemap.h"
#include "symbols_impl.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEBUG_PATH_DEFAULT "/usr/lib/debug"

/* What a debug file must be. */
struct wanted {
    pid_t pid;
    const uint8_t *build_id;
    uint32_t build_id_len;
    uint32_t crc;
    bool has_crc;
};

static void free_string(char **s)
{
    free(*s);
}

/* ---- does it belong? ---- */

static uint32_t crc32_of(const uint8_t *bytes, uint64_t size)
{
    static uint32_t table[256]; /* under the lock of symbols.c */
    uint32_t crc = UINT32_MAX;

    for (uint32_t i = 0; i < 256 && !table[255]; i++) {
        uint32_t c = i;

        for (int bit = 0; bit < 8; bit++)
            c = c & 1 ? 0xedb88320u ^ c >> 1 : c >> 1;
        table[i] = c;
    }
    for (uint64_t i = 0; i < size; i++)
        crc = table[(crc ^ bytes[i]) & 255] ^ crc >> 8;
    return ~crc;
}

static bool belongs(const struct ub_image *image, const struct wanted *w)
{
    uint8_t id[UB_BUILD_ID_MAX];
    uint32_t len = ub_image_build_id(image, id);

    if (len && w->build_id_len)
        return len == w->build_id_len && memcmp(id, w->build_id, len) == 0;
    return w->has_crc && crc32_of(image->bytes, image->size) == w->crc;
}

/* ---- trying one place ---- */

static int try_fd(int fd, const struct wanted *w, struct ub_image *ret)
{
    struct ub_image image = {0};
    int r = ub_filemap_map(fd, &image.bytes, &image.size);

    if (r < 0)
        return r;
    if (!belongs(&image, w)) {
        ub_filemap_unmap(image.bytes, image.size);
        return -ENOENT;
    }
    *ret = image;
    return 0;
}

static int try_root(pid_t root, const char *path, const struct wanted *w, struct ub_image *ret)
{
    UB_CLEANUP(ub_filemap_close) int fd = -1;
    struct stat st;
    int r = ub_filemap_find(root, path, &fd, &st);

    return r < 0 ? r : try_fd(fd, w, ret);
}

/* The process's own files first: in a container they differ from ours. */
static int try_path(const char *path, const struct wanted *w, struct ub_image *ret)
{
    int r = -ENOENT;

    if (w->pid > 0)
        r = try_root(w->pid, path, w, ret);
    return r < 0 ? try_root(0, path, w, ret) : r;
}

/* ---- places ---- */

/* Calls for each debug directory until one answers with 0. `more` is appended. */
static int try_debug_dirs(const char *more, const struct wanted *w, struct ub_image *ret, char **ret_path)
{
    const char *dirs = getenv("UNBLOCK_DEBUG_PATH");
    size_t len;

    for (const char *dir = dirs && *dirs ? dirs : DEBUG_PATH_DEFAULT; *dir; dir += len + (dir[len] == ':')) {
        UB_CLEANUP(free_string) char *path = NULL;

        len = strcspn(dir, ":");
        if (len == 0)
            continue;
        if (asprintf(&path, "%.*s/%s", (int)len, dir, more) < 0) {
            path = NULL;
            return -ENOMEM;
        }
        if (try_path(path, w, ret) == 0) {
            *ret_path = path;
            path = NULL;
            return 0;
        }
    }
    return -ENOENT;
}

static int find_by_build_id(const struct wanted *w, struct ub_image *ret, char **ret_path)
{
    char name[sizeof(".build-id/xx/.debug") + (size_t)2 * UB_BUILD_ID_MAX];
    int len;

    if (w->build_id_len < 2)
        return -ENOENT;
    len = sprintf(name, ".build-id/%02x/", w->build_id[0]);
    for (uint32_t i = 1; i < w->build_id_len; i++)
        len += sprintf(name + len, "%02x", w->build_id[i]);
    sprintf(name + len, ".debug");
    return try_debug_dirs(name, w, ret, ret_path);
}

static int find_beside(const char *dir, int dir_len, const char *between, const char *link, const struct wanted *w,
                       struct ub_image *ret, char **ret_path)
{
    char *path;

    if (asprintf(&path, "%.*s%s%s", dir_len, dir, between, link) < 0)
        return -ENOMEM;
    if (try_path(path, w, ret) < 0) {
        free(path);
        return -ENOENT;
    }
    *ret_path = path;
    return 0;
}

static int find_by_link(const struct ub_elf *elf, const struct ub_image *image, struct wanted *w, struct ub_image *ret,
                        char **ret_path)
{
    int dir_len = (int)(elf->basename - elf->path); /* with the slash at its end */
    UB_CLEANUP(free_string) char *more = NULL;
    struct ub_section s;
    const char *link;
    size_t len;

    if (!ub_image_find_section(image, ".gnu_debuglink", &s) || !s.data)
        return -ENOENT;
    link = (const char *)s.data;
    len = strnlen(link, s.header.sh_size);
    /* The name, padded to a multiple of 4, then the checksum. A name only: no way out of the directory. */
    if (len == 0 || len > NAME_MAX || ((len + 4) & ~3ull) + 4 > s.header.sh_size || memchr(link, '/', len))
        return -ENOENT;
    memcpy(&w->crc, s.data + ((len + 4) & ~3ull), sizeof(w->crc));
    w->has_crc = true;
    if (asprintf(&more, "%.*s%s", dir_len, elf->path, link) < 0) {
        more = NULL;
        return -ENOMEM;
    }
    if (find_beside(elf->path, dir_len, "", link, w, ret, ret_path) == 0 ||
        find_beside(elf->path, dir_len, ".debug/", link, w, ret, ret_path) == 0)
        return 0;
    return try_debug_dirs(more + strspn(more, "/"), w, ret, ret_path);
}

static int find_by_server(const struct wanted *w, struct ub_image *ret, char **ret_path)
{
    UB_CLEANUP(ub_filemap_close) int fd = ub_debuginfod_find(w->build_id, w->build_id_len);
    int r = fd < 0 ? fd : try_fd(fd, w, ret);

    if (r < 0)
        return r;
    *ret_path = strdup(""); /* in the client's cache: nothing lies beside it */
    return *ret_path ? 0 : -ENOMEM;
}

int ub_debugfile_find(pid_t pid, const struct ub_elf *elf, struct ub_image *ret, char **ret_path)
{
    struct ub_image image = {elf->bytes, elf->size};
    struct wanted w = {.pid = pid, .build_id = elf->build_id, .build_id_len = elf->build_id_len};

    if (find_by_build_id(&w, ret, ret_path) == 0 || find_by_link(elf, &image, &w, ret, ret_path) == 0 ||
        find_by_server(&w, ret, ret_path) == 0)
        return 0;
    return -ENOENT;
}

/* ---- the supplementary file of dwz ---- */

/* -EINVAL when something is at `path` that libdw must not open on its own: it would, and might wait for ever. */
static int check_harmless(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 && !S_ISREG(st.st_mode) ? -EINVAL : -ENOENT;
}

int ub_debugfile_find_alt(pid_t pid, const struct ub_image *image, const char *path, struct ub_image *ret)
{
    UB_CLEANUP(free_string) char *found = NULL;
    struct wanted w = {.pid = pid};
    const char *name, *slash = strrchr(path, '/');
    struct ub_section s;
    uint64_t id_len;
    size_t len;

    if (!ub_image_find_section(image, ".gnu_debugaltlink", &s) || !s.data)
        return -ENOENT;
    name = (const char *)s.data;
    len = strnlen(name, s.header.sh_size);
    id_len = s.header.sh_size - len - 1;
    if (len == 0 || len >= PATH_MAX || len == s.header.sh_size || id_len == 0 || id_len > UB_BUILD_ID_MAX)
        return -EINVAL;
    w.build_id = s.data + len + 1;
    w.build_id_len = (uint32_t)id_len;
    if (find_by_build_id(&w, ret, &found) == 0)
        return 0;
    if (name[0] == '/')
        return try_path(name, &w, ret) == 0 ? 0 : check_harmless(name);
    return find_beside(path, slash ? (int)(slash + 1 - path) : 0, "", name, &w, ret, &found);
}
