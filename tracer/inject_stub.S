/*
 * The code that a thread of the target runs for us. Never executed here: it is
 * copied (inject_room.c), so it refers to nothing but itself and the room.
 *
 * Both pieces begin where a wait call was interrupted or is about to be made,
 * and end with all registers and the stack as they were, by a jump to where
 * that call is made again, or has returned. That place is in rcx, and the number
 * of the request in r11: a system call leaves nothing of these two registers, so
 * they are free here. What a thread must not lose is thus in none of the memory
 * that another injector may write to when ours was killed. They leave the red
 * zone alone and need some 400 bytes below it, less than any signal does. Calls
 * and returns are balanced (shadow stacks).
 */
#include "../common/attach.h"

#define SYS_mmap           9
#define SYS_rt_sigprocmask 14
#define SYS_write          1
#define SYS_close          3
#define SYS_munmap         11
#define SYS_rt_sigpending  127
#define SYS_memfd_create   319

#define RED_ZONE 256 /* twice what the ABI says */

        .section .rodata.ub_inject, "a", @progbits

/*
 * ub_stub_room: maps memory, nothing else. It lies between the end of a
 * module's code and the end of its last page, and so stays short.
 */
        .globl  ub_stub_room, ub_stub_room_words, ub_stub_room_end
        .hidden ub_stub_room, ub_stub_room_words, ub_stub_room_end
        .p2align 4
ub_stub_room:
        lea     -RED_ZONE(%rsp), %rsp
        pushfq
        push    %rax
        push    %rcx
        push    %rdx
        push    %rsi
        push    %rdi
        push    %r8
        push    %r9
        push    %r10
        push    %r11
        lea     ub_stub_room_words(%rip), %r9
        mov     0(%r9), %rdi            /* the code's page: never writable */
        mov     8(%r9), %rsi
        mov     $5, %edx                /* PROT_READ | PROT_EXEC */
        mov     $0x100022, %r10d        /* MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE */
        mov     $-1, %r8
        xor     %r9d, %r9d
        mov     $SYS_mmap, %eax
        syscall
        lea     ub_stub_room_words(%rip), %r9
        mov     16(%r9), %rdi           /* the rest: never executable */
        mov     24(%r9), %rsi
        mov     $3, %edx                /* PROT_READ | PROT_WRITE */
        mov     $0x100022, %r10d
        mov     $-1, %r8
        xor     %r9d, %r9d
        mov     $SYS_mmap, %eax
        syscall
        pop     %r11
        pop     %r10
        pop     %r9
        pop     %r8
        pop     %rdi
        pop     %rsi
        pop     %rdx
        pop     %rcx
        pop     %rax
        popfq
        lea     RED_ZONE(%rsp), %rsp
        notrack jmp *%rcx
        .p2align 3
ub_stub_room_words:
        .quad   0, 0, 0, 0
ub_stub_room_end:

/*
 * ub_stub_enter: at the room's beginning, with struct ub_attach a page behind it.
 * Loads the agent unless it is there, calls its entry point; or unloads it, which no code of its own could.
 */
        .globl  ub_stub_enter, ub_stub_enter_end
        .hidden ub_stub_enter, ub_stub_enter_end
        .p2align 4
ub_stub_enter:
        lea     -RED_ZONE(%rsp), %rsp
        pushfq
        push    %rax
        push    %rbx
        push    %rcx
        push    %rdx
        push    %rsi
        push    %rdi
        push    %rbp
        push    %r8
        push    %r9
        push    %r10
        push    %r11
        push    %r12
        push    %r13
        push    %r14
        push    %r15
