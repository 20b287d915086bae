/*
 * Thousands of broken recordings through everything that reads one: model,
 * live text, report, JSON. Same seed, same recordings. What must hold: nothing
 * crashes (best under ASan and UBSan), no control character gets out, and the
 * quick way of reading comes to the same as the thorough one. `make fuzz` does
 * the same for longer and with an eye on coverage.
 */
#include "ui_check.h"

#define MUTANTS 3000

static uint64_t random_state = 0x9e3779b97f4a7c15;

static size_t random_below(size_t n)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return n ? (size_t)(random_state % n) : 0;
}

struct bytes {
    char *text;
    size_t len, size;
};

/* Replaces `cut` bytes at `at` by `len` bytes of `with`. */
static void replace(struct bytes *b, size_t at, size_t cut, const char *with, size_t len)
{
    if (b->len - cut + len > b->size)
        return;
    memmove(b->text + at + len, b->text + at + cut, b->len - at - cut);
    memcpy(b->text + at, with, len);
    b->len += len - cut;
}

static void flip_bytes(struct bytes *b)
{
    for (size_t i = 0, n = 1 + random_below(8); i < n && b->len; i++)
        b->text[random_below(b->len)] = (char)random_below(256);
}

static void cut_piece(struct bytes *b)
{
    size_t at = random_below(b->len);

    replace(b, at, random_below(b->len - at < 200 ? b->len - at : 200), "", 0);
}

static void truncate_end(struct bytes *b)
{
    b->len = random_below(b->len);
}

static void copy_piece(struct bytes *b)
{
    char piece[2000];
    size_t len = random_below(sizeof(piece)), from = random_below(b->len);

    if (len > b->len - from)
        len = b->len - from;
    memcpy(piece, b->text + from, len);
    replace(b, random_below(b->len), 0, piece, len);
}

/* Exchanges lines: references before definitions, an end in the middle. */
static void move_line(struct bytes *b)
{
    size_t at = random_below(b->len);
    char *begin = memchr(b->text + at, '\n', b->len - at), *end;
    char line[8000];
    size_t len;

    if (!begin || !(end = memchr(begin + 1, '\n', (size_t)(b->text + b->len - begin - 1))))
        return;
    len = (size_t)(end - begin);
    if (len > sizeof(line))
        return;
    memcpy(line, begin, len);
    if (random_below(2))
        replace(b, (size_t)(begin - b->text), len, "", 0);
    begin = memchr(b->text + random_below(b->len), '\n', 1);
    replace(b, begin ? (size_t)(begin - b->text) : b->len, 0, line, len);
}

/* A value of another type or of an extreme size in the place of one: still JSON, seldom what was meant. */
static void change_value(struct bytes *b)
{
    static const char *const values[] = {
        "-1",
        "0",
        "9223372036854775807",
        "-9223372036854775808",
        "18446744073709551616",
        "1e308",
        "0.5",
        "null",
        "true",
        "[]",
        "{}",
        "\"\"",
        "\"\\u202e\\u001b[31m\"",
        "[[[[[[]]]]]]",
        "\"\\ud800\"",
        "[1,\"x\",{}]",
        "\"a\xff\"",
        "{\"name\":{\"name\":[]}}",
        "\"stack\"",
        "\"slow\"",
        "\"header\"",
        "\"stopped\"",
        "4294967296",
    };
    const char *value = values[random_below(sizeof(values) / sizeof(values[0]))];
    size_t at = random_below(b->len), end;

    while (at < b->len && b->text[at] != ':')
        at++;
    if (++at >= b->len)
        return;
    end = at;
    if (b->text[end] == '"') {
        for (end++; end < b->len && b->text[end] != '"'; end++)
            ;
        end++;
    } else {
        while (end < b->len && !strchr(",}]\n", b->text[end]))
            end++;
    }
    if (end <= b->len)
        replace(b, at, end - at, value, strlen(value));
}

static void mutate(struct bytes *b)
{
    static void (*const kinds[])(struct bytes *) = {flip_bytes, cut_piece,    truncate_end, copy_piece,
                                                    move_line,  change_value, change_value, change_value};

    for (size_t i = 0, n = 1 + random_below(6); i < n && b->len > 1; i++)
        kinds[random_below(sizeof(kinds) / sizeof(kinds[0]))](b);
}

