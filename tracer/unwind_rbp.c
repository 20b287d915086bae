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
 *
 * Either way the value must stand two tests: the word where the return address
 * should be follows a call that can have come here, and the trace reaches the
 * outermost frame, every return address on the way following a call. A choice
 * between several survivors is no choice: then the trace ends here.
 */
#include "unwind_impl.h"

#include <string.h>
#include <sys/mman.h>

#define BODY_MAX   (32ull * 1024) /* decode no longer functions: an interpreter's loop, which (b) may find */
#define TRIALS_MAX 24u

/* How well a word fits as the return address of the function. */
enum fit {
    FIT_NONE,     /* not a return address */
    FIT_OTHER,    /* follows a direct call of something else */
    FIT_INDIRECT, /* follows a call that may end here: through a pointer, a linkage stub, a tail call */
    FIT_DIRECT,   /* follows a call of this very function */
};

struct search {
    struct ub_unwinder *u;
    const struct ub_regs *at;
    const struct ub_map *map; /* of the function */
    struct ub_fde fde;
    struct ub_cfa_rule rule; /* from rbp to the CFA */
    const uint8_t *code;     /* of the function, from fde.start */
    uint32_t len;
    uint32_t trials;
};

static bool open_search(struct ub_unwinder *u, const struct ub_regs *at, struct search *ret)
{
    uint64_t pc = ub_regs_lookup_pc(at), len;

    *ret = (struct search){.u = u, .at = at, .map = ub_unwind_map(u, pc)};
    if (!ret->map || !ret->map->elf || ub_fde_find(u, ret->map->elf, pc - ret->map->bias, &ret->fde, NULL) < 0 ||
        ub_fde_check(&ret->fde, pc - ret->map->bias, &ret->rule) < 0)
        return false;
    if (ret->rule.reg != UB_REG_RBP || ret->rule.offset > 4096 || ret->rule.offset < (ret->rule.deref ? -4096 : 16))
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
    if (ub_fde_find(s->u, m->elf, vaddr, &fde, NULL) < 0 || fde.start != vaddr)
        return FIT_OTHER;
    len = fde.end - fde.start;
    p = len <= BODY_MAX ? ub_elf_image(m->elf, vaddr, len, false) : NULL;
    for (uint64_t i = 0; p && i + 5 <= len; i++) { /* a tail call: jmp rel32, or jcc rel32 */
        int32_t rel;

        if (p[i] != 0xe9 && (p[i] & 0xf0) != 0x80)
            continue;
        memcpy(&rel, p + i + 1, sizeof(rel));
        if (target + i + 5 + (uint64_t)(int64_t)rel == start)
            return FIT_INDIRECT;
        if (p[i] == 0xe9 && ub_fde_find(s->u, m->elf, vaddr + i + 5 + (uint64_t)(int64_t)rel, &fde, NULL) < 0)
            return FIT_INDIRECT; /* jumps out of all functions: to a stub */
    }
    return FIT_OTHER;
}

/* Which CFA a value of rbp means; 0: none that a function of the ABI can have. */
static uint64_t cfa_of(const struct search *s, uint64_t rbp)
{
    uint64_t cfa = rbp + (uint64_t)s->rule.offset, copy, address;

    if (!s->rule.deref)
        return cfa % 16 ? 0 : cfa; /* the stack is aligned at every call */
    /* Realigned: the CFA is kept in the frame, and the return address was copied beside the new frame pointer. */
    if (!ub_unwind_read(s->u, cfa, &cfa, sizeof(cfa)) || cfa % 16 || cfa <= rbp ||
        !ub_unwind_read(s->u, rbp + 8, &copy, sizeof(copy)) ||
        !ub_unwind_read(s->u, cfa - 8, &address, sizeof(address)) || copy != address)
        return 0;
    return cfa;
}

static enum fit fit_of(const struct search *s, uint64_t rbp)
{
    uint64_t cfa = cfa_of(s, rbp), word, target;

