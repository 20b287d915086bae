/* What a single look at a thread tells, and what it tells when it is denied. test_chains.c has the stacks. */
#include "unit.h"

#include "../../tracer/capture_impl.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static struct ub_capture capture;

static uint64_t ticks_are_ns(uint64_t ticks)
{
    return ticks;
}

struct child {
    pid_t pid;
    int go[2]; /* closed by us when it may end */
};

static void start_child(struct child *c, void (*body)(void))
{
    int ready[2];
    char byte = 0;

    assert_int_equal(pipe(ready), 0);
    c->pid = fork();
    if (c->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        (void)!write(ready[1], &byte, 1);
        body();
        _exit(0);
    }
    (void)!read(ready[0], &byte, 1);
    close(ready[0]);
    close(ready[1]);
}

static void end_child(struct child *c)
{
    kill(c->pid, SIGKILL);
    waitpid(c->pid, NULL, 0);
}

static void body_sleep(void)
{
    for (;;)
        pause();
}

static void body_spin(void)
{
    for (;;)
        __asm__ volatile("");
}

/* The state changes by itself a moment after the child has told us that it is there. */
static void assert_soon(const struct child *c, enum ub_thread_state wanted)
{
    for (int i = 0; i < 2000; i++) {
        ub_capture_peek(c->pid, c->pid, &capture);
        if (capture.state == wanted && (wanted != UB_THREAD_BLOCKED || capture.nr == SYS_pause))
            return;
        usleep(1000);
    }
    assert_int_equal(capture.state, wanted);
}

static void states(void **state)
{
    struct ub_schedstat before, after;
    struct child c;

    start_child(&c, body_sleep);
    assert_soon(&c, UB_THREAD_BLOCKED);
    assert_int_equal(capture.nr, SYS_pause);
    assert_int_equal(capture.error, 0);
    assert_true(capture.reg_known == (1u << UB_REG_RSP | 1u << UB_REG_RIP));
    assert_true(capture.reg[UB_REG_RSP] != 0 && capture.reg[UB_REG_RIP] != 0);
    assert_int_equal(ub_capture_schedstat(c.pid, c.pid, &before), 0);
    end_child(&c);
    assert_int_equal(ub_capture_peek(c.pid, c.pid, &capture), -ESRCH);
    assert_int_equal(capture.state, UB_THREAD_DEAD);
    assert_int_equal(ub_capture_blocked(c.pid, c.pid, NULL, &capture), -ESRCH);
    assert_int_equal(ub_capture_schedstat(c.pid, c.pid, &before), -ESRCH);

    start_child(&c, body_spin);
    assert_soon(&c, UB_THREAD_RUNNING);
    assert_int_equal(ub_capture_blocked(c.pid, c.pid, NULL, &capture), -EAGAIN);
    assert_int_equal(capture.region_count, 0);
    assert_int_equal(ub_capture_schedstat(c.pid, c.pid, &before), 0);
    usleep(20000);
    assert_int_equal(ub_capture_schedstat(c.pid, c.pid, &after), 0);
    assert_true(after.run_ns > before.run_ns);
    kill(c.pid, SIGSTOP);
    assert_soon(&c, UB_THREAD_STOPPED);
    kill(c.pid, SIGCONT);
    assert_soon(&c, UB_THREAD_RUNNING);
    kill(c.pid, SIGKILL);
    for (int i = 0; i < 1000 && capture.state != UB_THREAD_DEAD; i++) { /* a zombie: its files still answer */
        ub_capture_peek(c.pid, c.pid, &capture);
        usleep(1000);
    }
    assert_int_equal(capture.state, UB_THREAD_DEAD);
    end_child(&c);
}

/* Runs `check` in a child of ours: it may drop privileges or be filtered. Its exit status is what it returns. */
static int in_child(int (*check)(const struct child *target), const struct child *target)
{
    pid_t pid = fork();
    int status = -1;

    if (pid == 0)
        _exit(check(target));
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + status;
}

static int check_denied(const struct child *target)
{
    struct ub_schedstat s;

    if (setresgid(65534, 65534, 65534) < 0 || setresuid(65534, 65534, 65534) < 0)
        return 77;
    if (ub_capture_peek(target->pid, target->pid, &capture) != -EACCES || capture.error != -EACCES)
        return 1;
    if (capture.state != UB_THREAD_BLOCKED || capture.proc_state != 'S' || capture.reg_known)
        return 2;
    if (ub_capture_blocked(target->pid, target->pid, NULL, &capture) != -EACCES || capture.region_count)
        return 3;
    return ub_capture_schedstat(target->pid, target->pid, &s) == 0 ? 0 : 4;
}

static void others_are_not_ours(void **state)
{
    struct child target;
    int r;

    if (geteuid() != 0)
        skip();
    start_child(&target, body_sleep);
    assert_soon(&target, UB_THREAD_BLOCKED);
    r = in_child(check_denied, &target);
    end_child(&target);
    if (r == 77)
        skip();
    assert_int_equal(r, 0);
}

