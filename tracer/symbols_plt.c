/*
 * Names of PLT stubs. Their symbols do not exist; but each jumps through a slot
 * of the GOT, and the relocation of that slot names the function.
 */
#include "symbols_impl.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)

struct slot {
    uint64_t address;
    const char *name;
    uint32_t max;
};

struct slots {
    struct slot *slot;
    size_t count, capacity;
};

static int by_address(const void *a, const void *b)
{
    const struct slot *x = a, *y = b;

    return x->address < y->address ? -1 : x->address > y->address;
}

static int add_slot(struct slots *slots, const struct slot *slot)
{
    if (slots->count == slots->capacity) {
        size_t capacity = slots->capacity ? slots->capacity * 2 : 64;
        struct slot *larger = reallocarray(slots->slot, capacity, sizeof(*larger));

        if (!larger)
            return -ENOMEM;
        slots->slot = larger;
        slots->capacity = capacity;
    }
    slots->slot[slots->count++] = *slot;
    return 0;
}

/* The slots that one relocation section fills with functions of other modules. */
static int collect_slots(const struct ub_image *image, const struct ub_section *rela, struct slots *slots)
{
    struct ub_section symbols, names;

    if (!ub_image_section(image, rela->header.sh_link, &symbols) || !symbols.data ||
        !ub_image_section(image, symbols.header.sh_link, &names) || !names.data)
        return 0;
    for (uint64_t at = 0; at + sizeof(Elf64_Rela) <= rela->header.sh_size; at += sizeof(Elf64_Rela)) {
        Elf64_Rela relocation;
        Elf64_Sym sym;
        struct slot slot;
        int r;

        memcpy(&relocation, rela->data + at, sizeof(relocation));
        if ((ELF64_R_TYPE(relocation.r_info) != R_X86_64_JUMP_SLOT &&
             ELF64_R_TYPE(relocation.r_info) != R_X86_64_GLOB_DAT) ||
            ELF64_R_SYM(relocation.r_info) >= symbols.header.sh_size / sizeof(sym))
            continue;
        memcpy(&sym, symbols.data + ELF64_R_SYM(relocation.r_info) * sizeof(sym), sizeof(sym));
        if (sym.st_name == 0 || sym.st_name >= names.header.sh_size)
            continue;
        slot.address = relocation.r_offset;
        slot.name = (const char *)names.data + sym.st_name;
        slot.max = (uint32_t)(names.header.sh_size - sym.st_name);
        r = add_slot(slots, &slot);
        if (r < 0)
            return r;
    }
    return 0;
}

/* `jmp *disp32(%rip)`, after an optional endbr64 and bnd prefix: the address of the slot it reads. */
static bool decode_stub(const uint8_t *code, size_t len, uint64_t vaddr, uint64_t *ret_slot)
{
    static const uint8_t endbr64[] = {0xf3, 0x0f, 0x1e, 0xfa};
    size_t at = 0;
    int32_t displacement;

    if (len >= sizeof(endbr64) && memcmp(code, endbr64, sizeof(endbr64)) == 0)
        at = sizeof(endbr64);
    if (at < len && code[at] == 0xf2)
        at++;
    if (len - at < 6 || code[at] != 0xff || code[at + 1] != 0x25)
        return false;
    memcpy(&displacement, code + at + 2, sizeof(displacement));
    *ret_slot = vaddr + at + 6 + (uint64_t)(int64_t)displacement;
    return true;
}

/* The name is needed once more by each look-up that hits the stub: allocated for good, like the index. */
static int add_stub(struct ub_index *index, uint64_t vaddr, uint64_t size, const struct slot *slot)
{
    struct ub_entry entry = {.start = vaddr, .local = true};
    size_t len = strnlen(slot->name, slot->max < 4096 ? slot->max : 4096);
    char *name = malloc(len + sizeof("@plt"));

    if (!name)
        return -ENOMEM;
    memcpy(name, slot->name, len);
    memcpy(name + len, "@plt", sizeof("@plt"));
    entry.raw = name;
    entry.raw_max = (uint32_t)(len + 4);
    return ub_index_add(index, &entry, size);
}

static int add_stubs(struct ub_index *index, const struct ub_section *plt, const struct slots *slots)
{
    /* .plt.got has stubs of 8 bytes without endbr64; all others have 16. */
    uint64_t step = plt->header.sh_entsize == 8 ? 8 : 16;

    for (uint64_t at = 0; at + step <= plt->header.sh_size; at += step) {
        struct slot key = {0};
        const struct slot *slot;
        int r;

        if (!decode_stub(plt->data + at, step, plt->header.sh_addr + at, &key.address))
            continue;
        slot = slots->count ? bsearch(&key, slots->slot, slots->count, sizeof(key), by_address) : NULL;
        r = slot ? add_stub(index, plt->header.sh_addr + at, step, slot) : 0;
        if (r < 0)
            return r;
    }
    return 0;
}

int ub_index_add_plt(struct ub_index *index, const struct ub_image *image)
{
    uint32_t count = ub_image_section_count(image);
    struct slots slots = {0};
    struct ub_section s;
    int r = 0;

    for (uint32_t i = 1; i < count && r == 0; i++) {
        if (ub_image_section(image, i, &s) && s.header.sh_type == SHT_RELA && s.header.sh_flags & SHF_ALLOC && s.data)
            r = collect_slots(image, &s, &slots);
    }
    if (slots.count)
        qsort(slots.slot, slots.count, sizeof(*slots.slot), by_address);
    for (uint32_t i = 1; i < count && r == 0; i++) {
        if (ub_image_section(image, i, &s) && strncmp(s.name, ".plt", 4) == 0 && s.data)
            r = add_stubs(index, &s, &slots);
    }
    free(slots.slot);
    return r;
}

#else

int ub_index_add_plt(struct ub_index *index, const struct ub_image *image)
{
    return 0;
}

#endif
