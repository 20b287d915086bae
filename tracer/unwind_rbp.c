/*
 * The frame pointer of a blocked thread, which the kernel does not tell
 * (/proc/PID/task/TID/syscall has sp and pc only). It is needed when a function
 * with a frame pointer comes before any frame that saved rbp: always in
 * programs built with -O0 or -fno-omit-frame-pointer, in one of some hundred
 * traces elsewhere (alloca).
 *
 * Two sources. (a) The prologue: in a function that moves rsp by constants only,
 * rbp is a fixed distance above the rsp at its call. (b) The stack: the return
 * address of the function is a word that follows a call of this function.
 * Either way the value must stand two tests: the word where the return address
 * should be follows a call that can have come here, and the trace reaches the
 * outermost frame, every return address on the way following a call. A choice
 * between several survivors is no choice: then the trace ends here.
 */
#include "unwind_impl.h"

#include <string.h>
#include <sys/mman.h>

#define BODY_MAX   (32u * 1024u) /* decode no longer functions: an interpreter's loop, which (b) may find */
#define TRIALS_MAX 24u

/* How well a word fits as the return address of the function. */
enum fit {
    FIT_NONE,     /* not a return address */
    FIT_OTHER,    /* follows a direct call of something else */
    FIT_INDIRECT, /* follows a call through a pointer or a linkage stub */
    FIT_DIRECT,   /* follows a call of this very function, or of one that jumps to it */
};

struct search {
    struct ub_unwinder *u;
    const struct ub_regs *at;
    const struct ub_map *map; /* of the function */
    struct ub_fde fde;
    struct ub_cfa_rule rule; /* CFA = rbp + rule.offset */
    const uint8_t *code;     /* of the function, from fde.start */
    uint32_t len;
    uint32_t trials;
};

static bool open_search(struct ub_unwinder *u, const struct ub_regs *at, struct search *ret)
{
    uint64_t pc = ub_regs_lookup_pc(at), len;

    *ret = (struct search){.u = u, .at = at, .map = ub_unwind_map(u, pc)};
    if (!ret->map || !ret->map->elf || ub_fde_find(ret->map->elf, pc - ret->map->bias, &ret->fde, NULL) < 0 ||
        ub_fde_check(&ret->fde, pc - ret->map->bias, &ret->rule) < 0)
        return false;
    if (ret->rule.reg != UB_REG_RBP || ret->rule.offset < 16 || ret->rule.offset > 4096)
        return false;
    len = ret->fde.end - ret->fde.start;
    ret->len = len > BODY_MAX ? BODY_MAX : (uint32_t)len;
    ret->code = ub_elf_image(ret->map->elf, ret->fde.start, ret->len, false);
    return ret->code != NULL;
}

/* ---- who calls whom ---- */

/* Follows linkage stubs and plain jumps from the target of a call. */
static enum fit fit_target(const struct search *s, uint64_t target)
{
    const struct ub_map *m = ub_unwind_map(s->u, target);
    uint64_t start = s->map->bias + s->fde.start;
    struct ub_fde fde;
    const uint8_t *p;
    uint64_t vaddr, len;

    if (target == start)
        return FIT_DIRECT;
    if (!m || !m->elf)
        return FIT_OTHER;
    vaddr = target - m->bias;
    p = ub_elf_image(m->elf, vaddr, 16, false);
    if (p) {
        if (memcmp(p, "\xf3\x0f\x1e\xfa", 4) == 0) /* endbr64 */
            p += 4;
        if (*p == 0xf2) /* bnd */
            p++;
        if (p[0] == 0xff && p[1] == 0x25)
            return FIT_INDIRECT; /* jmp *slot(%rip): anywhere */
    }
    if (ub_fde_find(m->elf, vaddr, &fde, NULL) < 0 || fde.start != vaddr)
        return FIT_OTHER;
    len = fde.end - fde.start;
    p = len <= BODY_MAX ? ub_elf_image(m->elf, vaddr, len, false) : NULL;
    for (uint64_t i = 0; p && i + 5 <= len; i++) { /* a tail call: jmp rel32, or jcc rel32 */
        int32_t rel;

        if (p[i] != 0xe9 && (p[i] & 0xf0) != 0x80)
            continue;
        memcpy(&rel, p + i + 1, sizeof(rel));
        if (target + i + 5 + (uint64_t)(int64_t)rel == start)
            return FIT_DIRECT;
        if (p[i] == 0xe9 && ub_fde_find(m->elf, vaddr + i + 5 + (uint64_t)(int64_t)rel, &fde, NULL) < 0)
            return FIT_INDIRECT; /* jumps out of all functions: to a stub */
    }
    return FIT_OTHER;
}

static enum fit fit_of_word(const struct search *s, uint64_t address)
{
    uint64_t word, target;

    if ((address + 8) % 16 != 0 || !ub_unwind_read(s->u, address, &word, sizeof(word)))
        return FIT_NONE; /* the ABI aligns the stack at every call */
    switch (ub_unwind_call_before(s->u, word, &target)) {
    case UB_CALL_DIRECT:
        return fit_target(s, target);
    case UB_CALL_INDIRECT:
        return FIT_INDIRECT;
    default:
        return FIT_NONE;
    }
}

