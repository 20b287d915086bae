/* The report, the verdict, a dumped thread: whole texts. Filters. */
#include "ui_check.h"

#include "../../ui/filter.h"
#include "../../ui/options.h"

static char *verdict_of(const struct ub_model *m, const char *path)
{
    struct text t;

    text_begin(&t);
    ub_text_verdict(t.out, m, path, false);
    return text_end(&t);
}

static void expect_verdict(const struct ub_model *m, const char *path, const char *expected)
{
    char *got = verdict_of(m, path);

    assert_text(got, expected);
    free(got);
}

static void expect_report(const struct ub_model *m, const char *expected)
{
    char *got = report_of(m);

    assert_text(got, expected);
    free(got);
}

static void feed_stats(struct ub_model *m)
{
    feed(m,
         json_of("{'type':'stats','pid':42,'tid':42,'loop':'turn','callbacks':12034,'total_ns':5000,'max_ns':4100000,"
                 "'histogram':[[1000,12000],[1200000,34]]}"));
}

/* ---- the report ------------------------------------------------------ */

static void test_report_of_the_sample(void **state)
{
    struct ub_recording_stats stats;
    struct ub_model *m = model_of_file(SAMPLE, &stats);
    char *expected = slurp("tests/data/sample.report.txt", NULL);

    ub_model_file_read(m, SAMPLE, &stats);
    expect_report(m, expected);
    free(expected);
    ub_model_free(m);
}

#define HEAD "prog  host h  2025-11-21 03:05:12 UTC  threshold 20 ms\n\n"
#define TABLE                                                                                                          \
    "program               loop        pid/tid              turns      busy       p50       p99     p99.9       max\n" \
    "prog                  turn        42                   12034      5 us      1 us      1 us    1.2 ms    4.1 "     \
    "ms\n\n"
#define NO_END                                                                                                         \
    "the recording has no end: unblock still runs or was killed; the figures of its loops may lack the last 10 s\n"

static void test_report_without_stalls(void **state)
{
    struct ub_model *m = new_model();

    feed_stats(m);
    expect_report(m, HEAD "no stalls\n\n" TABLE NO_END);
    ub_model_free(m);
}

static void test_report_without_loop(void **state)
{
    struct ub_model *m = new_model();

    feed(m, json_of("{'type':'end','exit':3,'slow':0}"));
    expect_report(m, "prog  host h  2025-11-21 03:05:12 UTC  threshold 20 ms  exit status 3\n\n"
                     "no stalls\n\n"
                     "no event loop was seen\n"
                     "no thread came back to one wait call (epoll, poll, select) often enough: it is no event loop, it "
                     "was watched too briefly, or unblock was not loaded into it (statically linked, set-user-ID)\n\n");
    ub_model_free(m);
}

/* What is missing is said, with the reason and what to do. */
static void test_end_section(void **state)
{
    struct ub_model *m = new_model();
    struct ub_recording_stats stats = {.torn = 1, .skipped = 2};

    feed_stats(m);
    feed(m, json_of("{'type':'slow'}"));
    feed(m, json_of("{'type':'note','level':'warning','text':'stacks of prog cannot be read\\u001b'}"));
    feed(m, json_of("{'type':'end','signal':9,'slow':0,'lost':{'ring':1,'rate_limited':20,'torn':0}}"));
    ub_model_file_read(m, "r.jsonl", &stats);
    expect_report(m, "prog  host h  2025-11-21 03:05:12 UTC  threshold 20 ms  killed by signal 9\n\n"
                     "no stalls\n\n" TABLE "warning: stacks of prog cannot be read\\x1b\n"
                     "r.jsonl: the last line is cut short (unblock was killed, or the disk was full); all before it "
                     "counts; 2 lines could not be read and were skipped: the file is damaged\n"
                     "1 stall was lost: they came faster than they could be written; a higher --threshold keeps all of "
                     "them\n"
                     "20 stacks were not taken: too many a second; their stalls count all the same\n"
                     "1 line is without the fields that its type needs: written by something else?\n");
    ub_model_free(m);
}

static void test_part_of_a_rotated_recording(void **state)
{
    struct ub_model *m = new_model();

    feed_stats(m);
    feed(m, json_of("{'type':'note','level':'info','text':'the recording goes on in r.jsonl.1','next':'r.jsonl.1'}"));
    expect_report(m, HEAD "no stalls\n\n" TABLE
                          "this is a part: the recording goes on in r.jsonl.1; give all parts to one report\n");
    ub_model_free(m);
}

