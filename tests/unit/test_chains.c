/*
 * Captures judged by the target itself: programs that publish which call chain
 * they are in (tests/programs/chain.c). 2,000 of them, 100,000 with UNBLOCK_SOAK=1.
 */
#include "unit.h"

#include "chain_check.h"
#include "../../tracer/capture_impl.h"

#include <errno.h>
#include <sys/prctl.h>
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
    return ub_capture_signal(c->pid, c->tid, &c->shared->cold.sample, ticks_are_ns, &capture);
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
    uint64_t deadline = ub_clock_monotonic_ns() + 1000000000ull * (20 + count / 100);
    uint32_t seed = (uint32_t)c->pid;

    memset(t, 0, sizeof(*t));
    assert_int_equal(ub_unwinder_new(&u), 0);
    while (t->captures < count && ub_clock_monotonic_ns() < deadline) {
        int r = take(c);

        if (r == 0)
            count_one(c, u, t);
        else if (r == -EAGAIN ||
                 (r == -ENOTSUP && c->shared->cold.sample.done)) /* still inside its handler, off the CPU */
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

/* One that is never still for long, looked at without pause: some hundred of these looks are mixed but for the proof.
 */
static void never_still(void **state)
{
    static const char *const programs[] = {"chain", "chain_o0"};
    uint64_t end;

    for (uint32_t i = 0; i < UB_ARRAY_LEN(programs); i++) {
        struct tally t = {0};
        struct ub_unwinder *u;
        struct chain c;

        assert_int_equal(ub_unwinder_new(&u), 0);
        chain_start(&c, programs[i], "hard", "main", 20 + i, true);
        end = ub_clock_monotonic_ns() + total_captures() * 500000ull;
        while (ub_clock_monotonic_ns() < end) {
            int r = take_blocked(&c);

            if (r == 0)
                count_one(&c, u, &t);
            t.again += r == -EAGAIN;
        }
        print_tally("without pause", &t);
        assert_untouched(&c);
        chain_stop(&c);
        ub_unwinder_free(u);
        assert_int_equal(t.wrong, 0);
        assert_true(t.captures + t.same > 200); /* how many is the machine's affair: it has a time, not a number */
    }
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
            assert_true(r == -EAGAIN || r == -ENOTSUP);
    }
    print_tally("chain, hard, by signal", &t);
    printf("  calls that the handler started again: %u\n", c.shared->cold.sample.rewound);
    assert_untouched(&c);
    chain_stop(&c);
    ub_unwinder_free(u);
    assert_int_equal(t.wrong, 0);
    assert_true(t.captures > 0);
}

/* ---- how long it takes: printed, never judged ---- */

#define SERIES_MAX 2000u

struct series {
    uint32_t count;
    uint64_t ns[SERIES_MAX];
};

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

static void print_series(const char *what, struct series *s)
{
    if (s->count == 0)
        return;
    qsort(s->ns, s->count, sizeof(s->ns[0]), by_value);
    printf("  %-22s p50 %6.1f us, p99 %6.1f us (%u)\n", what, (double)s->ns[s->count / 2] / 1e3,
           (double)s->ns[s->count * 99 / 100] / 1e3, s->count);
}

static void add_ns(struct series *s, uint64_t begin)
{
    if (s->count < SERIES_MAX)
        s->ns[s->count++] = ub_clock_monotonic_ns() - begin;
}

static void time_captures(const char *mode, taker take, const char *name)
{
    static struct series capturing, unwinding, first;
    struct ub_unwinder *u, *fresh;
    uint32_t seed = 1;
    struct chain c;

    capturing.count = unwinding.count = first.count = 0;
    assert_int_equal(ub_unwinder_new(&u), 0);
    chain_start(&c, "chain", mode, "main", 12, true);
    for (uint32_t i = 0; i < 20 * SERIES_MAX && capturing.count < SERIES_MAX; i++) {
        uint64_t begin = ub_clock_monotonic_ns();
        int r = take(&c);

        if (r == 0) {
            add_ns(&capturing, begin);
            begin = ub_clock_monotonic_ns();
            ub_unwind(u, c.maps, &capture, &stack);
            add_ns(&unwinding, begin);
            if (i % 50 == 0 && ub_unwinder_new(&fresh) == 0) {
                begin = ub_clock_monotonic_ns();
                ub_unwind(fresh, c.maps, &capture, &stack);
                add_ns(&first, begin);
                ub_unwinder_free(fresh);
            }
        }
        pause_a_little(&seed);
    }
    chain_stop(&c);
    ub_unwinder_free(u);
    print_series(name, &capturing);
    print_series("  unwinding, warm", &unwinding);
    print_series("  unwinding, the first", &first);
}

static void latency(void **state)
{
    prctl(PR_SET_TIMERSLACK, 1); /* as the watcher does */
    time_captures("paced", take_blocked, "blocked");
    time_captures("spin", take_signal, "by signal");
    time_captures("spin", take_perf, "by perf_event");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sleeping),
        cmocka_unit_test(never_still),
        cmocka_unit_test(sleeping_without_schedstat),
        cmocka_unit_test(proof_is_needed),
        cmocka_unit_test(running_by_signal),
        cmocka_unit_test(running_by_perf),
        cmocka_unit_test(signals_meet_calls),
        cmocka_unit_test(latency),
    };

    setbuf(stdout, NULL);
    return cmocka_run_group_tests_name("chains", tests, NULL, NULL);
}
