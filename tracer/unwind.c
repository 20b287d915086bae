/*
 * The walk over a captured stack. Why each step is what it is: README.md "Unwinding".
 */
#include "unwind_impl.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define CACHE_ENTRIES 1024u         /* rows of unwind tables that libunwind remembers for one address space */
#define BUDGET        (1u << 20)    /* memory accesses a trace: a cold one of 24 frames takes some ten thousand */
#define ENTRY_BYTES   128u          /* _start, and ld.so's _dl_start_user behind it */
#define BLOB_BYTES    (64u * 1024u) /* that much code without tables is not somebody's forgotten assembly */

#define EPILOGUE_MAX 32   /* instructions */
#define RED_ZONE     128u /* bytes below the stack pointer that stay what they are */

/* ---- memory ---- */

const struct ub_map *ub_unwind_map(struct ub_unwinder *u, uint64_t address)
{
    if (!u->last_map || address < u->last_map->start || address >= u->last_map->end)
        u->last_map = u->maps ? ub_maps_find(u->maps, address) : NULL;
    return u->last_map;
}

static bool read_stack(const struct ub_capture *c, uint64_t address, void *buf, uint32_t len)
{
    for (uint32_t i = 0; i < c->region_count; i++) {
        const struct ub_stack_region *r = &c->region[i];

        if (r->len >= len && address - r->address <= r->len - len) {
            memcpy(buf, c->bytes + r->offset + (address - r->address), len);
            return true;
        }
    }
    return false;
}

static bool read_image(struct ub_unwinder *u, uint64_t address, void *buf, uint32_t len, bool writable_too)
{
    const struct ub_map *m = ub_unwind_map(u, address);
    const void *p = m && m->elf ? ub_elf_image(m->elf, address - m->bias, len, writable_too) : NULL;

    if (!p)
        return false;
    memcpy(buf, p, len);
    return true;
}

bool ub_unwind_read(struct ub_unwinder *u, uint64_t address, void *buf, uint32_t len)
{
    return read_stack(u->capture, address, buf, len) || read_image(u, address, buf, len, false);
}

enum ub_call ub_unwind_call_before(struct ub_unwinder *u, uint64_t address, uint64_t *ret_target)
{
    const struct ub_map *m = address > UB_ARCH_CALL_BYTES ? ub_unwind_map(u, address - 1) : NULL;
    uint32_t len;
    const uint8_t *p = NULL;

    if (!m || !m->elf || !(m->prot & PROT_EXEC))
        return UB_CALL_NONE;
    for (len = UB_ARCH_CALL_BYTES; len >= 2 && !p; len--)
        p = ub_elf_image(m->elf, address - len - m->bias, len, false);
    return p ? ub_arch_call_before(p, len + 1, address, ret_target) : UB_CALL_NONE;
}

/* ---- libunwind's accessors ---- */

static int access_mem(unw_addr_space_t as, unw_word_t address, unw_word_t *value, int write, void *arg)
{
    struct ub_unwinder *u = arg;

    if (write || u->budget == 0)
        return -UNW_EUNSPEC;
    u->budget--;
    if (read_stack(u->capture, address, value, sizeof(*value)))
        return 0;
    for (uint32_t i = 0; i < u->popped_count; i++)
        if (u->popped[i].address == address) {
            *value = u->popped[i].value;
            return 0;
        }
    /*
     * A CIE names its personality routine through a pointer in writable data. Its
     * value does not matter, but libunwind insists on reading it.
     */
    if (read_image(u, address, value, sizeof(*value), u->in_tables))
        return 0;
    return -UNW_EINVAL;
}

static int access_reg(unw_addr_space_t as, unw_regnum_t reg, unw_word_t *value, int write, void *arg)
{
    struct ub_unwinder *u = arg;

    _Static_assert(UNW_X86_64_RBP == UB_REG_RBP && UNW_X86_64_RSP == UB_REG_RSP && UNW_X86_64_RIP == UB_REG_RIP,
                   "libunwind numbers registers as DWARF does");
    if (write || reg < 0 || reg >= UB_REG_COUNT)
        return -UNW_EBADREG;
    if (!(u->regs.known & UB_REG_BIT((uint32_t)reg))) {
        u->missing |= UB_REG_BIT((uint32_t)reg);
        return -UNW_EBADREG; /* unw_step fails then, rather than go on with a zero */
    }
    *value = u->regs.reg[reg];
    return 0;
}

static int access_fpreg(unw_addr_space_t as, unw_regnum_t reg, unw_fpreg_t *value, int write, void *arg)
{
    return -UNW_EBADREG;
}

static int no_dynamic_info(unw_addr_space_t as, unw_word_t *address, void *arg)
{
    return -UNW_ENOINFO;
}

static int no_resume(unw_addr_space_t as, unw_cursor_t *cursor, void *arg)
{
    return -UNW_EINVAL;
}

static int no_name(unw_addr_space_t as, unw_word_t address, char *buf, size_t size, unw_word_t *offset, void *arg)
{
    return -UNW_ENOINFO;
}

/* ---- address spaces ---- */

static unw_addr_space_t new_space(struct ub_unwinder *u, bool cache)
{
    unw_addr_space_t as = unw_create_addr_space(&u->accessors, 0);

    if (as && cache) {
        unw_set_caching_policy(as, UNW_CACHE_GLOBAL);
        unw_set_cache_size(as, CACHE_ENTRIES, 0);
    } else if (as) {
        unw_set_caching_policy(as, UNW_CACHE_NONE);
    }
    return as;
}

