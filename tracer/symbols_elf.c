/* The symbol index of an ELF file: .symtab (its own or a separate debug file's), .gnu_debugdata, else .dynsym. */
#include "symbols_impl.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- code regions ---- */

static void add_region(struct ub_index *index, uint64_t start, uint64_t size)
{
    if (index->region_count == UB_REGIONS_MAX || size == 0 || start + size < start)
        return;
    index->region[index->region_count].start = start;
    index->region[index->region_count].end = start + size;
    index->region_count++;
}

/* Executable sections; where the section headers were stripped away, executable segments. */
static void find_regions(const struct ub_elf *elf, struct ub_index *index)
{
    struct ub_image image = {elf->bytes, elf->size};
    uint32_t count = ub_image_section_count(&image);
    struct ub_section s;

    for (uint32_t i = 1; i < count; i++) {
        if (ub_image_section(&image, i, &s) && s.header.sh_type == SHT_PROGBITS && s.header.sh_flags & SHF_EXECINSTR &&
            s.header.sh_flags & SHF_ALLOC)
            add_region(index, s.header.sh_addr, s.header.sh_size);
    }
    for (uint32_t i = 0; index->region_count == 0 && i < elf->segment_count; i++) {
        if (elf->segment[i].flags & PF_X)
            add_region(index, elf->segment[i].vaddr, elf->segment[i].filesz);
    }
}

/* The region of `vaddr`, or -1. */
static int region_of(const struct ub_index *index, uint64_t vaddr)
{
    for (uint32_t i = 0; i < index->region_count; i++) {
        if (vaddr >= index->region[i].start && vaddr < index->region[i].end)
            return (int)i;
    }
    return -1;
}

/* ---- collecting ---- */

int ub_index_add(struct ub_index *index, const struct ub_entry *entry, uint64_t size)
{
    int region = region_of(index, entry->start);
    uint64_t room;

    if (region < 0)
        return 0;
    if (index->count == index->capacity) {
        size_t capacity = index->capacity ? index->capacity * 2 : 256;
        struct ub_entry *larger = reallocarray(index->entry, capacity, sizeof(*larger));

        if (!larger)
            return -ENOMEM;
        index->entry = larger;
        index->capacity = capacity;
    }
    room = index->region[region].end - entry->start;
    index->entry[index->count] = *entry;
    index->entry[index->count].end = entry->start + (size < room ? size : room);
    index->count++;
    return 0;
}

/* ARM's marks between code and data ($x, $d) are not names. */
static bool is_code_symbol(const Elf64_Sym *sym, const char *name)
{
    unsigned type = ELF64_ST_TYPE(sym->st_info);

    if (sym->st_shndx == SHN_UNDEF || sym->st_shndx == SHN_ABS || sym->st_shndx == SHN_COMMON)
        return false;
    return (type == STT_FUNC || type == STT_GNU_IFUNC || type == STT_NOTYPE) && name[0] != '\0' && name[0] != '$';
}

struct symbol_table {
    const uint8_t *symbols;
    size_t count;
    const char *names;
    uint64_t names_size;
};

static bool open_table(const struct ub_image *image, uint32_t type, struct symbol_table *ret)
{
    struct ub_section symbols, names;

    if (!ub_image_find_section_type(image, type, &symbols) || !symbols.data ||
        symbols.header.sh_entsize != sizeof(Elf64_Sym) || !ub_image_section(image, symbols.header.sh_link, &names) ||
        !names.data)
        return false;
    ret->symbols = symbols.data;
    ret->count = symbols.header.sh_size / sizeof(Elf64_Sym);
    ret->names = (const char *)names.data;
    ret->names_size = names.header.sh_size;
    return true;
}

/* A variable that this file defines. */
static bool is_data_symbol(const Elf64_Sym *sym, const char *name)
{
    return sym->st_shndx != SHN_UNDEF && sym->st_shndx != SHN_ABS && sym->st_shndx != SHN_COMMON &&
           ELF64_ST_TYPE(sym->st_info) == STT_OBJECT && name[0] != '\0';
}

