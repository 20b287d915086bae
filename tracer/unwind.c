/*
 * The walk over a captured stack. Why each step is what it is: README.md "Unwinding".
 */
#include "unwind_impl.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define BUDGET      (1u << 20)     /* memory accesses a trace: a cold one of 24 frames takes some ten thousand */
#define ENTRY_BYTES 128u           /* _start, and ld.so's _dl_start_user behind it */
#define BLOB_BYTES  (64ull * 1024) /* that much code without tables is not somebody's forgotten assembly */

#define EPILOGUE_MAX 32   /* instructions */
#define RED_ZONE     128u /* bytes below the stack pointer that stay what they are */

/* ---- one step ---- */

enum step {
    STEP_OK,
    STEP_END,       /* this was the outermost frame */
    STEP_STOP,      /* the trace cannot go on */
    STEP_NEEDS_RBP, /* it could, with rbp */
};

/*
 * Sets libunwind on a frame. A cursor looks the first frame up by its pc as it
 * is, so a return address is given as the address before. libunwind caches a row
 * under the pc alone, whether it stands for "at" or "before": a pc that may be
 * both goes to the space without a cache.
 */
static bool start_cursor(struct ub_unwinder *u, const struct ub_regs *at)
{
    uint64_t target;
    bool both = at->exact && ub_unwind_call_before(u, at->reg[UB_REG_RIP], &target) != UB_CALL_NONE;

    u->regs = *at;
    u->regs.reg[UB_REG_RIP] = ub_regs_lookup_pc(at);
    u->missing = 0;
    return unw_init_remote(&u->cursor, both ? u->plain : u->cached, u) == 0;
}

/* The registers that the kernel pushed for the handler whose return address is the trampoline: all of them. */
static bool step_signal(struct ub_unwinder *u, struct ub_regs *at)
{
    uint64_t uc[UB_UC_WORDS];

    if (!ub_unwind_read(u, at->reg[UB_REG_RSP], uc, sizeof(uc)))
        return false;
    for (int i = 0; i < UB_REG_COUNT; i++)
        at->reg[i] = uc[UB_UC_REGS + ub_arch_sigcontext_word[i]];
    at->known = UB_REG_ALL;
    at->exact = true;
    return start_cursor(u, at);
}

/* An address that a return may go to: in code, and after a call where the code can be read. */
static bool plausible_return(struct ub_unwinder *u, uint64_t address)
{
    const struct ub_map *m = ub_unwind_map(u, address - 1);
    uint64_t target;

    if (!m || !(m->prot & PROT_EXEC))
        return false;
    return !m->elf || ub_unwind_call_before(u, address, &target) != UB_CALL_NONE;
}

/* [rbp] is the caller's rbp, [rbp + 8] the return address. */
static bool step_frame_pointer(struct ub_unwinder *u, struct ub_regs *at)
{
    struct ub_regs next = {.known = UB_REG_BIT(UB_REG_RIP) | UB_REG_BIT(UB_REG_RSP) | UB_REG_BIT(UB_REG_RBP)};
    uint64_t pair[2];
    unw_word_t rbp;

    if (unw_get_reg(&u->cursor, UNW_X86_64_RBP, &rbp) < 0 || rbp % 8 || rbp < at->reg[UB_REG_RSP] ||
        !ub_unwind_read_stack(u->capture, rbp, pair, sizeof(pair)) || !plausible_return(u, pair[1]))
        return false;
    next.reg[UB_REG_RBP] = pair[0];
    next.reg[UB_REG_RIP] = pair[1];
    next.reg[UB_REG_RSP] = rbp + 16;
    *at = next;
    return start_cursor(u, at);
}

static bool is_entry(const struct ub_map *m, uint64_t pc)
{
    return m->elf->entry && pc - m->bias - m->elf->entry < ENTRY_BYTES;
}

/*
 * Straight on to a return, or to a jump out of the function, without looking
 * below the stack pointer (where a leaf function may keep registers it has yet to restore).
 */
static bool in_epilogue(struct ub_unwinder *u, const struct ub_map *m, uint64_t pc)
{
    struct ub_insn insn;
    struct ub_fde fde;
    uint64_t vaddr = pc - m->bias;

    if (ub_fde_find(u, m->elf, vaddr, &fde, NULL) < 0)
        return false;
    for (int i = 0; i < EPILOGUE_MAX && vaddr < fde.end; i++, vaddr += insn.len) {
        uint64_t len = fde.end - vaddr < 16 ? fde.end - vaddr : 16;
        const uint8_t *p = ub_elf_image(m->elf, vaddr, len, false);

        if (!p || !ub_insn_decode(p, (uint32_t)len, &insn) || insn.below_stack)
            return false;
        if (insn.kind == UB_INSN_LEAVES)
            return insn.returns ||
                   (insn.jumps && vaddr + insn.len + (uint64_t)(int64_t)insn.delta - fde.start >= fde.end - fde.start);
        if (insn.kind == UB_INSN_PUSH || insn.kind == UB_INSN_CLOBBER_RSP || insn.kind == UB_INSN_SET_RBP)
            return false;
    }
    return false;
}

