/* Snapshots of address spaces: reading, tying mappings to ELF files, looking up. */
#include "maps_impl.h"

#include "filemap.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define TEXT_FIRST ((size_t)16 << 10)
#define TEXT_MAX   ((size_t)64 << 20) /* 65,530 mappings with long names stay far below */

/* The whole text, NUL-terminated. -ESRCH when it is empty: a zombie, or a kernel thread. */
static int read_text(pid_t pid, char **ret_text, size_t *ret_len)
{
    UB_CLEANUP(ub_filemap_close) int fd = -1;
    size_t len = 0, capacity = 0;
    char name[40], *text = NULL;
    ssize_t n;

    snprintf(name, sizeof(name), "/proc/%d/maps", (int)pid);
    fd = open(name, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT ? -ESRCH : errno == EPERM ? -EACCES : -errno;
    do {
        if (capacity - len < TEXT_FIRST / 2) {
            char *larger;

            capacity = capacity ? capacity * 2 : TEXT_FIRST;
            larger = capacity <= TEXT_MAX ? realloc(text, capacity + 1) : NULL;
            if (!larger) {
                free(text);
                return -ENOMEM;
            }
            text = larger;
        }
        n = read(fd, text + len, capacity - len);
        if (n > 0)
            len += (size_t)n;
    } while (n > 0 || (n < 0 && errno == EINTR));
    if (n < 0 || len == 0) {
        int r = n < 0 ? -errno : -ESRCH;

        free(text);
        return r;
    }
    text[len] = '\0';
    *ret_text = text;
    *ret_len = len;
    return 0;
}

/* Eight bytes a step: the text is some kilobytes, read at each stall. */
static uint64_t hash_text(const char *text, size_t len)
{
    uint64_t hash = 0x9e3779b97f4a7c15ull ^ len;

    while (len) {
        size_t n = len < 8 ? len : 8;
        uint64_t word = 0;

        memcpy(&word, text, n);
        hash = (hash ^ word) * 0xff51afd7ed558ccdull;
        hash ^= hash >> 32;
        text += n;
        len -= n;
    }
    return hash;
}

/* ---- which files to open ---- */

struct file_id {
    dev_t dev;
    ino_t ino;
};

static int by_id(const void *a, const void *b)
{
    const struct file_id *x = a, *y = b;

    if (x->ino != y->ino)
        return x->ino < y->ino ? -1 : 1;
    return x->dev < y->dev ? -1 : x->dev > y->dev;
}

/* The files that have an executable mapping, sorted. */
static int list_executables(const struct ub_maps *maps, struct file_id **ret, size_t *ret_count)
{
    struct file_id *id = calloc(maps->count + 1, sizeof(*id));
    size_t n = 0;

    if (!id)
        return -ENOMEM;
    for (uint32_t i = 0; i < maps->count; i++) {
        const struct ub_map *m = &maps->map[i];

        if (m->kind == UB_MAP_FILE && m->prot & PROT_EXEC)
            id[n++] = (struct file_id){m->dev, m->ino};
    }
    qsort(id, n, sizeof(*id), by_id);
    *ret = id;
    *ret_count = n;
    return 0;
}

/* What `previous` had at the same place. A mapped inode is not reused, so this is the same file. */
static struct ub_elf *from_previous(const struct ub_maps *previous, const struct ub_map *m)
{
    const struct ub_map *old = previous ? ub_maps_find(previous, m->start) : NULL;

    if (!old || old->start != m->start || old->kind != m->kind || old->ino != m->ino || old->dev != m->dev)
        return NULL;
    return old->elf;
}

static void open_map(const struct ub_maps *maps, const struct ub_maps *previous, struct ub_map *m)
{
    const struct ub_map *before = m > maps->map ? m - 1 : NULL;

    m->elf = from_previous(previous, m);
    if (m->elf)
        return;
    if (m->kind == UB_MAP_VDSO) {
        ub_elf_open_vdso(maps->pid, m->start, m->end, &m->elf);
        return;
    }
    /* A file's mappings mostly follow each other. */
    if (before && before->elf && before->ino == m->ino && before->dev == m->dev) {
        m->elf = before->elf;
        return;
    }
    ub_elf_open(maps->pid, m->path, m->start, m->end, m->dev, m->ino, &m->elf);
}

static int open_files(struct ub_maps *maps, const struct ub_maps *previous)
{
    struct file_id *executable;
    size_t count;
    int r = list_executables(maps, &executable, &count);

    if (r < 0)
        return r;
    for (uint32_t i = 0; i < maps->count; i++) {
        struct ub_map *m = &maps->map[i];
        struct file_id id = {m->dev, m->ino};

        if (m->kind == UB_MAP_VDSO || (m->kind == UB_MAP_FILE && bsearch(&id, executable, count, sizeof(id), by_id)))
            open_map(maps, previous, m);
    }
    free(executable);
    return 0;
}

/* ---- where they were loaded ---- */

/* The load bias, if mapping `m` shows segment `s`. The loader maps whole pages. */
static bool bias_of_segment(const struct ub_map *m, const struct ub_elf_segment *s, uint64_t *ret)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    uint64_t first = s->offset & ~(page - 1);

    if (m->offset < first || m->offset >= s->offset + s->filesz)
        return false;
    *ret = m->start - m->offset + s->offset - s->vaddr;
    return true;
}

