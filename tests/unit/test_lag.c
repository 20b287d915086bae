/* The lag of a loop, from turns and stalls made by hand. */
#include "unit.h"

#include "../../tracer/explain_impl.h"

#include "../../tracer/ticks.h"
#include "../../common/offload.h"

#include <stdlib.h>

#define MS       1000000ull
#define OBSERVED (10000 * MS)

static struct ub_watch watch = {.offload = UB_OFFLOAD_DRY_RUN};
static struct ub_explain *x;
static struct ub_thread_record thread;
static struct ub_stats stats;

static int begin(void **state)
{
    watch.offload = UB_OFFLOAD_DRY_RUN;
    x = calloc(1, sizeof(*x));
    x->w = &watch;
    thread = (struct ub_thread_record){.since_ns = ub_clock_monotonic_ns() - OBSERVED};
    stats = (struct ub_stats){0};
    return 0;
}

static int finish(void **state)
{
    ub_lag_clear(&thread.lag);
    free(x);
    return 0;
}

static void turns(uint64_t count, uint64_t ms)
{
    uint64_t ticks = ub_ticks_from_span_ns(ms * MS);

    stats.histogram.count[ub_histogram_index(ticks)] += count;
    stats.max_ticks = ticks > stats.max_ticks ? ticks : stats.max_ticks;
}

static void stalls(uint64_t count, uint64_t ms, uint64_t saved_ms, const char *more)
{
    for (uint64_t i = 0; i < count; i++) {
        json_t *line = json_pack("{s:I, s:{s:I}}", "duration_ns", (json_int_t)(ms * MS), "offload", "saved_ns",
                                 (json_int_t)(saved_ms * MS));

        if (more)
            json_object_set_new(line, more, json_true());
        ub_lag_keep(&thread, line);
        json_decref(line);
    }
}

/* In ms; a bucket is 1.6 % wide. */
static void is(const char *what, const char *figure, uint64_t ms)
{
    json_t *lag = ub_lag_json(x, &thread, &stats), *of = *what ? json_object_get(lag, what) : lag;
    int64_t ns = json_integer_value(json_object_get(of, figure));

    assert_non_null(of);
    assert_in_range(ns + 1, ms * MS * 97 / 100, ms * MS * 103 / 100 + MS / 2);
    json_decref(lag);
}

/* One turn of 500 ms in 10 s: for 100 ms (1 %) one would have waited for 400 ms or more. */
static void what_is_left_of_a_turn_is_waited_for(void **state)
{
    turns(1, 500);
    is("", "p99_ns", 400);
    is("", "longest_ns", 500);
}

/* Ten of 500 ms share that 1 %: 10 ms each. */
static void turns_add_up(void **state)
{
    turns(10, 500);
    turns(1000, 1);
    is("", "p99_ns", 490);
}

static void an_idle_loop_has_none(void **state)
{
    turns(1, 90);
    is("", "p99_ns", 0);
    is("", "longest_ns", 90);
}

static void a_stall_comes_off_its_turn(void **state)
{
    turns(2, 500);
    turns(3, 20);
    stalls(2, 500, 480, NULL);
    is("predicted", "longest_ns", 20);
    is("", "longest_ns", 500);
}

/* Nobody wrote down in which turn a stall was: four of 100 ms must have been in the only one that is long enough. */
static void several_stalls_of_one_turn(void **state)
{
    turns(1, 430);
    turns(5, 20);
    stalls(4, 100, 100, NULL);
    is("predicted", "longest_ns", 30);
}

/* The shortest turn that can have held it is taken, so a longer one that nothing would shorten stays. */
static void a_longer_turn_stays(void **state)
{
    turns(1, 700);
    turns(1, 100);
    stalls(1, 100, 95, NULL);
    is("predicted", "longest_ns", 700);
    is("predicted", "p99_ns", 600);
}

