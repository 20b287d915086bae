/*
 * The switch between two stacks, x86-64.
 *
 *   void ub_fiber_switch(void **save, void *load);
 *
 * What a function must preserve goes onto the stack that is left: the order is that of
 * fiber.c's `struct frame` and of the CFI of ub_fiber_root. The control words of SSE
 * and x87 are the fiber's own, too, as callers may rely on them; they are loaded only
 * where they differ (an ldmxcsr costs as much as everything else together). It ends with
 * a jump: a `ret` would be predicted to go where the last call came from. The
 * direction flag is clear, as the ABI has it.
 */
#if defined(__x86_64__)
        .text
        .globl  ub_fiber_switch
        .hidden ub_fiber_switch
        .type   ub_fiber_switch, @function
        .p2align 4
ub_fiber_switch:
        .cfi_startproc
        endbr64
        push    %rbp
        .cfi_adjust_cfa_offset 8
        .cfi_rel_offset %rbp, 0
        push    %rbx
        .cfi_adjust_cfa_offset 8
        .cfi_rel_offset %rbx, 0
        push    %r12
        .cfi_adjust_cfa_offset 8
        .cfi_rel_offset %r12, 0
        push    %r13
        .cfi_adjust_cfa_offset 8
        .cfi_rel_offset %r13, 0
        push    %r14
        .cfi_adjust_cfa_offset 8
        .cfi_rel_offset %r14, 0
        push    %r15
        .cfi_adjust_cfa_offset 8
        .cfi_rel_offset %r15, 0
        sub     $8, %rsp
        .cfi_adjust_cfa_offset 8
        stmxcsr (%rsp)
        fnstcw  4(%rsp)
        mov     (%rsp), %eax            /* each as wide as it was stored: that is what can be forwarded */
        movzwl  4(%rsp), %ecx
        mov     %rsp, (%rdi)
        mov     %rsi, %rsp              /* from here on the frame is the other stack's, of the same shape */
        xor     (%rsp), %eax
        xor     4(%rsp), %cx
        and     $-64, %eax              /* the lowest six bits are what has happened, not how to calculate */
        or      %ecx, %eax
        jne     2f
1:      add     $8, %rsp
        .cfi_adjust_cfa_offset -8
        pop     %r15
        .cfi_adjust_cfa_offset -8
        .cfi_restore %r15
        pop     %r14
        .cfi_adjust_cfa_offset -8
        .cfi_restore %r14
        pop     %r13
        .cfi_adjust_cfa_offset -8
        .cfi_restore %r13
        pop     %r12
        .cfi_adjust_cfa_offset -8
        .cfi_restore %r12
        pop     %rbx
        .cfi_adjust_cfa_offset -8
        .cfi_restore %rbx
        pop     %rbp
        .cfi_adjust_cfa_offset -8
        .cfi_restore %rbp
        pop     %rcx
        .cfi_adjust_cfa_offset -8
        .cfi_register %rip, %rcx
        jmp     *%rcx
        .cfi_adjust_cfa_offset 64
        .cfi_offset %rip, -8
        .cfi_offset %rbp, -16
        .cfi_offset %rbx, -24
        .cfi_offset %r12, -32
        .cfi_offset %r13, -40
        .cfi_offset %r14, -48
        .cfi_offset %r15, -56
2:      ldmxcsr (%rsp)
        fldcw   4(%rsp)
        jmp     1b
        .cfi_endproc
        .size   ub_fiber_switch, . - ub_fiber_switch

/*
 * Where a new fiber begins: %r12 is the fiber, (%rsp) the address of its `caller`. That
 * is where the frame below this one is found: CFA = *caller + 64, the frame that
 * ub_fiber_switch left there. Suspended, `caller` is NULL, and there is no frame below.
 */
        .globl  ub_fiber_root
        .hidden ub_fiber_root
        .hidden ub_fiber_main
        .hidden ub_fiber_personality
        .type   ub_fiber_root, @function
        .p2align 4
        nop                             /* a return address minus one must not lie in the function before */
ub_fiber_root:
        .cfi_startproc
        .cfi_personality 0x1b, ub_fiber_personality
        .cfi_escape 0x0f, 6, 0x77, 0, 0x06, 0x06, 0x23, 64 /* def_cfa_expression: breg7+0 deref deref plus 64 */
        .cfi_offset %rip, -8
        .cfi_offset %rbp, -16
        .cfi_offset %rbx, -24
        .cfi_offset %r12, -32
        .cfi_offset %r13, -40
        .cfi_offset %r14, -48
        .cfi_offset %r15, -56
        endbr64
        mov     %r12, %rdi
        call    ub_fiber_main
        ud2                             /* it does not return */
        .cfi_endproc
        .size   ub_fiber_root, . - ub_fiber_root
#endif

        .section .note.GNU-stack, "", @progbits
