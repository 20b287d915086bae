/* Totals of recordings: sites, stalls that go on, loops over parts and runs, limits. */
#include "ui_check.h"

static const struct ub_site *only_site(const struct ub_model *m, enum ub_stall_class class)
{
    size_t count;
    const struct ub_site **sites = ub_model_sites(m, class, UB_SORT_TOTAL, &count), *site;

    assert_int_equal(count, 1);
    site = sites[0];
    free(sites);
    return site;
}

static const struct ub_site *site_named(const struct ub_model *m, const char *id)
{
    json_t *stall = slow(1, id, 1, "");
    const struct ub_site *site = ub_model_site_of(m, stall);

    json_decref(stall);
    assert_non_null(site);
    return site;
}

static void test_site_totals(void **state)
{
    struct ub_model *m = new_model();
    const struct ub_site *site;
    int i;

    for (i = 1; i <= 100; i++)
        feed(m, slow(i, "aa", i, ""));
    feed(m, slow(101, "bb", 7, ", 'repeats':9, 'repeats_ns':90000000, 'max_ns':25000000"));
    site = site_named(m, "aa");
    assert_string_equal(site->id, "aa");
    assert_string_equal(site->program, "prog");
    assert_int_equal(site->durations.count, 100);
    assert_int_equal(site->durations.total_ns, 5050000000);
    assert_int_equal(site->durations.max_ns, 100000000);
    /* Within the width of a bucket: 1/64. */
    assert_in_range(ub_distribution_percentile(&site->durations, 500), 49000000, 51000000);
    assert_in_range(ub_distribution_percentile(&site->durations, 990), 98000000, 100000000);
    assert_int_equal(json_integer_value(json_object_get(site->worst, "id")), 100);

    site = site_named(m, "bb");
    assert_int_equal(site->durations.count, 10);
    assert_int_equal(site->durations.total_ns, 97000000);
    assert_int_equal(site->durations.max_ns, 25000000);

    assert_int_equal(ub_model_totals(m, UB_STALL_COUNTED)->count, 110);
    assert_int_equal(ub_model_totals(m, UB_STALL_COUNTED)->total_ns, 5147000000);
    assert_int_equal(ub_model_totals(m, UB_STALL_COUNTED)->max_ns, 100000000);
    ub_model_free(m);
}

/* Few stalls: percentiles are theirs, not a bucket's edge. */
static void test_percentiles_of_few_are_exact(void **state)
{
    struct ub_distribution d = {0};

    ub_distribution_add(&d, 1, 251300001);
    ub_distribution_add(&d, 1, 30800007);
    ub_distribution_add(&d, 1, 61200003);
    assert_int_equal(ub_distribution_percentile(&d, 500), 61200003);
    assert_int_equal(ub_distribution_percentile(&d, 990), 251300001);
    assert_int_equal(ub_distribution_percentile(&d, 1), 30800007);
    ub_distribution_clear(&d);
    assert_int_equal(ub_distribution_percentile(&d, 500), 0);
}

static void test_startup_and_stopped_stay_out(void **state)
{
    struct ub_model *m = new_model();
    json_t *stopped = slow(3, "aa", 40, "");

    json_object_set_new(stopped, "cause", json_string("stopped"));
    feed(m, slow(1, "aa", 30, ""));
    feed(m, slow(2, "aa", 500, ", 'startup':true"));
    feed(m, stopped);
    feed(m, slow(4, "aa", 600, ", 'unclear':true"));
    assert_int_equal(ub_model_totals(m, UB_STALL_COUNTED)->count, 1);
    assert_int_equal(ub_model_totals(m, UB_STALL_UNCLEAR)->total_ns, 600000000);
    assert_int_equal(ub_model_totals(m, UB_STALL_COUNTED)->max_ns, 30000000);
    assert_int_equal(ub_model_totals(m, UB_STALL_STARTUP)->total_ns, 500000000);
    assert_int_equal(ub_model_totals(m, UB_STALL_STOPPED)->total_ns, 40000000);
    assert_int_equal(only_site(m, UB_STALL_COUNTED)->durations.max_ns, 30000000);
    assert_int_equal(only_site(m, UB_STALL_STARTUP)->durations.max_ns, 500000000);
    ub_model_free(m);
}