/* A page at a border of two segments belongs to both: an executable mapping shows the executable one. */
static bool bias_of_executable(const struct ub_map *m, uint64_t *ret)
{
    for (uint32_t i = 0; i < m->elf->segment_count; i++) {
        const struct ub_elf_segment *s = &m->elf->segment[i];

        if (s->flags & PF_X && bias_of_segment(m, s, ret))
            return true;
    }
    return false;
}

/*
 * For a mapping without code: of the segments it may show, one that agrees with
 * the code of the same file beside it, [first, last); else any.
 */
static bool bias_of_data(const struct ub_map *m, const struct ub_map *first, const struct ub_map *last, uint64_t *ret)
{
    bool found = false;

    for (uint32_t i = 0; i < m->elf->segment_count; i++) {
        uint64_t bias;

        if (!bias_of_segment(m, &m->elf->segment[i], &bias))
            continue;
        if (!found)
            *ret = bias;
        found = true;
        for (const struct ub_map *code = first; code < last; code++) {
            if (code->prot & PROT_EXEC && code->elf && code->bias == bias) {
                *ret = bias;
                return true;
            }
        }
    }
    return found;
}

/* All mappings of one file that follow each other. One that shows no segment gets no elf. */
static void place_run(struct ub_map *first, struct ub_map *last)
{
    for (struct ub_map *m = first; m < last; m++) {
        if (m->prot & PROT_EXEC && !bias_of_executable(m, &m->bias))
            m->elf = NULL;
    }
    for (struct ub_map *m = first; m < last; m++) {
        if (!(m->prot & PROT_EXEC) && !bias_of_data(m, first, last, &m->bias))
            m->elf = NULL;
    }
}

static void place_files(struct ub_maps *maps)
{
    struct ub_map *end = maps->map + maps->count, *next;

    for (struct ub_map *m = maps->map; m < end; m = next) {
        next = m + 1;
        if (!m->elf)
            continue;
        while (next < end && next->elf == m->elf)
            next++;
        place_run(m, next);
    }
}

/* ---- snapshots ---- */

int ub_maps_load(pid_t pid, struct ub_maps *previous, struct ub_maps **ret_maps)
{
    struct ub_maps *maps;
    uint64_t hash;
    char *text = NULL;
    size_t len = 0;
    int r = read_text(pid, &text, &len);

    if (r < 0)
        return r;
    hash = hash_text(text, len);
    if (previous && previous->pid != pid)
        previous = NULL;
    if (previous && previous->hash == hash) {
        free(text);
        *ret_maps = ub_maps_ref(previous);
        return 0;
    }
    maps = calloc(1, sizeof(*maps));
    if (!maps) {
        free(text);
        return -ENOMEM;
    }
    maps->refs = 1;
    maps->pid = pid;
    maps->hash = hash;
    maps->text = text;
    r = ub_maps_parse(maps);
    if (r == 0)
        r = open_files(maps, previous);
    if (r < 0) {
        ub_maps_unref(maps);
        return r;
    }
    place_files(maps);
    *ret_maps = maps;
    return 0;
}

struct ub_maps *ub_maps_ref(struct ub_maps *maps)
{
    __atomic_add_fetch(&maps->refs, 1, __ATOMIC_RELAXED);
    return maps;
}

void ub_maps_unref(struct ub_maps *maps)
{
    if (!maps || __atomic_sub_fetch(&maps->refs, 1, __ATOMIC_ACQ_REL) != 0)
        return;
    free(maps->map);
    free(maps->text);
    free(maps);
}

const struct ub_map *ub_maps_find(const struct ub_maps *maps, uint64_t address)
{
    uint32_t low = 0, high = maps->count;

    while (low < high) {
        uint32_t middle = low + (high - low) / 2;

        if (address < maps->map[middle].start)
            high = middle;
        else if (address >= maps->map[middle].end)
            low = middle + 1;
        else
            return &maps->map[middle];
    }
    return NULL;
}
