/*
 * An index of .eh_frame for files that have none: gcc -static links without
 * .eh_frame_hdr. The section is found by the file's section headers; a file
 * stripped of these too cannot be unwound.
 */
#include "unwind_impl.h"

#include "dwarf_bytes.h"

#include <elf.h>
#include <stdlib.h>
#include <string.h>

#define ENTRIES_MAX (1u << 22)

static const void *file_bytes(const struct ub_elf *elf, uint64_t offset, uint64_t len)
{
    return offset <= elf->size && len <= elf->size - offset ? elf->bytes + offset : NULL;
}

static bool find_section(const struct ub_elf *elf, const char *wanted, Elf64_Shdr *ret)
{
    const uint8_t *headers, *names;
    size_t len = strlen(wanted) + 1;
    Elf64_Shdr strings;
    Elf64_Ehdr h;

    if (elf->vdso || elf->size < sizeof(h))
        return false;
    memcpy(&h, elf->bytes, sizeof(h));
    headers = file_bytes(elf, h.e_shoff, (uint64_t)h.e_shnum * sizeof(*ret));
    if (!headers || h.e_shentsize != sizeof(*ret) || h.e_shstrndx >= h.e_shnum)
        return false;
    memcpy(&strings, headers + h.e_shstrndx * sizeof(strings), sizeof(strings));
    names = file_bytes(elf, strings.sh_offset, strings.sh_size);
    for (uint32_t i = 0; names && i < h.e_shnum; i++) {
        memcpy(ret, headers + i * sizeof(*ret), sizeof(*ret));
        if (strings.sh_size >= len && ret->sh_name <= strings.sh_size - len &&
            memcmp(names + ret->sh_name, wanted, len) == 0)
            return ret->sh_type != SHT_NOBITS;
    }
    return false;
}

static int by_start(const void *a, const void *b)
{
    const struct ub_fde_entry *x = a, *y = b;

    return x->start < y->start ? -1 : x->start > y->start;
}

static bool append(struct ub_fde_index *index, uint64_t *capacity, struct ub_fde_entry entry)
{
    if (index->count == *capacity) {
        uint64_t larger = *capacity ? 2 * *capacity : 1024;
        void *p = larger <= ENTRIES_MAX ? realloc(index->entry, larger * sizeof(entry)) : NULL;

        if (!p)
            return false;
        index->entry = p;
        *capacity = larger;
    }
    index->entry[index->count++] = entry;
    return true;
}

/* Entry by entry: a length, then zero for a CIE, else an FDE. What cannot be read is left out. */
static void build(struct ub_fde_index *index, const struct ub_elf *elf)
{
    struct ub_bytes b = {0};
    uint64_t capacity = 0;
    Elf64_Shdr section;

    if (!find_section(elf, ".eh_frame", &section))
        return;
    b.p = ub_elf_image(elf, section.sh_addr, section.sh_size, false);
    if (!b.p)
        return;
    b.end = b.p + section.sh_size;
    for (const uint8_t *first = b.p;;) {
        uint64_t address = section.sh_addr + (uint64_t)(b.p - first), len = ub_bytes_take(&b, 4);
        struct ub_bytes body = b;
        struct ub_fde fde;

        if (b.bad || len == 0 || len >= 0xfffffff0u)
            break;
        ub_bytes_skip(&b, len);
        if (b.bad)
            break;
        if (ub_bytes_take(&body, 4) != 0 && ub_fde_read(elf, address, &fde) == 0 &&
            !append(index, &capacity, (struct ub_fde_entry){fde.start, address}))
            break;
    }
    if (index->count)
        qsort(index->entry, index->count, sizeof(*index->entry), by_start);
}

const struct ub_fde_index *ub_fde_index_get(struct ub_unwinder *u, const struct ub_elf *elf)
{
    struct ub_fde_index *index = &u->index[0];

    for (uint32_t i = 0; i < UB_FDE_INDEXES; i++) {
        if (u->index[i].elf == elf) {
            index = &u->index[i];
            goto found;
        }
        if (u->index[i].used < index->used)
            index = &u->index[i];
    }
    free(index->entry);
    *index = (struct ub_fde_index){.elf = elf};
    build(index, elf);
found:
    index->used = ++u->clock;
    return index;
}

void ub_fde_index_free(struct ub_unwinder *u)
{
    for (uint32_t i = 0; i < UB_FDE_INDEXES; i++)
        free(u->index[i].entry);
}