static void test_contained_stalls_count_once(void **state)
{
    struct ub_model *m = new_model();

    feed(m, slow(1, "inner", 90, ", 'parent':2"));
    feed(m, slow(2, "turn", 100, ""));
    assert_int_equal(ub_model_totals(m, UB_STALL_COUNTED)->count, 1);
    assert_int_equal(ub_model_totals(m, UB_STALL_COUNTED)->total_ns, 100000000);
    assert_int_equal(site_named(m, "inner")->durations.total_ns, 90000000);
    ub_model_free(m);
}

#define SAMPLES(n)                                                                                                     \
    ", 'ongoing':" n ", 'samples':[{'at_ns':1,'stack':1,'state':'blocked','proof':'unproven','complete':false}]"

static void test_ongoing_is_replaced(void **state)
{
    struct ub_model *m = new_model();
    const struct ub_site *site;

    feed(m, json_of("{'type':'stack','id':1,'frames':[{'function':'f'}]}"));
    feed(m, slow(1, "aa", 30, SAMPLES("true")));
    feed(m, slow(1, "aa", 1000, SAMPLES("true")));
    site = only_site(m, UB_STALL_COUNTED);
    assert_int_equal(site->durations.count, 1);
    assert_int_equal(site->ongoing, 1);
    assert_int_equal(ub_model_totals(m, UB_STALL_COUNTED)->ongoing, 1);
    assert_int_equal(ub_model_totals(m, UB_STALL_COUNTED)->total_ns, 1000000000);

    /* The end may find another site: the first one keeps nothing. */
    feed(m, slow(1, "bb", 1200, SAMPLES("false")));
    site = only_site(m, UB_STALL_COUNTED);
    assert_string_equal(site->id, "bb");
    assert_int_equal(site->durations.count, 1);
    assert_int_equal(site->durations.total_ns, 1200000000);
    assert_int_equal(site->ongoing, 0);
    assert_int_equal(site->samples, 1);
    assert_int_equal(site->stacks, 1);
    assert_int_equal(site->stack[0].unproven, 1);
    assert_int_equal(site->stack[0].incomplete, 1);
    assert_int_equal(ub_model_totals(m, UB_STALL_COUNTED)->count, 1);
    assert_int_equal(ub_model_totals(m, UB_STALL_COUNTED)->ongoing, 0);
    ub_model_free(m);
}

/* The same id in another process is another stall; so it is in another run. */
static void test_ids_are_of_a_process(void **state)
{
    struct ub_model *m = new_model();
    json_t *other = slow(1, "aa", 60, ""), *header = json_loads(HEADER, 0, NULL);

    json_object_set_new(other, "pid", json_integer(43));
    json_object_set_new(header, "monotonic_ns", json_integer(77));
    feed(m, slow(1, "aa", 50, ", 'ongoing':true"));
    feed(m, other);
    assert_int_equal(ub_model_totals(m, UB_STALL_COUNTED)->count, 2);
    feed(m, header);
    feed(m, slow(1, "aa", 70, ""));
    assert_int_equal(ub_model_totals(m, UB_STALL_COUNTED)->count, 3);
    assert_int_equal(ub_model_totals(m, UB_STALL_COUNTED)->ongoing, 1);

    /* Back in the first run, the stall ends. */
    feed(m, json_loads(HEADER, 0, NULL));
    feed(m, slow(1, "aa", 80, ""));
    assert_int_equal(ub_model_totals(m, UB_STALL_COUNTED)->count, 3);
    assert_int_equal(ub_model_totals(m, UB_STALL_COUNTED)->ongoing, 0);
    assert_int_equal(ub_model_runs(m), 2);
    ub_model_free(m);
}