static void check_text(const char *text, int mutant)
{
    for (const char *p = text; *p; p++) {
        unsigned char c = (unsigned char)*p;

        if ((c < 0x20 && c != '\n') || c == 0x7f || (c == 0xc2 && (unsigned char)p[1] < 0xa0))
            fail_msg("mutant %d: control character %02x in: %.80s", mutant, c, p - (p - text > 40 ? 40 : p - text));
    }
}

struct consumer {
    struct ub_model *m;
    struct ub_text_live *live;
};

static void consume(void *self, json_t *record)
{
    struct consumer *c = self;
    struct ub_sink model = ub_model_sink(c->m), live = ub_text_live_sink(c->live);

    model.line(model.self, record);
    live.line(live.self, record);
}

/* What a reading of the mutant by the quick way (recording_scan.c) comes to. */
static char *digest_quickly(const struct bytes *b, int *ret)
{
    struct ub_model *m = ub_model_new();
    struct ub_sink sink = ub_model_sink(m);
    struct ub_taker taker = ub_model_taker(m);
    struct ub_recording_stats stats;
    FILE *f = fmemopen(b->text, b->len ? b->len : 1, "r");
    json_t *json;
    char *text;

    *ret = ub_recording_read_fast(f, &sink, &taker, &stats);
    fclose(f);
    ub_model_file_read(m, "mutant", &stats);
    json = ub_model_json(m);
    text = json_dumps(json, JSON_INDENT(1) | JSON_SORT_KEYS);
    json_decref(json);
    ub_model_free(m);
    return text;
}

/* Reads one mutant and writes everything that can be written about it; true when it was a recording. */
static bool digest(const struct bytes *b, int mutant, int live_fd)
{
    struct consumer c = {.m = ub_model_new()};
    struct ub_sink sink = {.line = consume, .self = &c};
    struct ub_recording_stats stats;
    FILE *f = fmemopen(b->text, b->len ? b->len : 1, "r");
    json_t *json;
    char *text, *quick;
    int r, quick_r;

    c.live = ub_text_live_new(live_fd, mutant % 2 ? UB_LIVE_FULL : UB_LIVE_LINE, false, c.m);
    r = ub_recording_read(f, &sink, &stats);
    fclose(f);
    ub_model_file_read(c.m, "mutant", &stats);
    text = report_of(c.m);
    check_text(text, mutant);
    free(text);
    json = ub_model_json(c.m);
    text = json_dumps(json, JSON_INDENT(1) | JSON_SORT_KEYS);
    assert_non_null(text); /* it is JSON whatever was read */
    quick = digest_quickly(b, &quick_r);
    assert_text(quick, text);
    assert_int_equal(quick_r, r);
    free(quick);
    free(text);
    json_decref(json);
    ub_text_live_free(c.live);
    ub_model_free(c.m);
    return r == 0;
}

static void test_mutants(void **state)
{
    struct bytes original, b = {.size = 1 << 20};
    int i, readable = 0, live_fd = open("/dev/null", O_WRONLY);

    original.text = slurp(SAMPLE, &original.len);
    b.text = malloc(b.size);
    for (i = 0; i < MUTANTS; i++) {
        memcpy(b.text, original.text, original.len);
        b.len = original.len;
        mutate(&b);
        readable += digest(&b, i, live_fd);
    }
    /* Mutants that are refused at their first line test little. */
    assert_in_range(readable, MUTANTS / 2, MUTANTS - 1);
    close(live_fd);
    free(b.text);
    free(original.text);
}

/* Every prefix is what a killed run may leave. */
static void test_every_prefix(void **state)
{
    struct bytes b;
    size_t len;
    int live_fd = open("/dev/null", O_WRONLY);

    b.text = slurp(SAMPLE, &b.size);
    for (len = 1; len < b.size; len += 37) {
        b.len = len;
        digest(&b, (int)len, live_fd);
    }
    close(live_fd);
    free(b.text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mutants),
        cmocka_unit_test(test_every_prefix),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
