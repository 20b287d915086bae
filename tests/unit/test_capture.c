/*
 * Captures judged by the target itself: programs that publish which call chain
 * they are in (tests/programs/chain.c). 2,000 of them, 100,000 with UNBLOCK_SOAK=1.
 */
#include "unit.h"

#include "chain_check.h"
#include "../../common/clock.h"
#include "../../tracer/capture_impl.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>

struct tally {
    uint32_t captures, complete, recovered, wrong, skipped, again, same;
    uint32_t cut;  /* not complete, since the stack is larger than the copy */
    uint64_t last; /* the plan of the last capture: each plan is counted once */
};

struct scenario {
    const char *program, *mode, *where;
    uint32_t share; /* of a hundred */
    bool counts;    /* towards the 99 % of complete stacks */
    bool nosend;
};

static struct ub_capture capture;
static struct ub_stack stack;

static uint32_t total_captures(void)
{
    const char *soak = getenv("UNBLOCK_SOAK"), *count = getenv("UNBLOCK_CAPTURES");

    return count ? (uint32_t)atoi(count) : soak && strcmp(soak, "0") != 0 ? 100000 : 2000;
}

static uint64_t ticks_are_ns(uint64_t ticks)
{
    return ticks;
}

/* Between 20 and 420 us, so that all phases of a chain are met. */
static void pause_a_little(uint32_t *seed)
{
    struct timespec ts = {0, 20000};

    *seed = *seed * 1664525 + 1013904223;
    ts.tv_nsec += *seed >> 8 & 0x3ffff;
    nanosleep(&ts, NULL);
}

typedef int (*taker)(const struct chain *c);

static int take_blocked(const struct chain *c)
{
    return ub_capture_blocked(c->pid, c->tid, c->maps, &capture);
}

static int take_signal(const struct chain *c)
{
    return ub_capture_signal(c->pid, c->tid, &c->shared->cold.sample, c->maps, ticks_are_ns, &capture);
}

static int take_perf(const struct chain *c)
{
    return ub_capture_perf(c->pid, c->tid, c->maps, &capture);
}

static void count_one(struct chain *c, struct ub_unwinder *u, struct tally *t)
{
    bool recovered = false;
    uint64_t plan = 0;

    assert_int_equal(ub_unwind(u, c->maps, &capture, &stack), 0);
    switch (chain_judge(c, &capture, &stack, &plan)) {
    case CHAIN_SKIPPED:
        t->skipped++;
        return;
    case CHAIN_WRONG:
        t->wrong++;
        break;
    case CHAIN_RIGHT:
        break;
    }
    if (plan == t->last) {
        t->same++;
        return;
    }
    t->last = plan;
    for (uint32_t i = 0; i < stack.count; i++)
        recovered |= stack.frame[i].how == UB_FRAME_RBP;
    t->captures++;
    t->complete += stack.complete;
    t->cut += !stack.complete && capture.region_count && capture.region[0].len >= UB_SAMPLE_BYTES;
    t->recovered += recovered;
}

static void take_many(struct chain *c, taker take, uint32_t count, struct tally *t)
{
    struct ub_unwinder *u;
    uint64_t deadline = ub_clock_monotonic_ns() + 1000000000ull * (20 + count / 500);
    uint32_t seed = (uint32_t)c->pid;

    memset(t, 0, sizeof(*t));
    assert_int_equal(ub_unwinder_new(&u), 0);
    while (t->captures < count && ub_clock_monotonic_ns() < deadline) {
        int r = take(c);

        if (r == 0)
            count_one(c, u, t);
        else if (r == -EAGAIN)
            t->again++;
        else
            fail_msg("capture: %s", strerror(-r));
        pause_a_little(&seed);
    }
    ub_unwinder_free(u);
}

static void print_tally(const char *what, const struct tally *t)
{
    printf("  %-28s %6u captures, %6u complete, %6u recovered, %u wrong, %u cut, %u not still, %u not judged\n", what,
           t->captures, t->complete, t->recovered, t->wrong, t->cut, t->again, t->skipped);
}