/* Stack ids start again in each recording; equal stacks are one all the same. */
static void test_stacks_are_of_a_recording(void **state)
{
    struct ub_model *m = new_model();
    json_t *header = json_loads(HEADER, 0, NULL), *first;
    const struct ub_site *site;

    feed(m, json_of("{'type':'stack','id':1,'frames':[{'function':'f'},{'function':'g'}]}"));
    first = ub_model_stack(m, 1);
    assert_int_equal(json_array_size(first), 2);
    feed(m, slow(1, "aa", 50, ", 'samples':[{'at_ns':1,'stack':1,'state':'running'}]"));

    json_object_set_new(header, "host", json_string("other"));
    feed(m, header);
    assert_null(ub_model_stack(m, 1));
    feed(m, json_of("{'type':'stack','id':9,'frames':[{'function':'f'},{'function':'g'}]}"));
    feed(m, json_of("{'type':'stack','id':1,'frames':[{'function':'other'}]}"));
    assert_ptr_equal(ub_model_stack(m, 9), first);
    feed(m, slow(1, "aa", 50,
                 ", 'samples':[{'at_ns':1,'stack':9,'state':'running'},{'at_ns':2,'stack':5,'state':'running'}]"));
    site = only_site(m, UB_STALL_COUNTED);
    assert_int_equal(site->stacks, 1);
    assert_int_equal(site->stack[0].samples, 2);
    assert_int_equal(site->samples, 2);
    assert_int_equal(site->samples_no_stack, 1);

    feed(m, json_loads(HEADER, 0, NULL)); /* the first one goes on */
    assert_ptr_equal(ub_model_stack(m, 1), first);
    ub_model_free(m);
}

/* ---- loops ----------------------------------------------------------- */

static json_t *stats(int tid, int turns, long busy_ms, const char *more)
{
    return json_of("{'type':'stats','pid':42,'tid':%d,'loop':'turn','callbacks':%d,'turns':%d,'total_ns':%ld000000,"
                   "'busy_ns':%ld000000,'max_ns':9500000,'histogram':[[1000,%d],[10000000,1]]%s}",
                   tid, turns, turns, busy_ms, busy_ms, turns - 1, more);
}

static const struct ub_loop *loop_of(const struct ub_model *m, uint64_t tid)
{
    size_t count, i;
    const struct ub_loop **loops = ub_model_loops(m, &count), *loop = NULL;

    for (i = 0; i < count; i++)
        if (loops[i]->tid == tid)
            loop = loops[i];
    free(loops);
    return loop;
}

static void test_last_stats_of_each_thread(void **state)
{
    struct ub_model *m = new_model();
    const struct ub_loop *loop;

    feed(m, json_of("{'type':'loop','pid':42,'tid':50,'loop':'libuv'}"));
    feed(m, stats(42, 100, 10, ""));
    feed(m, stats(43, 10, 1, ""));
    feed(m, stats(42, 300, 50, ", 'at_ns':1000001000"));
    loop = loop_of(m, 42);
    assert_int_equal(loop->turns, 300);
    assert_int_equal(loop->busy_ns, 50000000);
    assert_int_equal(loop->observed_ns, 1000000000);
    assert_int_equal(loop->max_ns, 9500000);
    assert_int_equal(ub_distribution_percentile(&loop->duration, 500), 1000);
    assert_int_equal(ub_distribution_percentile(&loop->duration, 1000), 9500000); /* max_ns is exact */
    assert_int_equal(loop_of(m, 43)->turns, 10);
    assert_int_equal(loop_of(m, 43)->observed_ns, 0);
    assert_false(loop_of(m, 50)->has_stats);
    assert_string_equal(loop_of(m, 50)->kind, "libuv");
    ub_model_free(m);
}

