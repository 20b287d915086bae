/* Two recordings compared by counts. */
#include "ui_check.h"

#include "../../ui/diff.h"

#include <math.h>

/* Exact where n is small: 2^-n, and 299/4096 for 9 or more of 12. */
static void test_chance(void **state)
{
    assert_float_equal(ub_diff_chance_of_more(0, 0, 1, 1), 1, 1e-12);
    assert_float_equal(ub_diff_chance_of_more(0, 1, 1, 1), 0.5, 1e-12);
    assert_float_equal(ub_diff_chance_of_more(0, 7, 1, 1), 0.0078125, 1e-12);
    assert_float_equal(ub_diff_chance_of_more(3, 9, 1, 1), 0.072998046875, 1e-9);
    assert_float_equal(ub_diff_chance_of_more(3, 9, 1, 3), 0.648779, 1e-5);
    assert_float_equal(ub_diff_chance_of_more(10, 3, 1, 1), 0.98876953125, 1e-9);
    assert_true(ub_diff_chance_of_more(100000, 101000, 1, 1) < 0.02);
    assert_true(ub_diff_chance_of_more(100000, 100100, 1, 1) > 0.3);
    assert_true(ub_diff_chance_of_more(0, 1000000, 1, 1) < 1e-300);
}

static struct ub_model *run_of(int seconds)
{
    struct ub_model *m = new_model();

    feed(m, json_of("{'type':'end','exit':0,'slow':0,'at_ns':%d000001000}", seconds));
    return m;
}

static void stalls(struct ub_model *m, const char *site, int count, long ms)
{
    static int id;

    for (int i = 0; i < count; i++)
        feed(m, slow(++id, site, ms + i % 3, ""));
}

static enum ub_change change_of(const struct ub_diff *d, const char *site)
{
    for (size_t i = 0; i < d->sites; i++)
        if (strcmp((d->site[i].now ? d->site[i].now : d->site[i].base)->id, site) == 0)
            return d->site[i].change;
    fail_msg("no site %s", site);
    return UB_CHANGES;
}

static void test_changes(void **state)
{
    struct ub_model *base = run_of(60), *now = run_of(60);
    struct ub_diff d;

    stalls(now, "new", 1, 30);
    stalls(base, "gone", 20, 30);
    stalls(base, "rare", 2, 30);
    stalls(base, "more", 10, 30);
    stalls(now, "more", 40, 30);
    stalls(base, "some", 10, 30);
    stalls(now, "some", 13, 30);
    stalls(base, "fewer", 40, 30);
    stalls(now, "fewer", 10, 30);
    stalls(base, "longer", 12, 30);
    stalls(now, "longer", 12, 60);
    stalls(base, "shorter", 12, 60);
    stalls(now, "shorter", 12, 30);
    assert_int_equal(ub_diff_make(base, now, &d), 0);
    assert_int_equal(d.sites, 8);
    assert_int_equal(change_of(&d, "new"), UB_CHANGE_NEW);
    assert_int_equal(change_of(&d, "gone"), UB_CHANGE_GONE);
    assert_int_equal(change_of(&d, "rare"), UB_CHANGE_UNSURE);
    assert_int_equal(change_of(&d, "more"), UB_CHANGE_WORSE);
    assert_int_equal(change_of(&d, "some"), UB_CHANGE_SAME);
    assert_int_equal(change_of(&d, "fewer"), UB_CHANGE_BETTER);
    assert_int_equal(change_of(&d, "longer"), UB_CHANGE_WORSE);
    assert_int_equal(change_of(&d, "shorter"), UB_CHANGE_BETTER);
    assert_int_equal(d.site[0].change, UB_CHANGE_NEW); /* the worst first */
    ub_diff_clear(&d);
    ub_model_free(base);
    ub_model_free(now);
}

/* Four times the stalls in four times the time is no change. */
static void test_time_watched(void **state)
{
    struct ub_model *base = run_of(60), *now = run_of(240);
    struct ub_diff d;

    stalls(base, "x", 10, 30);
    stalls(now, "x", 40, 30);
    assert_int_equal(ub_diff_make(base, now, &d), 0);
    assert_int_equal(d.base_ns, 60000000000);
    assert_int_equal(change_of(&d, "x"), UB_CHANGE_SAME);
    ub_diff_clear(&d);
    ub_model_free(base);
    ub_model_free(now);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chance),
        cmocka_unit_test(test_changes),
        cmocka_unit_test(test_time_watched),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
