/* Fibers: switching, what they keep, how they end, how they unwind. (Exceptions, pthread_exit: e2e/test_fiber.py.) */
// agent: offload/fiber.o offload/fiber_x86_64.o
#include "unit.h"

#include "../../agent/offload/fiber.h"

#include <execinfo.h>
#include <fenv.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#if defined(__x86_64__)
#define UNW_LOCAL_ONLY
#include <libunwind.h>
#include <xmmintrin.h>
#endif

static struct ub_fiber_pool pool;

static int set_up(void **state)
{
    pool = (struct ub_fiber_pool){.size = 1 << 20, .head = sizeof(struct ub_fiber)};
    return 0;
}

static int tear_down(void **state)
{
    ub_fiber_pool_free(&pool);
    return 0;
}

static struct ub_fiber *start(ub_fiber_function *function, uint64_t a, uint64_t b)
{
    struct ub_fiber *f = ub_fiber_take(&pool);

    assert_non_null(f);
    ub_fiber_start(f, function, (const uint64_t[UB_FIBER_WORDS]){a, b, 3, 4, 5, 6});
    return f;
}

static uint64_t sum(uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f)
{
    return a + 10 * b + 100 * c + 1000 * d + 10000 * e + 100000 * f;
}

static void runs_and_returns(void **state)
{
    struct ub_fiber *f = start(sum, 1, 2);

    assert_int_equal(ub_fiber_resume(f, NULL), UB_FIBER_DONE);
    assert_int_equal(f->result, 654321);
    ub_fiber_give(&pool, f);
    assert_ptr_equal(start(sum, 1, 2), f); /* the stack is used again */
    assert_int_equal(pool.made, 1);
}

static uint64_t halts(uint64_t self, uint64_t times, uint64_t c, uint64_t d, uint64_t e, uint64_t f)
{
    struct ub_fiber *me = *(struct ub_fiber **)self;
    uint64_t done = 0;

    while (done < times) {
        ub_fiber_suspend(me);
        done++;
    }
    return done;
}

/* Many at once, resumed in turn. */
static void suspends(void **state)
{
    enum { MANY = 100, TIMES = 50 };
    struct ub_fiber *f[MANY];

    for (int i = 0; i < MANY; i++)
        f[i] = start(halts, (uintptr_t)&f[i], TIMES);
    for (int n = 0; n < TIMES; n++) {
        for (int i = 0; i < MANY; i++)
            assert_int_equal(ub_fiber_resume(f[i], NULL), UB_FIBER_SUSPENDED);
    }
    for (int i = 0; i < MANY; i++) {
        assert_int_equal(ub_fiber_resume(f[i], NULL), UB_FIBER_DONE);
        assert_int_equal(f[i]->result, TIMES);
        ub_fiber_give(&pool, f[i]);
    }
    assert_int_equal(pool.taken, 0);
    assert_int_equal(pool.most, MANY);
}

/* On x86 fegetround asks the x87 alone. */
static bool sse_rounds(int how)
{
#if defined(__x86_64__)
    return _MM_GET_ROUNDING_MODE() == (how == FE_UPWARD ? _MM_ROUND_UP : _MM_ROUND_DOWN);
#else
    return fegetround() == how;
#endif
}

static uint64_t rounds_up(uint64_t self, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f)
{
    struct ub_fiber *me = *(struct ub_fiber **)self;
    uint64_t inherited = fegetround() == FE_DOWNWARD;

    fesetround(FE_UPWARD);
    feraiseexcept(FE_INEXACT);
    ub_fiber_suspend(me);
    return inherited && fegetround() == FE_UPWARD && sse_rounds(FE_UPWARD);
}

/* How one calculates is the fiber's own (SSE and x87); a new one has it from its caller. */
static void control_words(void **state)
{
    struct ub_fiber *f;

    fesetround(FE_DOWNWARD);
    f = start(rounds_up, (uintptr_t)&f, 0);
    ub_fiber_resume(f, NULL);
    assert_int_equal(fegetround(), FE_DOWNWARD);
    assert_true(sse_rounds(FE_DOWNWARD));
    fesetround(FE_TOWARDZERO);
    ub_fiber_resume(f, NULL);
    assert_int_equal(f->result, 1);
    assert_int_equal(fegetround(), FE_TOWARDZERO);
    fesetround(FE_TONEAREST);
}

/* The compiler has all of them at hand here, and must not calculate them later, or add them up before. */
#if defined(__x86_64__)
#define A_DOUBLE "+x"
#else
#define A_DOUBLE "+w"
#endif
#define IN_REGISTERS(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q)                                                \
    do {                                                                                                               \
        __asm__ volatile("" : A_DOUBLE(a), A_DOUBLE(b), A_DOUBLE(c), A_DOUBLE(d));                                     \
        __asm__ volatile("" : A_DOUBLE(e), A_DOUBLE(f), A_DOUBLE(g), A_DOUBLE(h));                                     \
        __asm__ volatile("" : "+r"(i), "+r"(j), "+r"(k), "+r"(l), "+r"(m), "+r"(n), "+r"(o), "+r"(p), "+r"(q));        \
    } while (0)

