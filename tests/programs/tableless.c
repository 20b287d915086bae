/*
 * Two functions without an unwind table, as all of a musl libc are: one waits, in one way out of it stands a call that
 * never returns. tableless: says that it is there, and waits.
 */
#include <stdio.h>

void bare_middle(void);

__asm__(".text\n"
        ".type bare_wait, @function\n"
        "bare_wait:\n"
        "    push %rbx\n"
        "    push %r12\n"
        "    sub $40, %rsp\n"
        "    xor %ebx, %ebx\n"
        "    mov $35, %eax\n" /* nanosleep */
        "    lea 8(%rsp), %rdi\n"
        "    movq $1000, (%rdi)\n"
        "    movq $0, 8(%rdi)\n"
        "    xor %esi, %esi\n"
        "    syscall\n"
        "    cmp $-4, %rax\n"
        "    je 1f\n"
        "    test %eax, %eax\n"
        "    jne 2f\n"
        "3:  add $40, %rsp\n"
        "    pop %r12\n"
        "    pop %rbx\n"
        "    ret\n"
        "1:  xor %eax, %eax\n"
        "    jmp 3b\n"
        "2:  call abort@plt\n"
        ".size bare_wait, . - bare_wait\n"
        ".globl bare_middle\n"
        ".type bare_middle, @function\n"
        "bare_middle:\n"
        "    push %rbp\n"
        "    mov $1, %ebp\n" /* no frame pointer */
        "    sub $8, %rsp\n"
        "    push $0\n"
        "    call bare_wait\n"
        "    pop %rdx\n"
        "    pop %rcx\n"
        "    dec %ebp\n"
        "    pop %rbp\n"
        "    ret\n"
        ".size bare_middle, . - bare_middle\n");

__attribute__((noinline)) static void user_calls(void)
{
    bare_middle();
    __asm__("");
}

int main(void)
{
    puts("waits");
    fflush(stdout);
    user_calls();
    return 0;
}
