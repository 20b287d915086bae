/*
 * Between the files tracer/symbols*.c; nobody else includes it. Everything
 * here runs under the one lock of symbols.c unless it says otherwise.
 */
#ifndef UB_TRACER_SYMBOLS_IMPL_H
#define UB_TRACER_SYMBOLS_IMPL_H

#include "symbols.h"

#include <elf.h>

/* ---- symbols_ranges.c: which of many address ranges holds an address ---- */

struct ub_range {
    uint64_t start, end; /* [start, end) */
    uint32_t id;
};

struct ub_ranges {
    struct ub_range *range;
    size_t count, capacity;
};

#define UB_RANGES_NONE UINT32_MAX

/* Adds a range (an empty one is ignored). 0 or -ENOMEM. */
int ub_ranges_add(struct ub_ranges *ranges, uint64_t start, uint64_t end, uint32_t id);

/*
 * Sorts, and where ranges overlap leaves the one with the highest id. To be
 * called once, after the last add. 0 or -ENOMEM (then the table is empty).
 */
int ub_ranges_seal(struct ub_ranges *ranges);

/* The id at `address`, or UB_RANGES_NONE. O(log n). */
uint32_t ub_ranges_find(const struct ub_ranges *ranges, uint64_t address);

void ub_ranges_free(struct ub_ranges *ranges);

/* ---- symbols_image.c: sections of an ELF file in memory, each offset checked ---- */

struct ub_image {
    const uint8_t *bytes;
    uint64_t size;
};

struct ub_section {
    Elf64_Shdr header;
    const char *name;    /* "" when it has none; NUL-terminated inside the file when it was looked at */
    const uint8_t *data; /* header.sh_size bytes inside the image; NULL: none (SHT_NOBITS, or outside the file) */
};

uint32_t ub_image_section_count(const struct ub_image *image);
bool ub_image_section(const struct ub_image *image, uint32_t index, struct ub_section *ret);
bool ub_image_find_section(const struct ub_image *image, const char *name, struct ub_section *ret);
bool ub_image_find_section_type(const struct ub_image *image, uint32_t type, struct ub_section *ret);

/* The build-id note of a separate debug file (program headers of such files are not to be trusted). Length, or 0. */
uint32_t ub_image_build_id(const struct ub_image *image, uint8_t ret_id[UB_BUILD_ID_MAX]);

/* ---- symbols_names.c: raw linker names to what people read ---- */

struct ub_name {
    const char *display;       /* demangled, without the compiler's clone suffixes */
    enum ub_language language; /* as far as the mangling tells */
    bool mangled;
};

/* Interned for the life of the tracer. `raw` need not be terminated within `max` bytes. NULL: empty, or no memory. */
const struct ub_name *ub_names_get(const char *raw, size_t max);

/* The same for text that is no linker name: kept as it is. */
const char *ub_names_keep(const char *text, size_t max);

/* ---- symbols_elf.c: the sorted symbol index ---- */

struct ub_entry {
    uint64_t start, end;        /* ELF virtual addresses; end == start when the size is not known */
    const char *raw;            /* inside an image */
    const struct ub_name *name; /* of `raw`, once asked for */
    uint32_t raw_max;
    bool local, weak, untyped;
};

#define UB_REGIONS_MAX 32

struct ub_index {
    struct ub_entry *entry; /* sorted by start; no two start at the same address */
    size_t count, capacity;
    struct ub_ranges ranges; /* ids are indexes of `entry` */
    struct {
        uint64_t start, end;
    } region[UB_REGIONS_MAX]; /* code: symbols do not reach from one into the next */
    uint32_t region_count;
};

/*
 * Builds the index of `elf` from its own symbol tables and, when `debug` has
 * bytes, that separate debug file's. 0 or -ENOMEM; a file without symbols gives an empty index.
 */
int ub_index_build(const struct ub_elf *elf, const struct ub_image *debug, const struct ub_image *debugdata,
                   struct ub_index *ret);

/* NULL when nothing at or below `vaddr` in its region is known. */
struct ub_entry *ub_index_find(const struct ub_index *index, uint64_t vaddr, bool *ret_nearest);

/* Used by symbols_plt.c. -ENOMEM; symbols outside code are ignored with 0. */
int ub_index_add(struct ub_index *index, const struct ub_entry *entry, uint64_t size);

/* The address and size of a function, or a variable, by its linker name, in one image. -ENOENT. No lock needed. */
int ub_image_lookup(const struct ub_image *image, const char *name, bool data, uint64_t *ret_vaddr, uint64_t *ret_size);

/* ---- symbols_plt.c ---- */

/* Adds NAME@plt for the stubs of procedure linkage tables; on other machines than x86-64 nothing. 0 or -ENOMEM. */
int ub_index_add_plt(struct ub_index *index, const struct ub_image *image);

/* ---- symbols_debugdata.c ---- */

/* Unpacks .gnu_debugdata ("MiniDebugInfo"). -ENOENT: none. -ENOTSUP: no liblzma. -EBADMSG: damaged, or too large. */
int ub_debugdata_load(const struct ub_image *image, struct ub_image *ret);

/* ---- symbols_debugfile.c, symbols_debuginfod.c ---- */

/*
 * The separate debug file of `elf`, looked for in the root directory of `pid`
 * (0, or gone: only in ours). -ENOENT: none. `ret_path` is for the caller to free.
 */
int ub_debugfile_find(pid_t pid, const struct ub_elf *elf, struct ub_image *ret, char **ret_path);

/*
 * The supplementary file that .gnu_debugaltlink of `image` names (`path`: where
 * image came from). -ENOENT: it names none or it is missing; -EINVAL: what it
 * names is not a regular file (libdw must not look for it).
 */
int ub_debugfile_find_alt(pid_t pid, const struct ub_image *image, const char *path, struct ub_image *ret);

/* Asks the servers of DEBUGINFOD_URLS, if there are any; blocks as long as they do. An open descriptor, or -errno. */
int ub_debuginfod_find(const uint8_t *build_id, uint32_t len);

/* ---- symbols_dwarf.c, symbols_inlines.c ---- */

struct ub_dwarf;

/* `path` is that of the file that holds `image`. -ENODATA: no DWARF in it. */
int ub_dwarf_open(pid_t pid, const struct ub_image *image, const char *path, struct ub_dwarf **ret);

/*
 * What DWARF knows about `vaddr`: the functions inlined there, innermost first,
 * and last the function itself. Returns their number. 0 with ret[0].file set:
 * only the line is known. `function` is NULL where a DIE has no name.
 * `ret_mangled`: the last one has a linker name.
 */
uint32_t ub_dwarf_resolve(struct ub_dwarf *dwarf, uint64_t vaddr, struct ub_symbol *ret, uint32_t max,
                          bool *ret_mangled);

/* ---- symbols_jit.c ---- */

/* Code that a runtime described in /tmp/perf-PID.map. false: nothing known. */
bool ub_jit_resolve(pid_t pid, uint64_t address, struct ub_symbol *ret);

#endif
