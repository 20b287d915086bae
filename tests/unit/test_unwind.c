/*
 * Unusual stacks (tests/programs/frames.c, in several builds), unwound against
 * what the program says is on them; and everything that a hostile program or
 * file can put in the way. Ordinary stacks: test_chains.c.
 */
#include "unit.h"

#include "../programs/frames.h"
#include "../../tracer/unwind_impl.h"

#include <errno.h>
#include <libgen.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static struct ub_capture capture;
static struct ub_stack stack;

struct target {
    pid_t pid, tid;
    struct frames_shared *shared;
    struct ub_maps *maps;
    const struct ub_map *text;
};

static void exec_program(const char *program, const char *file, const char *scenario)
{
    char self[PATH_MAX], path[PATH_MAX + 32];
    ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);

    self[n > 0 ? n : 0] = '\0';
    snprintf(path, sizeof(path), "%s/../programs/%s", dirname(self), program);
    execl(path, path, file, scenario, (char *)NULL);
    fprintf(stderr, "%s: cannot be started\n", path);
    _exit(127);
}

static void start(struct target *t, const char *program, const char *scenario)
{
    char file[64];
    int fd = memfd_create("frames", 0);

    assert_true(fd >= 0 && ftruncate(fd, sizeof(*t->shared)) == 0);
    t->shared = mmap(NULL, sizeof(*t->shared), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert_true(t->shared != MAP_FAILED);
    snprintf(file, sizeof(file), "/proc/self/fd/%d", fd);
    t->pid = fork();
    if (t->pid == 0)
        exec_program(program, file, scenario);
    close(fd);
    while (!ub_load_acquire(&t->shared->ready) && waitpid(t->pid, NULL, WNOHANG) == 0)
        usleep(1000);
    assert_true(ub_load_acquire(&t->shared->ready));
    t->tid = t->shared->tid;
    t->maps = NULL;
    assert_int_equal(ub_maps_load(t->pid, NULL, &t->maps), 0);
    t->text = ub_maps_find(t->maps, t->shared->known[0]);
    assert_true(t->text && t->text->elf);
}

static void finish(struct target *t)
{
    kill(t->pid, SIGKILL);
    waitpid(t->pid, NULL, 0);
    ub_maps_unref(t->maps);
    munmap(t->shared, sizeof(*t->shared));
}

/* It is on its way into pause() when it says that it is ready. */
static void take_blocked(const struct target *t)
{
    int r = -EAGAIN;

    for (int i = 0; i < 2000 && (r == -EAGAIN || capture.nr < 0); i++) {
        usleep(1000);
        r = ub_capture_blocked(t->pid, t->tid, t->maps, &capture);
    }
    assert_int_equal(r, 0);
}

/* The program's function that holds a frame, 0 for other code and _start. */
static uint64_t function_of(const struct target *t, const struct ub_frame *f)
{
    uint64_t pc = f->pc - (f->is_call ? 1 : 0), best = 0, entry = t->text->bias + t->text->elf->entry;

    if (pc < t->text->start || pc >= t->text->end || (pc >= entry && pc < entry + 48))
        return 0;
    for (uint32_t i = 0; i < t->shared->known_count && i < FRAMES_MAX; i++)
        if (t->shared->known[i] <= pc && t->shared->known[i] > best)
            best = t->shared->known[i];
    return best && pc - best < 512 ? best : 0; /* a static program has libc in its text too */
}

static const struct ub_frame *frame_of(const struct target *t, uint64_t function)
{
    for (uint32_t i = 0; i < stack.count; i++)
        if (function_of(t, &stack.frame[i]) == function)
            return &stack.frame[i];
    return NULL;
}

static void print_stack(const struct target *t)
{
    for (uint32_t i = 0; i < stack.count; i++) {
        const struct ub_map *m = ub_maps_find(t->maps, stack.frame[i].pc);

        printf("  %u: %lx %s+%lx cfa %lx how %u%s\n", i, (unsigned long)stack.frame[i].pc, m ? m->path : "?",
               m ? (unsigned long)(stack.frame[i].pc - m->bias) : 0, (unsigned long)stack.frame[i].cfa,
               stack.frame[i].how, stack.frame[i].is_call ? "" : " exact");
    }
}

static bool as_expected(const struct target *t)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < stack.count; i++) {
        uint64_t f = function_of(t, &stack.frame[i]);

        if (f == 0)
            continue;
        if (n >= t->shared->count || f != t->shared->expected[n])
            return false;
        n++;
    }
    return n == t->shared->count;
}