static void assert_untouched(const struct chain *c)
{
    const struct chain_shared *s = c->shared;

    if (s->interrupted || s->short_counts || s->wrong_results)
        printf("  the target was disturbed: %lu EINTR, %lu short counts, %lu wrong results, last in wait %u: %d, %s\n",
               (unsigned long)s->interrupted, (unsigned long)s->short_counts, (unsigned long)s->wrong_results,
               s->last_wrong.wait, s->last_wrong.result, strerror(s->last_wrong.error));
    assert_int_equal(c->shared->interrupted, 0);
    assert_int_equal(c->shared->short_counts, 0);
    assert_int_equal(c->shared->wrong_results, 0);
    assert_true(c->shared->chains > 0);
}

static void add(struct tally *sum, const struct tally *t)
{
    sum->captures += t->captures;
    sum->complete += t->complete;
    sum->recovered += t->recovered;
    sum->wrong += t->wrong;
    sum->skipped += t->skipped;
    sum->again += t->again;
    sum->cut += t->cut;
}

static void run_scenario(const struct scenario *s, taker take, uint32_t captures, struct tally *ret)
{
    struct chain c;
    char what[64];

    chain_start(&c, s->program, s->mode, s->where, s->share, s->nosend);
    take_many(&c, take, captures, ret);
    snprintf(what, sizeof(what), "%s, %s, %s", s->program, s->mode, s->where);
    print_tally(what, ret);
    assert_untouched(&c);
    chain_stop(&c);
}

static const struct scenario sleepers[] = {
    {"chain", "paced", "main", 20, true},    {"chain", "paced", "thread", 15, true},
    {"chain_o0", "paced", "main", 15, true}, {"chain_o0", "paced", "thread", 5, true},
    {"chain_fp", "paced", "main", 15, true}, {"chain_alloca", "paced", "main", 5, false},
    {"chain", "hard", "main", 15, true},     {"chain_o0", "hard", "main", 10, true},
};

/* Threads that sleep: what we say of them is right, nearly always complete, and they never notice. */
static void sleeping(void **state)
{
    struct tally sum = {0}, t;
    uint32_t counted = 0, complete = 0;

    for (uint32_t i = 0; i < UB_ARRAY_LEN(sleepers); i++) {
        run_scenario(&sleepers[i], take_blocked, total_captures() * sleepers[i].share / 100, &t);
        add(&sum, &t);
        counted += sleepers[i].counts ? t.captures : 0;
        complete += sleepers[i].counts ? t.complete : 0;
    }
    print_tally("all", &sum);
    assert_int_equal(sum.wrong, 0);
    assert_true(sum.captures >= total_captures() * 9 / 10);
    assert_true(complete * 100ull >= counted * 99ull);
    assert_true(sum.skipped * 20 < sum.captures);
}

/* A kernel that keeps no schedstat: the switch counters prove as much. */
static void sleeping_without_schedstat(void **state)
{
    static const struct scenario s = {"chain", "hard", "main", 9, true};
    struct tally t;

    ub_capture_proof_by = UB_PROOF_BY_SWITCHES;
    run_scenario(&s, take_blocked, total_captures() / 10, &t);
    ub_capture_proof_by = UB_PROOF_BY_AUTO;
    assert_int_equal(capture.proof, UB_PROOF_STILL);
    assert_int_equal(t.wrong, 0);
    assert_true(t.captures >= total_captures() / 20);
}

/*
 * The control: the same target without the proof. If this found nothing wrong,
 * the tests above could not either.
 */
static void proof_is_needed(void **state)
{
    struct tally t = {0};
    struct ub_unwinder *u;
    struct chain c;

    assert_int_equal(ub_unwinder_new(&u), 0);
    chain_start(&c, "chain", "hard", "main", 10, false);
    c.explained = 3; /* these are expected */
    ub_capture_proof_by = UB_PROOF_BY_NOTHING;
    for (uint32_t i = 0; i < 400000 && t.wrong == 0; i++)
        if (take_blocked(&c) == 0)
            count_one(&c, u, &t);
    ub_capture_proof_by = UB_PROOF_BY_AUTO;
    assert_int_equal(capture.proof, UB_PROOF_UNPROVEN);
    print_tally("without the proof", &t);
    chain_stop(&c);
    ub_unwinder_free(u);
    assert_true(t.wrong > 0);
}

/*
 * Without the large blocking send: a signal that meets the kernel in the middle
 * of one ends it with a short count, and no handler can put that right.
 */
static const struct scenario runners[] = {
    {"chain", "spin", "main", 40, true, true},
    {"chain", "spin", "thread", 20, true, true},
    {"chain_o0", "spin", "main", 20, true, true},
    {"chain_fp", "spin", "main", 20, true, true},
};

