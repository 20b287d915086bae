/*
 * syscall(2) as the program calls it. The wait calls go to ub_hook_syscall, as
 * do seccomp and prctl; what closes descriptors (libuv does so here only) to
 * ub_hook_syscall_closes; everything else leaves through a tail jump: no frame
 * of ours stands between a vfork (or clone) made here and its caller.
 */
#include <sys/syscall.h>

        .text
        .globl  syscall
        .type   syscall, @function
        .p2align 4
syscall:
        .cfi_startproc
        endbr64
        cmp     $SYS_io_uring_enter, %rdi
        je      1f
        cmp     $SYS_epoll_wait, %rdi
        je      1f
        cmp     $SYS_epoll_pwait, %rdi
        je      1f
        cmp     $SYS_epoll_pwait2, %rdi
        je      1f
        cmp     $SYS_poll, %rdi
        je      1f
        cmp     $SYS_ppoll, %rdi
        je      1f
        cmp     $SYS_seccomp, %rdi
        je      1f
        cmp     $SYS_prctl, %rdi
        je      1f
        cmp     $SYS_close, %rdi
        je      2f
        cmp     $SYS_close_range, %rdi
        je      2f
        cmp     $SYS_dup2, %rdi
        je      2f
        cmp     $SYS_dup3, %rdi
        je      2f
        jmp     *ub_real_syscall_pointer(%rip)
1:      jmp     ub_hook_syscall
2:      jmp     ub_hook_syscall_closes
        .cfi_endproc
        .size   syscall, . - syscall

        .hidden ub_raw_syscall
        .hidden ub_raw_syscall_return
        .globl  ub_raw_syscall
        .globl  ub_raw_syscall_return
        .type   ub_raw_syscall, @function
        .p2align 4
ub_raw_syscall:
        .cfi_startproc
        endbr64
        mov     %rdi, -8(%rsp)          /* for the sampling handler; a signal frame spares the red zone */
        mov     %rdi, %rax
        mov     %rsi, %rdi
        mov     %rdx, %rsi
        mov     %rcx, %rdx
        mov     %r8, %r10
        mov     %r9, %r8
        mov     8(%rsp), %r9
        syscall
ub_raw_syscall_return:
        cmp     $-4095, %rax
        jae     1f
        ret
1:      neg     %eax
        push    %rax
        .cfi_adjust_cfa_offset 8
        call    *__errno_location@GOTPCREL(%rip)
        pop     %rcx
        .cfi_adjust_cfa_offset -8
        mov     %ecx, (%rax)
        mov     $-1, %rax
        ret
        .cfi_endproc
        .size   ub_raw_syscall, . - ub_raw_syscall

        .section .note.GNU-stack, "", @progbits