    if (cfa == 0 || !ub_unwind_read(s->u, cfa - 8, &word, sizeof(word)))
        return FIT_NONE;
    switch (ub_unwind_call_before(s->u, word, &target)) {
    case UB_CALL_DIRECT:
        return fit_target(s, target);
    case UB_CALL_INDIRECT:
        return FIT_INDIRECT;
    default:
        return FIT_NONE;
    }
}

static bool leads_to_the_end(struct search *s, uint64_t rbp, struct ub_regs *ret)
{
    *ret = *s->at;
    ret->reg[UB_REG_RBP] = rbp;
    ret->known |= UB_REG_BIT(UB_REG_RBP);
    return ub_unwind_try(s->u, ret);
}

/* ---- (a) the prologue ---- */

struct prologue {
    uint64_t high;    /* rbp - rsp before the stack was realigned below it, else 0 */
    uint64_t align;   /* 1: it was not */
    uint64_t low;     /* from there (else from rbp) to rsp at the end of the prologue */
    uint64_t pending; /* bytes of arguments that the call site pops again, perhaps */
    uint32_t end;     /* offset of the first instruction behind `mov %rsp,%rbp` */
};

static bool round_down(struct prologue *p, const struct ub_insn *insn, int64_t *low)
{
    if (p->align > 1 || *low < 0)
        return false;
    p->align = (uint64_t)insn->delta;
    p->high = (uint64_t)*low;
    *low = 0;
    return true;
}

static bool gives_back(const struct ub_insn *insn)
{
    return insn->kind == UB_INSN_EPILOGUE || (insn->kind == UB_INSN_MOVE_RSP && insn->delta > 0);
}

/*
 * A path that leaves early, behind a conditional jump, gives the frame back at
 * `from`. True when all code behind it that takes something (the arguments of a
 * call) gives it back before it goes on elsewhere: then the frame was whole.
 */
static bool frame_was_whole(const struct search *s, uint32_t from)
{
    struct ub_insn insn;
    int64_t taken = 0;
    bool leaving = true;

    for (uint32_t i = from; i < s->len; i += insn.len) {
        if (!ub_insn_decode(s->code + i, s->len - i, &insn) || insn.kind == UB_INSN_ALIGN_RSP)
            return false;
        if (insn.kind == UB_INSN_LEAVES && !insn.calls) {
            if (!leaving && taken)
                return false;
            taken = 0;
            leaving = false;
        }
        if (leaving)
            continue;
        if (taken == 0 && gives_back(&insn))
            leaving = true;
        else if (insn.kind == UB_INSN_PUSH)
            taken += 8;
        else if (insn.kind == UB_INSN_MOVE_RSP)
            taken -= insn.delta;
        else if (insn.kind == UB_INSN_EPILOGUE)
            taken -= 8;
        if (taken < 0)
            return false;
    }
    return true;
}

/*
 * Follows rsp from the entry to the first call or jump away, to an early
 * epilogue, or to the pc. False: no frame pointer was set, or not like this.
 */
static bool read_prologue(const struct search *s, uint64_t pc_offset, struct prologue *ret)
{
    struct ub_insn insn;
    int64_t low = 0;

    *ret = (struct prologue){.align = 1};
    for (uint32_t i = 0; i < s->len && i < pc_offset; i += insn.len) {
        if (!ub_insn_decode(s->code + i, s->len - i, &insn))
            return false;
        if (insn.kind == UB_INSN_LEAVES)
            break;
        if (insn.kind == UB_INSN_SET_RBP) { /* what came before does not matter to the distance */
            ret->end = i + insn.len;
            low = 0;
        }
        if (ret->end && gives_back(&insn) && frame_was_whole(s, i))
            break;
        if (insn.kind == UB_INSN_PUSH)
            low += 8;
        if (insn.kind == UB_INSN_MOVE_RSP)
            low -= insn.delta;
        if (ret->end && insn.kind == UB_INSN_ALIGN_RSP && !round_down(ret, &insn, &low))
            return false;
        if (ret->end && (insn.kind == UB_INSN_EPILOGUE || insn.kind == UB_INSN_CLOBBER_RSP))
            return false;
    }
    ret->low = (uint64_t)low;
    return ret->end && low >= 0 && ret->align <= 4096;
}

