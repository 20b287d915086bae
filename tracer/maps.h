/*
 * The address space of a process at one moment: an immutable, reference-counted
 * snapshot of /proc/PID/maps, its file mappings tied to struct ub_elf.
 *
 * Any thread may read a snapshot; references are atomic.
 */
#ifndef UB_TRACER_MAPS_H
#define UB_TRACER_MAPS_H

#include "elffile.h"

enum ub_map_kind {
    UB_MAP_ANON,
    UB_MAP_FILE,  /* elf may be NULL: data files, or a file that could not be opened */
    UB_MAP_STACK, /* [stack] */
    UB_MAP_HEAP,  /* [heap] */
    UB_MAP_VDSO,
    UB_MAP_OTHER, /* [vvar], [vsyscall] ... */
};

struct ub_map {
    uint64_t start, end; /* [start, end) */
    uint64_t offset;     /* into the file */
    dev_t dev;           /* of the file as the kernel names it, with `ino`; 0: no file */
    ino_t ino;
    uint32_t prot; /* PROT_* */
    bool shared;   /* with whoever else maps it */
    enum ub_map_kind kind;
    const char *path;   /* owned by the snapshot; "" for anonymous memory */
    struct ub_elf *elf; /* never freed */
    uint64_t bias;      /* address in the process = bias + ELF virtual address; valid when elf is set */
};

struct ub_maps {
    uint32_t refs;
    pid_t pid;
    uint32_t count;
    uint64_t hash;      /* of the text of /proc/PID/maps */
    bool has_arena;     /* the agent's shared memory is mapped */
    struct ub_map *map; /* sorted by start */
    char *text;         /* storage of the paths */
};

/*
 * Reads the maps of `pid`. When nothing changed since `previous` (may be NULL)
 * that snapshot is returned again with one more reference.
 * -ESRCH when the process is gone (or a zombie: its maps are empty), -EACCES when we may not look.
 */
int ub_maps_load(pid_t pid, struct ub_maps *previous, struct ub_maps **ret_maps);

struct ub_maps *ub_maps_ref(struct ub_maps *maps);
void ub_maps_unref(struct ub_maps *maps); /* NULL is fine */

/* The mapping that holds `address`, or NULL. O(log n). */
const struct ub_map *ub_maps_find(const struct ub_maps *maps, uint64_t address);

#endif