/* Counters that go back belong to a new thread or image with the same ids. */
static void test_reused_thread_ids_add_up(void **state)
{
    struct ub_model *m = new_model();

    feed(m, stats(42, 300, 50, ""));
    feed(m, stats(42, 20, 5, ""));
    feed(m, stats(42, 40, 10, ""));
    assert_int_equal(loop_of(m, 42)->turns, 340);
    assert_int_equal(loop_of(m, 42)->busy_ns, 60000000);
    assert_int_equal(loop_of(m, 42)->duration.count, 340);
    ub_model_free(m);
}

/* Kinds of callbacks: the last line of each incarnation counts, all incarnations together. */
static void test_kinds_of_callbacks(void **state)
{
    static const char *const first =
        ", 'kinds':{'timer':{'callbacks':10,'total_ns':10000,'max_ns':990,'histogram':[[1000,10]]}}";
    static const char *const second =
        ", 'kinds':{'timer':{'callbacks':3,'total_ns':9000,'max_ns':3900,'histogram':[[4000,3]],"
        "'delayed':{'callbacks':2,'total_ns':40000,'max_ns':29000,'histogram':[[15000,1],[30000,1]]}},"
        "'a name that is far too long':{'callbacks':1,'total_ns':1,'max_ns':1},"
        "'io':{'callbacks':7,'total_ns':70,'max_ns':20}}";
    struct ub_model *m = new_model();
    const struct ub_kinds *kinds;

    feed(m, stats(42, 100, 10, first));
    feed(m, stats(42, 300, 50, first));
    feed(m, stats(42, 20, 5, second)); /* another thread */
    feed(m, stats(42, 30, 5, second));
    kinds = &loop_of(m, 42)->kinds;
    assert_int_equal(kinds->count, 2);
    assert_string_equal(kinds->kind[0].name, "timer");
    assert_int_equal(kinds->kind[0].ran.count, 13);
    assert_int_equal(kinds->kind[0].ran.total_ns, 19000);
    assert_int_equal(kinds->kind[0].ran.max_ns, 3900);
    assert_int_equal(kinds->kind[0].ran.distribution.count, 13);
    assert_int_equal(ub_distribution_percentile(&kinds->kind[0].ran.distribution, 500), 1000);
    assert_int_equal(ub_distribution_percentile(&kinds->kind[0].ran.distribution, 1000), 3900);
    assert_int_equal(kinds->kind[0].late.count, 2);
    assert_int_equal(kinds->kind[0].late.max_ns, 29000);
    assert_int_equal(ub_distribution_percentile(&kinds->kind[0].late.distribution, 500), 15000);
    assert_string_equal(kinds->kind[1].name, "io");
    assert_int_equal(kinds->kind[1].ran.count, 7);
    assert_int_equal(kinds->kind[1].ran.distribution.used, 0);
    assert_int_equal(ub_model_dropped(m)->kinds, 2); /* the long name, twice */
    ub_model_free(m);
}

/* Each is small, but a stranger may name as many as lines fit into a recording. */
static void test_kinds_have_a_limit(void **state)
{
    struct ub_model *m = new_model();
    uint32_t seen = 0;

    for (int tid = 1; tid <= 60; tid++) {
        char more[2048] = ", 'kinds':{";
        size_t len = strlen(more);

        for (int i = 0; i < 25; i++)
            len += (size_t)snprintf(more + len, sizeof(more) - len,
                                    "%s'kind %d':{'callbacks':1,'total_ns':1,'max_ns':1}", i ? "," : "", i);
        snprintf(more + len, sizeof(more) - len, "}");
        feed(m, stats(tid, 10, 1, more));
    }
    for (int tid = 1; tid <= 60; tid++)
        seen += loop_of(m, (uint64_t)tid)->kinds.count;
    assert_int_equal(seen, 1024);
    assert_int_equal(ub_model_dropped(m)->kinds, 60 * 25 - 1024);
    ub_model_free(m);
}

