/*
 * Unwind tables of a mapped ELF file, for libunwind and for unwind_rbp.c.
 *
 * The search and the check are ours, over the mapped bytes; libunwind then gets
 * a table of exactly one entry, made up. For one thing that is faster. For another,
 * libunwind 1.6 trusts tables in ways that a hostile file can use against the
 * tracer: it indexes an array by the return-address column of the CIE, divides
 * LONG_MIN by -1 in DW_OP_div, and loops for ever over a backward DW_OP_bra.
 * The first two are refused here, the last one runs into the budget of accesses.
 */
#include "unwind_impl.h"

#include "dwarf_bytes.h"

#include <elf.h>
#include <errno.h>
#include <string.h>

/* Exported by libunwind, declared in none of its headers. */
int _Ux86_64_dwarf_search_unwind_table(unw_addr_space_t as, unw_word_t ip, unw_dyn_info_t *di, unw_proc_info_t *pi,
                                       int need_unwind_info, void *arg);

/* DWARF pointer encodings. */
#define PE_OMIT    0xffu
#define PE_ABSPTR  0x00u
#define PE_UDATA4  0x03u
#define PE_SDATA4  0x0bu
#define PE_SDATA8  0x0cu
#define PE_FORM    0x0fu
#define PE_PCREL   0x10u
#define PE_DATAREL 0x30u

#define RETURN_COLUMN UB_REG_RIP

/* From `vaddr` to the end of its segment. */
static struct ub_bytes image_from(const struct ub_elf *elf, uint64_t vaddr)
{
    struct ub_bytes b = {NULL, NULL, true};

    for (uint32_t i = 0; i < elf->segment_count; i++) {
        const struct ub_elf_segment *s = &elf->segment[i];

        if (vaddr - s->vaddr < s->filesz) {
            uint64_t len = s->filesz - (vaddr - s->vaddr);

            b.p = ub_elf_image(elf, vaddr, len, false);
            b.end = b.p ? b.p + len : NULL;
            b.bad = !b.p;
            break;
        }
    }
    return b;
}

/* A pointer of the given encoding that stands at address `at`; width 0: an encoding that nobody uses here. */
static uint64_t take_pointer(struct ub_bytes *b, uint8_t encoding, uint64_t at, bool *ret_ok)
{
    uint64_t v;

    switch (encoding & PE_FORM) {
    case PE_ABSPTR:
    case PE_SDATA8:
        v = ub_bytes_take(b, 8);
        break;
    case PE_UDATA4:
        v = ub_bytes_take(b, 4);
        break;
    case PE_SDATA4:
        v = (uint64_t)(int64_t)(int32_t)ub_bytes_take(b, 4);
        break;
    default:
        *ret_ok = false;
        return 0;
    }
    if ((encoding & 0x70) == PE_PCREL)
        v += at;
    else if ((encoding & 0x70) != 0)
        *ret_ok = false;
    return v;
}

/* ---- CIE and FDE ---- */

/* The augmentation "zRPLS": only what says how to read the FDE; the rest has its length in front. */
static bool read_augmentation(struct ub_bytes *b, const char *text, uint8_t *ret_encoding)
{
    uint64_t len;

    *ret_encoding = PE_ABSPTR;
    if (text[0] == '\0')
        return true;
    if (text[0] != 'z')
        return false;
    len = ub_bytes_uleb(b);
    if (b->bad || len > (uint64_t)(b->end - b->p))
        return false;
    struct ub_bytes a = {b->p, b->p + len, false};
    ub_bytes_skip(b, len);
    for (const char *c = text + 1; *c; c++) {
        bool ok = true;

        switch (*c) {
        case 'R':
            *ret_encoding = (uint8_t)ub_bytes_take(&a, 1);
            break;
        case 'L':
            ub_bytes_take(&a, 1);
            break;
        case 'P': /* only its length matters */
            take_pointer(&a, (uint8_t)ub_bytes_take(&a, 1) & PE_FORM, 0, &ok);
            break;
        case 'S':
        case 'B':
            break;
        default:
            return false;
        }
        if (!ok)
            return false;
    }
    return !a.bad;
}

/* Length word and body of the entry at `vaddr`; `b` then covers the body alone. */
static bool enter_entry(const struct ub_elf *elf, uint64_t vaddr, struct ub_bytes *b)
{
    uint64_t len;

    *b = image_from(elf, vaddr);
    len = ub_bytes_take(b, 4);
    if (b->bad || len < 4 || len >= 0xfffffff0u || len > (uint64_t)(b->end - b->p))
        return false;
    b->end = b->p + len;
    return true;
}

