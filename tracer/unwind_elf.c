/*
 * Unwind tables of a mapped ELF file, for libunwind and for unwind_rbp.c.
 *
 * The search and the check are ours, over the mapped bytes; libunwind then gets
 * a table of exactly one entry. For one thing that is faster. For another,
 * libunwind 1.6 trusts tables in ways that a hostile file can use against the
 * tracer: it indexes an array by the return-address column of the CIE, divides
 * LONG_MIN by -1 in DW_OP_div, and loops for ever over a backward DW_OP_bra.
 * The first two are refused here, the last one runs into the budget of accesses.
 */
#include "unwind_impl.h"

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
#define REMEMBER_MAX  16
#define OP_DEREF      0x06
#define OP_BREG_RBP   0x76
#define OP_DIV        0x1b

/* ---- bytes ---- */

struct bytes {
    const uint8_t *p, *end;
    bool bad; /* ran over the end */
};

static uint64_t take(struct bytes *b, uint32_t n)
{
    uint64_t v = 0;

    if ((uint64_t)(b->end - b->p) < n) {
        b->bad = true;
        b->p = b->end;
        return 0;
    }
    memcpy(&v, b->p, n);
    b->p += n;
    return v;
}

static uint64_t take_uleb(struct bytes *b)
{
    uint64_t v = 0;
    uint8_t byte;
    uint32_t shift = 0;

    do {
        byte = (uint8_t)take(b, 1);
        if (shift < 64)
            v |= (uint64_t)(byte & 0x7f) << shift;
        shift += 7;
    } while (byte & 0x80 && !b->bad);
    return v;
}

static int64_t take_sleb(struct bytes *b)
{
    uint64_t v = 0;
    uint8_t byte;
    uint32_t shift = 0;

    do {
        byte = (uint8_t)take(b, 1);
        if (shift < 64)
            v |= (uint64_t)(byte & 0x7f) << shift;
        shift += 7;
    } while (byte & 0x80 && !b->bad);
    if (shift < 64 && byte & 0x40)
        v |= ~0ull << shift;
    return (int64_t)v;
}

static void skip(struct bytes *b, uint64_t n)
{
    if ((uint64_t)(b->end - b->p) < n) {
        b->bad = true;
        n = (uint64_t)(b->end - b->p);
    }
    b->p += n;
}

