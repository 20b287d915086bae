/*
 * DWARF: which unit holds an address, and which line. One table of all units'
 * ranges is built when a file is opened; everything else is read unit by unit
 * when an address asks for it. (Asking libdwfl for each address is thousands
 * of times slower.)
 */
#include "filemap.h"
#include "symbols_dwarf.h"

#include <dwarf.h>
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct ub_dwarf {
    Dwarf *dwarf;
    struct ub_unit *unit;
    uint32_t count, capacity;
    struct ub_ranges ranges; /* ids are indexes of `unit` */
};

static void init_libelf(void)
{
    elf_version(EV_CURRENT);
}

/* ---- opening ---- */

/* libelf and libdw see memory only, never a file name that the watched process chose. */
static Dwarf *begin(const struct ub_image *image)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    Dwarf *dwarf;
    Elf *elf;

    pthread_once(&once, init_libelf);
    /* libelf decompresses sections in place: it writes to their headers. */
    if (ub_filemap_make_writable(image->bytes, image->size) < 0)
        return NULL;
    elf = elf_memory((char *)image->bytes, image->size);
    if (!elf)
        return NULL;
    dwarf = dwarf_begin_elf(elf, DWARF_C_READ, NULL);
    if (!dwarf)
        elf_end(elf);
    return dwarf;
}

static void end(Dwarf *dwarf)
{
    Elf *elf = dwarf ? dwarf_getelf(dwarf) : NULL;

    dwarf_end(dwarf);
    elf_end(elf);
}

static int attach_alt(pid_t pid, const struct ub_image *image, const char *path, Dwarf *dwarf)
{
    struct ub_image alt;
    int r = ub_debugfile_find_alt(pid, image, path, &alt);

    if (r < 0)
        return r == -ENOENT ? 0 : r;
    dwarf_setalt(dwarf, begin(&alt));
    return 0;
}

static int add_unit(struct ub_dwarf *d, const struct ub_unit *unit)
{
    if (d->count == d->capacity) {
        uint32_t capacity = d->capacity ? d->capacity * 2 : 32;
        struct ub_unit *larger = reallocarray(d->unit, capacity, sizeof(*larger));

        if (!larger)
            return -ENOMEM;
        d->unit = larger;
        d->capacity = capacity;
    }
    d->unit[d->count++] = *unit;
    return 0;
}

static int add_unit_ranges(struct ub_dwarf *d, uint32_t id)
{
    Dwarf_Addr base, start, end;
    ptrdiff_t at = 0;

    while ((at = dwarf_ranges(&d->unit[id].die, at, &base, &start, &end)) > 0) {
        /* Code that the linker threw away sits at 0. */
        int r = start ? ub_ranges_add(&d->ranges, start, end, id) : 0;

        if (r < 0)
            return r;
    }
    return 0;
}

static int read_units(struct ub_dwarf *d, uint64_t size)
{
    Dwarf_CU *cu = NULL;
    uint64_t before = 0;
    uint8_t type;
    struct ub_unit unit = {0};

    while (dwarf_get_units(d->dwarf, cu, &cu, NULL, &type, &unit.die, NULL) == 0) {
        uint64_t offset = dwarf_dieoffset(&unit.die);
        int r;

        if (d->count)
            d->unit[d->count - 1].bytes = offset > before ? offset - before : size;
        before = offset;
        unit.cu = cu;
        unit.bytes = size;
        unit.skeleton = type == DW_UT_skeleton;
        r = add_unit(d, &unit);
        if (r == 0)
            r = add_unit_ranges(d, d->count - 1);
        if (r < 0)
            return r;
    }
    return ub_ranges_seal(&d->ranges);
}

int ub_dwarf_open(pid_t pid, const struct ub_image *image, const char *path, struct ub_dwarf **ret)
{
    struct ub_dwarf *d = calloc(1, sizeof(*d));
    int r = -ENODATA;

    if (!d)
        return -ENOMEM;
    d->dwarf = begin(image);
    if (d->dwarf)
        r = attach_alt(pid, image, path, d->dwarf);
    if (r == 0)
        r = read_units(d, image->size);
    if (r < 0) {
        end(d->dwarf);
        ub_ranges_free(&d->ranges);
        free(d->unit);
        free(d);
        return r;
    }
    *ret = d;
    return 0;
}