/* The i-th symbol if it names code, or with `data` a variable. The name ends with a NUL or at *ret_max. */
static const char *table_symbol(const struct symbol_table *table, size_t i, bool data, Elf64_Sym *ret_sym,
                                uint32_t *ret_max)
{
    const char *name;
    uint64_t max;

    memcpy(ret_sym, table->symbols + i * sizeof(*ret_sym), sizeof(*ret_sym));
    if (ret_sym->st_name >= table->names_size)
        return NULL;
    name = table->names + ret_sym->st_name;
    max = table->names_size - ret_sym->st_name;
    *ret_max = max < UINT32_MAX ? (uint32_t)max : UINT32_MAX;
    return (data ? is_data_symbol(ret_sym, name) : is_code_symbol(ret_sym, name)) ? name : NULL;
}

/* 1: the table was there. 0: it was not. */
static int collect(struct ub_index *index, const struct ub_image *image, uint32_t type)
{
    struct symbol_table table;

    if (!open_table(image, type, &table))
        return 0;
    for (size_t i = 0; i < table.count; i++) {
        struct ub_entry entry = {0};
        Elf64_Sym sym;
        int r;

        entry.raw = table_symbol(&table, i, false, &sym, &entry.raw_max);
        if (!entry.raw)
            continue;
        entry.start = sym.st_value;
        entry.local = ELF64_ST_BIND(sym.st_info) == STB_LOCAL;
        entry.weak = ELF64_ST_BIND(sym.st_info) == STB_WEAK;
        entry.untyped = ELF64_ST_TYPE(sym.st_info) == STT_NOTYPE;
        r = ub_index_add(index, &entry, sym.st_size);
        if (r < 0)
            return r;
    }
    return 1;
}

/* ---- one name for each address ---- */

static uint32_t underscores(const struct ub_entry *e)
{
    uint32_t n = 0;

    while (n < e->raw_max && e->raw[n] == '_')
        n++;
    return n;
}

/*
 * Which of two aliases people know: a typed symbol before a label, an exported
 * one before a local one (write, not __GI___libc_write), the fewest leading
 * underscores (write, not __write), the shortest (open, not open64). The rest
 * only makes the choice the same each time.
 */
static int by_preference(const struct ub_entry *a, const struct ub_entry *b)
{
    size_t a_len, b_len;

    if (a->untyped != b->untyped)
        return a->untyped - b->untyped;
    if (a->local != b->local)
        return a->local - b->local;
    if (underscores(a) != underscores(b))
        return underscores(a) < underscores(b) ? -1 : 1;
    a_len = strnlen(a->raw, a->raw_max);
    b_len = strnlen(b->raw, b->raw_max);
    if (a_len != b_len)
        return a_len < b_len ? -1 : 1;
    if (a->weak != b->weak)
        return a->weak - b->weak;
    return memcmp(a->raw, b->raw, a_len);
}

static int by_address(const void *a, const void *b)
{
    const struct ub_entry *x = a, *y = b;

    if (x->start != y->start)
        return x->start < y->start ? -1 : 1;
    return by_preference(x, y);
}

static void merge_aliases(struct ub_index *index)
{
    size_t kept = 0;

    for (size_t i = 0; i < index->count; i++) {
        const struct ub_entry *e = &index->entry[i];

        if (kept == 0 || index->entry[kept - 1].start != e->start)
            index->entry[kept++] = *e;
        else if (index->entry[kept - 1].end < e->end)
            index->entry[kept - 1].end = e->end;
    }
    index->count = kept;
}

/*
 * Symbols without a size. Inside a function they are labels and go. Elsewhere,
 * when every function is in the table, they reach up to the next symbol
 * (hand-written assembly); else their size stays unknown.
 */