/* From `vaddr` to the end of its segment. */
static struct bytes image_from(const struct ub_elf *elf, uint64_t vaddr)
{
    struct bytes b = {NULL, NULL, true};

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
static uint64_t take_pointer(struct bytes *b, uint8_t encoding, uint64_t at, bool *ret_ok)
{
    uint64_t v;

    switch (encoding & PE_FORM) {
    case PE_ABSPTR:
    case PE_SDATA8:
        v = take(b, 8);
        break;
    case PE_UDATA4:
        v = take(b, 4);
        break;
    case PE_SDATA4:
        v = (uint64_t)(int64_t)(int32_t)take(b, 4);
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
static bool read_augmentation(struct bytes *b, const char *text, uint8_t *ret_encoding)
{
    uint64_t len;

    *ret_encoding = PE_ABSPTR;
    if (text[0] == '\0')
        return true;
    if (text[0] != 'z')
        return false;
    len = take_uleb(b);
    if (b->bad || len > (uint64_t)(b->end - b->p))
        return false;
    struct bytes a = {b->p, b->p + len, false};
    skip(b, len);
    for (const char *c = text + 1; *c; c++) {
        bool ok = true;

        switch (*c) {
        case 'R':
            *ret_encoding = (uint8_t)take(&a, 1);
            break;
        case 'L':
            take(&a, 1);
            break;
        case 'P': /* only its length matters */
            take_pointer(&a, (uint8_t)take(&a, 1) & PE_FORM, 0, &ok);
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
static bool enter_entry(const struct ub_elf *elf, uint64_t vaddr, struct bytes *b)
{
    uint64_t len;

    *b = image_from(elf, vaddr);
    len = take(b, 4);
    if (b->bad || len < 4 || len >= 0xfffffff0u || len > (uint64_t)(b->end - b->p))
        return false;
    b->end = b->p + len;
    return true;
}

static int read_cie(const struct ub_elf *elf, uint64_t vaddr, struct ub_fde *ret, uint8_t *ret_encoding)
{
    struct bytes b;
    const char *augmentation;
    uint64_t version, column;
    size_t len;

    if (!enter_entry(elf, vaddr, &b) || take(&b, 4) != 0)
        return -EBADMSG;
    version = take(&b, 1);
    augmentation = (const char *)b.p;
    len = strnlen(augmentation, (size_t)(b.end - b.p));
    skip(&b, len + 1);
    if (b.bad || (version != 1 && version != 3))
        return -EBADMSG;
    ret->code_align = take_uleb(&b);
    ret->data_align = take_sleb(&b);
    column = version == 1 ? take(&b, 1) : take_uleb(&b);
    if (b.bad || column != RETURN_COLUMN || !read_augmentation(&b, augmentation, ret_encoding) || b.bad)
        return -EBADMSG;
    ret->cie_code = b.p;
    ret->cie_end = b.end;
    /* The FDE has augmentation data exactly when the CIE has. */
    return augmentation[0] == 'z';
}

static int read_fde(const struct ub_elf *elf, uint64_t vaddr, struct ub_fde *ret)
{
    struct bytes b;
    uint64_t back, len;
    uint8_t encoding;
    bool ok = true;
    int augmented;

    if (!enter_entry(elf, vaddr, &b))
        return -EBADMSG;
    back = take(&b, 4);
    if (back == 0 || back > vaddr + 4)
        return -EBADMSG;
    augmented = read_cie(elf, vaddr + 4 - back, ret, &encoding);
    if (augmented < 0)
        return augmented;
    ret->start = take_pointer(&b, encoding, vaddr + 8, &ok);
    len = take_pointer(&b, encoding & PE_FORM, 0, &ok);
    if (augmented)
        skip(&b, take_uleb(&b));
    if (b.bad || !ok || ret->start + len < ret->start)
        return -EBADMSG;
    ret->end = ret->start + len;
    ret->fde_code = b.p;
    ret->fde_end = b.end;
    return 0;
}

/* ---- .eh_frame_hdr ---- */

struct table {
    const uint8_t *entry; /* pairs of int32: function, FDE; both relative to the header */
    uint64_t count;
    uint64_t vaddr; /* of the first entry */
};

static int open_table(const struct ub_elf *elf, struct table *ret)
{
    uint64_t vaddr = elf->eh_frame_hdr, size = elf->eh_frame_hdr_size, count;
    const uint8_t *h;
    bool ok = true;

    if (vaddr == 0 || size < 12)
        return -ENOENT;
    h = ub_elf_image(elf, vaddr, size, false);
    if (!h || h[0] != 1 || h[3] != (PE_DATAREL | PE_SDATA4))
        return -EBADMSG;
    struct bytes b = {h + 4, h + size, false};
    take_pointer(&b, h[1], vaddr + 4, &ok);
    if (h[2] == PE_OMIT)
        return -EBADMSG;
    count = take_pointer(&b, h[2], 0, &ok);
    if (b.bad || !ok || count > (uint64_t)(b.end - b.p) / 8)
        return -EBADMSG;
    *ret = (struct table){b.p, count, vaddr + (uint64_t)(b.p - h)};
    return 0;
}

static int32_t entry_word(const struct table *t, uint64_t i, uint32_t word)
{
    int32_t v;

    memcpy(&v, t->entry + i * 8 + word * 4, sizeof(v));
    return v;
}

int ub_fde_find(const struct ub_elf *elf, uint64_t vaddr, struct ub_fde *ret, uint64_t *ret_gap)
{
    struct table t;
    uint64_t low = 0, high, base = elf->eh_frame_hdr;
    int64_t wanted = (int64_t)(vaddr - base);
    int r = open_table(elf, &t);

    if (ret_gap)
        *ret_gap = 0;
    if (r < 0)
        return r;
    for (high = t.count; low < high;) { /* the first entry above */
        uint64_t middle = low + (high - low) / 2;

        if (entry_word(&t, middle, 0) <= wanted)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == 0)
        return -ENOENT;
    r = read_fde(elf, base + (uint64_t)(int64_t)entry_word(&t, low - 1, 1), ret);
    if (r < 0)
        return r;
    ret->table_entry = t.vaddr + (low - 1) * 8;
    if (vaddr >= ret->start && vaddr < ret->end)
        return 0;
    if (ret_gap && low < t.count && vaddr >= ret->end)
        *ret_gap = base + (uint64_t)(int64_t)entry_word(&t, low, 0) - ret->end;
    return -ENOENT;
}

/* ---- call-frame instructions ---- */

struct program {
    const struct ub_fde *fde;
    uint64_t at, wanted; /* the address that the instructions have come to; the one asked for */
    bool found;          /* they have passed it */
    struct ub_cfa_rule rule, answer;
    struct ub_cfa_rule remembered[REMEMBER_MAX];
    uint32_t depth;
};

static void advance(struct program *p, uint64_t delta)
{
    p->at += delta * p->fde->code_align;
    if (!p->found && p->at > p->wanted) {
        p->found = true;
        p->answer = p->rule;
    }
}

static bool take_reg(struct bytes *b, uint64_t *ret)
{
    *ret = take_uleb(b);
    return !b->bad && *ret < UB_REG_COUNT;
}

/* An expression is libunwind's to evaluate; but no division. The byte may also be an operand: none of today's is 27. */
static bool take_block(struct bytes *b)
{
    uint64_t len = take_uleb(b);

    if (b->bad || len > (uint64_t)(b->end - b->p) || memchr(b->p, OP_DIV, len))
        return false;
    skip(b, len);
    return true;
}

/* `DW_OP_breg6 offset; DW_OP_deref`: where a function that realigns its stack has noted the old one. */
static struct ub_cfa_rule expression_rule(struct bytes b)
{
    uint64_t len = take_uleb(&b);
    const uint8_t *end = b.p + len;
    struct ub_cfa_rule rule = {.reg = UB_REG_RBP, .deref = true};

    if (len < 3 || len > (uint64_t)(b.end - b.p) || take(&b, 1) != OP_BREG_RBP)
        return (struct ub_cfa_rule){.reg = -1};
    rule.offset = take_sleb(&b);
    return take(&b, 1) == OP_DEREF && b.p == end ? rule : (struct ub_cfa_rule){.reg = -1};
}

/* The instructions whose operand is not in the opcode byte. False: refuse the function. */
static bool extended(struct program *p, struct bytes *b, uint8_t op)
{
    uint64_t reg, other;

    switch (op) {
    case 0x00: /* nop */
        return true;
    case 0x02: /* advance_loc1 */
    case 0x03:
    case 0x04:
        advance(p, take(b, 1u << (op - 2)));
        return true;
    case 0x05: /* offset_extended */
    case 0x14: /* val_offset */
    case 0x2f: /* GNU_negative_offset_extended */
        return take_reg(b, &reg) && (take_uleb(b), true);
    case 0x11: /* offset_extended_sf */
    case 0x15: /* val_offset_sf */
        return take_reg(b, &reg) && (take_sleb(b), true);
    case 0x06: /* restore_extended */
    case 0x07: /* undefined */
    case 0x08: /* same_value */
        return take_reg(b, &reg);
    case 0x09: /* register */
        return take_reg(b, &reg) && take_reg(b, &other);
    case 0x0a: /* remember_state */
        if (p->depth == REMEMBER_MAX)
            return false;
        p->remembered[p->depth++] = p->rule;
        return true;
    case 0x0b: /* restore_state */
        if (p->depth == 0)
            return false;
        p->rule = p->remembered[--p->depth];
        return true;
    case 0x0c: /* def_cfa */
    case 0x12: /* def_cfa_sf */
        if (!take_reg(b, &reg))
            return false;
        p->rule = (struct ub_cfa_rule){.reg = (int)reg};
        p->rule.offset = op == 0x0c ? (int64_t)take_uleb(b) : take_sleb(b) * p->fde->data_align;
        return true;
    case 0x0d: /* def_cfa_register */
        if (!take_reg(b, &reg))
            return false;
        p->rule.reg = (int)reg;
        p->rule.deref = false;
        return true;
    case 0x0e: /* def_cfa_offset */
        p->rule.offset = (int64_t)take_uleb(b);
        return true;
    case 0x13: /* def_cfa_offset_sf */
        p->rule.offset = take_sleb(b) * p->fde->data_align;
        return true;
    case 0x0f: /* def_cfa_expression */
        p->rule = expression_rule(*b);
        return take_block(b);
    case 0x10: /* expression */
    case 0x16: /* val_expression */
        return take_reg(b, &reg) && take_block(b);
    case 0x2e: /* GNU_args_size */
        take_uleb(b);
        return true;
    default: /* set_loc and what no compiler emits for this machine */
        return false;
    }
}

static bool run(struct program *p, const uint8_t *code, const uint8_t *end)
{
    struct bytes b = {code, end, false};

    while (b.p < b.end && !b.bad) {
        uint8_t op = (uint8_t)take(&b, 1), low = op & 0x3f;

        switch (op >> 6) {
        case 1: /* advance_loc */
            advance(p, low);
            break;
        case 2: /* offset */
            if (low >= UB_REG_COUNT)
                return false;
            take_uleb(&b);
            break;
        case 3: /* restore */
            if (low >= UB_REG_COUNT)
                return false;
            break;
        default:
            if (!extended(p, &b, op))
                return false;
        }
    }
    return !b.bad;
}

int ub_fde_check(const struct ub_fde *fde, uint64_t vaddr, struct ub_cfa_rule *ret)
{
    struct program p = {.fde = fde, .wanted = ~0ull, .rule = {.reg = -1}};

    if (!run(&p, fde->cie_code, fde->cie_end))
        return -EBADMSG;
    p.at = fde->start;
    p.wanted = vaddr;
    p.found = false;
    if (!run(&p, fde->fde_code, fde->fde_end))
        return -EBADMSG;
    if (ret)
        *ret = p.found ? p.answer : p.rule;
    return 0;
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
    int r;

    if (!m || !m->elf)
        return -UNW_ESTOPUNWIND;
    r = ub_fde_find(m->elf, ip - m->bias, &fde, &u->gap);
    u->no_table = r == -ENOENT;
    if (r < 0 || ub_fde_check(&fde, ip - m->bias, NULL) < 0)
        return -UNW_ESTOPUNWIND;
    di.start_ip = m->bias + fde.start;
    di.end_ip = m->bias + fde.end;
    di.u.rti.segbase = m->bias + m->elf->eh_frame_hdr;
    di.u.rti.table_data = m->bias + fde.table_entry;
    di.u.rti.table_len = 8 / sizeof(unw_word_t);
    u->in_tables = true;
    r = _Ux86_64_dwarf_search_unwind_table(as, ip, &di, pi, need_info, u);
    u->in_tables = false;
    return r < 0 ? -UNW_ESTOPUNWIND : r;
}

void ub_unwind_put_info(unw_addr_space_t as, unw_proc_info_t *pi, void *arg)
{
    /* libunwind frees what it allocated: unwind_info comes from its own pool. */
}
