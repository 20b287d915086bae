/*
 * Between unwind.c (the walk), unwind_elf.c (unwind tables) and unwind_rbp.c
 * (a frame pointer that nobody told us). Private to these and their tests.
 */
#ifndef UB_TRACER_UNWIND_IMPL_H
#define UB_TRACER_UNWIND_IMPL_H

#include "unwind.h"

#include "arch.h"

#include <libunwind-x86_64.h>

/* ---- registers of one frame ---- */

struct ub_regs {
    uint64_t reg[UB_REG_COUNT]; /* RIP and RSP always; the others where `known` says so */
    uint32_t known;
    bool exact; /* RIP is where it stands, not a return address */
};

/* Tables are looked up by the call instruction, not by what follows it: that may belong to another function. */
static inline uint64_t ub_regs_lookup_pc(const struct ub_regs *r)
{
    return r->reg[UB_REG_RIP] - (r->exact ? 0 : 1);
}

/* ---- unwind tables of one ELF file; addresses here are the file's own ---- */

struct ub_fde {
    uint64_t start, end; /* of the function */
    uint64_t address;    /* of the entry itself, in .eh_frame */
    uint64_t code_align;
    int64_t data_align;
    const uint8_t *cie_code, *cie_end;
    const uint8_t *fde_code, *fde_end;
};

/* How the canonical frame address comes about at one instruction. */
struct ub_cfa_rule {
    int reg;        /* UB_REG_*, or -1: something else */
    int64_t offset; /* CFA = reg + offset */
    bool deref;     /* CFA = *(reg + offset): functions that realign their stack keep it in memory */
};

/*
 * Functions of a file without .eh_frame_hdr (linked with -static), sorted: built
 * from all of .eh_frame once and kept by the unwinder.
 */
struct ub_fde_entry {
    uint64_t start;
    uint64_t address; /* in .eh_frame */
};

struct ub_fde_index {
    const struct ub_elf *elf; /* NULL: free */
    struct ub_fde_entry *entry;
    uint64_t count;
    uint64_t used;
};

#define UB_FDE_INDEXES 8u

struct ub_unwinder;

/* The index of a file; without entries when it has no .eh_frame either. NULL: no memory. */
const struct ub_fde_index *ub_fde_index_get(struct ub_unwinder *u, const struct ub_elf *elf);
void ub_fde_index_free(struct ub_unwinder *u);

/* Reads the entry at `vaddr`. -EBADMSG. */
int ub_fde_read(const struct ub_elf *elf, uint64_t vaddr, struct ub_fde *ret);

/*
 * The function that holds `vaddr`, by binary search in .eh_frame_hdr or in our index.
 * -ENOENT: no entry covers it; `ret_gap` (may be NULL; UINT64_MAX: a Go program) is then the length of
 * the stretch without entries around it. -EBADMSG: tables that make no sense, or
 * of a form that no linker of today writes.
 */
int ub_fde_find(struct ub_unwinder *u, const struct ub_elf *elf, uint64_t vaddr, struct ub_fde *ret, uint64_t *ret_gap);

/*
 * Walks all of the function's instructions, so that libunwind only ever sees
 * ones that it can digest (see unwind_elf.c), and tells the rule at `vaddr`
 * (`ret` may be NULL). -EBADMSG when one is not to be shown to libunwind.
 */
int ub_fde_check(const struct ub_fde *fde, uint64_t vaddr, struct ub_cfa_rule *ret);

/* libunwind's find_proc_info and put_unwind_info; `arg` is the struct ub_unwinder. */
int ub_unwind_find_proc_info(unw_addr_space_t as, unw_word_t ip, unw_proc_info_t *pi, int need_info, void *arg);
void ub_unwind_put_info(unw_addr_space_t as, unw_proc_info_t *pi, void *arg);

/* ---- the unwinder ---- */

#define UB_UNWIND_TABLE_ADDRESS 0xffff800000000000ull /* where no process has memory */

/* Address spaces kept warm: libunwind's cache is worth a factor of four, and belongs to one layout of memory. */
#define UB_UNWIND_SPACES 8u

struct ub_unwind_space {
    unw_addr_space_t as;
    struct ub_maps *maps; /* NULL: free */
    uint64_t used;
};

/* What was found out about the ways to a function (unwind_refs.c). */
#define UB_UNWIND_REFERENCES 64u

struct ub_unwind_reference {
    const struct ub_elf *elf; /* NULL: a free entry */
    uint64_t start;
    bool only_called;
};