/* So many values that are needed afterwards that each register which a call keeps has one: none of them is lost. */
static __attribute__((noinline)) double keeps(struct ub_fiber *me, double x, uint64_t y)
{
    double a = x * 2, b = x * 3, c = x * 5, d = x * 7, e = x * 11, f = x * 13, g = x * 17, h = x * 19;
    uint64_t i = y * 23, j = y * 29, k = y * 31, l = y * 37, m = y * 41, n = y * 43, o = y * 47, p = y * 53, q = y * 59;

    IN_REGISTERS(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q);
    ub_fiber_suspend(me);
    IN_REGISTERS(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q);
    return a + b + c + d + e + f + g + h + (double)(i + j + k + l + m + n + o + p + q);
}

static uint64_t sums(uint64_t self, uint64_t x, uint64_t c, uint64_t d, uint64_t e, uint64_t f)
{
    return (uint64_t)keeps(*(struct ub_fiber **)self, (double)x, x);
}

static void registers(void **state)
{
    struct ub_fiber *f[2];

    for (uint64_t i = 0; i < 2; i++) {
        f[i] = start(sums, (uintptr_t)&f[i], i + 1);
        ub_fiber_resume(f[i], NULL);
    }
    for (uint64_t i = 0; i < 2; i++) {
        ub_fiber_resume(f[i], NULL);
        assert_int_equal(f[i]->result, (i + 1) * 440);
    }
}

/* ---- the stack ------------------------------------------------------------------------ */

static __attribute__((noinline)) uint64_t touch(size_t bytes)
{
    volatile char *p = __builtin_alloca(bytes);

    for (size_t i = 0; i < bytes; i += 1024)
        p[i] = 1;
    return (uintptr_t)p;
}

static uint64_t uses_stack(uint64_t bytes, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f)
{
    return touch(bytes);
}

static void stack_depth(void **state)
{
    struct ub_fiber *f = start(uses_stack, 300000, 0);
    size_t before = ub_fiber_deepest(&pool);

    assert_in_range(before, 1, 16384); /* the fiber itself, and its first frame */
    ub_fiber_resume(f, NULL);
    assert_true(ub_fiber_contains(f, f->result));
    assert_in_range(ub_fiber_deepest(&pool), 300000, 300000 + 16384);
}

/* Beyond the stack is nothing, for as far as any frame is likely to reach: the child dies of it, and of nothing else.
 */
static void guard(void **state)
{
    int status;
    pid_t pid = fork();

    if (pid == 0) {
        struct rlimit none = {0, 0};

        setrlimit(RLIMIT_CORE, &none);
        signal(SIGSEGV, SIG_DFL);
        ub_fiber_resume(start(uses_stack, (1 << 20) + 4096, 0), NULL);
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGSEGV);
}

static uint64_t deep_on_main(uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f)
{
    return touch(6 << 20) != 0; /* more than any default but the one of the thread itself */
}

/* As large as the thread's own: what ran there must run here. */
static void stack_size(void **state)
{
    struct rlimit limit;

    getrlimit(RLIMIT_STACK, &limit);
    pool.size = ub_fiber_stack_size();
    if (limit.rlim_cur != RLIM_INFINITY)
        assert_true(pool.size >= limit.rlim_cur);
    assert_true(pool.size >= 7 << 20);
    assert_int_equal(ub_fiber_resume(start(deep_on_main, 0, 0), NULL), UB_FIBER_DONE);
}

static void *size_here(void *ret)
{
    *(size_t *)ret = ub_fiber_stack_size();
    return NULL;
}

static void stack_size_of_a_thread(void **state)
{
    pthread_attr_t attr;
    pthread_t thread;
    size_t size = 0;

    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, 3 << 20);
    pthread_create(&thread, &attr, size_here, &size);
    pthread_join(thread, NULL);
    pthread_attr_destroy(&attr);
    assert_int_equal(size, 3 << 20);
}

/* No memory: no fiber, and nothing else happens. */
static void no_memory(void **state)
{
    pool.size = 1ul << 56; /* more than there are addresses */
    assert_null(ub_fiber_take(&pool));
    assert_int_equal(pool.made, 0);
}

/* ---- ends other than a return ------------------------------------------------------------ */

static jmp_buf outside;

static uint64_t jumps(uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f)
{
    longjmp(outside, 7);
}

/* Nobody tells us of a longjmp: it still seems to run, and can be given back. */
static void longjmp_out(void **state)
{
    struct ub_fiber *volatile f = start(jumps, 0, 0);
    volatile int r = setjmp(outside);

    if (r == 0)
        ub_fiber_resume(f, NULL);
    assert_int_equal(r, 7);
    assert_int_equal(f->state, UB_FIBER_RUNNING);
    ub_fiber_give(&pool, f);
    f = start(sum, 1, 2);
    assert_int_equal(ub_fiber_resume(f, NULL), UB_FIBER_DONE);
}

