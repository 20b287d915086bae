/*
 * long ub_clone(unsigned long flags, void *stack_top, int (*f)(void *), void *argument)
 *
 * clone(2) with a stack of its own for the child, which calls f(argument) and
 * exits with what that returns. libc's clone() would do, but it touches errno.
 * The child is the outermost frame of its stack. Signal-safe.
 */
    .text
    .globl  ub_clone
    .hidden ub_clone
    .type   ub_clone, @function
    .balign 16
ub_clone:
    .cfi_startproc
    endbr64
    andq    $-16, %rsi
    subq    $16, %rsi
    movq    %rdx, 0(%rsi)
    movq    %rcx, 8(%rsi)
    xorl    %edx, %edx      /* no parent_tid, child_tid, tls */
    xorl    %r10d, %r10d
    xorl    %r8d, %r8d
    movl    $56, %eax       /* SYS_clone */
    syscall
    testq   %rax, %rax
    je      1f
    ret
    .cfi_endproc
1:
    .cfi_startproc
    .cfi_undefined rip
    xorl    %ebp, %ebp
    popq    %rax
    popq    %rdi
    call    *%rax
    movl    %eax, %edi
    movl    $60, %eax       /* SYS_exit: of a process with one thread */
    syscall
    hlt
    .cfi_endproc
    .size   ub_clone, .-ub_clone
    .section .note.GNU-stack, "", @progbits
