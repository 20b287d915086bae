/*
 * The entries that stand in for callbacks (thunk.h): each says which one it is
 * and goes on to ub_thunk_call with that number as a seventh argument; the six
 * of the callback stay in their registers.
 */
        .text
        .hidden ub_thunk_call
        .hidden ub_thunk_table
        .hidden ub_thunk_table_end

        .type   ub_thunk_common, @function
        .p2align 4
ub_thunk_common:
        .cfi_startproc
        push    %r11
        .cfi_adjust_cfa_offset 8
        call    ub_thunk_call
        add     $8, %rsp
        .cfi_adjust_cfa_offset -8
        ret
        .cfi_endproc
        .size   ub_thunk_common, . - ub_thunk_common

        .globl  ub_thunk_table
        .globl  ub_thunk_table_end
        .type   ub_thunk_table, @function
        .p2align 4
ub_thunk_table:
        .cfi_startproc
        .set    index, 0
        .rept   4096
        .p2align 4
        endbr64
        mov     $index, %r11d
        jmp     ub_thunk_common
        .set    index, index + 1
        .endr
ub_thunk_table_end:
        .cfi_endproc
        .size   ub_thunk_table, . - ub_thunk_table

        .section .note.GNU-stack, "", @progbits