/* Where the return address lies and what rbp is are the same question. */
static bool try_return_at(struct search *s, uint64_t address, struct ub_regs *ret)
{
    *ret = *s->at;
    ret->reg[UB_REG_RBP] = address + 8 - (uint64_t)s->rule.offset;
    ret->known |= UB_REG_BIT(UB_REG_RBP);
    s->trials++;
    return ub_unwind_try(s->u, ret);
}

/* ---- (a) the prologue ---- */

struct prologue {
    bool known;       /* it was understood */
    uint64_t low;     /* rbp - rsp after it */
    uint64_t pending; /* bytes of arguments that the call site pops again, perhaps */
};

/* Follows rsp from the entry to the first call or jump, or to the pc. */
static bool read_prologue(const struct search *s, uint64_t pc_offset, struct prologue *ret)
{
    struct ub_insn insn;
    bool framed = false;
    int64_t low = 0;

    for (uint32_t i = 0; i < s->len && i < pc_offset; i += insn.len) {
        if (!ub_insn_decode(s->code + i, s->len - i, &insn))
            return false;
        if (insn.kind == UB_INSN_LEAVES)
            break;
        if (insn.kind == UB_INSN_EPILOGUE || insn.kind == UB_INSN_CLOBBER_RSP)
            return false;
        if (insn.kind == UB_INSN_SET_RBP) {
            framed = true;
            low = 0;
        }
        if (insn.kind == UB_INSN_PUSH)
            low += 8;
        if (insn.kind == UB_INSN_MOVE_RSP)
            low -= insn.delta;
    }
    if (!framed || low < 0)
        return false;
    ret->low = (uint64_t)low;
    return true;
}

/* Does anything in the function move rsp by an amount that the code does not say? Not decodable counts as yes. */
static bool has_dynamic_frame(const struct search *s)
{
    struct ub_insn insn;

    if (s->fde.end - s->fde.start > s->len)
        return true;
    for (uint32_t i = 0; i < s->len; i += insn.len)
        if (!ub_insn_decode(s->code + i, s->len - i, &insn) || insn.kind == UB_INSN_CLOBBER_RSP)
            return true;
    return false;
}

static void understand(const struct search *s, struct prologue *ret)
{
    uint64_t offset = ub_regs_lookup_pc(s->at) - s->map->bias - s->fde.start;
    uint64_t next = offset + (s->at->exact ? 0 : 1);
    struct ub_insn insn;

    *ret = (struct prologue){0};
    if (!read_prologue(s, offset, ret) || has_dynamic_frame(s))
        return;
    ret->known = true;
    if (!s->at->exact && next < s->len && ub_insn_decode(s->code + next, s->len - (uint32_t)next, &insn) &&
        insn.kind == UB_INSN_MOVE_RSP && insn.delta > 0)
        ret->pending = (uint64_t)insn.delta;
}

/*
 * With arguments on the stack, or an epilogue right behind the call, two
 * distances are possible. True when exactly one stands the tests.
 */
static bool by_prologue(struct search *s, struct ub_regs *ret)
{
    struct prologue p;
    struct ub_regs candidate;
    uint32_t found = 0;

    understand(s, &p);
    if (!p.known)
        return false;
    for (int i = 0; i < (p.pending ? 2 : 1); i++) {
        uint64_t rbp = s->at->reg[UB_REG_RSP] + p.low + (i ? p.pending : 0);
        uint64_t address = rbp + (uint64_t)s->rule.offset - 8;
        enum fit fit = fit_of_word(s, address);

        if ((fit != FIT_DIRECT && fit != FIT_INDIRECT) || !try_return_at(s, address, &candidate))
            continue;
        found++;
        *ret = candidate;
        s->u->best = s->u->trial;
    }
    return found == 1;
}

/* ---- (b) the stack ---- */

static uint64_t region_end(const struct search *s)
{
    uint64_t sp = s->at->reg[UB_REG_RSP];

    for (uint32_t i = 0; i < s->u->capture->region_count; i++) {
        const struct ub_stack_region *r = &s->u->capture->region[i];

        if (sp - r->address < r->len)
            return r->address + r->len;
    }
    return sp;
}

/*
 * The true return address is among the words, whatever kind of call it follows.
 * So the nearest one that leads to the end of the stack is it, if it follows a
 * call of this function, and no second one does: recursion and leftovers of
 * earlier calls look alike.
 */
static bool by_call_target(struct search *s, struct ub_regs *ret)
{
    uint64_t end = region_end(s);
    struct ub_regs candidate;
    bool found = false;

    for (uint64_t a = (s->at->reg[UB_REG_RSP] + 7) & ~7ull; a + 8 <= end; a += 8) {
        enum fit fit = fit_of_word(s, a);

        if (fit == FIT_NONE || (found && fit != FIT_DIRECT))
            continue;
        if (s->trials >= TRIALS_MAX)
            return false;
        if (!try_return_at(s, a, &candidate))
            continue;
        if (found || fit != FIT_DIRECT)
            return false;
        found = true;
        *ret = candidate;
        s->u->best = s->u->trial;
    }
    return found;
}

bool ub_rbp_recover(struct ub_unwinder *u, struct ub_regs *at)
{
    struct ub_regs found;
    struct search s;

    if (!open_search(u, at, &s) || (!by_prologue(&s, &found) && !by_call_target(&s, &found)))
        return false;
    *at = found;
    return true;
}
