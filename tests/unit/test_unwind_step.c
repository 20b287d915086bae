/*
 * The unwinder at every instruction of a program (tests/programs/steps.c),
 * which is run under ptrace one instruction at a time. The truth is a stack of
 * return addresses that grows with every call instruction and shrinks with
 * every return.
 *
 * Twice at each stop: with all registers, as a sample of a running thread has
 * them, and with sp and pc alone, as of a blocked one. The first must be right
 * and complete, the second right or not complete.
 */
#include "unit.h"

#include "../../tracer/unwind_impl.h"

#include <libgen.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#define STEPS_MAX  60000
#define SHADOW_MAX 200

static struct ub_capture capture;
static struct ub_stack stack;

struct stepped {
    pid_t pid;
    struct ub_maps *maps;
    struct ub_unwinder *unwinder;
    struct user_regs_struct regs;
    uint64_t shadow[SHADOW_MAX]; /* return addresses, outermost first */
    uint32_t depth;
    uint32_t steps, complete, blocked_complete;
    uint32_t wrong; /* and printed, the first few */
};

static void exec_program(const char *program)
{
    char self[PATH_MAX], path[PATH_MAX + 32];
    ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);

    self[n > 0 ? n : 0] = '\0';
    snprintf(path, sizeof(path), "%s/../programs/%s", dirname(self), program);
    ptrace(PTRACE_TRACEME, 0, 0, 0);
    execl(path, path, (char *)NULL);
    _exit(127);
}

static bool wait_stop(pid_t pid, int *ret_signal)
{
    int status;

    if (waitpid(pid, &status, __WALL) != pid || !WIFSTOPPED(status))
        return false;
    *ret_signal = WSTOPSIG(status);
    return true;
}

/* Runs it up to its raise(SIGSTOP): the loader is behind it then. */
static bool start(struct stepped *s, const char *program)
{
    int sig = 0;

    memset(s, 0, sizeof(*s));
    s->pid = fork();
    if (s->pid == 0)
        exec_program(program);
    if (!wait_stop(s->pid, &sig))
        return false;
    while (sig != SIGSTOP) {
        ptrace(PTRACE_CONT, s->pid, 0, 0);
        if (!wait_stop(s->pid, &sig))
            return false;
    }
    assert_int_equal(ub_maps_load(s->pid, NULL, &s->maps), 0);
    assert_int_equal(ub_unwinder_new(&s->unwinder), 0);
    return true;
}

static void finish(struct stepped *s)
{
    kill(s->pid, SIGKILL);
    waitpid(s->pid, NULL, __WALL);
    ub_unwinder_free(s->unwinder);
    ub_maps_unref(s->maps);
}

static void read_registers(struct stepped *s)
{
    const struct user_regs_struct *r = &s->regs;

    ptrace(PTRACE_GETREGS, s->pid, 0, &s->regs);
    memcpy(capture.reg,
           (uint64_t[]){r->rax, r->rdx, r->rcx, r->rbx, r->rsi, r->rdi, r->rbp, r->rsp, r->r8, r->r9, r->r10, r->r11,
                        r->r12, r->r13, r->r14, r->r15, r->rip},
           sizeof(capture.reg));
}

static void read_stack(const struct stepped *s)
{
    struct iovec local = {capture.bytes, 16384}, remote = {(void *)capture.reg[UB_REG_RSP], 16384};
    ssize_t n = process_vm_readv(s->pid, &local, 1, &remote, 1, 0);

    assert_true(n > 0);
    capture.region_count = 1;
    capture.region[0] = (struct ub_stack_region){capture.reg[UB_REG_RSP], (uint32_t)n, 0};
}

/* The innermost frame is where it stands; every other one is where a call returns to. */
static bool right(const struct stepped *s)
{
    if (stack.count == 0 || stack.frame[0].pc != capture.reg[UB_REG_RIP])
        return false;
    if (stack.count > s->depth + 1 || (stack.complete && stack.count != s->depth + 1))
        return false;
    for (uint32_t i = 1; i < stack.count; i++)
        if (stack.frame[i].pc != s->shadow[s->depth - i])
            return false;
    return true;
}

