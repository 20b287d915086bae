/*
 * Just enough x86-64 decoding for a prologue: how long an instruction is, and
 * what it does to the stack pointer. Pure functions over bytes.
 */
#include "unwind_impl.h"

#define RSP 4
#define RBP 5

/* What follows an opcode byte of the one-byte map. */
enum {
    M = 1,  /* ModRM */
    B = 2,  /* imm8 */
    Z = 4,  /* imm32, or imm16 after 66 */
    V = 8,  /* mov imm64 with REX.W, else like Z */
    O = 16, /* 8-byte address */
    W = 32, /* imm16 */
    X = 64, /* not in 64-bit code, or a prefix */
};

static uint8_t one_byte_form(uint8_t op)
{
    if (op < 0x40) { /* the eight arithmetic groups: four with ModRM, two with an immediate, two gone */
        static const uint8_t form[8] = {M, M, M, M, B, Z, X, X};

        return form[op & 7];
    }
    if (op < 0x70) {
        static const uint8_t form[16] = {X, X, X, M, X, X, X, X, Z, M | Z, B, M | B, 0, 0, 0, 0};

        return op < 0x50 ? X : op < 0x60 ? 0 : form[op & 15];
    }
    if (op < 0x80)
        return B;
    if (op < 0x90)
        return op == 0x81 ? M | Z : op == 0x82 ? X : op == 0x80 || op == 0x83 ? M | B : M;
    if (op < 0xa0)
        return op == 0x9a ? X : 0;
    if (op < 0xb0)
        return op < 0xa4 ? O : op == 0xa8 ? B : op == 0xa9 ? Z : 0;
    if (op < 0xc0)
        return op < 0xb8 ? B : V;
    if (op < 0xd0) {
        static const uint8_t form[16] = {M | B, M | B, W, 0, X, X, M | B, M | Z, W | B, 0, W, 0, 0, B, X, 0};

        return form[op & 15];
    }
    if (op < 0xe0)
        return op < 0xd4 || op >= 0xd8 ? M : op == 0xd7 ? 0 : X;
    if (op < 0xf0)
        return op < 0xe8 ? B : op < 0xea ? Z : op == 0xea ? X : op == 0xeb ? B : 0;
    return op < 0xf6 ? 0 : op < 0xf8 ? M : op < 0xfe ? 0 : M;
}

static uint8_t two_byte_form(uint8_t op)
{
    if (op == 0x05 || op == 0x0b || op == 0x31 || op == 0x77 || op == 0xa2 || (op & 0xf8) == 0xc8 || op == 0xa0 ||
        op == 0xa1 || op == 0xa8 || op == 0xa9)
        return 0;
    if ((op & 0xf0) == 0x80)
        return Z;
    if ((op >= 0x70 && op <= 0x73) || op == 0xa4 || op == 0xac || op == 0xba || op == 0xc2 ||
        (op >= 0xc4 && op <= 0xc6))
        return M | B;
    return M;
}

struct decoder {
    const uint8_t *p, *end;
    bool w;   /* REX.W */
    bool o16; /* 66 */
    bool rex_r, rex_b;
    uint8_t map; /* 0: one byte, 1: 0f, 2: 0f 38, 3: 0f 3a */
    uint8_t op, form;
    uint8_t modrm;
    bool below_stack;
};

static bool take_byte(struct decoder *d, uint8_t *ret)
{
    if (d->p >= d->end)
        return false;
    *ret = *d->p++;
    return true;
}

static bool prefixes(struct decoder *d)
{
    uint8_t b;

    while (take_byte(d, &b)) {
        if (b == 0x66) {
            d->o16 = true;
        } else if ((b & 0xf0) == 0x40) {
            d->w = b & 8;
            d->rex_r = b & 4;
            d->rex_b = b & 1;
            return take_byte(d, &d->op);
        } else if (b != 0xf2 && b != 0xf3 && b != 0x2e && b != 0x36 && b != 0x3e && b != 0x26 && b != 0x64 &&
                   b != 0x65 && b != 0x67 && b != 0xf0) {
            d->op = b;
            return true;
        }
    }
    return false;
}

