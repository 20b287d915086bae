/* Lines read from their text must say what the JSON library says of them, or nothing. */
#include "ui_check.h"

#include "../../ui/recording_scan.h"
#include "../../ui/timeline.h"
#include "../../ui/lost.h"

/* A copy of `text` at the very end of a block, but for the bytes that the scanner may look at. */
static char *padded(const char *text, size_t *ret_len)
{
    char *line;

    *ret_len = strlen(text);
    line = malloc(*ret_len + UB_SCAN_PAD);
    memcpy(line, text, *ret_len);
    memset(line + *ret_len, '"', UB_SCAN_PAD);
    for (size_t i = 0; i < *ret_len; i++)
        if (line[i] == '\'')
            line[i] = '"';
    return line;
}

static bool same_slice(struct ub_slice a, struct ub_slice b)
{
    return (a.text == NULL) == (b.text == NULL) && a.len == b.len && (!a.text || memcmp(a.text, b.text, a.len) == 0);
}

static void assert_same(const struct ub_stall *a, const struct ub_stall *b)
{
    assert_true(a->id == b->id && a->pid == b->pid && a->tid == b->tid && a->has_id == b->has_id);
    assert_true(a->has_pid == b->has_pid && a->start_ns == b->start_ns && a->duration_ns == b->duration_ns);
    assert_true(a->repeats == b->repeats && a->repeats_ns == b->repeats_ns && a->repeats_max_ns == b->repeats_max_ns);
    assert_true(a->ongoing == b->ongoing && a->startup == b->startup && a->nested == b->nested);
    assert_true(a->unclear == b->unclear);
    assert_true(same_slice(a->site, b->site) && same_slice(a->loop, b->loop));
    assert_true(same_slice(a->thread, b->thread) && same_slice(a->cause, b->cause));
    assert_int_equal(a->samples, b->samples);
    assert_int_equal(a->samples_beyond, b->samples_beyond);
    for (uint32_t i = 0; i < a->samples; i++)
        assert_true(a->sample[i].stack == b->sample[i].stack && a->sample[i].has_stack == b->sample[i].has_stack &&
                    a->sample[i].unproven == b->sample[i].unproven &&
                    a->sample[i].incomplete == b->sample[i].incomplete);
}

static void check_taken(const char *text)
{
    struct ub_stall quick, thorough;
    size_t len;
    char *line = padded(text, &len);
    json_t *json = json_loadb(line, len, 0, NULL);

    if (!json || !ub_scan_slow(line, len, &quick))
        fail_msg("not taken: %s", text);
    assert_true(ub_stall_read(json, &thorough));
    assert_same(&quick, &thorough);
    json_decref(json);
    free(line);
}

static void test_taken(void **state)
{
    check_taken("{'type':'slow','duration_ns':1}");
    check_taken(" { 'type' : 'slow' ,\t'duration_ns' : 123456789012345678 } \r");
    check_taken(
        "{'type':'slow','id':1,'pid':2,'tid':3,'thread':'t','loop':'turn','cause':'cpu','start_ns':4,'duration_ns':5,"
        "'repeats':6,'repeats_ns':7,'max_ns':8,'ongoing':true,'startup':true,'parent':9,'site':'7f3a91c2'}");
    check_taken("{'type':'slow','duration_ns':5,'unclear':true,'unclear_start_ns':4,'site':'7f3a91c2'}");
    check_taken("{'type':'slow','duration_ns':5,'ongoing':false,'startup':false,'parent':null}");
    check_taken("{'duration_ns':5,'samples':[],'type':'slow'}");
    check_taken("{'type':'slow','duration_ns':5,'samples':[{'at_ns':1,'stack':7,'proof':'unproven','complete':false,"
                "'call':'x','more':{'a':[1,2,{}]}},{'state':'running'},{'stack':0,'proof':'still','complete':true}]}");
    check_taken("{'type':'slow','duration_ns':5,'unknown':[[],{},'\\n\\\"',null,true,0,{'a':{'b':[]}}]}");
    check_taken(
        "{'type':'slow','duration_ns':5,'thread':'\xc3\xa9\xe4\xbd\xa0\xf0\x9f\x99\x82 longer than sixteen bytes'}");
}