#define SAVED_R11   32 /* from the top of these */
#define SAVED_RCX   96
#define SAVED_RAX   112
#define SAVED_FLAGS 120
        lea     ub_stub_enter + UB_ROOM_ATTACH(%rip), %rbx
        mov     %r11d, %eax
        lea     1(%r11), %edx           /* RUNNING */
        lock cmpxchg %edx, UB_ATTACH_STATE(%rbx)
        jne     leave                   /* the room is another's by now */
        mov     %rsp, UB_ATTACH_SP(%rbx)

        mov     $2, %edi                /* SIG_SETMASK */
        lea     UB_ATTACH_ALL(%rbx), %rsi
        lea     UB_ATTACH_MASK(%rbx), %rdx
        mov     $8, %r10d
        mov     $SYS_rt_sigprocmask, %eax
        syscall

        lea     UB_ROOM_IMAGE - UB_ROOM_ATTACH - 64(%rbx), %rsp
        cld
        xor     %ecx, %ecx
        xgetbv
        and     $~0x60000, %eax         /* but AMX tiles: 8 KB that nobody here touches */
        mov     %eax, %r12d
        mov     %edx, %r13d
        xsave64 UB_ROOM_XSTATE - UB_ROOM_ATTACH(%rbx)
        call    *UB_ATTACH_ERRNO(%rbx)
        mov     %rax, %r15
        mov     (%rax), %r14d

        cmpl    $UB_ATTACH_IS_UNLOAD, UB_ATTACH_VERB(%rbx)
        je      unload

        mov     UB_ATTACH_BASE(%rbx), %rbp
        test    %rbp, %rbp
        jnz     call_agent

        /* The file, in memory: MFD_CLOEXEC | MFD_EXEC, which older kernels do not know. */
        movl    $UB_ATTACH_STEP_FILE, UB_ATTACH_STEP(%rbx)
        lea     UB_ATTACH_NAME(%rbx), %rdi
        mov     $0x11, %esi
        mov     $SYS_memfd_create, %eax
        syscall
        cmp     $-22, %rax
        jne     1f
        mov     $1, %esi
        mov     $SYS_memfd_create, %eax
        syscall
1:      test    %rax, %rax
        js      failed
        mov     %eax, %ebp              /* its descriptor */
        push    %rbp
        sub     $8, %rsp

        movl    $UB_ATTACH_STEP_WRITE, UB_ATTACH_STEP(%rbx)
        mov     %ebp, %edi
        mov     UB_ATTACH_IMAGE(%rbx), %rsi
        mov     UB_ATTACH_IMAGE_SIZE(%rbx), %rdx
        mov     $SYS_write, %eax
        syscall
        cmp     UB_ATTACH_IMAGE_SIZE(%rbx), %rax
        jne     not_written
        mov     UB_ATTACH_IMAGE(%rbx), %rdi
        mov     UB_ATTACH_IMAGE_SIZE(%rbx), %rsi
        mov     $SYS_munmap, %eax
        syscall

        /* "/proc/self/fd/" and the number, the digits from the last one on. */
        mov     %ebp, %eax
        lea     UB_ATTACH_PATH + 26(%rbx), %rdi
        mov     $10, %ecx
2:      xor     %edx, %edx
        div     %ecx
        add     $'0', %dl
        dec     %rdi
        mov     %dl, (%rdi)
        test    %eax, %eax
        jnz     2b
        lea     UB_ATTACH_PATH + 14(%rbx), %rsi
3:      mov     (%rdi), %al
        mov     %al, (%rsi)
        inc     %rdi
        inc     %rsi
        test    %al, %al
        jnz     3b

        movl    $UB_ATTACH_STEP_LOAD, UB_ATTACH_STEP(%rbx)
        lea     UB_ATTACH_PATH(%rbx), %rdi
        mov     $2, %esi                /* RTLD_NOW | RTLD_LOCAL */
        call    *UB_ATTACH_DLOPEN(%rbx)
        mov     %rax, %rbp
        add     $8, %rsp
        pop     %rdi
        mov     $SYS_close, %eax
        syscall
        test    %rbp, %rbp
        jz      not_loaded
        mov     %rbp, UB_ATTACH_HANDLE(%rbx)
        mov     (%rbp), %rbp            /* link_map.l_addr */
        mov     %rbp, UB_ATTACH_BASE(%rbx)