static void settle_sizes(struct ub_index *index, bool complete)
{
    uint64_t covered = 0;
    size_t kept = 0;

    for (size_t i = 0; i < index->count; i++) {
        struct ub_entry e = index->entry[i];

        if (e.end == e.start) {
            uint64_t end = index->region[region_of(index, e.start)].end;

            if (e.start < covered)
                continue;
            if (i + 1 < index->count && index->entry[i + 1].start < end)
                end = index->entry[i + 1].start;
            if (complete)
                e.end = end;
        } else if (e.end > covered) {
            covered = e.end;
        }
        index->entry[kept++] = e;
    }
    index->count = kept;
}

static int seal(struct ub_index *index, bool complete)
{
    if (index->count == 0)
        return 0;
    qsort(index->entry, index->count, sizeof(*index->entry), by_address);
    merge_aliases(index);
    settle_sizes(index, complete);
    for (size_t i = 0; i < index->count; i++) {
        int r = ub_ranges_add(&index->ranges, index->entry[i].start, index->entry[i].end, (uint32_t)i);

        if (r < 0)
            return r;
    }
    return ub_ranges_seal(&index->ranges);
}

int ub_index_build(const struct ub_elf *elf, const struct ub_image *debug, const struct ub_image *debugdata,
                   struct ub_index *ret)
{
    struct ub_image image = {elf->bytes, elf->size};
    struct ub_index index = {0};
    bool complete = false;
    int r;

    find_regions(elf, &index);
    r = collect(&index, &image, SHT_SYMTAB);
    if (r == 0 && debug->bytes)
        r = collect(&index, debug, SHT_SYMTAB);
    if (r > 0)
        complete = true;
    if (r == 0) {
        r = collect(&index, &image, SHT_DYNSYM);
        if (r >= 0 && debugdata->bytes) {
            r = collect(&index, debugdata, SHT_SYMTAB);
            complete = r > 0;
        }
    }
    if (r >= 0)
        r = ub_index_add_plt(&index, &image);
    if (r >= 0)
        r = seal(&index, complete);
    if (r < 0) {
        free(index.entry);
        ub_ranges_free(&index.ranges);
        return r;
    }
    *ret = index;
    return 0;
}

/* ---- looking up ---- */

struct ub_entry *ub_index_find(const struct ub_index *index, uint64_t vaddr, bool *ret_nearest)
{
    uint32_t id = ub_ranges_find(&index->ranges, vaddr);
    size_t low = 0, high = index->count;

    *ret_nearest = false;
    if (id != UB_RANGES_NONE)
        return &index->entry[id];
    while (low < high) {
        size_t middle = low + (high - low) / 2;

        if (index->entry[middle].start <= vaddr)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == 0 || region_of(index, index->entry[low - 1].start) != region_of(index, vaddr))
        return NULL;
    *ret_nearest = index->entry[low - 1].start != vaddr;
    return &index->entry[low - 1];
}

static bool names_equal(const char *raw, uint32_t max, const char *name)
{
    size_t len = strlen(name);

    if (len > max || memcmp(raw, name, len) != 0)
        return false;
    return len == max || raw[len] == '\0' || raw[len] == '@';
}

int ub_image_lookup(const struct ub_image *image, const char *name, bool data, uint64_t *ret_vaddr, uint64_t *ret_size)
{
    static const uint32_t types[] = {SHT_SYMTAB, SHT_DYNSYM};
    bool found = false;

    for (size_t t = 0; t < UB_ARRAY_LEN(types) && !found; t++) {
        struct symbol_table table;

        if (!open_table(image, types[t], &table))
            continue;
        for (size_t i = 0; i < table.count; i++) {
            uint32_t max;
            Elf64_Sym sym;
            const char *raw = table_symbol(&table, i, data, &sym, &max);
            bool local = ELF64_ST_BIND(sym.st_info) == STB_LOCAL;

            if (!raw || !names_equal(raw, max, name) || (found && local))
                continue;
            found = true;
            *ret_vaddr = sym.st_value;
            *ret_size = sym.st_size;
            if (!local)
                break;
        }
    }
    return found ? 0 : -ENOENT;
}