struct ub_unwinder {
    unw_accessors_t accessors;
    struct ub_unwind_space space[UB_UNWIND_SPACES];
    unw_addr_space_t plain; /* no cache */
    uint64_t clock;
    struct ub_unwind_reference reference[UB_UNWIND_REFERENCES];
    struct ub_fde_index index[UB_FDE_INDEXES];

    /* The trace at work. */
    struct ub_maps *maps;
    const struct ub_capture *capture;
    const struct ub_map *last_map; /* the mapping that the last access fell into */
    unw_addr_space_t cached;
    unw_cursor_t cursor;
    struct ub_regs regs; /* what access_reg answers with */
    struct {
        uint64_t address, value;
    } popped[UB_REG_COUNT]; /* words below the copy whose contents are known: see note_popped in unwind.c */
    uint32_t popped_count;
    uint32_t missing; /* registers that were asked for and not known */
    uint32_t budget;  /* memory accesses left: tables are hostile, and may loop */
    uint64_t table;   /* the table of one entry that libunwind searches at UB_UNWIND_TABLE_ADDRESS */
    bool in_tables;   /* find_proc_info is reading */
    bool no_table;    /* the last step found no entry */
    bool tabled;      /* a frame with a table was met */
    uint64_t gap;     /* then: the stretch without entries */

    struct ub_stack trial, best; /* scratch of ub_rbp_recover */
};

/* Like ub_maps_find, but the same mapping is mostly asked for again. NULL. */
const struct ub_map *ub_unwind_map(struct ub_unwinder *u, uint64_t address);

/* Bytes of the captured stack. */
bool ub_unwind_read_stack(const struct ub_capture *c, uint64_t address, void *buf, uint32_t len);

/* Bytes of an ELF file where it is mapped. `writable_too`: initial contents of data, which may be different by now. */
bool ub_unwind_read_image(struct ub_unwinder *u, uint64_t address, void *buf, uint32_t len, bool writable_too);

/* The one or the other, read-only data alone. */
bool ub_unwind_read(struct ub_unwinder *u, uint64_t address, void *buf, uint32_t len);

/*
 * The address space whose cache fits `maps`, or the one that was idle longest,
 * emptied. Only executable mappings decide: a heap that grows changes nothing.
 */
unw_addr_space_t ub_unwind_choose_space(struct ub_unwinder *u, struct ub_maps *maps);

/* What precedes a return address; NONE as well when it is not in the code of an ELF file. */
enum ub_call ub_unwind_call_before(struct ub_unwinder *u, uint64_t address, uint64_t *ret_target);

/*
 * True when `fde` is only ever entered by call instructions that name it.
 * Searches the file the first time: a millisecond for a megabyte of code.
 */
bool ub_unwind_only_called(struct ub_unwinder *u, const struct ub_elf *elf, const struct ub_fde *fde);

/* Walks on from a frame into u->trial, emptied before. True: it reached the outermost frame. */
bool ub_unwind_try(struct ub_unwinder *u, const struct ub_regs *from);

/*
 * A frame whose CFA hangs on an unknown rbp: true when exactly one value stands
 * every test; `at` then has it.
 */
bool ub_rbp_recover(struct ub_unwinder *u, struct ub_regs *at);

/* From a frame without a table to its caller, by the frame's own code: unwind_code.c. False: nothing has changed. */
bool ub_unwind_by_code(struct ub_unwinder *u, const struct ub_map *m, struct ub_regs *at);

/* ---- instructions (insn.c) ---- */

enum ub_insn_kind {
    UB_INSN_OTHER,
    UB_INSN_PUSH,
    UB_INSN_MOVE_RSP,    /* rsp += `delta`, a constant */
    UB_INSN_SET_RBP,     /* mov rsp, rbp */
    UB_INSN_EPILOGUE,    /* pop, leave, rsp from rbp */
    UB_INSN_ALIGN_RSP,   /* rsp is rounded down to a multiple of `delta` */
    UB_INSN_CLOBBER_RSP, /* rsp becomes something that the code does not say: alloca */
    UB_INSN_LEAVES,      /* call, jump, return */
};

struct ub_insn {
    uint32_t len;
    enum ub_insn_kind kind;
    int32_t delta;    /* UB_INSN_LEAVES with `jumps`: from the end of the instruction to the target */
    bool returns;     /* a return */
    bool jumps;       /* a jump to a constant */
    bool calls;       /* a call: goes on behind it */
    bool below_stack; /* uses memory below rsp */
};

/* The instruction at `p`, as far as it concerns the stack pointer. False: not one that compilers emit. */
bool ub_insn_decode(const uint8_t *p, uint32_t len, struct ub_insn *ret);

#endif