/*
 * Behind `pop %rbp`, GCC's tables still say that the caller's rbp lies where it
 * was pushed. That is just below the stack pointer now, where no sample reaches;
 * but the register has it by then. True of all registers, in an epilogue only.
 */
static void note_popped(struct ub_unwinder *u, const struct ub_map *m, const struct ub_regs *at)
{
    uint64_t sp = at->reg[UB_REG_RSP];

    u->popped_count = 0;
    if (!at->exact || !m->elf || !in_epilogue(u, m, at->reg[UB_REG_RIP]))
        return;
    for (int i = 0; i < UB_REG_RIP; i++) {
        unw_save_loc_t loc;

        if (!(at->known & UB_REG_BIT(i)) || unw_get_save_loc(&u->cursor, i, &loc) < 0 || loc.type != UNW_SLT_MEMORY ||
            loc.u.addr >= sp || loc.u.addr < sp - RED_ZONE)
            continue;
        u->popped[u->popped_count].address = loc.u.addr;
        u->popped[u->popped_count++].value = at->reg[i];
    }
}

/*
 * A function that realigns the stack and finds its frame through r10 keeps the
 * caller's rbp where its own points to, and says so up to its return: behind
 * `leave` that is the caller's rbp already, and the tables lead to the caller's
 * caller. A place above the frame gives it away: nobody saves a register there.
 */
static bool rbp_is_back(struct ub_unwinder *u, const struct ub_regs *at, uint64_t cfa)
{
    unw_save_loc_t loc;

    return at->exact && at->known & UB_REG_BIT(UB_REG_RBP) && unw_get_save_loc(&u->cursor, UNW_X86_64_RBP, &loc) == 0 &&
           loc.type == UNW_SLT_MEMORY && loc.u.addr == at->reg[UB_REG_RBP] && loc.u.addr >= cfa;
}

/* The registers as the cursor has them now, but for this rbp. */
static bool keep_rbp(struct ub_unwinder *u, struct ub_regs *at)
{
    struct ub_regs next = {.known = 0};

    for (int i = 0; i < UB_REG_COUNT; i++) {
        unw_word_t value;

        if (i != UB_REG_RBP && unw_get_reg(&u->cursor, i, &value) == 0) {
            next.reg[i] = value;
            next.known |= UB_REG_BIT((uint32_t)i);
        }
    }
    next.reg[UB_REG_RBP] = at->reg[UB_REG_RBP];
    next.known |= UB_REG_BIT(UB_REG_RBP);
    *at = next;
    return start_cursor(u, at);
}

static enum step step_tables(struct ub_unwinder *u, const struct ub_map *m, struct ub_regs *at, bool *ret_framed)
{
    uint64_t old = at->reg[UB_REG_RSP];
    unw_word_t ip = 0, sp = 0;
    int r;

    u->no_table = false;
    r = unw_step(&u->cursor);
    if (r < 0 && u->missing & UB_REG_BIT(UB_REG_RBP))
        return STEP_NEEDS_RBP;
    if (r < 0 && u->no_table) {
        if (is_entry(m, ub_regs_lookup_pc(at)))
            return STEP_END;
        *ret_framed = u->gap >= BLOB_BYTES;
    }
    u->tabled |= r >= 0;
    if (r < 0 || unw_get_reg(&u->cursor, UNW_REG_SP, &sp) < 0)
        return STEP_STOP;
    if (r == 0) {
        at->reg[UB_REG_RSP] = sp;
        return STEP_END;
    }
    if (unw_get_reg(&u->cursor, UNW_REG_IP, &ip) < 0 || sp <= old)
        return STEP_STOP; /* the stack grows down: a caller's frame lies above, or the tables lie */
    if (rbp_is_back(u, at, sp))
        return keep_rbp(u, at) ? STEP_OK : STEP_STOP;
    if (at->exact)
        note_popped(u, m, at);
    at->reg[UB_REG_RSP] = sp;
    at->reg[UB_REG_RIP] = ip;
    at->exact = false;
    return STEP_OK;
}

/* A trampoline is met as the return address of a handler, or as all of it is done: in its system call. */
static bool at_trampoline(struct ub_unwinder *u, const struct ub_regs *at)
{
    uint64_t start = at->reg[UB_REG_RIP] - (at->exact ? UB_ARCH_SIGRETURN_BYTES : 0);
    uint8_t code[UB_ARCH_SIGRETURN_BYTES];

    return ub_unwind_read_image(u, start, code, sizeof(code), false) && ub_arch_is_sigreturn(code);
}

/* From one frame to its caller: `at` and the cursor move on, `frame` is completed. */
static enum step step(struct ub_unwinder *u, struct ub_regs *at, struct ub_frame *frame)
{
    const struct ub_map *m;
    enum step r = STEP_STOP;
    bool framed = false;