/* Left to the JSON library, which takes some of them and refuses others. */
static void test_left(void **state)
{
    static const char *const lines[] = {
        "",
        "{",
        "{}",
        "[]",
        "{'type':'slow'}",
        "{'duration_ns':1}",
        "{'type':'stats','duration_ns':1}",
        "{'type':'slow','duration_ns':1",
        "{'type':'slow','duration_ns':1}}",
        "{'type':'slow','duration_ns':1,}",
        "{'type':'slow','duration_ns':01}",
        "{'type':'slow','duration_ns':-1}",
        "{'type':'slow','duration_ns':1.0}",
        "{'type':'slow','duration_ns':1e3}",
        "{'type':'slow','duration_ns':1234567890123456789}",
        "{'type':'slow','duration_ns':'1'}",
        "{'type':'slow','duration_ns':1,'duration_ns':2}",
        "{'type':'slow','duration_ns':1,'site':5}",
        "{'type':'slow','duration_ns':1,'site':'a\\u0062'}",
        "{'type':'slow','duration_ns':1,'si\\te':1}",
        "{'type':'slow','duration_ns':1,'x':'\\q'}",
        "{'type':'slow','duration_ns':1,'x':'\xff'}",
        "{'type':'slow','duration_ns':1,'x':'\xc0\x80'}",
        "{'type':'slow','duration_ns':1,'x':'\xed\xa0\x80'}",
        "{'type':'slow','duration_ns':1,'x':'\t'}",
        "{'type':'slow','duration_ns':1,'x':'open}",
        "{'type':'slow','duration_ns':1,'x':tru}",
        "{'type':'slow','duration_ns':1,'ongoing':1}",
        "{'type':'slow','duration_ns':1,'samples':[1]}",
        "{'type':'slow','duration_ns':1,'samples':[{}]}",
        "{'type':'slow','duration_ns':1,'samples':[{'stack':1,'stack':2}]}",
        "{'type':'slow','duration_ns':1,'x':[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]"
        "]]]]]]}",
    };

    for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
        struct ub_stall stall;
        size_t len;
        char *line = padded(lines[i], &len);

        if (ub_scan_slow(line, len, &stall))
            fail_msg("taken: %s", lines[i]);
        free(line);
    }
}

/* ---- whole recordings, read both ways ---------------------------------- */

static char *read_as_json(const char *text, bool quick)
{
    struct ub_model *m = ub_model_new();
    struct ub_sink sink = ub_model_sink(m);
    struct ub_taker taker = ub_model_taker(m);
    struct ub_recording_stats stats;
    size_t len;
    char *line = padded(text, &len), *out;
    FILE *f = fmemopen(line, len, "r");
    json_t *json;

    assert_int_equal(ub_recording_read_fast(f, &sink, quick ? &taker : NULL, &stats), 0);
    fclose(f);
    ub_model_file_read(m, "r", &stats);
    json = ub_model_json(m);
    out = json_dumps(json, JSON_INDENT(1) | JSON_SORT_KEYS);
    json_decref(json);
    ub_model_free(m);
    free(line);
    return out;
}

static void check_both_ways(const char *lines)
{
    char text[8192], *quick, *thorough;

    snprintf(text, sizeof(text), "%s\n%s\n%s", HEADER, PROCESS, lines);
    quick = read_as_json(text, true);
    thorough = read_as_json(text, false);
    assert_text(quick, thorough);
    free(quick);
    free(thorough);
}

#define SLOW(more)  "{'type':'slow','pid':42,'tid':42,'loop':'turn','cause':'cpu','site':'7f3a91c2'," more "}\n"
#define STATS(more) "{'type':'stats','pid':42,'tid':42,'loop':'turn','total_ns':5,'histogram':[[100,5]]," more "}\n"

static void test_stalls_both_ways(void **state)
{
    check_both_ways(SLOW("'id':1,'duration_ns':9") SLOW("'id':2,'duration_ns':5"));
    check_both_ways(SLOW("'id':1,'duration_ns':9,'startup':true") SLOW("'id':2,'duration_ns':5,'startup':true"));
    check_both_ways(SLOW("'id':1,'duration_ns':9,'parent':3") SLOW("'id':2,'duration_ns':5,'parent':3"));
    check_both_ways(SLOW("'id':1,'duration_ns':9")
                        SLOW("'id':2,'duration_ns':5,'repeats':3,'repeats_ns':9,'max_ns':7"));
    check_both_ways(SLOW("'id':1,'duration_ns':9") SLOW("'id':2,'duration_ns':5,'ongoing':true")
                        SLOW("'id':2,'duration_ns':7"));
    check_both_ways(SLOW("'id':1,'duration_ns':9") "{'type':'slow','pid':42,'tid':42,'cause':'stopped','duration_ns':3,"
                                                   "'site':'7f3a91c2'}\n");
}