/* ---- the verdict ----------------------------------------------------- */

static void test_verdict_of_the_sample(void **state)
{
    struct ub_recording_stats stats;
    struct ub_model *m = model_of_file(SAMPLE, &stats);

    expect_verdict(
        m, "my recording's.jsonl",
        "unblock: redis-server: 6 stalls over 20 ms, 483 ms lost, worst 251 ms (DEBUG SLEEP: clock_nanosleep "
        "in debugCommand)\n"
        "unblock:   251 ms  1 x  DEBUG SLEEP: clock_nanosleep in debugCommand  site 7f3a91c2\n"
        "unblock:   142 ms  4 x  AOF fsync: fdatasync in flushAppendOnlyFile  site 0c11d2e4\n"
        "unblock:   90 ms  1 x  SAVE: cpu in lzf_compress  site 5e5a1007\n"
        "unblock: 1 at start-up, 120 ms: not counted\n"
        "unblock: 1 while it was stopped, 2.1 s: not counted\n"
        "unblock: next: unblock report 'my recording'\\''s.jsonl'\n");
    ub_model_free(m);
}

static void test_verdict_without_stalls(void **state)
{
    struct ub_model *m = new_model();

    feed_stats(m);
    feed(m, json_of("{'type':'end','exit':0,'slow':0}"));
    expect_verdict(m, "-x.jsonl",
                   "unblock: prog: no stall over 20 ms in 12034 turns (p99 1 us, longest 4.1 ms)\n"
                   "unblock: next: unblock report ./-x.jsonl\n");
    expect_verdict(m, NULL, "unblock: prog: no stall over 20 ms in 12034 turns (p99 1 us, longest 4.1 ms)\n");
    ub_model_free(m);
}

static void test_verdict_without_loop(void **state)
{
    struct ub_model *m = new_model();

    feed(m, json_of("{'type':'end','exit':0,'slow':0}"));
    expect_verdict(
        m, NULL,
        "unblock: prog: no event loop was seen\n"
        "unblock: no thread came back to one wait call (epoll, poll, select) often enough: it is no event "
        "loop, it was watched too briefly, or unblock was not loaded into it (statically linked, set-user-ID)\n");
    /* The recording knows better. */
    feed(m, json_of("{'type':'note','level':'warning','text':'the agent was not loaded'}"));
    expect_verdict(m, NULL,
                   "unblock: prog: no event loop was seen\n"
                   "unblock: warning: the agent was not loaded\n");
    ub_model_free(m);
}

/* ---- a thread of a dump ---------------------------------------------- */

static void expect_thread(json_t *thread, const char *expected)
{
    struct ub_model *m = new_model();
    struct text t;
    char *got;

    feed(m, json_of("{'type':'stack','id':1,'frames':["
                    "{'function':'fsync','module':'/usr/lib/x86_64-linux-gnu/libc.so.6'},"
                    "{'function':'wal_commit','file':'/src/wal.c','line':212,'module':'/opt/app/prog'},"
                    "{'module':'/opt/app/prog','offset':4660}]}"));
    text_begin(&t);
    ub_text_thread(t.out, m, thread, false);
    got = text_end(&t);
    assert_text(got, expected);
    free(got);
    json_decref(thread);
    ub_model_free(m);
}

static void test_threads(void **state)
{
    expect_thread(
        json_of("{'type':'thread','pid':42,'tid':45,'name':'flusher','state':'blocked','in_state_ns':312000000,"
                "'call':{'name':'fsync','args':'7','fd':7,'fd_path':'/x'},'stack':1,'proof':'still',"
                "'complete':true}"),
        "flusher  tid 45  blocked 312 ms  fsync(7 = /x)\n"
        "    libc.so.6    fsync\n"
        "    wal.c:212    wal_commit\n"
        "    prog+0x1234  ?\n");
    expect_thread(json_of("{'type':'thread','pid':42,'tid':46,'name':'','state':'running','stack':1,'proof':'unproven',"
                          "'complete':false}"),
                  "thread  tid 46  running\n"
                  "    libc.so.6    fsync\n"
                  "    wal.c:212    wal_commit\n"
                  "    prog+0x1234  ?\n"
                  "    unproven: it may have run while its stack was copied\n"
                  "    cut short: its outer frames are missing\n");
    expect_thread(
        json_of("{'type':'thread','pid':42,'tid':47,'name':'a\\u001b','stack':9,'error':'permission denied'}"),
        "a\\x1b  tid 47\n"
        "    no stack: permission denied\n");
}