    if (at_trampoline(u, at)) {
        frame->is_call = false;
        r = step_signal(u, at) ? STEP_OK : STEP_STOP;
    } else {
        m = ub_unwind_map(u, ub_regs_lookup_pc(at));
        if (!m || !(m->prot & PROT_EXEC))
            return STEP_STOP;
        if (m->elf)
            r = step_tables(u, m, at, &framed);
        else
            framed = true; /* JIT code: no table anywhere */
        if (r == STEP_STOP && m->elf && u->no_table && !u->tabled && ub_unwind_by_code(u, m, at)) {
            frame->how = UB_FRAME_CODE;
            r = start_cursor(u, at) ? STEP_OK : STEP_STOP;
        } else if (framed && step_frame_pointer(u, at)) {
            frame->how = UB_FRAME_FP;
            r = STEP_OK;
        }
    }
    if (r == STEP_OK || r == STEP_END)
        frame->cfa = at->reg[UB_REG_RSP];
    return r;
}

/* ---- the walk ---- */

/* The start of a function, pushed by hand (makecontext does it with __start_context): nobody called it. */
static bool made_by_hand(struct ub_unwinder *u, const struct ub_regs *at)
{
    uint64_t pc = at->reg[UB_REG_RIP], target;
    const struct ub_map *m = ub_unwind_map(u, pc);
    struct ub_fde fde;

    return !at->exact && m && m->elf && ub_unwind_call_before(u, pc, &target) == UB_CALL_NONE &&
           ub_fde_find(u, m->elf, pc - m->bias, &fde, NULL) == 0 && fde.start == pc - m->bias;
}

/*
 * A return address that follows no call: the kernel's trampoline has one, and the
 * root of a fiber, made by hand, which must then be the end.
 */
static bool may_be_only_the_end(struct ub_unwinder *u, const struct ub_regs *at)
{
    return !at->exact && !at_trampoline(u, at) && !plausible_return(u, at->reg[UB_REG_RIP]);
}

/* Appends frames from `at` on; `at` is left on the last of them. `checked`: every return address must follow a call. */
static enum step walk(struct ub_unwinder *u, struct ub_regs *at, struct ub_stack *ret, bool checked)
{
    enum step r = start_cursor(u, at) ? STEP_OK : STEP_STOP;

    while (r == STEP_OK) {
        struct ub_frame *frame = &ret->frame[ret->count];
        bool last;

        if (ret->count == UB_FRAMES_MAX) {
            ret->truncated = true;
            return STEP_STOP;
        }
        last = checked && ret->count && may_be_only_the_end(u, at);
        *frame = (struct ub_frame){.pc = at->reg[UB_REG_RIP], .how = UB_FRAME_EXACT, .is_call = !at->exact};
        ret->count++;
        r = step(u, at, frame);
        if (r == STEP_STOP && made_by_hand(u, at)) {
            frame->is_call = false;
            r = STEP_END;
        }
        if (last && r != STEP_END)
            return STEP_STOP;
        if (r == STEP_OK && at->reg[UB_REG_RIP] == 0)
            return STEP_END; /* the root of a fiber or a hand-made thread: nothing called it */
    }
    return r;
}

bool ub_unwind_try(struct ub_unwinder *u, const struct ub_regs *from)
{
    struct ub_regs at = *from;

    u->trial.count = 0;
    u->trial.complete = u->trial.truncated = false;
    u->trial.complete = walk(u, &at, &u->trial, true) == STEP_END && at.reg[UB_REG_RIP] != 0;
    return u->trial.complete;
}

/* Replaces the last frame of `ret`, where rbp was missing, by the trace that was found with it. */
static void splice(struct ub_stack *ret, const struct ub_stack *tail)
{
    uint32_t n = tail->count;

    ret->count--;
    if (n > UB_FRAMES_MAX - ret->count) {
        n = UB_FRAMES_MAX - ret->count;
        ret->truncated = true;
    }
    memcpy(ret->frame + ret->count, tail->frame, n * sizeof(tail->frame[0]));
    ret->frame[ret->count].how = UB_FRAME_RBP;
    ret->count += n;
    ret->complete = tail->complete && !ret->truncated;
}

int ub_unwind(struct ub_unwinder *u, struct ub_maps *maps, const struct ub_capture *capture, struct ub_stack *ret)
{
    struct ub_regs at = {.known = capture->reg_known, .exact = true};
    enum step r;

    ret->count = 0;
    ret->complete = ret->truncated = false;
    if (!(at.known & UB_REG_BIT(UB_REG_RIP)))
        return -ENODATA;
    memcpy(at.reg, capture->reg, sizeof(at.reg));
    if (!maps || !(at.known & UB_REG_BIT(UB_REG_RSP))) {
        ret->frame[ret->count++] = (struct ub_frame){.pc = at.reg[UB_REG_RIP], .how = UB_FRAME_EXACT};
        return 0;
    }
    u->maps = maps;
    u->capture = capture;
    u->last_map = NULL;
    u->popped_count = 0;
    u->tabled = false;
    u->budget = BUDGET;
    u->cached = ub_unwind_choose_space(u, maps);
    r = walk(u, &at, ret, false);
    ret->complete = r == STEP_END;
    if (r == STEP_NEEDS_RBP && ub_rbp_recover(u, &at))
        splice(ret, &u->best);
    u->maps = NULL;
    u->capture = NULL;
    return 0;
}
