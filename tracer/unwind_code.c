/*
 * A frame of code without an unwind table, by what the code will do: the instructions from the pc on are followed to
 * the return, and what they pop on the way are the caller's registers.
 *
 * That is how every function of the ABI ends, so nothing is guessed as long as it moves rsp by constants only. Where
 * the code divides both ways are followed. A call that never returns (__stack_chk_fail) has other code behind it,
 * and a way through that comes to a return where there is no return address: it was none. All others must agree.
 * What is not followed, and ends the trace: frames that are torn down by a frame pointer, jumps through registers.
 *
 * Only for the innermost frames, up to the first with a table: that is where a libc without tables (musl) is met that
 * waits in the kernel. Further out would come what calls main() and never returns.
 */
#include "unwind_impl.h"

#include <string.h>
#include <sys/mman.h>

#define STEPS_MAX 4096u /* instructions, on all ways together */
#define WAYS_MAX  64u   /* that are still to be followed */
#define ENDS_MAX  32u   /* returns that were reached: so many that agree are enough */
#define DEPTH_MAX 65536 /* bytes of a frame */

/* DWARF's numbers are libunwind's. */
#define BIT(reg)     UB_REG_BIT((uint32_t)UNW_X86_64_##reg)
#define CALLEE_SAVED (BIT(RBX) | BIT(RBP) | BIT(R12) | BIT(R13) | BIT(R14) | BIT(R15))

/* One way through the code. */
struct way {
    uint64_t vaddr;
    int32_t depth;               /* rsp then, above that of the frame */
    uint32_t popped;             /* registers */
    int32_t place[UB_REG_COUNT]; /* of their values, likewise above rsp */
};

struct code {
    struct ub_unwinder *u;
    const struct ub_elf *elf;
    uint64_t sp;
    struct way way[WAYS_MAX], end; /* the second: at the return */
    uint32_t ways, ends, steps;
    uint64_t seen[STEPS_MAX]; /* where two ways meet again one is enough */
};

static bool been_at(struct code *c, const struct way *w)
{
    uint64_t mark = w->vaddr * 2654435761u ^ (uint64_t)(uint32_t)w->depth << 40 ^ (uint64_t)w->popped << 20;
    uint32_t i = (uint32_t)((mark ^ mark >> 29) % STEPS_MAX);

    mark |= 1;
    while (c->seen[i] && c->seen[i] != mark)
        i = (i + 1) % STEPS_MAX;
    if (c->seen[i])
        return true;
    c->seen[i] = mark;
    return false;
}

/* pop %reg: which, in DWARF's numbers; -1: some other instruction. */
static int popped_register(const uint8_t *p)
{
    static const int8_t dwarf[8] = {UNW_X86_64_RAX, UNW_X86_64_RCX, UNW_X86_64_RDX, UNW_X86_64_RBX,
                                    UNW_X86_64_RSP, UNW_X86_64_RBP, UNW_X86_64_RSI, UNW_X86_64_RDI};
    int high = *p == 0x41 ? 8 : 0;

    p += high != 0;
    if ((*p & 0xf8) != 0x58)
        return -1;
    return high + (high ? *p & 7 : dwarf[*p & 7]);
}

/* A conditional jump to a constant, and how far from its end. */
static bool branches(const uint8_t *p, uint32_t len, int32_t *ret)
{
    if (len == 2 && ((p[0] & 0xf0) == 0x70 || (p[0] & 0xfc) == 0xe0)) {
        *ret = p[1] < 0x80 ? p[1] : p[1] - 0x100;
        return true;
    }
    if (len == 6 && p[0] == 0x0f && (p[1] & 0xf0) == 0x80) {
        memcpy(ret, p + 2, sizeof(*ret));
        return true;
    }
    return false;
}

static bool return_address(struct code *c, const struct way *w, uint64_t *ret)
{
    uint64_t target;

    return w->depth >= 0 && ub_unwind_read_stack(c->u->capture, c->sp + (uint64_t)w->depth, ret, sizeof(*ret)) &&
           ub_unwind_call_before(c->u, *ret, &target) != UB_CALL_NONE;
}

