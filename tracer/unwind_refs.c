/*
 * Is a function ever reached otherwise than by a call instruction that names it?
 * One pass over the loaded part of its ELF file: no jump to it, no pointer to
 * it, no exported symbol. Then, and only then, the word above its frame follows
 * a direct call of it, and unwind_rbp.c may look for such words.
 */
#include "unwind_impl.h"

#include <elf.h>
#include <string.h>

/* Larger files are not searched: it would read them from disk, for one frame of one stack. */
#define SEARCH_MAX (32u << 20)

#define CALL_REL32 0xe8

/* In code: every rip-relative reference that is not the operand of a call; in position-dependent code the address
 * itself. */
static bool referenced_in_code(const struct ub_elf *elf, const struct ub_elf_segment *s, const struct ub_fde *fde)
{
    const uint8_t *p = ub_elf_image(elf, s->vaddr, s->filesz, false);
    bool absolute = elf->type == ET_EXEC;
    uint32_t word;

    if (!p)
        return true;
    for (uint64_t i = 1; i + sizeof(word) <= s->filesz; i++) {
        uint64_t at = s->vaddr + i;

        memcpy(&word, p + i, sizeof(word));
        if (at + sizeof(word) + (uint64_t)(int64_t)(int32_t)word == fde->start && p[i - 1] != CALL_REL32 &&
            (at < fde->start || at >= fde->end))
            return true;
        if (absolute && word == fde->start)
            return true;
    }
    return false;
}

/* A neighbour may jump with a one-byte distance: jmp rel8, jcc rel8. */
static bool referenced_by_neighbour(const struct ub_elf *elf, const struct ub_fde *fde)
{
    for (int distance = -128; distance < 128; distance++) {
        uint64_t next = fde->start - (uint64_t)(int64_t)distance; /* of the instruction behind the jump */
        const uint8_t *p;

        if (next > fde->start && next <= fde->end)
            continue;
        p = ub_elf_image(elf, next - 2, 2, false);
        if (p && (int8_t)p[1] == distance && (p[0] == 0xeb || (p[0] & 0xf0) == 0x70 || (p[0] & 0xfc) == 0xe0))
            return true;
    }
    return false;
}

/* In data: pointers, the addends of relocations and the values of exported symbols are all aligned words. */
static bool referenced_in_data(const struct ub_elf *elf, const struct ub_elf_segment *s, uint64_t start)
{
    uint64_t skip = -s->vaddr & 7, word;
    const uint8_t *p = ub_elf_image(elf, s->vaddr, s->filesz, true);

    if (!p)
        return true;
    for (uint64_t i = skip; i + sizeof(word) <= s->filesz; i += sizeof(word)) {
        memcpy(&word, p + i, sizeof(word));
        if (word == start)
            return true;
    }
    return false;
}

static bool only_called(const struct ub_elf *elf, const struct ub_fde *fde)
{
    uint64_t total = 0;

    for (uint32_t i = 0; i < elf->segment_count; i++)
        total += elf->segment[i].filesz;
    if (total > SEARCH_MAX || elf->entry == fde->start || referenced_by_neighbour(elf, fde))
        return false;
    for (uint32_t i = 0; i < elf->segment_count; i++) {
        const struct ub_elf_segment *s = &elf->segment[i];

        if (s->filesz &&
            (referenced_in_data(elf, s, fde->start) || (s->flags & PF_X && referenced_in_code(elf, s, fde))))
            return false;
    }
    return true;
}

bool ub_unwind_only_called(struct ub_unwinder *u, const struct ub_elf *elf, const struct ub_fde *fde)
{
    struct ub_unwind_reference *r = &u->reference[(fde->start >> 4) % UB_UNWIND_REFERENCES];

    if (r->elf != elf || r->start != fde->start)
        *r = (struct ub_unwind_reference){elf, fde->start, only_called(elf, fde)};
    return r->only_called;
}