static void test_stats_both_ways(void **state)
{
    const char *loop = "{'type':'loop','pid':42,'tid':42,'loop':'turn'}\n";
    static const char *const lines[] = {
        STATS("'callbacks':5,'turns':5,'max_ns':7,'at_ns':9000")
            STATS("'callbacks':6,'turns':6,'max_ns':3,'at_ns':8000"),
        STATS("'callbacks':5,'turns':5,'max_ns':7,'observed_ns':77") STATS("'callbacks':6,'max_ns':9"),
        STATS("'callbacks':5,'busy_ns':5,'max_ns':7") STATS("'callbacks':6,'max_ns':9,'thread':'x'")
            STATS("'callbacks':7,'max_ns':9"),
        STATS("'callbacks':5,'turns':5,'max_ns':7") STATS("'callbacks':3,'turns':3,'max_ns':2")
            STATS("'callbacks':4,'turns':4,'max_ns':2"),
        STATS("'callbacks':5,'max_ns':7") "{'type':'loop','pid':42,'tid':42,'loop':'libuv'}\n" STATS(
            "'callbacks':6,'max_ns':9"),
    };
    char text[4096];

    for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
        snprintf(text, sizeof(text), "%s%s", loop, lines[i]);
        check_both_ways(text);
    }
}

/* ---- what hears of every stall ------------------------------------------ */

static void test_timeline(void **state)
{
    struct ub_model *m = ub_model_new();
    struct ub_timeline t = {0};

    ub_timeline_follow(&t, m);
    feed(m, json_loads(HEADER, 0, NULL));
    feed(m, slow(1, "a", 30, ""));
    feed(m, slow(2, "b", 20, ", 'ongoing': true"));
    feed(m, slow(3, "c", 20, ", 'ongoing': true"));
    feed(m, slow(2, "b", 50, ""));
    ub_timeline_finish(&t, m);
    assert_int_equal(t.count, 3); /* once each: b as it ended, c as it stands */
    assert_int_equal(t.loops, 1);
    assert_int_equal(t.stall[0].duration_ns, 50000000);
    assert_true(t.stall[2].ongoing && strcmp(t.stall[2].site->id, "c") == 0);
    /* 2025-11-21T03:05:12Z is where the header puts 1000 ns; the stalls begin at 5000. */
    assert_int_equal(t.stall[0].at_ns, 1763694312000004000);
    ub_timeline_clear(&t);
    ub_model_free(m);
}

static void add_up(void *self, const struct ub_lost_stack *stack)
{
    *(uint64_t *)self += stack->ns;
}

/* 100 ns over 3 samples of 2 stacks: nothing is lost in rounding. */
static void test_time_lost_adds_up(void **state)
{
    struct ub_model *m = new_model();
    uint64_t sum = 0;

    for (int i = 1; i <= 3; i++)
        feed(m, json_of("{'type':'stack','id':%d,'frames':[{'function':'f%d'}]}", i, i));
    feed(m, json_of("{'type':'slow','id':1,'pid':42,'tid':42,'cause':'cpu','duration_ns':100,'site':'x','samples':["
                    "{'stack':1},{'stack':2},{'stack':3}]}"));
    feed(m, json_of("{'type':'slow','id':2,'pid':42,'tid':42,'cause':'cpu','duration_ns':7,'site':'y','samples':[]}"));
    ub_lost_each(m, add_up, &sum);
    assert_int_equal(sum, 107);
    ub_model_free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_taken),
        cmocka_unit_test(test_left),
        cmocka_unit_test(test_stalls_both_ways),
        cmocka_unit_test(test_stats_both_ways),
        cmocka_unit_test(test_timeline),
        cmocka_unit_test(test_time_lost_adds_up),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