static void run_runners(taker take, uint32_t captures)
{
    struct tally sum = {0}, t;

    for (uint32_t i = 0; i < UB_ARRAY_LEN(runners); i++) {
        run_scenario(&runners[i], take, captures * runners[i].share / 100, &t);
        add(&sum, &t);
    }
    print_tally("all", &sum);
    assert_int_equal(sum.wrong, 0);
    assert_true(sum.captures >= captures * 9 / 10);
    assert_true((sum.complete + sum.cut) * 100ull >= sum.captures * 99ull);
    assert_true(sum.cut * 20 < sum.captures);
}

/* Threads that run, through the agent's handler: it shares its CPU with us, and still sees no EINTR. */
static void running_by_signal(void **state)
{
    run_runners(take_signal, total_captures() / 2);
}

static void running_by_perf(void **state)
{
    struct chain c;
    int r;

    chain_start(&c, "chain", "spin", "main", 1, false);
    r = take_perf(&c);
    chain_stop(&c);
    if (r == -EPERM || r == -ENOENT || r == -ENOSYS) {
        printf("  perf_event_open: %s\n", strerror(-r));
        skip();
    }
    run_runners(take_perf, total_captures() / 10);
}

/* A signal to a thread that sleeps in most of its time, as fast as it can be sent: it must never see it. */
static void signals_meet_calls(void **state)
{
    struct tally t = {0};
    struct ub_unwinder *u;
    struct chain c;
    uint64_t end;

    assert_int_equal(ub_unwinder_new(&u), 0);
    chain_start(&c, "chain", "hard", "main", 11, true);
    end = ub_clock_monotonic_ns() + total_captures() * 500000ull;
    while (ub_clock_monotonic_ns() < end) {
        int r = take_signal(&c);

        if (r == 0)
            count_one(&c, u, &t);
        else
            assert_int_equal(r, -EAGAIN);
    }
    print_tally("chain, hard, by signal", &t);
    printf("  calls that the handler started again: %u\n", c.shared->cold.sample.rewound);
    assert_untouched(&c);
    chain_stop(&c);
    ub_unwinder_free(u);
    assert_int_equal(t.wrong, 0);
    assert_true(t.captures > 0);
}

/* ---- single looks ---- */

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
    assert_int_equal(ub_capture_signal(c.pid, c.pid, &sample, NULL, ticks_are_ns, &capture), -ENOTSUP);
    assert_int_equal(sample.request, 0);
    assert_int_equal(ub_capture_signal_collect(&sample, ticks_are_ns, &capture), -ENOENT);
    end_child(&c);
    assert_int_equal(ub_capture_signal(c.pid, c.pid, &sample, NULL, ticks_are_ns, &capture), -ESRCH);
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
        r = ub_capture_signal(c.pid, c.pid, &sample, NULL, ticks_are_ns, &capture);
    while (r == -EAGAIN && sample.request == 0);
    assert_int_equal(r, -EAGAIN);
    assert_int_equal(ub_capture_signal_collect(&sample, ticks_are_ns, &capture), -EAGAIN);
    sample.bytes = UB_SAMPLE_BYTES + 1; /* nonsense is not believed */
    sample.at = 77;
    sample.done = sample.request;
    assert_int_equal(ub_capture_signal_collect(&sample, ticks_are_ns, &capture), 0);
    assert_int_equal(capture.at_ns, 77);
    assert_int_equal(capture.region_count, 0);
    assert_int_equal(ub_capture_signal_collect(&sample, ticks_are_ns, &capture), -ENOENT);
    end_child(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(states),
        cmocka_unit_test(others_are_not_ours),
        cmocka_unit_test(memory_file),
        cmocka_unit_test(short_stack),
        cmocka_unit_test(no_stack),
        cmocka_unit_test(signal_not_ours),
        cmocka_unit_test(late_answer),
        cmocka_unit_test(sleeping),
        cmocka_unit_test(sleeping_without_schedstat),
        cmocka_unit_test(proof_is_needed),
        cmocka_unit_test(running_by_signal),
        cmocka_unit_test(running_by_perf),
        cmocka_unit_test(signals_meet_calls),
    };

    setbuf(stdout, NULL);
    return cmocka_run_group_tests_name("capture", tests, NULL, NULL);
}