call_agent:
        movl    $UB_ATTACH_STEP_AGENT, UB_ATTACH_STEP(%rbx)
        add     UB_ATTACH_ENTRY(%rbx), %rbp
        mov     %rbx, %rdi
        call    *%rbp
        jmp     finish

unload:
        movl    $UB_ATTACH_STEP_CLOSE, UB_ATTACH_STEP(%rbx)
        mov     UB_ATTACH_HANDLE(%rbx), %rdi
        call    *UB_ATTACH_DLCLOSE(%rbx)
        test    %eax, %eax
        mov     $-16, %eax              /* EBUSY */
        jnz     finish
        xor     %eax, %eax
        mov     %rax, UB_ATTACH_BASE(%rbx)
        mov     %rax, UB_ATTACH_HANDLE(%rbx)
        mov     %rax, UB_ATTACH_PREPARED(%rbx)
        jmp     finish

not_written:
        mov     %rax, %r9
        mov     %ebp, %edi
        mov     $SYS_close, %eax
        syscall
        add     $16, %rsp
        mov     %r9, %rax
        test    %rax, %rax
        js      failed
        mov     $-28, %eax              /* ENOSPC: a part was written */
        jmp     finish

not_loaded:
        call    *UB_ATTACH_DLERROR(%rbx) /* which also takes the message away: the program asks for its own */
        test    %rax, %rax
        jz      5f
        lea     UB_ATTACH_TEXT(%rbx), %rdi
        mov     $UB_ATTACH_TEXT_BYTES - 1, %ecx
4:      mov     (%rax), %dl
        mov     %dl, (%rdi)
        test    %dl, %dl
        jz      5f
        inc     %rax
        inc     %rdi
        dec     %ecx
        jnz     4b
5:      mov     $-8, %eax               /* ENOEXEC */
failed:
finish:
        mov     %eax, UB_ATTACH_RESULT(%rbx)
        mov     %r14d, (%r15)           /* errno */
        mov     %r12d, %eax
        mov     %r13d, %edx
        xrstor64 UB_ROOM_XSTATE - UB_ROOM_ATTACH(%rbx)
        mov     UB_ATTACH_SP(%rbx), %rsp

        /* A signal has come for the program: then its wait ends with EINTR, as it would have. */
        lea     UB_ATTACH_PENDING(%rbx), %rdi
        mov     $8, %esi
        mov     $SYS_rt_sigpending, %eax
        syscall
        mov     UB_ATTACH_RESUME_AX(%rbx), %rdx
        mov     UB_ATTACH_MASK(%rbx), %rcx
        not     %rcx
        and     UB_ATTACH_CAUGHT(%rbx), %rcx
        and     UB_ATTACH_PENDING(%rbx), %rcx
        jz      6f
        mov     UB_ATTACH_EINTR_IP(%rbx), %rcx
        test    %rcx, %rcx
        jz      6f
        mov     %rcx, SAVED_RCX(%rsp)
        mov     $-4, %rdx               /* EINTR */
6:      mov     %rdx, SAVED_RAX(%rsp)
        mov     SAVED_FLAGS(%rsp), %rdx
        mov     %rdx, SAVED_R11(%rsp)   /* as a system call leaves it */

        /* From here on the room may be another's. The mask last: a signal handler may take its time, or not return. */
        push    UB_ATTACH_MASK(%rbx)
        orl     $UB_ATTACH_DONE, UB_ATTACH_STATE(%rbx)
        mov     $2, %edi
        mov     %rsp, %rsi
        xor     %edx, %edx
        mov     $8, %r10d
        mov     $SYS_rt_sigprocmask, %eax
        syscall
        pop     %rcx
leave:
        pop     %r15
        pop     %r14
        pop     %r13
        pop     %r12
        pop     %r11
        pop     %r10
        pop     %r9
        pop     %r8
        pop     %rbp
        pop     %rdi
        pop     %rsi
        pop     %rdx
        pop     %rcx
        pop     %rbx
        pop     %rax
        popfq
        lea     RED_ZONE(%rsp), %rsp
        notrack jmp *%rcx
ub_stub_enter_end:

        .section .note.GNU-stack, "", @progbits