static uint64_t jumps_within(uint64_t self, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f)
{
    struct ub_fiber *me = *(struct ub_fiber **)self;
    jmp_buf inside;
    volatile uint64_t n = 0;

    setjmp(inside);
    ub_fiber_suspend(me);
    if (++n < 3)
        longjmp(inside, 1);
    return n;
}

static void longjmp_within(void **state)
{
    struct ub_fiber *f = start(jumps_within, (uintptr_t)&f, 0);

    for (int i = 0; i < 3; i++)
        assert_int_equal(ub_fiber_resume(f, NULL), UB_FIBER_SUSPENDED);
    assert_int_equal(ub_fiber_resume(f, NULL), UB_FIBER_DONE);
    assert_int_equal(f->result, 3);
}

/* ---- unwinding --------------------------------------------------------------------------- */

#if defined(__x86_64__)
struct walk {
    uint32_t count;
    uintptr_t start[64]; /* of functions */
};

static __attribute__((noinline)) void walk(struct walk *w)
{
    unw_context_t context;
    unw_cursor_t cursor;

    unw_getcontext(&context);
    unw_init_local(&cursor, &context);
    w->count = 0;
    do {
        unw_proc_info_t info;

        if (unw_get_proc_info(&cursor, &info) == 0 && w->count < 64)
            w->start[w->count++] = info.start_ip;
    } while (unw_step(&cursor) > 0);
}

static bool has(const struct walk *w, const void *function)
{
    for (uint32_t i = 0; i < w->count; i++) {
        if (w->start[i] == (uintptr_t)function)
            return true;
    }
    return false;
}

static uint64_t walks(uint64_t self, uint64_t to, uint64_t c, uint64_t d, uint64_t e, uint64_t f)
{
    struct ub_fiber *me = *(struct ub_fiber **)self;

    walk((struct walk *)to);
    ub_fiber_suspend(me);
    walk((struct walk *)to + 1);
    return 0;
}

static __attribute__((noinline)) void resume_elsewhere(struct ub_fiber *f)
{
    ub_fiber_resume(f, NULL);
    __asm__ volatile("");
}

/* libunwind finds the way from a fiber down to main, by way of who resumed it now. */
static void unwinds(void **state)
{
    static struct walk w[2];
    struct ub_fiber *f = start(walks, (uintptr_t)&f, (uintptr_t)w);

    ub_fiber_resume(f, NULL);
    resume_elsewhere(f);
    for (int i = 0; i < 2; i++) {
        assert_true(has(&w[i], walks));
        assert_true(has(&w[i], unwinds));
        assert_true(w[i].count > 8); /* cmocka, main, libc's start */
    }
    assert_false(has(&w[0], resume_elsewhere));
    assert_true(has(&w[1], resume_elsewhere));
}
#endif

static uint64_t backtraces(uint64_t to, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f)
{
    return (uint64_t)backtrace((void **)to, 64);
}

/* And so does libgcc, which exceptions use. */
static void unwinds_with_libgcc(void **state)
{
    void *here[64], *there[64];
    int depth = backtrace(here, 64);
    struct ub_fiber *f = start(backtraces, (uintptr_t)there, 0);

    ub_fiber_resume(f, NULL);
    assert_in_range(f->result, depth + 3, depth + 5); /* backtraces, main of the fiber, root */
    assert_ptr_equal(there[f->result - 1], here[depth - 1]);
}

/* ---- a signal ---------------------------------------------------------------------------- */

static volatile uintptr_t handler_sp;

static void on_signal(int sig)
{
    handler_sp = (uintptr_t)__builtin_frame_address(0);
}

static uint64_t raises(uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f)
{
    raise(SIGUSR1);
    return 0;
}

static void signal_on_a_fiber(void **state)
{
    struct ub_fiber *f = start(raises, 0, 0);

    signal(SIGUSR1, on_signal);
    assert_int_equal(ub_fiber_resume(f, NULL), UB_FIBER_DONE);
    assert_true(ub_fiber_contains(f, handler_sp));
}

#if defined(__x86_64__)
static void supported(void **state)
{
    assert_true(ub_fiber_supported()); /* where shadow stacks are on for this program it is right to fail */
}
#endif

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(runs_and_returns),
        T(suspends),
        T(control_words),
        T(registers),
        T(stack_depth),
        T(guard),
        T(stack_size),
        T(no_memory),
        T(stack_size_of_a_thread),
        T(longjmp_out),
        T(longjmp_within),
        T(unwinds_with_libgcc),
        T(signal_on_a_fiber),
#if defined(__x86_64__)
        T(unwinds),
        T(supported),
#endif
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
