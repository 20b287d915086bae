/* Live text: which stalls are shown while a program runs, and how fully. */
#include "ui_check.h"

#include <sys/socket.h>

/* The text goes into a packet socket: a block is one write(2), so one packet. */
struct live {
    struct ub_model *m;
    struct ub_text_live *t;
    int fd[2];
    int next_id;
};

static struct live live_new(enum ub_live mode)
{
    struct live l = {.m = new_model()};
    int size = 1 << 20;

    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, l.fd), 0);
    setsockopt(l.fd[1], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
    l.t = ub_text_live_new(l.fd[1], mode, false, l.m);
    assert_non_null(l.t);
    return l;
}

static void live_free(struct live *l)
{
    ub_text_live_free(l->t);
    ub_model_free(l->m);
    close(l->fd[0]);
    close(l->fd[1]);
}

/* As in a run: the model hears of it first. */
static void tell(struct live *l, json_t *line)
{
    struct ub_sink model = ub_model_sink(l->m), text = ub_text_live_sink(l->t);

    model.line(model.self, line);
    text.line(text.self, line);
    json_decref(line);
}

/* What the last line made it write: NULL for nothing. One write at the most. */
static const char *shown(struct live *l)
{
    static char text[65536];
    char more[16];
    ssize_t n = read(l->fd[0], text, sizeof(text) - 1);

    if (n < 0)
        return NULL;
    text[n] = 0;
    assert_int_equal(read(l->fd[0], more, sizeof(more)), -1);
    return text;
}

static void expect_block(struct live *l, const char *begin)
{
    const char *text = shown(l);

    assert_non_null(text);
    if (strncmp(text, begin, strlen(begin)) != 0)
        assert_text(text, begin);
    assert_non_null(strstr(text, "\n  why    "));
    assert_non_null(strstr(text, "\n  site   "));
}

static void expect_line(struct live *l, const char *line)
{
    const char *text = shown(l);

    assert_non_null(text);
    assert_text(text, line);
}

static void stall(struct live *l, const char *site, long ms)
{
    tell(l, slow(++l->next_id, site, ms, ""));
}

static void test_powers_of_ten(void **state)
{
    struct live l = live_new(UB_LIVE_FULL);
    int i;

    for (i = 1; i <= 1000; i++) {
        stall(&l, "aa", 30);
        if (i == 1 || i == 10 || i == 100 || i == 1000)
            expect_block(&l, "unblock: BLOCKED 30 ms  turn  prog pid 42\n");
        else
            assert_null(shown(&l));
    }
    live_free(&l);
}

static void test_twice_the_worst(void **state)
{
    struct live l = live_new(UB_LIVE_FULL);

    stall(&l, "aa", 30);
    expect_block(&l, "unblock: BLOCKED 30 ms");
    stall(&l, "aa", 59);
    assert_null(shown(&l));
    stall(&l, "aa", 60);
    expect_block(&l, "unblock: BLOCKED 60 ms");
    stall(&l, "aa", 61);
    assert_null(shown(&l));
    stall(&l, "bb", 30); /* another site */
    expect_block(&l, "unblock: BLOCKED 30 ms");
    live_free(&l);
}

/* One line that stands for many stalls reaches the tenth as well. */
static void test_repeats_count(void **state)
{
    struct live l = live_new(UB_LIVE_FULL);

    stall(&l, "aa", 30);
    expect_block(&l, "unblock: BLOCKED 30 ms");
    tell(&l, slow(2, "aa", 30, ",'repeats':20,'repeats_ns':600000000"));
    expect_block(&l, "unblock: BLOCKED 30 ms");
    stall(&l, "aa", 30);
    assert_null(shown(&l));
    live_free(&l);
}

static void test_a_stall_that_lasts(void **state)
{
    struct live l = live_new(UB_LIVE_FULL);

    tell(&l, slow(1, "aa", 30, ",'ongoing':true"));
    assert_null(shown(&l)); /* it may be over in a moment */
    tell(&l, slow(1, "aa", 1000, ",'ongoing':true"));
    expect_block(&l, "unblock: STILL BLOCKED 1 s");
    tell(&l, slow(1, "aa", 10001, ",'ongoing':true"));
    expect_line(&l, "unblock: STILL BLOCKED 10 s prog pid 42: cpu, site aa\n");
    tell(&l, slow(1, "aa", 12000, ""));
    expect_line(&l, "unblock: BLOCKED 12 s prog pid 42: cpu, site aa\n");

    /* Known by now: shown again only when it lasts long. */
    tell(&l, slow(2, "aa", 1000, ",'ongoing':true"));
    assert_null(shown(&l));
    tell(&l, slow(2, "aa", 1500, ""));
    assert_null(shown(&l));
    tell(&l, slow(3, "aa", 10000, ",'ongoing':true"));
    expect_block(&l, "unblock: STILL BLOCKED 10 s");
    live_free(&l);
}

static void test_lines_for_a_log(void **state)
{
    struct live l = live_new(UB_LIVE_LINE);

    stall(&l, "aa", 30);
    expect_line(&l, "unblock: BLOCKED 30 ms prog pid 42: cpu, site aa\n");
    stall(&l, "aa", 30);
    expect_line(&l, "unblock: BLOCKED 30 ms prog pid 42: cpu, site aa\n");
    tell(&l, slow(9, "aa", 30, ",'ongoing':true"));
    assert_null(shown(&l));
    tell(&l, slow(9, "aa", 990, ",'ongoing':true,'startup':true"));
    expect_line(&l, "unblock: STILL BLOCKED 990 ms prog pid 42: cpu, site aa  (at start-up, not counted)\n");
    live_free(&l);
}

static void test_silence(void **state)
{
    struct live l = live_new(UB_LIVE_NONE);

    stall(&l, "aa", 30);
    tell(&l, json_of("{'type':'end'}"));
    assert_null(shown(&l));
    live_free(&l);
}

/* Sixty a minute; how many were left out is said, at the latest at the end. */
static void test_limit(void **state)
{
    struct live l = live_new(UB_LIVE_LINE);
    int i;

    for (i = 0; i < 63; i++) {
        stall(&l, "aa", 30);
        if (i < 60)
            assert_non_null(shown(&l));
        else
            assert_null(shown(&l));
    }
    ub_text_live_free(l.t);
    l.t = NULL;
    expect_line(&l, "unblock: 3 more stalls were not shown (at most 60 a minute)\n");
    live_free(&l);
}

/* The terminal is gone: no signal, no end. */
static void test_closed_reader(void **state)
{
    struct live l = live_new(UB_LIVE_LINE);

    close(l.fd[0]);
    stall(&l, "aa", 30);
    stall(&l, "aa", 30);
    live_free(&l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_powers_of_ten),   cmocka_unit_test(test_twice_the_worst),
        cmocka_unit_test(test_repeats_count),   cmocka_unit_test(test_a_stall_that_lasts),
        cmocka_unit_test(test_lines_for_a_log), cmocka_unit_test(test_silence),
        cmocka_unit_test(test_limit),           cmocka_unit_test(test_closed_reader),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
