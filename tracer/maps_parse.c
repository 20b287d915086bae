/* The text of /proc/PID/maps. Paths are chosen by whoever runs the process: see unescape(). */
#include "maps_impl.h"

#include "../common/arena.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysmacros.h>

static const char *parse_number(const char *s, int base, char end, uint64_t *ret)
{
    uint64_t n = 0;
    const char *start = s;

    for (;; s++) {
        uint64_t digit;

        if (*s >= '0' && *s <= '9')
            digit = (uint64_t)(*s - '0');
        else if (base == 16 && *s >= 'a' && *s <= 'f')
            digit = (uint64_t)(*s - 'a') + 10;
        else
            break;
        n = n * (uint64_t)base + digit;
    }
    if (s == start || *s != end)
        return NULL;
    *ret = n;
    return s + 1;
}

/* The kernel writes a newline in a path as \012 and nothing else specially. */
static void unescape(char *s)
{
    char *out = s;

    while (*s) {
        if (strncmp(s, "\\012", 4) == 0) {
            *out++ = '\n';
            s += 4;
        } else {
            *out++ = *s++;
        }
    }
    *out = '\0';
}

static enum ub_map_kind kind_of(const struct ub_map *m)
{
    if (strncmp(m->path, "[stack", 6) == 0)
        return UB_MAP_STACK;
    if (strcmp(m->path, "[heap]") == 0)
        return UB_MAP_HEAP;
    if (strcmp(m->path, "[vdso]") == 0)
        return UB_MAP_VDSO;
    if (m->path[0] == '\0' || strncmp(m->path, "[anon", 5) == 0)
        return UB_MAP_ANON;
    return m->path[0] == '[' || m->ino == 0 ? UB_MAP_OTHER : UB_MAP_FILE;
}

/* "start-end perms offset major:minor inode   path" */
static bool parse_line(char *line, struct ub_map *m)
{
    uint64_t dev_major, dev_minor, inode;
    const char *s = line;

    memset(m, 0, sizeof(*m));
    if (!(s = parse_number(s, 16, '-', &m->start)) || !(s = parse_number(s, 16, ' ', &m->end)))
        return false;
    if (strnlen(s, 5) < 5 || m->end <= m->start)
        return false;
    m->prot = (s[0] == 'r' ? PROT_READ : 0u) | (s[1] == 'w' ? PROT_WRITE : 0u) | (s[2] == 'x' ? PROT_EXEC : 0u);
    m->shared = s[3] == 's';
    s += 5;
    if (!(s = parse_number(s, 16, ' ', &m->offset)) || !(s = parse_number(s, 16, ':', &dev_major)) ||
        !(s = parse_number(s, 16, ' ', &dev_minor)))
        return false;
    inode = strtoull(s, (char **)&s, 10);
    s += strspn(s, " ");
    unescape(line + (s - line));
    m->path = s;
    m->dev = makedev(dev_major, dev_minor);
    m->ino = inode;
    m->kind = kind_of(m);
    return true;
}

static uint32_t count_lines(const char *text)
{
    uint32_t n = 1;

    for (; (text = strchr(text, '\n')); text++)
        n++;
    return n;
}

static int by_start(const void *a, const void *b)
{
    const struct ub_map *x = a, *y = b;

    return x->start < y->start ? -1 : x->start > y->start;
}

int ub_maps_parse(struct ub_maps *maps)
{
    char *line = maps->text, *next;
    bool sorted = true;

    maps->map = calloc(count_lines(line), sizeof(*maps->map));
    if (!maps->map)
        return -ENOMEM;
    for (; *line; line = next) {
        struct ub_map *m = &maps->map[maps->count];

        next = strchr(line, '\n');
        if (next)
            *next++ = '\0';
        else
            next = line + strlen(line);
        if (!parse_line(line, m))
            continue;
        if (m->kind == UB_MAP_FILE && strcmp(m->path, "/memfd:" UB_ARENA_NAME " (deleted)") == 0)
            maps->has_arena = true;
        if (maps->count && m->start < m[-1].end)
            sorted = false;
        maps->count++;
    }
    /* A mapping that moved while the file was read in pieces may appear twice or late. */
    if (!sorted)
        qsort(maps->map, maps->count, sizeof(*maps->map), by_start);
    return 0;
}