static void what_is_not_over_or_not_one_is_not_counted(void **state)
{
    json_t *lag;

    turns(1, 500);
    stalls(1, 500, 500, "ongoing");
    stalls(1, 500, 500, "unclear");
    stalls(1, 500, 0, NULL);
    lag = ub_lag_json(x, &thread, &stats);
    assert_null(json_object_get(lag, "predicted"));
    json_decref(lag);
}

/* Those by rules for functions come off what the calls have left, in a figure of their own. */
static void functions_come_off_the_rest(void **state)
{
    json_t *line = json_pack("{s:I, s:{s:I}}", "duration_ns", (json_int_t)(500 * MS), "elsewhere", "saved_ns",
                             (json_int_t)(450 * MS)),
           *lag;

    turns(1, 500);
    turns(1, 300);
    ub_lag_keep(&thread, line);
    json_decref(line);
    lag = ub_lag_json(x, &thread, &stats);
    assert_null(json_object_get(lag, "predicted"));
    json_decref(lag);
    is("predicted_policy", "longest_ns", 300);
    stalls(1, 300, 280, NULL);
    is("predicted", "longest_ns", 500);
    is("predicted_policy", "longest_ns", 50);
}

/* Of one stall a call would have saved some and a function the rest: both off the same turn. */
static void both_come_off_one_turn(void **state)
{
    json_t *line = json_pack("{s:I, s:{s:I}, s:{s:I}}", "duration_ns", (json_int_t)(500 * MS), "offload", "saved_ns",
                             (json_int_t)(300 * MS), "elsewhere", "saved_ns", (json_int_t)(450 * MS));

    turns(1, 500);
    turns(1, 700);
    ub_lag_keep(&thread, line);
    json_decref(line);
    is("predicted", "longest_ns", 700);
    is("predicted_policy", "longest_ns", 700);
    is("predicted", "p99_ns", 600);
    is("predicted_policy", "p99_ns", 600);
}

/* More kinds of stalls than are kept: half a prediction is none. */
static void too_many_kinds(void **state)
{
    json_t *lag;

    for (uint64_t ms = 1; ms < 1400; ms++) {
        turns(1, ms * ms);
        stalls(1, ms * ms, ms % 7 + 1, NULL);
    }
    lag = ub_lag_json(x, &thread, &stats);
    assert_non_null(lag);
    assert_true(thread.lag.incomplete == !json_object_get(lag, "predicted"));
    json_decref(lag);
}

static void told_where_offload_is_on(void **state)
{
    json_t *lag;

    turns(1, 500);
    stalls(1, 500, 500, NULL);
    watch.offload = UB_OFFLOAD_EAGER;
    lag = ub_lag_json(x, &thread, &stats);
    assert_non_null(json_object_get(lag, "p99_ns"));
    assert_null(json_object_get(lag, "predicted"));
    json_decref(lag);
    watch.offload = UB_OFFLOAD_OFF;
    assert_null(ub_lag_json(x, &thread, &stats));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(what_is_left_of_a_turn_is_waited_for, begin, finish),
        cmocka_unit_test_setup_teardown(turns_add_up, begin, finish),
        cmocka_unit_test_setup_teardown(an_idle_loop_has_none, begin, finish),
        cmocka_unit_test_setup_teardown(a_stall_comes_off_its_turn, begin, finish),
        cmocka_unit_test_setup_teardown(several_stalls_of_one_turn, begin, finish),
        cmocka_unit_test_setup_teardown(a_longer_turn_stays, begin, finish),
        cmocka_unit_test_setup_teardown(what_is_not_over_or_not_one_is_not_counted, begin, finish),
        cmocka_unit_test_setup_teardown(functions_come_off_the_rest, begin, finish),
        cmocka_unit_test_setup_teardown(both_come_off_one_turn, begin, finish),
        cmocka_unit_test_setup_teardown(too_many_kinds, begin, finish),
        cmocka_unit_test_setup_teardown(told_where_offload_is_on, begin, finish),
    };

    ub_ticks_start();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
