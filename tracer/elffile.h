/*
 * An ELF file that some watched process has mapped (executable, library, vdso),
 * kept open and mapped read-only here. Cached for the life of the tracer by
 * device, inode, size and mtime (the vdso: by its bytes), so that a stack can be
 * unwound and symbolised after the process is gone or the file was replaced.
 *
 * Thread-safe: the cache is locked inside; a struct ub_elf is immutable once
 * returned, but for `symbols`, which tracer/symbols.c guards itself.
 * Contents are hostile: every offset in the file is checked before use.
 */
#ifndef UB_TRACER_ELFFILE_H
#define UB_TRACER_ELFFILE_H

#include "../common/base.h"

#include <sys/types.h>

#define UB_BUILD_ID_MAX     20
#define UB_ELF_SEGMENTS_MAX 16

struct ub_elf_segment {
    uint64_t vaddr;
    uint64_t filesz; /* bytes that come from the file (memsz beyond it is zero, and writable data) */
    uint64_t memsz;
    uint64_t offset;
    uint32_t flags; /* PF_R, PF_W, PF_X */
};

struct ub_symbols; /* tracer/symbols.c */

struct ub_elf {
    char *path;     /* as the process names it (no " (deleted)"); "[vdso]" */
    char *basename; /* last component of path, points into it */
    const uint8_t *bytes;
    uint64_t size;
    uint16_t machine; /* e_machine */
    uint16_t type;    /* ET_EXEC or ET_DYN */
    uint64_t entry;
    uint8_t build_id[UB_BUILD_ID_MAX];
    uint32_t build_id_len; /* 0: none */
    uint32_t segment_count;
    struct ub_elf_segment segment[UB_ELF_SEGMENTS_MAX];
    uint64_t eh_frame_hdr; /* vaddr of PT_GNU_EH_FRAME, 0: none */
    uint64_t eh_frame_hdr_size;
    bool vdso;

    struct ub_symbols *symbols; /* owned by tracer/symbols.c; NULL until first asked */
};

/*
 * The ELF file behind `path` of process `pid` (looked up in its mount namespace
 * through /proc/PID/root; when the file was deleted or replaced through
 * /proc/PID/map_files/START-END). `dev`/`ino` are those of the mapping, used to
 * verify that the right file was opened.
 *
 * Returns 0 and a pointer that stays valid until the tracer ends; -ENOENT when
 * no such file can be opened or the inode differs; -ENOEXEC when it is not an
 * ELF file of this machine; another -errno from open or mmap.
 */
int ub_elf_open(pid_t pid, const char *path, uint64_t map_start, uint64_t map_end, dev_t dev, ino_t ino,
                struct ub_elf **ret_elf);

/* Where the agent's file is, for processes that it was brought into; see elffile.c. Once, before any thread. */
void ub_elf_stand_in(const char *path);

/* The vdso of process `pid`, copied from its memory at [start, end). */
int ub_elf_open_vdso(pid_t pid, uint64_t start, uint64_t end, struct ub_elf **ret_elf);

/* For tests and tools: the ELF file at a path of our own. */
int ub_elf_open_file(const char *path, struct ub_elf **ret_elf);

/*
 * `len` bytes of the file's image at virtual address `vaddr`, or NULL when they
 * are not all inside one file-backed segment that is not writable
 * (`writable_too` lifts that condition: initial contents of data).
 */
const void *ub_elf_image(const struct ub_elf *elf, uint64_t vaddr, uint64_t len, bool writable_too);

#endif