/* ---- one unit ---- */

static enum ub_language language_of(Dwarf_Die *die)
{
    switch (dwarf_srclang(die)) {
    case DW_LANG_C:
    case DW_LANG_C89:
    case DW_LANG_C99:
    case DW_LANG_C11:
    case 0x2c: /* DW_LANG_C17 */
        return UB_LANGUAGE_C;
    case DW_LANG_C_plus_plus:
    case DW_LANG_C_plus_plus_03:
    case DW_LANG_C_plus_plus_11:
    case DW_LANG_C_plus_plus_14:
    case 0x2b: /* DW_LANG_C_plus_plus_20 */
    case 0x2a: /* DW_LANG_C_plus_plus_17 */
        return UB_LANGUAGE_CXX;
    case DW_LANG_Rust:
        return UB_LANGUAGE_RUST;
    default:
        return UB_LANGUAGE_UNKNOWN;
    }
}

static const char *string_of(Dwarf_Die *die, unsigned name, unsigned gnu_name)
{
    Dwarf_Attribute attribute;

    if (!dwarf_attr(die, name, &attribute) && !dwarf_attr(die, gnu_name, &attribute))
        return NULL;
    return dwarf_formstring(&attribute);
}

/* libdw opens .dwo files by the names in the DWARF: let it only where that opens a regular file. */
static bool is_dwo_readable(Dwarf_Die *die)
{
    const char *name = string_of(die, DW_AT_dwo_name, DW_AT_GNU_dwo_name);
    const char *dir = string_of(die, DW_AT_comp_dir, DW_AT_comp_dir);
    char path[PATH_MAX];
    struct stat st;

    if (!name)
        return false;
    if (name[0] == '/' || !dir)
        dir = "";
    if (snprintf(path, sizeof(path), "%s%s%s", dir, *dir ? "/" : "", name) >= (int)sizeof(path))
        return false;
    return path[0] == '/' && stat(path, &st) == 0 && S_ISREG(st.st_mode);
}

static void open_unit(struct ub_unit *unit)
{
    unit->opened = true;
    unit->body = unit->die;
    if (unit->skeleton && is_dwo_readable(&unit->die)) {
        Dwarf_Die split = {0};

        if (dwarf_cu_info(unit->cu, NULL, NULL, NULL, &split, NULL, NULL, NULL) == 0 &&
            dwarf_tag(&split) == DW_TAG_compile_unit)
            unit->body = split;
    }
    unit->language = language_of(&unit->body);
}

static void fill_line(struct ub_unit *unit, uint64_t vaddr, struct ub_symbol *ret)
{
    Dwarf_Line *line = dwarf_getsrc_die(&unit->die, vaddr);
    int number;

    if (!line)
        return;
    ret->file = dwarf_linesrc(line, NULL, NULL);
    if (dwarf_lineno(line, &number) == 0 && number > 0)
        ret->line = (uint32_t)number;
}

/* A name relative to where the compiler ran says nothing elsewhere; gcc writes such names when it was given them. */
static const char *absolute(const char *file, const char *dir)
{
    char path[PATH_MAX];

    if (!file || file[0] == '/' || !dir || dir[0] != '/' ||
        snprintf(path, sizeof(path), "%s/%s", dir, file) >= (int)sizeof(path))
        return file;
    return ub_names_keep(path, sizeof(path));
}

uint32_t ub_dwarf_resolve(struct ub_dwarf *dwarf, uint64_t vaddr, struct ub_symbol *ret, uint32_t max,
                          bool *ret_mangled)
{
    uint32_t id = ub_ranges_find(&dwarf->ranges, vaddr), n;
    const char *dir;
    struct ub_unit *unit;

    *ret_mangled = false;
    if (id == UB_RANGES_NONE)
        return 0;
    unit = &dwarf->unit[id];
    if (!unit->opened)
        open_unit(unit);
    ret[0] = (struct ub_symbol){0};
    fill_line(unit, vaddr, &ret[0]);
    n = ub_unit_resolve(unit, vaddr, ret, max, ret_mangled);
    dir = string_of(&unit->die, DW_AT_comp_dir, DW_AT_comp_dir);
    for (uint32_t i = 0; i < (n ? n : 1); i++) {
        ret[i].language = unit->language;
        ret[i].file = absolute(ret[i].file, dir);
    }
    return n;
}