/* Does anything in the body move rsp by an amount that the code does not say? Not decodable counts as yes. */
static bool has_dynamic_frame(const struct search *s, uint32_t from)
{
    struct ub_insn insn;

    if (s->fde.end - s->fde.start > s->len)
        return true;
    for (uint32_t i = from; i < s->len; i += insn.len)
        if (!ub_insn_decode(s->code + i, s->len - i, &insn) || insn.kind == UB_INSN_CLOBBER_RSP)
            return true;
    return false;
}

/*
 * A thread that stands by itself (in a system call, or in a page fault anywhere)
 * may stand in an epilogue, with a part of the frame given back. Seen by what the
 * code on the way to the pc does to rsp, since the prologue or the last jump away.
 */
static bool gave_back(const struct search *s, uint32_t from, uint64_t pc_offset)
{
    struct ub_insn insn;
    bool moved = false;

    for (uint32_t i = from; i < s->len && i < pc_offset; i += insn.len) {
        if (!ub_insn_decode(s->code + i, s->len - i, &insn))
            return true;
        if (insn.returns || insn.jumps)
            moved = false;
        else if (gives_back(&insn))
            moved = true;
    }
    return moved;
}

static bool understand(const struct search *s, struct prologue *ret)
{
    uint64_t offset = ub_regs_lookup_pc(s->at) - s->map->bias - s->fde.start;
    uint64_t next = offset + 1;
    struct ub_insn insn;

    if (!read_prologue(s, offset, ret) || has_dynamic_frame(s, ret->end))
        return false;
    if (s->at->exact)
        return !gave_back(s, ret->end, offset);
    if (next < s->len && ub_insn_decode(s->code + next, s->len - (uint32_t)next, &insn) &&
        insn.kind == UB_INSN_MOVE_RSP && insn.delta > 0)
        ret->pending = (uint64_t)insn.delta;
    return true;
}

/*
 * With arguments on the stack, or an epilogue right behind the call, two
 * distances are possible; with a realigned stack as many as the alignment leaves
 * open. True when exactly one value stands the tests.
 */
static bool by_prologue(struct search *s, struct ub_regs *ret)
{
    struct prologue p;
    struct ub_regs candidate;
    uint32_t found = 0;

    if (!understand(s, &p))
        return false;
    for (uint64_t extra = 0; extra <= p.pending; extra += p.pending ? p.pending : 1) {
        uint64_t base = s->at->reg[UB_REG_RSP] + p.low + extra + p.high;

        for (uint64_t slack = 0; slack < p.align; slack += 8) {
            enum fit fit = fit_of(s, base + slack);

            if ((fit != FIT_DIRECT && fit != FIT_INDIRECT) || !leads_to_the_end(s, base + slack, &candidate))
                continue;
            found++;
            *ret = candidate;
            s->u->best = s->u->trial;
        }
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
 * Only for functions that are entered by direct calls and in no other way: then
 * the true frame is surely among those whose return address follows such a call.
 * When two of them lead to the end of the stack, one is the true one and the
 * other an outer call (recursion) or the remains of an earlier one: no choice.
 *
 * Without that condition wrong stacks come about: under an alloca lie the
 * remains of calls that have ended, and their frames lead to the end as well
 * (4 of 100,000 captures of a program that does it on purpose).
 */
static bool by_call_target(struct search *s, struct ub_regs *ret)
{
    uint64_t end = region_end(s);
    struct ub_regs candidate;
    uint32_t found = 0;

    if (!ub_unwind_only_called(s->u, s->map->elf, &s->fde))
        return false;
    for (uint64_t rbp = (s->at->reg[UB_REG_RSP] + 7) & ~7ull; rbp + 16 <= end; rbp += 8) {
        if (fit_of(s, rbp) != FIT_DIRECT)
            continue;
        if (s->trials++ >= TRIALS_MAX)
            return false;
        if (!leads_to_the_end(s, rbp, &candidate))
            continue;
        if (++found > 1)
            return false;
        *ret = candidate;
        s->u->best = s->u->trial;
    }
    return found == 1;
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
