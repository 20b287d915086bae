/* Names of addresses: what the sources in tracer/symbols_*.c know, put together. */
#include "symbols_impl.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* Everything known about one ELF file; made when first asked for, kept for the life of the tracer. */
struct ub_symbols {
    struct ub_image debug;     /* separate debug file; bytes NULL: none */
    struct ub_image debugdata; /* unpacked .gnu_debugdata; bytes NULL: none */
    struct ub_index index;
    struct ub_dwarf *dwarf; /* NULL: none */
};

/*
 * Guards elf->symbols and all that hangs from it, the tables of names and of
 * JIT code, and libdw, which is not thread-safe. Nothing else is locked inside
 * but filemap.c's list.
 */
static pthread_mutex_t symbols_lock = PTHREAD_MUTEX_INITIALIZER;

/* ---- gathering ---- */

static bool has_section(const struct ub_image *image, const char *name)
{
    struct ub_section s;

    return image->bytes && ub_image_find_section(image, name, &s) && s.data;
}

static bool has_dwarf(const struct ub_image *image)
{
    return has_section(image, ".debug_info") || has_section(image, ".zdebug_info");
}

static void open_dwarf(pid_t pid, const struct ub_elf *elf, const char *debug_path, struct ub_symbols *s)
{
    struct ub_image image = {elf->bytes, elf->size};

    if (has_dwarf(&image))
        ub_dwarf_open(pid, &image, elf->path, &s->dwarf);
    else if (has_dwarf(&s->debug))
        ub_dwarf_open(pid, &s->debug, debug_path, &s->dwarf);
}

static struct ub_symbols *gather(pid_t pid, const struct ub_elf *elf)
{
    struct ub_image image = {elf->bytes, elf->size};
    struct ub_symbols *s = calloc(1, sizeof(*s));
    char *debug_path = NULL;

    if (!s)
        return NULL;
    if (!elf->vdso && (!has_section(&image, ".symtab") || !has_dwarf(&image)))
        ub_debugfile_find(pid, elf, &s->debug, &debug_path);
    if (!has_section(&image, ".symtab") && !has_section(&s->debug, ".symtab"))
        ub_debugdata_load(&image, &s->debugdata);
    /* Each may fail for want of memory; what the others know is still true. */
    ub_index_build(elf, &s->debug, &s->debugdata, &s->index);
    open_dwarf(pid, elf, debug_path, s);
    free(debug_path);
    return s;
}

static struct ub_symbols *symbols_of(pid_t pid, struct ub_elf *elf)
{
    if (!elf->symbols)
        elf->symbols = gather(pid, elf);
    return elf->symbols;
}

/* ---- resolving ---- */

static const struct ub_name *entry_name(struct ub_entry *entry)
{
    if (!entry->name)
        entry->name = ub_names_get(entry->raw, entry->raw_max);
    return entry->name;
}

/*
 * The outermost function has two names. A symbol that others may call is the one
 * that people know (DWARF calls read __GI___libc_read); of a local one without a
 * linker name the symbol has less to say than DWARF.
 */
static bool prefer_symbol(const struct ub_entry *entry, const struct ub_name *name, bool dwarf_mangled)
{
    return !entry->local || (name->mangled && !dwarf_mangled);
}

static uint32_t resolve_elf(struct ub_symbols *s, uint64_t vaddr, struct ub_symbol *ret, uint32_t max)
{
    bool nearest = false, mangled = false;
    struct ub_entry *entry = ub_index_find(&s->index, vaddr, &nearest);
    const struct ub_name *name = entry ? entry_name(entry) : NULL;
    uint32_t n = s->dwarf ? ub_dwarf_resolve(s->dwarf, vaddr, ret, max, &mangled) : 0;
    struct ub_symbol *function = n ? &ret[n - 1] : &ret[0];

    if (!name || (nearest && function->function))
        return n ? n : 1;
    /* Of a function in several parts the symbol knows where this part starts. */
    function->offset = vaddr - entry->start;
    function->nearest = nearest;
    if (!function->function || prefer_symbol(entry, name, mangled))
        function->function = name->display;
    if (function->language == UB_LANGUAGE_UNKNOWN)
        function->language = name->language;
    return n ? n : 1;
}

uint32_t ub_symbols_resolve(const struct ub_maps *maps, uint64_t address, struct ub_symbol *ret, uint32_t max)
{
    const struct ub_map *map = ub_maps_find(maps, address);
    struct ub_symbols *s;
    uint32_t n = 1;

    if (max == 0)
        return 0;
    ret[0] = (struct ub_symbol){0};
    pthread_mutex_lock(&symbols_lock);
    if (map && map->elf) {
        s = symbols_of(maps->pid, map->elf);
        if (s)
            n = resolve_elf(s, address - map->bias, ret, max);
    } else {
        ub_jit_resolve(maps->pid, address, &ret[0]);
    }
    pthread_mutex_unlock(&symbols_lock);
    return n;
}

static int lookup(struct ub_elf *elf, const char *name, bool data, uint64_t *ret_vaddr, uint64_t *ret_size)
{
    struct ub_image image = {elf->bytes, elf->size};
    struct ub_symbols *s;
    int r = ub_image_lookup(&image, name, data, ret_vaddr, ret_size);

    if (r == 0)
        return 0;
    pthread_mutex_lock(&symbols_lock);
    s = symbols_of(0, elf);
    if (s && s->debug.bytes)
        r = ub_image_lookup(&s->debug, name, data, ret_vaddr, ret_size);
    if (r < 0 && s && s->debugdata.bytes)
        r = ub_image_lookup(&s->debugdata, name, data, ret_vaddr, ret_size);
    pthread_mutex_unlock(&symbols_lock);
    return r;
}

int ub_symbols_lookup(struct ub_elf *elf, const char *name, uint64_t *ret_vaddr, uint64_t *ret_size)
{
    return lookup(elf, name, false, ret_vaddr, ret_size);
}

int ub_symbols_lookup_data(struct ub_elf *elf, const char *name, uint64_t *ret_vaddr, uint64_t *ret_size)
{
    struct ub_image image = {elf->bytes, elf->size};

    return ub_image_lookup(&image, name, true, ret_vaddr, ret_size);
}