static bool deny_readv(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_process_vm_readv, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {UB_ARRAY_LEN(code), code};

    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

static struct ub_capture reference;

static int check_filtered(const struct child *target)
{
    if (!deny_readv())
        return 77;
    if (ub_capture_blocked(target->pid, target->pid, NULL, &capture) != 0 || capture.proof != UB_PROOF_STILL)
        return 1;
    if (capture.region_count != 1 || capture.region[0].len != reference.region[0].len)
        return 2;
    return memcmp(capture.bytes, reference.bytes, reference.region[0].len) == 0 ? 0 : 3;
}

/* The same bytes from /proc/PID/mem where process_vm_readv is filtered. */
static void memory_file(void **state)
{
    struct child target;
    int r;

    start_child(&target, body_sleep);
    assert_soon(&target, UB_THREAD_BLOCKED);
    assert_int_equal(ub_capture_blocked(target.pid, target.pid, NULL, &reference), 0);
    r = in_child(check_filtered, &target);
    end_child(&target);
    if (r == 77)
        skip();
    assert_int_equal(r, 0);
}

/* Seven kilobytes below the end of a mapping, with nothing behind it. */
static void body_near_the_end(void)
{
    size_t size = 64 * 1024;
    char *stack_end = mmap(NULL, size + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    stack_end += size;
    munmap(stack_end, 4096);
    __asm__ volatile("mov %0, %%rsp\n\t1: mov %1, %%eax\n\tsyscall\n\tjmp 1b"
                     :
                     : "r"(stack_end - 7000), "i"(SYS_pause)
                     : "rax", "rcx", "r11", "memory");
}

/* A copy ends where the memory ends, with the snapshot of the maps and without. */
static void short_stack(void **state)
{
    struct ub_maps *maps;
    struct child c;

    start_child(&c, body_near_the_end);
    assert_soon(&c, UB_THREAD_BLOCKED);
    assert_int_equal(ub_capture_blocked(c.pid, c.pid, NULL, &capture), 0);
    assert_int_equal(capture.region[0].len, 7000);
    assert_int_equal(ub_maps_load(c.pid, NULL, &maps), 0);
    assert_int_equal(ub_capture_blocked(c.pid, c.pid, maps, &capture), 0);
    assert_int_equal(capture.region[0].len, 7000);
    ub_maps_unref(maps);
    end_child(&c);
}

static void body_without_stack(void)
{
    __asm__ volatile("mov $16, %%rsp\n\t1: mov %0, %%eax\n\tsyscall\n\tjmp 1b"
                     :
                     : "i"(SYS_pause)
                     : "rax", "rcx", "r11", "memory");
}

/* Registers without a stack are still worth something. */
static void no_stack(void **state)
{
    struct child c;

    start_child(&c, body_without_stack);
    assert_soon(&c, UB_THREAD_BLOCKED);
    assert_int_equal(ub_capture_blocked(c.pid, c.pid, NULL, &capture), 0);
    assert_int_equal(capture.error, -EFAULT);
    assert_int_equal(capture.region_count, 0);
    assert_int_equal(capture.reg[UB_REG_RSP], 16);
    end_child(&c);
}

/* Who does not catch SIGURG, or blocks it, is never sent one. */
static void signal_not_ours(void **state)
{
    static struct ub_sample sample;
    struct child c;

    start_child(&c, body_spin);
    assert_soon(&c, UB_THREAD_RUNNING);
    assert_int_equal(ub_capture_signal(c.pid, c.pid, &sample, ticks_are_ns, &capture), -ENOTSUP);
    assert_int_equal(sample.request, 0);
    assert_int_equal(ub_capture_signal_collect(&sample, ticks_are_ns, &capture), -ENOENT);
    end_child(&c);
    assert_int_equal(ub_capture_signal(c.pid, c.pid, &sample, ticks_are_ns, &capture), -ESRCH);
}

static void catch_nothing(int sig)
{
}

static void body_deaf(void)
{
    signal(SIGURG, catch_nothing);
    body_spin();
}

/* A handler that does not answer: one signal, -EAGAIN, and a later answer can be collected. */
static void late_answer(void **state)
{
    static struct ub_sample sample;
    struct child c;
    int r;

    memset(&sample, 0, sizeof(sample));
    start_child(&c, body_deaf);
    usleep(20000);
    do
        r = ub_capture_signal(c.pid, c.pid, &sample, ticks_are_ns, &capture);
    while (r == -EAGAIN && sample.request == 0);
    assert_int_equal(r, -EAGAIN);
    assert_int_equal(ub_capture_signal_collect(&sample, ticks_are_ns, &capture), -EAGAIN);
    sample.bytes = UB_SAMPLE_BYTES + 1; /* nonsense is not believed */
    sample.at = 77;
    sample.done = sample.request & ~UB_SAMPLE_FLAGS;
    assert_int_equal(ub_capture_signal_collect(&sample, ticks_are_ns, &capture), 0);
    assert_int_equal(capture.at_ns, 77);
    assert_int_equal(capture.region_count, 0);
    assert_int_equal(ub_capture_signal_collect(&sample, ticks_are_ns, &capture), -ENOENT);
    end_child(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(states),      cmocka_unit_test(others_are_not_ours),
        cmocka_unit_test(memory_file), cmocka_unit_test(short_stack),
        cmocka_unit_test(no_stack),    cmocka_unit_test(signal_not_ours),
        cmocka_unit_test(late_answer),
    };

    return cmocka_run_group_tests_name("capture", tests, NULL, NULL);
}