static int read_cie(const struct ub_elf *elf, uint64_t vaddr, struct ub_fde *ret, uint8_t *ret_encoding)
{
    struct ub_bytes b;
    const char *augmentation;
    uint64_t version, column;
    size_t len;

    if (!enter_entry(elf, vaddr, &b) || ub_bytes_take(&b, 4) != 0)
        return -EBADMSG;
    version = ub_bytes_take(&b, 1);
    augmentation = (const char *)b.p;
    len = strnlen(augmentation, (size_t)(b.end - b.p));
    ub_bytes_skip(&b, len + 1);
    if (b.bad || (version != 1 && version != 3))
        return -EBADMSG;
    ret->code_align = ub_bytes_uleb(&b);
    ret->data_align = ub_bytes_sleb(&b);
    column = version == 1 ? ub_bytes_take(&b, 1) : ub_bytes_uleb(&b);
    if (b.bad || column != RETURN_COLUMN || !read_augmentation(&b, augmentation, ret_encoding) || b.bad)
        return -EBADMSG;
    ret->cie_code = b.p;
    ret->cie_end = b.end;
    /* The FDE has augmentation data exactly when the CIE has. */
    return augmentation[0] == 'z';
}

int ub_fde_read(const struct ub_elf *elf, uint64_t vaddr, struct ub_fde *ret)
{
    struct ub_bytes b;
    uint64_t back, len;
    uint8_t encoding;
    bool ok = true;
    int augmented;

    if (!enter_entry(elf, vaddr, &b))
        return -EBADMSG;
    back = ub_bytes_take(&b, 4);
    if (back == 0 || back > vaddr + 4)
        return -EBADMSG;
    augmented = read_cie(elf, vaddr + 4 - back, ret, &encoding);
    if (augmented < 0)
        return augmented;
    ret->start = take_pointer(&b, encoding, vaddr + 8, &ok);
    len = take_pointer(&b, encoding & PE_FORM, 0, &ok);
    if (augmented)
        ub_bytes_skip(&b, ub_bytes_uleb(&b));
    if (b.bad || !ok || ret->start + len < ret->start)
        return -EBADMSG;
    ret->end = ret->start + len;
    ret->address = vaddr;
    ret->fde_code = b.p;
    ret->fde_end = b.end;
    return 0;
}

/* ---- .eh_frame_hdr ---- */

/* A sorted list of functions: the linker's (pairs of int32, relative to the header), or our own. */
struct table {
    const uint8_t *pair;
    uint64_t base; /* address of the header */
    const struct ub_fde_entry *entry;
    uint64_t count;
};

static int open_table(struct ub_unwinder *u, const struct ub_elf *elf, struct table *ret)
{
    uint64_t vaddr = elf->eh_frame_hdr, size = elf->eh_frame_hdr_size, count;
    const struct ub_fde_index *index;
    struct ub_bytes b;
    const uint8_t *h;
    bool ok = true;

    if (vaddr == 0) {
        index = ub_fde_index_get(u, elf);
        if (!index)
            return -ENOENT;
        *ret = (struct table){.entry = index->entry, .count = index->count};
        return 0;
    }
    h = size >= 12 ? ub_elf_image(elf, vaddr, size, false) : NULL;
    if (!h || h[0] != 1 || h[2] == PE_OMIT || h[3] != (PE_DATAREL | PE_SDATA4))
        return -EBADMSG;
    b = (struct ub_bytes){h + 4, h + size, false};
    take_pointer(&b, h[1], vaddr + 4, &ok);
    count = take_pointer(&b, h[2], 0, &ok);
    if (b.bad || !ok || count > (uint64_t)(b.end - b.p) / 8)
        return -EBADMSG;
    *ret = (struct table){.pair = b.p, .base = vaddr, .count = count};
    return 0;
}

static struct ub_fde_entry table_entry(const struct table *t, uint64_t i)
{
    int32_t pair[2];

    if (!t->pair)
        return t->entry[i];
    memcpy(pair, t->pair + i * 8, sizeof(pair));
    return (struct ub_fde_entry){t->base + (uint64_t)(int64_t)pair[0], t->base + (uint64_t)(int64_t)pair[1]};
}

