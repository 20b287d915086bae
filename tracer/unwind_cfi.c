/*
 * Call-frame instructions of one function: checked, before libunwind sees them,
 * and followed as far as the rule for the CFA.
 */
#include "unwind_impl.h"

#include "dwarf_bytes.h"

#include <errno.h>

#define REMEMBER_MAX 16

#define OP_DEREF    0x06
#define OP_DIV      0x1b
#define OP_BREG_RBP 0x76

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

/* Wraps around where a signed product would be undefined: the file is not to be trusted. */
static int64_t scaled(const struct program *p, int64_t value)
{
    return (int64_t)((uint64_t)value * (uint64_t)p->fde->data_align);
}

static bool take_reg(struct ub_bytes *b, uint64_t *ret)
{
    *ret = ub_bytes_uleb(b);
    return !b->bad && *ret < UB_REG_COUNT;
}

/* An expression is libunwind's to evaluate; but no division. The byte may also be an operand: none of today's is 27. */
static bool take_block(struct ub_bytes *b)
{
    uint64_t len = ub_bytes_uleb(b);

    if (b->bad || len > (uint64_t)(b->end - b->p) || memchr(b->p, OP_DIV, len))
        return false;
    ub_bytes_skip(b, len);
    return true;
}

/* `DW_OP_breg6 offset; DW_OP_deref`: where a function that realigns its stack has noted the old one. */
static struct ub_cfa_rule expression_rule(struct ub_bytes b)
{
    uint64_t len = ub_bytes_uleb(&b);
    const uint8_t *end = b.p + len;
    struct ub_cfa_rule rule = {.reg = UB_REG_RBP, .deref = true};

    if (len < 3 || len > (uint64_t)(b.end - b.p) || ub_bytes_take(&b, 1) != OP_BREG_RBP)
        return (struct ub_cfa_rule){.reg = -1};
    rule.offset = ub_bytes_sleb(&b);
    return ub_bytes_take(&b, 1) == OP_DEREF && b.p == end ? rule : (struct ub_cfa_rule){.reg = -1};
}

/* The instructions whose operand is not in the opcode byte. False: refuse the function. */
static bool extended(struct program *p, struct ub_bytes *b, uint8_t op)
{
    uint64_t reg, other;

    switch (op) {
    case 0x00: /* nop */
        return true;
    case 0x02: /* advance_loc1 */
    case 0x03:
    case 0x04:
        advance(p, ub_bytes_take(b, 1u << (op - 2)));
        return true;
    case 0x05: /* offset_extended */
    case 0x14: /* val_offset */
    case 0x2f: /* GNU_negative_offset_extended */
        return take_reg(b, &reg) && (ub_bytes_uleb(b), true);
    case 0x11: /* offset_extended_sf */
    case 0x15: /* val_offset_sf */
        return take_reg(b, &reg) && (ub_bytes_sleb(b), true);
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
        p->rule.offset = op == 0x0c ? (int64_t)ub_bytes_uleb(b) : scaled(p, ub_bytes_sleb(b));
        return true;
    case 0x0d: /* def_cfa_register */
        if (!take_reg(b, &reg))
            return false;
        p->rule.reg = (int)reg;
        p->rule.deref = false;
        return true;
    case 0x0e: /* def_cfa_offset */
        p->rule.offset = (int64_t)ub_bytes_uleb(b);
        return true;
    case 0x13: /* def_cfa_offset_sf */
        p->rule.offset = scaled(p, ub_bytes_sleb(b));
        return true;
    case 0x0f: /* def_cfa_expression */
        p->rule = expression_rule(*b);
        return take_block(b);
    case 0x10: /* expression */
    case 0x16: /* val_expression */
        return take_reg(b, &reg) && take_block(b);
    case 0x2e: /* GNU_args_size */
        ub_bytes_uleb(b);
        return true;
    default: /* set_loc and what no compiler emits for this machine */
        return false;
    }
}

static bool run(struct program *p, const uint8_t *code, const uint8_t *end)
{
    struct ub_bytes b = {code, end, false};

    while (b.p < b.end && !b.bad) {
        uint8_t op = (uint8_t)ub_bytes_take(&b, 1), low = op & 0x3f;

        switch (op >> 6) {
        case 1: /* advance_loc */
            advance(p, low);
            break;
        case 2: /* offset */
            if (low >= UB_REG_COUNT)
                return false;
            ub_bytes_uleb(&b);
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