/* VEX (c4, c5) and EVEX (62) carry the map in their own bytes; none of their instructions touches rsp. */
static bool vector(struct decoder *d)
{
    uint8_t b, skip = d->op == 0xc5 ? 0 : d->op == 0xc4 ? 1 : 2;

    if (!take_byte(d, &b))
        return false;
    d->map = d->op == 0xc5 ? 1 : b & (d->op == 0xc4 ? 0x1f : 7);
    for (; skip; skip--)
        if (!take_byte(d, &b))
            return false;
    if (!take_byte(d, &d->op))
        return false;
    d->form = d->map == 3 ? M | B : d->map == 1 ? two_byte_form(d->op) & (uint8_t)~Z : M;
    return true;
}

static bool opcode(struct decoder *d)
{
    if (d->op == 0xc4 || d->op == 0xc5 || d->op == 0x62)
        return vector(d);
    if (d->op != 0x0f) {
        d->form = one_byte_form(d->op);
        return !(d->form & X);
    }
    if (!take_byte(d, &d->op))
        return false;
    d->map = 1;
    d->form = two_byte_form(d->op);
    if (d->op == 0x38 || d->op == 0x3a) {
        d->map = d->op == 0x38 ? 2 : 3;
        d->form = d->op == 0x38 ? M : M | B;
        return take_byte(d, &d->op);
    }
    return true;
}

static bool operand_bytes(struct decoder *d)
{
    uint8_t mod, rm, sib = 0;
    uint32_t n = 0;

    if (!(d->form & M))
        return true;
    if (!take_byte(d, &d->modrm))
        return false;
    mod = d->modrm >> 6;
    rm = d->modrm & 7;
    if (mod != 3 && rm == 4 && !take_byte(d, &sib))
        return false;
    if (mod == 1)
        n = 1;
    else if (mod == 2 || (mod == 0 && (rm == 5 || (rm == 4 && (sib & 7) == 5))))
        n = 4;
    if ((uint32_t)(d->end - d->p) < n)
        return false;
    if (n && mod != 0 && rm == 4 && (sib & 7) == RSP && !d->rex_b)
        d->below_stack = d->p[n - 1] & 0x80; /* the sign of the displacement */
    d->p += n;
    /* test, the one member of these groups with an immediate */
    if (d->map == 0 && (d->op == 0xf6 || d->op == 0xf7) && (d->modrm & 0x38) <= 8)
        d->form |= d->op == 0xf6 ? B : Z;
    return true;
}

static uint32_t immediate_len(const struct decoder *d)
{
    uint32_t n = 0;

    if (d->form & B)
        n += 1;
    if (d->form & W)
        n += 2;
    if (d->form & Z)
        n += d->o16 && d->op != 0xe8 && d->op != 0xe9 ? 2 : 4;
    if (d->form & V)
        n += d->w ? 8 : d->o16 ? 2 : 4;
    if (d->form & O)
        n += 8;
    return n;
}

/* rsp as the destination in the ModRM's r/m (a register, not memory) or reg field. */
static bool rm_is_rsp(const struct decoder *d)
{
    return d->modrm >> 6 == 3 && (d->modrm & 7) == RSP && !d->rex_b;
}

/*
 * mov rbp, rsp and lea disp(reg), rsp: the frame is torn down to a place noted before. `reg` is rbp, or r10 where
 * the stack was realigned; an allocation never looks like this.
 */
static bool from_noted(const struct decoder *d)
{
    if (!d->w || d->op < 0x40)
        return false;
    if (d->op == 0x8d)
        return d->modrm >> 6 != 3 && d->modrm >> 6 != 0 && (d->modrm & 7) != RSP;
    return d->modrm >> 6 == 3 &&
           (d->op == 0x89 ? (d->modrm >> 3 & 7) == RBP && !d->rex_r : (d->modrm & 7) == RBP && !d->rex_b);
}

static bool reg_is_rsp(const struct decoder *d)
{
    return (d->modrm >> 3 & 7) == RSP && !d->rex_r;
}

static int32_t sign_extend(uint8_t byte)
{
    return byte < 0x80 ? byte : byte - 0x100;
}

