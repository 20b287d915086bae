/*
 * What is known of the machine, in one place: registers, the signal frame, call
 * instructions. capture*.c and unwind*.c ask here; unwind_rbp.c (a prologue
 * decoder) is x86-64 as a whole. A port to another machine starts with a second
 * branch of this file.
 *
 * Thread-safe: constants and pure functions.
 */
#ifndef UB_TRACER_ARCH_H
#define UB_TRACER_ARCH_H

#include "../common/slot.h"

#if !defined(__x86_64__)
#error "capture and unwinding know x86-64 only: see tracer/arch.h"
#endif

#include <asm/perf_regs.h>
#include <string.h>

#define UB_REG_ALL    ((1u << UB_REG_COUNT) - 1)
#define UB_REG_BIT(i) (1u << (i))

/* perf's register numbers in our (DWARF) order. The kernel stores a sample's registers by ascending perf number. */
static const uint8_t ub_arch_perf_reg[UB_REG_COUNT] = {
    PERF_REG_X86_AX,  PERF_REG_X86_DX,  PERF_REG_X86_CX,  PERF_REG_X86_BX,  PERF_REG_X86_SI,  PERF_REG_X86_DI,
    PERF_REG_X86_BP,  PERF_REG_X86_SP,  PERF_REG_X86_R8,  PERF_REG_X86_R9,  PERF_REG_X86_R10, PERF_REG_X86_R11,
    PERF_REG_X86_R12, PERF_REG_X86_R13, PERF_REG_X86_R14, PERF_REG_X86_R15, PERF_REG_X86_IP,
};

/* ---- the frame that the kernel pushes for a signal handler ---- */

/*
 * `mov $__NR_rt_sigreturn,%rax; syscall`: what a handler returns to. Always the
 * libc's (SA_RESTORER is mandatory on x86-64), recognised by its bytes: musl's has no unwind table.
 */
#define UB_ARCH_SIGRETURN_BYTES 9
static inline bool ub_arch_is_sigreturn(const uint8_t *code)
{
    static const uint8_t bytes[UB_ARCH_SIGRETURN_BYTES] = {0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05};

    return memcmp(code, bytes, sizeof(bytes)) == 0;
}

/* struct ucontext of the kernel's ABI as 8-byte words: uc_flags, uc_link, uc_stack (3), then sigcontext. */
enum {
    UB_UC_FLAGS = 0,
    UB_UC_LINK = 1,
    UB_UC_STACK_SP = 2,
    UB_UC_STACK_SIZE = 4,
    UB_UC_REGS = 5,
    UB_UC_RSP = UB_UC_REGS + 15,
    UB_UC_EFLAGS = UB_UC_REGS + 17,
    UB_UC_SEGMENTS = UB_UC_REGS + 18, /* cs in the lowest 16 bits */
    UB_UC_WORDS = UB_UC_REGS + 19,
};

/* Could these words be one? What every saved context of 64-bit code has in common. */
static inline bool ub_arch_is_ucontext(const uint64_t *w)
{
    return w[UB_UC_FLAGS] <= 15 && w[UB_UC_LINK] == 0 && (w[UB_UC_EFLAGS] & 2) && w[UB_UC_EFLAGS] >> 22 == 0 &&
           (w[UB_UC_SEGMENTS] & 0xffff) == 0x33;
}

/* Where sigcontext keeps our register i, counted from UB_UC_REGS: r8..r15 rdi rsi rbp rbx rdx rax rcx rsp rip. */
static const uint8_t ub_arch_sigcontext_word[UB_REG_COUNT] = {13, 12, 14, 11, 9, 8, 10, 15, 0, 1, 2, 3, 4, 5, 6, 7, 16};

/* ---- call instructions ---- */

enum ub_call {
    UB_CALL_NONE,     /* no call instruction ends here */
    UB_CALL_DIRECT,   /* call rel32; the target is known */
    UB_CALL_INDIRECT, /* call through a register or memory */
};

/* Bytes before a return address that ub_arch_call_before wants to see (it takes fewer at the start of a mapping). */
#define UB_ARCH_CALL_BYTES 7

/*
 * Which call instruction ends exactly at address `end`, judged by the `len`
 * bytes before it. Instructions cannot be decoded backwards with certainty: the
 * answer is "could be". `ret_target` is set for UB_CALL_DIRECT.
 */
static inline enum ub_call ub_arch_call_before(const uint8_t *bytes, uint32_t len, uint64_t end, uint64_t *ret_target)
{
    const uint8_t *p = bytes + len;
    int32_t rel;

    if (len >= 5 && p[-5] == 0xe8) {
        memcpy(&rel, p - 4, sizeof(rel));
        *ret_target = end + (uint64_t)(int64_t)rel;
        return UB_CALL_DIRECT;
    }
    /* ff /2 in all its lengths: register or (reg); +SIB; disp8; SIB+disp8; disp32 or rip-relative; SIB+disp32 */
    if ((len >= 2 && p[-2] == 0xff && ((p[-1] & 0xf8) == 0xd0 || (p[-1] & 0xf8) == 0x10)) ||
        (len >= 3 && p[-3] == 0xff && ((p[-2] & 0xf8) == 0x50 || p[-2] == 0x14)) ||
        (len >= 4 && p[-4] == 0xff && p[-3] == 0x54) ||
        (len >= 6 && p[-6] == 0xff && ((p[-5] & 0xf8) == 0x90 || p[-5] == 0x15)) ||
        (len >= 7 && p[-7] == 0xff && p[-6] == 0x94))
        return UB_CALL_INDIRECT;
    return UB_CALL_NONE;
}

#endif