/* FILE.10 comes before FILE.2 in a shell: an older line must not replace a newer one, nor add to it. */
static void test_parts_in_any_order(void **state)
{
    struct ub_model *m = new_model();

    feed(m, stats(42, 300, 50, ""));
    feed(m, json_loads(HEADER, 0, NULL));
    feed(m, stats(42, 200, 40, ""));
    assert_int_equal(loop_of(m, 42)->turns, 300);
    ub_model_free(m);
}

/* ---- programs, notes ------------------------------------------------- */

static void test_program_names(void **state)
{
    struct ub_model *m = new_model();

    assert_string_equal(ub_model_program(m, 42), "prog");
    assert_null(ub_model_program(m, 1));
    feed(m,
         json_of("{'type':'process','pid':1,'exe':'/usr/bin/redis-check-rdb','args':['/usr/bin/redis-server','x']}"));
    assert_string_equal(ub_model_program(m, 1), "redis-server");
    feed(m, json_of("{'type':'process','pid':1,'exe':'/usr/sbin/nginx','args':['nginx: worker process']}"));
    assert_string_equal(ub_model_program(m, 1), "nginx");
    feed(m, json_of("{'type':'process','pid':1,'exe':'/bin/bash','args':['-bash']}"));
    assert_string_equal(ub_model_program(m, 1), "bash");
    assert_string_equal(ub_model_exe(m, 1), "/bin/bash");
    ub_model_free(m);
}

static void test_notes_are_told_once(void **state)
{
    struct ub_model *m = new_model();

    feed(m, json_of("{'type':'note','level':'warning','text':'a'}"));
    feed(m, json_of("{'type':'note','level':'warning','text':'a'}"));
    feed(m, json_of("{'type':'note','level':'info','text':'goes on','next':'r.1'}"));
    assert_int_equal(json_array_size(ub_model_notes(m)), 1);
    assert_int_equal(json_integer_value(json_object_get(json_array_get(ub_model_notes(m), 0), "times")), 2);
    assert_string_equal(ub_model_current_run(m)->next, "r.1");
    ub_model_free(m);
}

/* ---- hostile --------------------------------------------------------- */

static void test_malformed_lines(void **state)
{
    struct ub_model *m = ub_model_new(); /* without a header */
    static const char *const lines[] = {
        "{'type':'slow'}",
        "{'type':'slow','duration_ns':-1}",
        "{'type':'slow','duration_ns':'1'}",
        "{'type':'stack','id':'x','frames':[]}",
        "{'type':'stack','id':1,'frames':{}}",
        "{'type':'stats','pid':1}",
        "{'type':'loop','pid':'1','tid':2}",
        "{'type':'process','pid':1}",
        "{'type':'note'}",
        "{'no':'type'}",
    };
    size_t i;

    for (i = 0; i < sizeof(lines) / sizeof(lines[0]); i++)
        feed(m, json_of(lines[i]));
    assert_int_equal(ub_model_dropped(m)->malformed, i);
    /* Odd, but readable: all of it counts. */
    feed(m, json_of("{'type':'slow','duration_ns':9223372036854775807}"));
    feed(m, json_of("{'type':'slow','duration_ns':9223372036854775807,'repeats':9223372036854775807,'repeats_ns':1}"));
    feed(m, json_of("{'type':'slow','duration_ns':9223372036854775807,'samples':[1,{},[],{'stack':'x'}],'call':3}"));
    assert_int_equal(ub_model_totals(m, UB_STALL_COUNTED)->total_ns, UINT64_MAX);
    assert_int_equal(ub_model_dropped(m)->malformed, i);
    free(report_of(m));
    json_decref(ub_model_json(m));
    ub_model_free(m);
}

static void test_too_many_sites(void **state)
{
    struct ub_model *m = new_model();
    char site[16];
    size_t count;
    int i;

    for (i = 0; i < 16384 + 10; i++) {
        snprintf(site, sizeof(site), "%x", i);
        feed(m, slow(i, site, 30, ""));
    }
    free(ub_model_sites(m, UB_STALL_COUNTED, UB_SORT_TOTAL, &count));
    assert_int_equal(count, 16384);
    assert_int_equal(ub_model_dropped(m)->sites, 10);
    assert_int_equal(ub_model_totals(m, UB_STALL_COUNTED)->count, 16384 + 10);
    ub_model_free(m);
}