static void assert_as_expected(const struct target *t)
{
    if (as_expected(t) && stack.complete)
        return;
    print_stack(t);
    assert_true(as_expected(t));
    assert_true(stack.complete);
}

static void unwind(struct ub_unwinder *u, const struct target *t)
{
    assert_int_equal(ub_unwind(u, t->maps, &capture, &stack), 0);
}

/* Cold and warm: libunwind's cache must not change the answer. */
static void check_blocked(const struct target *t)
{
    struct ub_unwinder *u;

    take_blocked(t);
    assert_int_equal(ub_unwinder_new(&u), 0);
    for (int i = 0; i < 3; i++) {
        unwind(u, t);
        assert_as_expected(t);
    }
    ub_unwinder_free(u);
}

static const char *const builds[] = {"frames", "frames_o0", "frames_o2", "frames_static"};

static void altstack(void **state)
{
    for (uint32_t i = 0; i < UB_ARRAY_LEN(builds); i++) {
        struct target t;

        start(&t, builds[i], "altstack");
        check_blocked(&t);
        assert_int_equal(capture.region_count, 2);
        finish(&t);
    }
}

static void first_instruction(void **state)
{
    for (uint32_t i = 0; i < UB_ARRAY_LEN(builds); i++) {
        const struct ub_frame *f;
        struct target t;

        start(&t, builds[i], "first");
        check_blocked(&t);
        f = frame_of(&t, t.shared->expected[2]);
        assert_true(f && !f->is_call);
        assert_true(f->pc == t.shared->expected[2]); /* the trap is its first byte: one byte less is another function */
        assert_false(f[-1].is_call);                 /* the trampoline was not called */
        finish(&t);
    }
}

static void interrupted_call(void **state)
{
    for (uint32_t i = 0; i < UB_ARRAY_LEN(builds); i++) {
        struct target t;

        start(&t, builds[i], "interrupted");
        check_blocked(&t);
        finish(&t);
    }
}

static void noreturn_call(void **state)
{
    for (uint32_t i = 0; i < UB_ARRAY_LEN(builds); i++) {
        struct target t;

        start(&t, builds[i], "noreturn");
        check_blocked(&t);
        finish(&t);
    }
}

static void fiber(void **state)
{
    for (uint32_t i = 0; i < UB_ARRAY_LEN(builds); i++) {
        struct target t;

        start(&t, builds[i], "fiber");
        check_blocked(&t);
        finish(&t);
    }
}

static void jit(void **state)
{
    const struct ub_frame *f;
    struct target t;

    start(&t, "frames_o2", "jit");
    check_blocked(&t);
    f = frame_of(&t, t.shared->expected[1]) + 1;
    assert_int_equal(f->how, UB_FRAME_FP);
    assert_true(f->is_call);
    finish(&t);
}

static void deep(void **state)
{
    struct ub_unwinder *u;
    struct target t;

    start(&t, "frames_o2", "deep");
    take_blocked(&t);
    assert_int_equal(ub_unwinder_new(&u), 0);
    unwind(u, &t);
    assert_int_equal(stack.count, UB_FRAMES_MAX);
    assert_true(stack.truncated);
    assert_false(stack.complete);
    ub_unwinder_free(u);
    finish(&t);
}

/* The clock is read in the vdso: its frames have their own tables, and no stack of their own. */
static void vdso(void **state)
{
    struct ub_unwinder *u;
    struct target t;
    int r = 0, seen = 0;

    start(&t, "frames_o2", "vdso");
    assert_int_equal(ub_unwinder_new(&u), 0);
    for (int i = 0; i < 2000 && seen < 20 && (r == 0 || r == -EAGAIN); i++) {
        const struct ub_map *m;

        r = ub_capture_perf(t.pid, t.tid, t.maps, &capture);
        if (r < 0)
            continue;
        unwind(u, &t);
        assert_as_expected(&t);
        m = ub_maps_find(t.maps, stack.frame[0].pc);
        seen += m && m->kind == UB_MAP_VDSO;
    }
    ub_unwinder_free(u);
    finish(&t);
    if (r < 0 && r != -EAGAIN)
        skip();
    assert_true(seen > 0);
}

/*
 * An rbp that cannot be known, beside one that looks right and is not. Where it
 * cannot be told it must not be told; optimised code without a frame pointer elsewhere gets no further.
 */