int ub_unwinder_new(struct ub_unwinder **ret)
{
    struct ub_unwinder *u = calloc(1, sizeof(*u));

    if (!u)
        return -ENOMEM;
    u->accessors = (unw_accessors_t){
        .find_proc_info = ub_unwind_find_proc_info,
        .put_unwind_info = ub_unwind_put_info,
        .get_dyn_info_list_addr = no_dynamic_info,
        .access_mem = access_mem,
        .access_reg = access_reg,
        .access_fpreg = access_fpreg,
        .resume = no_resume,
        .get_proc_name = no_name,
    };
    u->plain = new_space(u, false);
    if (!u->plain) {
        free(u);
        return -ENOMEM;
    }
    *ret = u;
    return 0;
}

void ub_unwinder_free(struct ub_unwinder *u)
{
    if (!u)
        return;
    for (uint32_t i = 0; i < UB_UNWIND_SPACES; i++) {
        if (u->space[i].as)
            unw_destroy_addr_space(u->space[i].as);
        ub_maps_unref(u->space[i].maps);
    }
    unw_destroy_addr_space(u->plain);
    free(u);
}

/* The same code at the same addresses: forked children share what was learnt about their parent. */
static bool same_layout(const struct ub_maps *a, const struct ub_maps *b)
{
    uint32_t i = 0, j = 0;

    if (a == b)
        return true;
    for (;; i++, j++) {
        while (i < a->count && !(a->map[i].prot & PROT_EXEC))
            i++;
        while (j < b->count && !(b->map[j].prot & PROT_EXEC))
            j++;
        if (i == a->count || j == b->count)
            return i == a->count && j == b->count;
        if (a->map[i].start != b->map[j].start || a->map[i].end != b->map[j].end || a->map[i].elf != b->map[j].elf ||
            a->map[i].bias != b->map[j].bias)
            return false;
    }
}

/*
 * The address space whose cache fits `maps`, or the one that was idle longest,
 * emptied. Only executable mappings decide: a heap that grows changes nothing.
 */
static unw_addr_space_t choose_space(struct ub_unwinder *u, struct ub_maps *maps)
{
    struct ub_unwind_space *s = &u->space[0];

    for (uint32_t i = 0; i < UB_UNWIND_SPACES; i++) {
        struct ub_unwind_space *candidate = &u->space[i];

        if (candidate->maps && same_layout(candidate->maps, maps)) {
            s = candidate;
            goto found;
        }
        if (candidate->used < s->used)
            s = candidate;
    }
    if (s->as)
        unw_flush_cache(s->as, 0, 0);
    else
        s->as = new_space(u, true);
found:
    if (s->maps != maps) {
        ub_maps_unref(s->maps);
        s->maps = ub_maps_ref(maps);
    }
    s->used = ++u->clock;
    return s->as ? s->as : u->plain;
}

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
        !read_stack(u->capture, rbp, pair, sizeof(pair)) || !plausible_return(u, pair[1]))
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
static bool in_epilogue(const struct ub_map *m, uint64_t pc)
{
    struct ub_insn insn;
    struct ub_fde fde;
    uint64_t vaddr = pc - m->bias;

    if (ub_fde_find(m->elf, vaddr, &fde, NULL) < 0)
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
    if (!at->exact || !m->elf || !in_epilogue(m, at->reg[UB_REG_RIP]))
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
    if (r < 0 || unw_get_reg(&u->cursor, UNW_REG_SP, &sp) < 0)
        return STEP_STOP;
    if (r == 0) {
        at->reg[UB_REG_RSP] = sp;
        return STEP_END;
    }
    if (unw_get_reg(&u->cursor, UNW_REG_IP, &ip) < 0 || sp <= old)
        return STEP_STOP; /* the stack grows down: a caller's frame lies above, or the tables lie */
    if (at->exact)
        note_popped(u, m, at);
    at->reg[UB_REG_RSP] = sp;
    at->reg[UB_REG_RIP] = ip;
    at->exact = false;
    return STEP_OK;
}

/* A trampoline is only met as the return address of a handler; elsewhere its own table serves. */
static bool at_trampoline(struct ub_unwinder *u, const struct ub_regs *at)
{
    uint8_t code[UB_ARCH_SIGRETURN_BYTES];

    return !at->exact && read_image(u, at->reg[UB_REG_RIP], code, sizeof(code), false) && ub_arch_is_sigreturn(code);
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
        if (framed && step_frame_pointer(u, at)) {
            frame->how = UB_FRAME_FP;
            r = STEP_OK;
        }
    }
    if (r == STEP_OK || r == STEP_END)
        frame->cfa = at->reg[UB_REG_RSP];
    return r;
}

/* ---- the walk ---- */

/* Appends frames from `at` on; `at` is left on the last of them. `checked`: every return address must follow a call. */
static enum step walk(struct ub_unwinder *u, struct ub_regs *at, struct ub_stack *ret, bool checked)
{
    enum step r = start_cursor(u, at) ? STEP_OK : STEP_STOP;

    while (r == STEP_OK) {
        struct ub_frame *frame = &ret->frame[ret->count];

        if (ret->count == UB_FRAMES_MAX) {
            ret->truncated = true;
            return STEP_STOP;
        }
        if (checked && ret->count && !at->exact && !at_trampoline(u, at) && !plausible_return(u, at->reg[UB_REG_RIP]))
            return STEP_STOP;
        *frame = (struct ub_frame){.pc = at->reg[UB_REG_RIP], .how = UB_FRAME_EXACT, .is_call = !at->exact};
        ret->count++;
        r = step(u, at, frame);
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
    u->budget = BUDGET;
    u->cached = choose_space(u, maps);
    r = walk(u, &at, ret, false);
    ret->complete = r == STEP_END;
    if (r == STEP_NEEDS_RBP && ub_rbp_recover(u, &at))
        splice(ret, &u->best);
    u->maps = NULL;
    u->capture = NULL;
    return 0;
}
