/* Header of an ELF file: segments, build-id, unwind table. The file is hostile: see each check. */
#include "elffile_impl.h"

#include <elf.h>
#include <errno.h>
#include <string.h>

#if defined(__x86_64__)
#define MACHINE EM_X86_64
#elif defined(__aarch64__)
#define MACHINE EM_AARCH64
#else
#error "unblock runs on x86-64 and aarch64"
#endif

static uint64_t align_up(uint64_t n, uint64_t align)
{
    return (n + align - 1) & ~(align - 1);
}

uint32_t ub_elf_parse_build_id(const uint8_t *notes, uint64_t len, uint64_t align, uint8_t *ret_id)
{
    uint64_t at = 0;

    align = align == 8 ? 8 : 4;
    while (at < len && len - at >= sizeof(Elf64_Nhdr)) {
        uint64_t name_at = at + sizeof(Elf64_Nhdr), desc_at;
        Elf64_Nhdr note;

        memcpy(&note, notes + at, sizeof(note));
        /* 32-bit sizes: none of these sums can wrap. */
        desc_at = align_up(name_at + note.n_namesz, align);
        at = align_up(desc_at + note.n_descsz, align);
        if (desc_at + note.n_descsz > len)
            return 0;
        if (note.n_type == NT_GNU_BUILD_ID && note.n_namesz == 4 && memcmp(notes + name_at, "GNU", 4) == 0 &&
            note.n_descsz > 0 && note.n_descsz <= UB_BUILD_ID_MAX) {
            memcpy(ret_id, notes + desc_at, note.n_descsz);
            return note.n_descsz;
        }
    }
    return 0;
}

static void parse_load(struct ub_elf *elf, const Elf64_Phdr *ph)
{
    struct ub_elf_segment *s = &elf->segment[elf->segment_count];

    if (elf->segment_count == UB_ELF_SEGMENTS_MAX || ph->p_vaddr + ph->p_memsz < ph->p_vaddr ||
        ph->p_offset > elf->size)
        return;
    s->vaddr = ph->p_vaddr;
    s->offset = ph->p_offset;
    s->filesz = ph->p_filesz;
    if (s->filesz > ph->p_memsz)
        s->filesz = ph->p_memsz;
    if (s->filesz > elf->size - s->offset)
        s->filesz = elf->size - s->offset;
    s->memsz = ph->p_memsz;
    s->flags = ph->p_flags;
    elf->segment_count++;
}

static void parse_note(struct ub_elf *elf, const Elf64_Phdr *ph)
{
    if (elf->build_id_len || ph->p_offset > elf->size || ph->p_filesz > elf->size - ph->p_offset)
        return;
    elf->build_id_len = ub_elf_parse_build_id(elf->bytes + ph->p_offset, ph->p_filesz, ph->p_align, elf->build_id);
}

static bool header_is_ours(const Elf64_Ehdr *h)
{
    return memcmp(h->e_ident, ELFMAG, SELFMAG) == 0 && h->e_ident[EI_CLASS] == ELFCLASS64 &&
           h->e_ident[EI_DATA] == ELFDATA2LSB && h->e_machine == MACHINE &&
           (h->e_type == ET_EXEC || h->e_type == ET_DYN) && h->e_phentsize == sizeof(Elf64_Phdr);
}

int ub_elf_parse(struct ub_elf *elf)
{
    Elf64_Ehdr h;

    if (elf->size < sizeof(h))
        return -ENOEXEC;
    memcpy(&h, elf->bytes, sizeof(h));
    /* A count of PN_XNUM (65535) would mean "see section 0"; no loadable file needs that, and here it exceeds the file.
     */
    if (!header_is_ours(&h) || h.e_phoff > elf->size || h.e_phnum > (elf->size - h.e_phoff) / sizeof(Elf64_Phdr))
        return -ENOEXEC;
    elf->machine = h.e_machine;
    elf->type = h.e_type;
    elf->entry = h.e_entry;
    for (uint32_t i = 0; i < h.e_phnum; i++) {
        Elf64_Phdr ph;

        memcpy(&ph, elf->bytes + h.e_phoff + i * sizeof(ph), sizeof(ph));
        if (ph.p_type == PT_LOAD) {
            parse_load(elf, &ph);
        } else if (ph.p_type == PT_NOTE) {
            parse_note(elf, &ph);
        } else if (ph.p_type == PT_GNU_EH_FRAME) {
            elf->eh_frame_hdr = ph.p_vaddr;
            elf->eh_frame_hdr_size = ph.p_memsz;
        }
    }
    return elf->segment_count ? 0 : -ENOEXEC;
}

const void *ub_elf_image(const struct ub_elf *elf, uint64_t vaddr, uint64_t len, bool writable_too)
{
    for (uint32_t i = 0; i < elf->segment_count; i++) {
        const struct ub_elf_segment *s = &elf->segment[i];
        uint64_t at = vaddr - s->vaddr;

        if (vaddr < s->vaddr || at > s->filesz || len > s->filesz - at)
            continue;
        if (s->flags & PF_W && !writable_too)
            continue;
        return elf->bytes + s->offset + at;
    }
    return NULL;
}