/* It has come to a return. False: at another place than the others. */
static bool arrive(struct code *c, const struct way *w)
{
    uint64_t address;

    if (!return_address(c, w, &address))
        return true;
    if (c->ends++ == 0) {
        c->end = *w;
        return true;
    }
    if (w->depth != c->end.depth || (w->popped & CALLEE_SAVED) != (c->end.popped & CALLEE_SAVED))
        return false;
    for (int i = 0; i < UB_REG_COUNT; i++) {
        if (w->popped & CALLEE_SAVED & UB_REG_BIT((uint32_t)i) && w->place[i] != c->end.place[i])
            return false;
    }
    return true;
}

/* One instruction. False: this way is over. `ret_agree`: unless it contradicts another. */
static bool follow(struct code *c, struct way *w, bool *ret_agree)
{
    const uint8_t *p = NULL;
    struct ub_insn insn;
    int32_t distance;
    uint32_t len;
    int reg;

    for (len = 16; len && !p; len--)
        p = ub_elf_image(c->elf, w->vaddr, len, false);
    if (!p || been_at(c, w) || !ub_insn_decode(p, len + 1, &insn))
        return false;
    w->vaddr += insn.len;
    if (branches(p, insn.len, &distance)) {
        if (c->ways == WAYS_MAX)
            return false;
        c->way[c->ways] = *w;
        c->way[c->ways++].vaddr += (uint64_t)(int64_t)distance;
    }
    switch (insn.kind) {
    case UB_INSN_PUSH:
        w->depth -= 8;
        break;
    case UB_INSN_MOVE_RSP:
        w->depth += insn.delta;
        break;
    case UB_INSN_EPILOGUE:
        reg = popped_register(p);
        if (reg < 0 || reg == UB_REG_RSP)
            return false;
        if (w->depth >= 0) { /* below lies what it has pushed since: the function's own */
            w->popped |= UB_REG_BIT((uint32_t)reg);
            w->place[reg] = w->depth;
        }
        w->depth += 8;
        break;
    case UB_INSN_LEAVES:
        if (insn.returns)
            *ret_agree = insn.len > 2 || arrive(c, w); /* longer: it pops arguments, which C never does */
        if (insn.jumps)
            w->vaddr += (uint64_t)(int64_t)insn.delta;
        return insn.jumps || insn.calls;
    case UB_INSN_SET_RBP:
    case UB_INSN_ALIGN_RSP:
    case UB_INSN_CLOBBER_RSP:
        return false;
    case UB_INSN_OTHER:
        break;
    }
    return w->depth > -DEPTH_MAX && w->depth < DEPTH_MAX;
}

static bool follow_all(struct code *c, uint64_t vaddr)
{
    bool agree = true;

    c->way[0] = (struct way){.vaddr = vaddr};
    c->ways = 1;
    while (c->ways && agree && c->ends < ENDS_MAX) {
        struct way w = c->way[--c->ways];

        do {
            if (c->steps++ == STEPS_MAX - 1)
                return c->ends > 0;
        } while (follow(c, &w, &agree));
    }
    return agree && c->ends > 0;
}

/* What a register has when the frame returns: popped from the stack, or what it has now. */
static bool value_of(const struct code *c, int reg, uint64_t *ret)
{
    unw_word_t value;

    if (c->end.popped & UB_REG_BIT((uint32_t)reg))
        return ub_unwind_read_stack(c->u->capture, c->sp + (uint64_t)c->end.place[reg], ret, sizeof(*ret));
    if (unw_get_reg(&c->u->cursor, reg, &value) < 0)
        return false;
    *ret = value;
    return true;
}

bool ub_unwind_by_code(struct ub_unwinder *u, const struct ub_map *m, struct ub_regs *at)
{
    struct ub_regs next = {.known = UB_REG_BIT(UB_REG_RIP) | UB_REG_BIT(UB_REG_RSP)};
    struct code c = {.u = u, .elf = m->elf, .sp = at->reg[UB_REG_RSP]};

    if (!follow_all(&c, at->reg[UB_REG_RIP] - m->bias) || !return_address(&c, &c.end, &next.reg[UB_REG_RIP]))
        return false;
    for (int i = 0; i < UB_REG_COUNT; i++) {
        if (CALLEE_SAVED & UB_REG_BIT((uint32_t)i) && value_of(&c, i, &next.reg[i]))
            next.known |= UB_REG_BIT((uint32_t)i);
    }
    next.reg[UB_REG_RSP] = c.sp + (uint64_t)c.end.depth + 8;
    *at = next;
    return true;
}
