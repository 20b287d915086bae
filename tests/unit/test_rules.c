/* Lists of known stalls: what they may say, what fits, and when it is over. */
#include "ui_check.h"

#include "../../ui/options.h"
#include "../../ui/rules.h"

#define DAY(n) ((int64_t)(n)*86400)
#define D2026  20454 /* 2026-01-01, in days since the epoch */

static struct ub_rules rules_of(const char *text, int64_t now, int *ret, char *why)
{
    char folder[64], path[128];
    struct ub_rules rules;
    FILE *f;

    snprintf(path, sizeof(path), "%s/list", folder_make(folder));
    f = fopen(path, "w");
    fputs(text, f);
    fclose(f);
    *ret = ub_rules_read(path, now, &rules, why);
    folder_remove(folder);
    return rules;
}

static struct ub_rules rules_read(const char *text, int64_t now)
{
    char why[UB_WHY_MAX];
    int r;
    struct ub_rules rules = rules_of(text, now, &r, why);

    if (r != 0)
        fail_msg("%s", why);
    return rules;
}

static struct ub_model *model_with_a_stall(void)
{
    struct ub_model *m = new_model();

    feed(m, json_of("{'type':'stack','id':1,'frames':[{'function':'fsync','module':'/lib/libc.so.6'},"
                    "{'function':'wal_commit','file':'/src/wal.c','line':3,'module':'/opt/app/prog'}]}"));
    feed(m, json_of("{'type':'slow','id':1,'pid':42,'tid':42,'thread':'main','loop':'libuv','kind':'turn',"
                    "'callback':{'function':'on_flush'},'start_ns':1,'duration_ns':90000000,'threshold_ns':1,"
                    "'cause':'call','call':{'name':'fsync','args':'7'},'samples':[{'at_ns':1,'stack':1,'state':"
                    "'blocked','proof':'still'}],'site':'7f3a91c2'}"));
    return m;
}

/* 'y': fits, 'n': does not, 'x': fits but has expired, 's': fits, but not so long a stall. */
static char fit(const char *text, int64_t now)
{
    struct ub_rules rules = rules_read(text, now);
    struct ub_model *m = model_with_a_stall();
    size_t count;
    const struct ub_site **sites = ub_model_sites(m, UB_STALL_COUNTED, UB_SORT_TOTAL, &count);
    const struct ub_rule *rule = ub_rules_find(&rules, sites[0]);
    char c = !rule ? 'n' : rule->expired ? 'x' : rule->max_ns && rule->max_ns < 90000000 ? 's' : 'y';

    assert_int_equal(count, 1);
    assert_int_equal(ub_rules_fit_record(&rules, m, sites[0]->worst), c == 'y' || c == 's');
    free(sites);
    ub_model_free(m);
    ub_rules_clear(&rules);
    return c;
}

static void test_what_fits(void **state)
{
    static const struct {
        const char *text;
        char fits;
    } cases[] = {
        {"", 'n'},
        {"# nothing\n\n   \n", 'n'},
        {"7f3a91c2", 'y'},
        {"7f3a91c2 # ticket 3\n", 'y'},
        {"7f3a91", 'y'},
        {"7f3a91c3", 'n'},
        {"7f3a91c2aa", 'n'},
        {"call:fsync", 'y'},
        {"call:f*", 'y'},
        {"call:fdatasync", 'n'},
        {"function:wal_*", 'y'},
        {"function:on_flush", 'y'},
        {"function:on_flushed", 'n'},
        {"program:prog", 'y'},
        {"program:p", 'n'},
        {"module:libc.so.*", 'y'},
        {"module:/opt/app/*", 'y'},
        {"thread:main", 'y'},
        {"loop:libuv", 'y'},
        {"loop:glib", 'n'},
        {"call:fsync function:wal_commit program:prog", 'y'},
        {"call:fsync function:wal_commit program:other", 'n'},
        {"call:read\ncall:fsync\n", 'y'},
        {"call:fsync until 2026-01-01", 'y'}, /* the last day counts */
        {"call:fsync until 2025-12-31", 'x'},
        {"call:fsync until 2025-12-31\n7f3a91c2\n", 'y'},
        {"call:fsync max 90ms", 'y'},
        {"call:fsync max 89ms", 's'},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        if (fit(cases[i].text, DAY(D2026) + 3600) != cases[i].fits)
            fail_msg("'%s'", cases[i].text);
}

static void test_what_makes_no_sense(void **state)
{
    static const char *const wrong[] = {
        "7f3",
        "call:",
        "x:y",
        "until 2026-01-01",
        "call:x until",
        "call:x until tomorrow",
        "max 3ms",
        "call:x max 3",
        "call:x max",
        "call:x until 2026-13-01",
        "call:x until 2026-1-1",
    };
    char why[UB_WHY_MAX];
    int r;

    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        char text[128];
        struct ub_rules rules;

        snprintf(text, sizeof(text), "# first\n%s\n", wrong[i]);
        rules = rules_of(text, 0, &r, why);
        if (r >= 0 || !strstr(why, "list:2: "))
            fail_msg("'%s': %d %s", wrong[i], r, r < 0 ? why : "");
        ub_rules_clear(&rules);
    }
    assert_int_equal(ub_rules_read("/nonexistent/list", 0, &(struct ub_rules){0}, why), -ENOENT);
}

/* Suppressed stalls leave the verdict whole: what stays is what was there without them. */
static void test_suppressed(void **state)
{
    struct ub_rules rules = rules_read("function:wal_commit\n", 0);
    struct ub_model *m = model_with_a_stall();

    feed(m, slow(2, "5e5a1007", 30, ""));
    feed(m, slow(3, "5e5a1007", 40, ", 'parent': 7"));
    assert_int_equal(ub_model_totals(m, UB_STALL_COUNTED)->count, 2);
    assert_int_equal(ub_model_totals(m, UB_STALL_COUNTED)->max_ns, 90000000);
    ub_rules_suppress(&rules, m);
    assert_int_equal(ub_model_totals(m, UB_STALL_COUNTED)->count, 1);
    assert_int_equal(ub_model_totals(m, UB_STALL_COUNTED)->total_ns, 30000000);
    assert_int_equal(ub_model_totals(m, UB_STALL_COUNTED)->max_ns, 30000000);
    assert_int_equal(ub_model_totals(m, UB_STALL_SUPPRESSED)->count, 1);
    assert_int_equal(ub_model_totals(m, UB_STALL_SUPPRESSED)->total_ns, 90000000);
    ub_model_free(m);
    ub_rules_clear(&rules);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_fits),
        cmocka_unit_test(test_what_makes_no_sense),
        cmocka_unit_test(test_suppressed),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
