/*
 * The switch between two stacks, aarch64: as fiber_x86_64.S, which has the reasons. Run
 * under QEMU only (tests/aarch64).
 */
#if defined(__aarch64__)
        .text
        .globl  ub_fiber_switch
        .hidden ub_fiber_switch
        .type   ub_fiber_switch, %function
        .p2align 4
ub_fiber_switch:
        .cfi_startproc
        hint    #34                     /* bti c */
        sub     sp, sp, #176
        .cfi_def_cfa_offset 176
        stp     x19, x20, [sp, #16]
        stp     x21, x22, [sp, #32]
        stp     x23, x24, [sp, #48]
        stp     x25, x26, [sp, #64]
        stp     x27, x28, [sp, #80]
        stp     x29, x30, [sp, #96]
        stp     d8, d9, [sp, #112]
        stp     d10, d11, [sp, #128]
        stp     d12, d13, [sp, #144]
        stp     d14, d15, [sp, #160]
        .cfi_offset x19, -160
        .cfi_offset x20, -152
        .cfi_offset x21, -144
        .cfi_offset x22, -136
        .cfi_offset x23, -128
        .cfi_offset x24, -120
        .cfi_offset x25, -112
        .cfi_offset x26, -104
        .cfi_offset x27, -96
        .cfi_offset x28, -88
        .cfi_offset x29, -80
        .cfi_offset x30, -72
        mrs     x9, fpcr
        str     x9, [sp]
        mov     x10, sp
        str     x10, [x0]
        mov     sp, x1
        ldr     x11, [sp]
        cmp     x9, x11
        b.eq    1f
        msr     fpcr, x11
1:      ldp     x19, x20, [sp, #16]
        ldp     x21, x22, [sp, #32]
        ldp     x23, x24, [sp, #48]
        ldp     x25, x26, [sp, #64]
        ldp     x27, x28, [sp, #80]
        ldp     x29, x30, [sp, #96]
        ldp     d8, d9, [sp, #112]
        ldp     d10, d11, [sp, #128]
        ldp     d12, d13, [sp, #144]
        ldp     d14, d15, [sp, #160]
        add     sp, sp, #176
        .cfi_def_cfa_offset 0
        br      x30
        .cfi_endproc
        .size   ub_fiber_switch, . - ub_fiber_switch

        .globl  ub_fiber_root
        .hidden ub_fiber_root
        .hidden ub_fiber_main
        .hidden ub_fiber_personality
        .type   ub_fiber_root, %function
        .p2align 4
        nop
ub_fiber_root:
        .cfi_startproc
        .cfi_personality 0x1b, ub_fiber_personality
        .cfi_escape 0x0f, 7, 0x8f, 0, 0x06, 0x06, 0x23, 0xb0, 0x01 /* breg31+0 deref deref plus 176 */
        .cfi_offset x19, -160
        .cfi_offset x20, -152
        .cfi_offset x21, -144
        .cfi_offset x22, -136
        .cfi_offset x23, -128
        .cfi_offset x24, -120
        .cfi_offset x25, -112
        .cfi_offset x26, -104
        .cfi_offset x27, -96
        .cfi_offset x28, -88
        .cfi_offset x29, -80
        .cfi_offset x30, -72
        hint    #36                     /* bti j */
        mov     x0, x19
        bl      ub_fiber_main
        brk     #1
        .cfi_endproc
        .size   ub_fiber_root, . - ub_fiber_root
#endif

        .section .note.GNU-stack, "", %progbits