/* Group 1 (80, 81, 83) on rsp: add and sub of a constant, and of a negative power of two. */
static void group1(const struct decoder *d, const uint8_t *imm, struct ub_insn *ret)
{
    uint8_t which = d->modrm >> 3 & 7;
    int32_t value;

    if (!rm_is_rsp(d) || which == 7)
        return;
    ret->kind = UB_INSN_CLOBBER_RSP;
    if (!d->w || (which != 0 && which != 5 && which != 4))
        return;
    if (d->op == 0x83)
        value = sign_extend(imm[0]);
    else
        memcpy(&value, imm, sizeof(value));
    if (value == INT32_MIN)
        return;
    if (which == 4) {
        if (value >= 0 || (-value & (-value - 1)) != 0)
            return;
        ret->kind = UB_INSN_ALIGN_RSP;
        ret->delta = -value;
        return;
    }
    ret->kind = UB_INSN_MOVE_RSP;
    ret->delta = which == 0 ? value : -value;
}

static void jump(const struct decoder *d, const uint8_t *imm, struct ub_insn *ret)
{
    ret->kind = UB_INSN_LEAVES;
    ret->jumps = true;
    if (d->op == 0xeb)
        ret->delta = sign_extend(imm[0]);
    else
        memcpy(&ret->delta, imm, sizeof(ret->delta));
}

static bool is_push(const struct decoder *d)
{
    return (d->op & 0xf8) == 0x50 || d->op == 0x68 || d->op == 0x6a || (d->op == 0xff && (d->modrm >> 3 & 7) == 6);
}

/* pop, leave */
static bool is_pop(const struct decoder *d)
{
    return (d->op & 0xf8) == 0x58 || d->op == 0x8f || d->op == 0xc9;
}

/* call, return, int3, hlt, and call or jump through a register or memory */
static bool leaves(const struct decoder *d)
{
    return d->op == 0xe8 || d->op == 0xc3 || d->op == 0xc2 || d->op == 0xcc || d->op == 0xf4 ||
           (d->op == 0xff && (d->modrm >> 3 & 7) >= 2 && (d->modrm >> 3 & 7) <= 5);
}

/* mov %rsp,%rbp in its two encodings */
static bool sets_rbp(const struct decoder *d)
{
    if (!d->w || d->modrm >> 6 != 3)
        return false;
    return (d->op == 0x89 && reg_is_rsp(d) && (d->modrm & 7) == RBP && !d->rex_b) ||
           (d->op == 0x8b && rm_is_rsp(d) && (d->modrm >> 3 & 7) == RBP && !d->rex_r);
}

/* Arithmetic other than a comparison, mov or lea with rsp as its destination. */
static bool writes_rsp(const struct decoder *d)
{
    if (d->op < 0x38)
        return ((d->op & 7) == 1 && rm_is_rsp(d)) || ((d->op & 7) == 3 && reg_is_rsp(d));
    return (d->op == 0x89 && rm_is_rsp(d)) || ((d->op == 0x8b || d->op == 0x8d) && reg_is_rsp(d));
}

/* What it does to rsp; a conditional jump does nothing: the prologue goes on behind it. */
static void classify(const struct decoder *d, const uint8_t *imm, struct ub_insn *ret)
{
    if (d->map != 0)
        return;
    if (is_push(d))
        ret->kind = UB_INSN_PUSH;
    else if (d->op == 0xe9 || d->op == 0xeb)
        jump(d, imm, ret);
    else if (leaves(d)) {
        ret->kind = UB_INSN_LEAVES;
        ret->calls = d->op == 0xe8 || (d->op == 0xff && (d->modrm >> 3 & 7) <= 3);
    } else if (d->op == 0x81 || d->op == 0x83)
        group1(d, imm, ret);
    else if (sets_rbp(d))
        ret->kind = UB_INSN_SET_RBP;
    else if (is_pop(d) || (writes_rsp(d) && from_noted(d)))
        ret->kind = UB_INSN_EPILOGUE;
    else if (writes_rsp(d))
        ret->kind = UB_INSN_CLOBBER_RSP;
}

bool ub_insn_decode(const uint8_t *p, uint32_t len, struct ub_insn *ret)
{
    struct decoder d = {.p = p, .end = p + len};
    uint32_t imm;

    if (!prefixes(&d) || !opcode(&d) || !operand_bytes(&d))
        return false;
    imm = immediate_len(&d);
    if ((uint32_t)(d.end - d.p) < imm)
        return false;
    *ret = (struct ub_insn){.len = (uint32_t)(d.p - p) + imm, .kind = UB_INSN_OTHER};
    ret->below_stack = d.below_stack;
    ret->returns = d.map == 0 && (d.op == 0xc3 || d.op == 0xc2);
    classify(&d, d.p, ret);
    return true;
}