/* Many stalls of few sites must not make the model grow. */
static void test_memory_grows_with_sites_only(void **state)
{
    struct ub_model *m = new_model();
    struct text t;
    json_t *json;
    size_t first = 0;
    int i;

    for (i = 1; i <= 20000; i++) {
        feed(m, slow(i, i % 2 ? "aa" : "bb", 20 + i % 50, ""));
        if (i != 1000 && i != 20000)
            continue;
        text_begin(&t);
        json = ub_model_json(m);
        json_dumpf(json, t.out, 0);
        json_decref(json);
        free(text_end(&t));
        if (i == 1000)
            first = t.size;
        else
            assert_in_range(t.size, first - 100, first + 100);
    }
    ub_model_free(m);
}

static void test_sorting(void **state)
{
    struct ub_model *m = new_model();
    static const struct {
        enum ub_sort sort;
        const char *first;
    } cases[] = {{UB_SORT_TOTAL, "often"}, {UB_SORT_COUNT, "often"}, {UB_SORT_MAX, "once"}, {UB_SORT_P99, "once"}};
    size_t count, i;

    for (i = 0; i < 10; i++)
        feed(m, slow((int)i, "often", 30, ""));
    feed(m, slow(10, "once", 200, ""));
    for (i = 0; i < 4; i++) {
        const struct ub_site **sites = ub_model_sites(m, UB_STALL_COUNTED, cases[i].sort, &count);

        assert_int_equal(count, 2);
        assert_string_equal(sites[0]->id, cases[i].first);
        free(sites);
    }
    ub_model_free(m);
}

/* The document of `report --format json` says what the sample holds. */
static void test_json_of_the_sample(void **state)
{
    struct ub_recording_stats read;
    struct ub_model *m = model_of_file(SAMPLE, &read);
    json_t *json = ub_model_json(m), *verdict = json_object_get(json, "verdict"), *site;

    assert_int_equal(json_integer_value(json_object_get(verdict, "stalls")), 6);
    assert_int_equal(json_integer_value(json_object_get(verdict, "max_ns")), 251300000);
    assert_int_equal(json_array_size(json_object_get(json, "sites")), 5);
    site = json_array_get(json_object_get(json, "sites"), 0);
    assert_string_equal(json_string_value(json_object_get(site, "site")), "7f3a91c2");
    assert_string_equal(json_string_value(json_object_get(site, "what")), "DEBUG SLEEP");
    assert_string_equal(
        json_string_value(json_object_get(json_array_get(json_object_get(site, "where"), 0), "function")),
        "debugCommand");
    json_decref(json);
    ub_model_free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_site_totals),
        cmocka_unit_test(test_percentiles_of_few_are_exact),
        cmocka_unit_test(test_startup_and_stopped_stay_out),
        cmocka_unit_test(test_contained_stalls_count_once),
        cmocka_unit_test(test_ongoing_is_replaced),
        cmocka_unit_test(test_ids_are_of_a_process),
        cmocka_unit_test(test_stacks_are_of_a_recording),
        cmocka_unit_test(test_last_stats_of_each_thread),
        cmocka_unit_test(test_kinds_of_callbacks),
        cmocka_unit_test(test_kinds_have_a_limit),
        cmocka_unit_test(test_reused_thread_ids_add_up),
        cmocka_unit_test(test_parts_in_any_order),
        cmocka_unit_test(test_program_names),
        cmocka_unit_test(test_notes_are_told_once),
        cmocka_unit_test(test_malformed_lines),
        cmocka_unit_test(test_too_many_sites),
        cmocka_unit_test(test_memory_grows_with_sites_only),
        cmocka_unit_test(test_sorting),
        cmocka_unit_test(test_json_of_the_sample),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