/* ---- filters --------------------------------------------------------- */

static int filtered(struct ub_filter_options options, uint64_t *ret_left_out)
{
    struct ub_model *m = ub_model_new();
    struct ub_sink to = ub_model_sink(m), sink;
    struct ub_recording_stats stats;
    struct ub_filter filter;
    char why[UB_WHY_MAX];
    FILE *f = fopen(SAMPLE, "r");
    int count;

    assert_int_equal(ub_filter_init(&filter, &options, &to, why), 0);
    sink = ub_filter_sink(&filter);
    assert_int_equal(ub_recording_read(f, &sink, &stats), 0);
    fclose(f);
    count = (int)ub_model_totals(m, UB_STALL_COUNTED)->count;
    if (ret_left_out)
        *ret_left_out = filter.left_out;
    ub_model_free(m);
    return count;
}

#define FILTER(...) filtered((struct ub_filter_options){__VA_ARGS__}, NULL)

static void test_filters(void **state)
{
    uint64_t left_out;

    assert_int_equal(FILTER(.min_ns = 0), 6);
    assert_int_equal(filtered((struct ub_filter_options){.min_ns = 61200000}, &left_out), 3);
    assert_int_equal(left_out, 1);
    assert_int_equal(FILTER(.min_ns = 61200001), 2);
    assert_int_equal(FILTER(.site = "7f3a"), 1);
    assert_int_equal(FILTER(.site = "f3a"), 0);
    assert_int_equal(FILTER(.cause = "cpu"), 1);
    assert_int_equal(FILTER(.cause = "call,cpu"), 6);
    assert_int_equal(FILTER(.cause = "lock,stopped"), 0);
    assert_int_equal(FILTER(.loop = "turn"), 6);
    assert_int_equal(FILTER(.loop = "libuv"), 0);
    assert_int_equal(FILTER(.thread = "redis-server"), 6);
    assert_int_equal(FILTER(.thread = "4242"), 6);
    assert_int_equal(FILTER(.thread = "424"), 0);
    /* The stalls end 2.25, 10.06, 20.03 and 30.09 s after the recording began at 03:05:12. */
    assert_int_equal(FILTER(.since = "+5s"), 5);
    assert_int_equal(FILTER(.since = "+30s"), 1);
    assert_int_equal(FILTER(.since = "2025-11-21T03:05:22Z"), 5);
    assert_int_equal(FILTER(.since = "2025-11-21 04:05:32.5+01:00"), 1);
    assert_int_equal(FILTER(.since = "2025-11-21T03:05:43Z"), 0);
    assert_int_equal(FILTER(.since = "1h"), 0);
    assert_int_equal(FILTER(.since = "36500d"), 6);
}

static void test_filters_that_make_no_sense(void **state)
{
    static const struct ub_filter_options wrong[] = {
        {.since = "yesterday"},         {.since = "+5"},  {.since = "5"},          {.since = "+5 s"}, {.since = "-5s"},
        {.cause = "cpu,bogus"},         {.cause = "CPU"}, {.since = "2025-11-21"}, {.since = ""},     {.cause = ",cpu"},
        {.since = "2025-11-21T03:05Q"},
    };
    struct ub_filter filter;
    char why[UB_WHY_MAX];

    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        why[0] = 0;
        assert_int_equal(ub_filter_init(&filter, &wrong[i], NULL, why), -EINVAL);
        assert_non_null(strstr(why, wrong[i].since ? "--since: '" : "--cause: '"));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_report_of_the_sample),
        cmocka_unit_test(test_report_without_stalls),
        cmocka_unit_test(test_report_without_loop),
        cmocka_unit_test(test_end_section),
        cmocka_unit_test(test_part_of_a_rotated_recording),
        cmocka_unit_test(test_verdict_of_the_sample),
        cmocka_unit_test(test_verdict_without_stalls),
        cmocka_unit_test(test_verdict_without_loop),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_filters),
        cmocka_unit_test(test_filters_that_make_no_sense),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