/* Go has no tables, and a frame pointer in every function (amd64); its linker always leaves this section. */
static bool is_go(const struct ub_elf *elf)
{
    static const char name[] = ".gopclntab";
    Elf64_Ehdr eh;
    Elf64_Shdr sh, names;

    if (!elf->bytes || elf->size < sizeof(eh))
        return false;
    memcpy(&eh, elf->bytes, sizeof(eh));
    if (eh.e_shentsize != sizeof(sh) || eh.e_shstrndx >= eh.e_shnum || eh.e_shoff > elf->size ||
        (elf->size - eh.e_shoff) / sizeof(sh) < eh.e_shnum)
        return false;
    memcpy(&names, elf->bytes + eh.e_shoff + eh.e_shstrndx * sizeof(sh), sizeof(names));
    for (uint16_t i = 0; i < eh.e_shnum; i++) {
        uint64_t at;

        memcpy(&sh, elf->bytes + eh.e_shoff + i * sizeof(sh), sizeof(sh));
        at = names.sh_offset + sh.sh_name;
        if (sh.sh_name < names.sh_size && at >= names.sh_offset && at < elf->size && elf->size - at >= sizeof(name) &&
            memcmp(elf->bytes + at, name, sizeof(name)) == 0)
            return true;
    }
    return false;
}

int ub_fde_find(struct ub_unwinder *u, const struct ub_elf *elf, uint64_t vaddr, struct ub_fde *ret, uint64_t *ret_gap)
{
    struct table t;
    uint64_t low = 0, high;
    int r = open_table(u, elf, &t);

    if (ret_gap)
        *ret_gap = 0;
    if (ret_gap && (r == -ENOENT || (r == 0 && t.count == 0)) && is_go(elf))
        *ret_gap = UINT64_MAX;
    if (r < 0)
        return r;
    for (high = t.count; low < high;) { /* the first entry above */
        uint64_t middle = low + (high - low) / 2;

        if (table_entry(&t, middle).start <= vaddr)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == 0)
        return -ENOENT;
    r = ub_fde_read(elf, table_entry(&t, low - 1).address, ret);
    if (r < 0)
        return r;
    if (vaddr >= ret->start && vaddr < ret->end)
        return 0;
    if (ret_gap && low < t.count && vaddr >= ret->end)
        *ret_gap = table_entry(&t, low).start - ret->end;
    return -ENOENT;
}

/* ---- libunwind's questions ---- */

/*
 * Anything but "no information" as a failure: on UNW_ENOINFO unw_step guesses by
 * the frame pointer, and a guessed frame is worse than none.
 */
int ub_unwind_find_proc_info(unw_addr_space_t as, unw_word_t ip, unw_proc_info_t *pi, int need_info, void *arg)
{
    struct ub_unwinder *u = arg;
    const struct ub_map *m = ub_unwind_map(u, ip);
    unw_dyn_info_t di = {.format = UNW_INFO_FORMAT_REMOTE_TABLE};
    struct ub_fde fde;
    int32_t distance;
    int r;

    if (!m || !m->elf)
        return -UNW_ESTOPUNWIND;
    r = ub_fde_find(u, m->elf, ip - m->bias, &fde, &u->gap);
    u->no_table = r == -ENOENT;
    if (r < 0 || ub_fde_check(&fde, ip - m->bias, NULL) < 0)
        return -UNW_ESTOPUNWIND;
    di.start_ip = m->bias + fde.start;
    di.end_ip = m->bias + fde.end;
    di.u.rti.segbase = m->bias + fde.start;
    di.u.rti.table_data = UB_UNWIND_TABLE_ADDRESS;
    di.u.rti.table_len = 1;
    distance = (int32_t)(fde.address - fde.start);
    if (fde.start + (uint64_t)(int64_t)distance != fde.address)
        return -UNW_ESTOPUNWIND;                   /* more than 2 GB apart */
    u->table = (uint64_t)(uint32_t)distance << 32; /* two int32: the function, its entry, both from segbase */
    u->in_tables = true;
    r = _Ux86_64_dwarf_search_unwind_table(as, ip, &di, pi, need_info, u);
    u->in_tables = false;
    return r < 0 ? -UNW_ESTOPUNWIND : r;
}

void ub_unwind_put_info(unw_addr_space_t as, unw_proc_info_t *pi, void *arg)
{
    /* libunwind frees what it allocated: unwind_info comes from its own pool. */
}