static void leftover(void **state)
{
    static const char *const scenarios[] = {"leftover", "leftover-", "leftover+"};

    for (uint32_t i = 0; i < UB_ARRAY_LEN(builds) * UB_ARRAY_LEN(scenarios); i++) {
        struct ub_unwinder *u;
        struct target t;

        start(&t, builds[i / UB_ARRAY_LEN(scenarios)], scenarios[i % UB_ARRAY_LEN(scenarios)]);
        take_blocked(&t);
        assert_int_equal(ub_unwinder_new(&u), 0);
        unwind(u, &t);
        assert_true(!stack.complete || as_expected(&t));
        ub_unwinder_free(u);
        finish(&t);
    }
}

/* Programs without optimisation and with frame pointers need rbp each time, and it must be marked. */
static void recovered_is_marked(void **state)
{
    struct ub_unwinder *u;
    struct target t;
    bool marked = false;

    start(&t, "frames_o0", "noreturn");
    check_blocked(&t);
    for (uint32_t i = 0; i < stack.count; i++)
        marked |= stack.frame[i].how == UB_FRAME_RBP;
    assert_true(marked);
    /* Known registers are used as they are. */
    assert_int_equal(ub_unwinder_new(&u), 0);
    for (uint32_t i = 0; i < stack.count; i++)
        if (stack.frame[i].how == UB_FRAME_RBP) {
            capture.reg[UB_REG_RBP] = stack.frame[i].cfa - 16;
            capture.reg_known |= UB_REG_BIT(UB_REG_RBP);
        }
    unwind(u, &t);
    assert_as_expected(&t);
    for (uint32_t i = 0; i < stack.count; i++)
        assert_int_equal(stack.frame[i].how, UB_FRAME_EXACT);
    ub_unwinder_free(u);
    finish(&t);
}

/* More layouts than the unwinder keeps warm, in turns; and the same program twice shares one. */
static void many_processes(void **state)
{
    static struct ub_capture captures[10];
    static const char *const scenario[] = {"noreturn", "fiber", "altstack", "interrupted", "first"};
    struct target t[10];
    struct ub_unwinder *u;

    assert_int_equal(ub_unwinder_new(&u), 0);
    for (uint32_t i = 0; i < UB_ARRAY_LEN(t); i++) {
        start(&t[i], i % 2 ? "frames_o2" : "frames_o0", scenario[i / 2]);
        take_blocked(&t[i]);
        captures[i] = capture;
    }
    for (uint32_t i = 0; i < 100; i++) {
        const struct target *one = &t[i * 7 % UB_ARRAY_LEN(t)];

        assert_int_equal(ub_unwind(u, one->maps, &captures[one - t], &stack), 0);
        assert_as_expected(one);
    }
    for (uint32_t i = 0; i < UB_ARRAY_LEN(t); i++)
        finish(&t[i]);
    ub_unwinder_free(u);
}

/* What little there is to say without registers, maps or stack. */
static void nearly_nothing(void **state)
{
    struct ub_unwinder *u;
    struct target t;

    start(&t, "frames_o2", "noreturn");
    take_blocked(&t);
    assert_int_equal(ub_unwinder_new(&u), 0);
    assert_int_equal(ub_unwind(u, NULL, &capture, &stack), 0);
    assert_int_equal(stack.count, 1);
    assert_false(stack.complete);
    capture.region_count = 0;
    unwind(u, &t);
    assert_int_equal(stack.count, 1);
    assert_true(stack.frame[0].pc == capture.reg[UB_REG_RIP]);
    assert_false(stack.complete);
    capture.reg_known = 0;
    assert_int_equal(ub_unwind(u, t.maps, &capture, &stack), -ENODATA);
    ub_unwinder_free(u);
    finish(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(altstack),
        cmocka_unit_test(first_instruction),
        cmocka_unit_test(interrupted_call),
        cmocka_unit_test(noreturn_call),
        cmocka_unit_test(fiber),
        cmocka_unit_test(jit),
        cmocka_unit_test(deep),
        cmocka_unit_test(vdso),
        cmocka_unit_test(leftover),
        cmocka_unit_test(recovered_is_marked),
        cmocka_unit_test(many_processes),
        cmocka_unit_test(nearly_nothing),
    };

    setbuf(stdout, NULL);
    return cmocka_run_group_tests_name("unwind", tests, NULL, NULL);
}