static void report(struct stepped *s, const char *what)
{
    if (s->wrong++ >= 5)
        return;
    printf("  step %u, %s: %u frames of %u, %scomplete\n", s->steps, what, stack.count, s->depth + 1,
           stack.complete ? "" : "in");
    for (uint32_t i = 0; i < stack.count; i++) {
        const struct ub_map *m = ub_maps_find(s->maps, stack.frame[i].pc);

        printf("    %s+%lx how %u, truth %lx\n", m ? m->path : "?",
               (unsigned long)(stack.frame[i].pc - (m ? m->bias : 0)), stack.frame[i].how,
               (unsigned long)(i && i <= s->depth ? s->shadow[s->depth - i] - (m ? m->bias : 0) : 0));
    }
}

static void check(struct stepped *s)
{
    read_stack(s);
    capture.reg_known = UB_REG_ALL;
    ub_unwind(s->unwinder, s->maps, &capture, &stack);
    if (!right(s) || !stack.complete)
        report(s, "all registers");
    s->complete += stack.complete;
    capture.reg_known = UB_REG_BIT(UB_REG_RSP) | UB_REG_BIT(UB_REG_RIP);
    ub_unwind(s->unwinder, s->maps, &capture, &stack);
    if (!right(s))
        report(s, "sp and pc");
    s->blocked_complete += stack.complete;
}

static bool is_call(const uint8_t *p)
{
    while (*p == 0x66 || *p == 0xf2 || *p == 0x3e || (*p & 0xf0) == 0x40)
        p++;
    return *p == 0xe8 || (*p == 0xff && (p[1] >> 3 & 7) == 2);
}

static bool is_return(const uint8_t *p)
{
    while (*p == 0xf2 || *p == 0xf3)
        p++;
    return *p == 0xc3 || *p == 0xc2;
}

/* One instruction on, and what it means for the truth. False at the end of the program. */
static bool step(struct stepped *s)
{
    uint64_t old_sp = s->regs.rsp, pushed;
    uint8_t code[16] = {0};
    int sig;

    for (uint64_t i = 0; i < 2; i++) {
        uint64_t word = (uint64_t)ptrace(PTRACE_PEEKTEXT, s->pid, s->regs.rip + 8 * i, 0);

        memcpy(code + 8 * i, &word, sizeof(word));
    }
    if (code[0] == 0x0f && code[1] == 0x05 && (s->regs.rax == SYS_exit_group || s->regs.rax == SYS_exit))
        return false;
    ptrace(PTRACE_SINGLESTEP, s->pid, 0, 0);
    if (!wait_stop(s->pid, &sig) || sig != SIGTRAP)
        return false;
    read_registers(s);
    if (is_call(code) && s->regs.rsp == old_sp - 8) {
        pushed = (uint64_t)ptrace(PTRACE_PEEKDATA, s->pid, s->regs.rsp, 0);
        assert_true(s->depth < SHADOW_MAX);
        s->shadow[s->depth++] = pushed;
    } else if (is_return(code) && s->depth && s->shadow[s->depth - 1] == s->regs.rip) {
        s->depth--;
    }
    return true;
}

/* In raise(), right behind the system call: the unwinder's word is taken for it, and must lead through main to _start.
 */
static void begin_truth(struct stepped *s)
{
    read_registers(s);
    read_stack(s);
    capture.reg_known = UB_REG_ALL;
    assert_int_equal(ub_unwind(s->unwinder, s->maps, &capture, &stack), 0);
    assert_true(stack.complete);
    assert_true(stack.count >= 5 && stack.count < SHADOW_MAX);
    for (uint32_t i = stack.count - 1; i >= 1; i--)
        s->shadow[s->depth++] = stack.frame[i].pc;
}

static void follow(const char *program)
{
    struct stepped s;

    if (!start(&s, program))
        fail_msg("%s does not start", program);
    begin_truth(&s);
    do {
        check(&s);
        s.steps++;
    } while (s.steps < STEPS_MAX && step(&s));
    printf("  %-10s %u instructions: %u complete with all registers; with sp and pc %u; %u wrong\n", program, s.steps,
           s.complete, s.blocked_complete, s.wrong);
    finish(&s);
    assert_int_equal(s.wrong, 0);
    assert_true(s.steps > 1000);
    assert_int_equal(s.complete, s.steps);
    assert_true(s.blocked_complete > s.steps / 2);
}

static void optimised(void **state)
{
    follow("steps");
}

static void frame_pointers(void **state)
{
    follow("steps_fp");
}

static void not_optimised(void **state)
{
    follow("steps_o0");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(optimised),
        cmocka_unit_test(frame_pointers),
        cmocka_unit_test(not_optimised),
    };

    setbuf(stdout, NULL);
    return cmocka_run_group_tests_name("unwind, step by step", tests, NULL, NULL);
}
