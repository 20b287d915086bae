/* The words of a text: durations, escapes, names of functions, source lines. */
#include "folder_check.h"

#include "../../ui/text_escape.h"
#include "../../ui/text_frames.h"
#include "../../ui/text_source.h"

static void test_durations(void **state)
{
    static const struct {
        uint64_t ns;
        const char *text;
    } cases[] = {
        {0, "0 ns"},
        {750, "750 ns"},
        {999, "999 ns"},
        {1000, "1 us"},
        {13049, "13 us"},
        {750000, "750 us"},
        {999499, "999 us"},
        {999500, "1 ms"},
        {1234567, "1.23 ms"},
        {12345678, "12.3 ms"},
        {309849999, "310 ms"},
        {312000000, "312 ms"},
        {999999999, "1 s"},
        {2030000000, "2.03 s"},
        {9996000000, "10 s"},
        {10003000000, "10 s"},
        {10200000000, "10.2 s"},
        {119400000000, "119 s"},
        {120000000000, "2 min"},
        {7199000000000, "120 min"},
        {7200000000000, "2 h"},
        {86400000000000, "24 h"},
        {302400000000000, "3.5 d"},
        {UINT64_MAX, "213504 d"},
    };
    char buf[UB_TEXT_DURATION_MAX];

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        assert_text(ub_text_duration(cases[i].ns, buf, sizeof(buf)), cases[i].text);
}

/* ---- escapes --------------------------------------------------------- */

static void expect_escaped(const char *text, size_t columns, const char *expected)
{
    struct text t;
    char *got;
    size_t used;

    text_begin(&t);
    used = ub_escape_put(t.out, text, columns);
    got = text_end(&t);
    assert_text(got, expected);
    if (columns)
        assert_true(used <= columns);
    free(got);
}

static void test_escapes(void **state)
{
    expect_escaped("plain /a b%c\\d", 0, "plain /a b%c\\d");
    expect_escaped("\x1b[2J\r\n\t\a\x7f", 0, "\\x1b[2J\\x0d\\n\\t\\x07\\x7f");
    expect_escaped("h\xc3\xa4 \xe2\x82\xac \xf0\x9f\x98\x80", 0, "h\xc3\xa4 \xe2\x82\xac \xf0\x9f\x98\x80");
    /* Turns the line around, hides itself, C1 control, line separator. */
    expect_escaped("a\xe2\x80\xae"
                   "b\xe2\x80\x8b"
                   "c\xc2\x9b"
                   "d\xe2\x80\xa8"
                   "e\xef\xbb\xbf\xf3\xa0\x80\x81",
                   0, "a\\u202eb\\u200bc\\x9bd\\u2028e\\ufeff\\U000e0001");
    /* Not UTF-8: a lone byte, overlong '/', a surrogate, cut off, beyond U+10FFFF. */
    expect_escaped("\xff\xc0\xaf\xed\xa0\x80\xe2\x82", 0, "\\xff\\xc0\\xaf\\xed\\xa0\\x80\\xe2\\x82");
    expect_escaped("\xf4\x90\x80\x80\xf8\x88\x80\x80\x80", 0, "\\xf4\\x90\\x80\\x80\\xf8\\x88\\x80\\x80\\x80");
    expect_escaped("0123456789", 10, "0123456789");
    expect_escaped("0123456789a", 10, "0123456...");
    expect_escaped("01234\x1b\x1b\x1b", 10, "01234..."); /* an escape is never cut in two */
}

static void test_long_paths_lose_their_middle(void **state)
{
    struct text t;
    char *got;

    text_begin(&t);
    ub_escape_put_path(t.out, "/a/very/long/path/to/some/file.log", 20);
    got = text_end(&t);
    assert_text(got, "/a/very...e/file.log");
    free(got);
}

static void test_functions_without_arguments(void **state)
{
    static const struct {
        const char *function, *plain;
    } cases[] = {
        {"on_flush", "on_flush"},
        {"", ""},
        {"Server::on_flush(int, char const*)", "Server::on_flush"},
        {"Server::on_flush() const", "Server::on_flush"},
        {"f(void (*)(int), std::function<void (char)>)", "f"},
        {"(anonymous namespace)::f(int)", "(anonymous namespace)::f"},
        {"(anonymous namespace)", "(anonymous namespace)"},
        {"x::(anonymous namespace)", "x::(anonymous namespace)"},
        {"A::operator()(int) const", "A::operator()"},
        {"A::operator()", "A::operator()"},
        {"main::{lambda(int)#1}::operator()(int) const", "main::{lambda(int)#1}::operator()"},
        {")", ")"},
        {"f)", "f)"},
        {"((((", "(((("},
        {"f(int) [clone .cold]", "f(int) [clone .cold]"},
    };
    char buf[128];

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        assert_text(ub_text_frame_plain(cases[i].function, buf, sizeof(buf)), cases[i].plain);
}

/* ---- source lines ---------------------------------------------------- */

static void test_source_lines(void **state)
{
    char path[128], other[192], line[64];

    make_source("a.c", "int x;\n\t  fsync(w->fd);\t\r\n\nlast", path, sizeof(path));
    assert_int_equal(ub_text_source(path, 2, 0, line, sizeof(line)), 0);
    assert_string_equal(line, "fsync(w->fd);");
    assert_int_equal(ub_text_source(path, 4, 0, line, sizeof(line)), 0);
    assert_string_equal(line, "last");
    assert_int_equal(ub_text_source(path, 1, 0, line, 4), 0);
    assert_string_equal(line, "int");
    assert_int_equal(ub_text_source(path, 3, 0, line, sizeof(line)), -ENOENT);
    assert_int_equal(ub_text_source(path, 5, 0, line, sizeof(line)), -ENOENT);
    assert_int_equal(ub_text_source(path, 0, 0, line, sizeof(line)), -ENOENT);
    assert_int_equal(ub_text_source(path, 1ull << 40, 0, line, sizeof(line)), -ENOENT);
    assert_int_equal(ub_text_source(path, 2, 1735689599, line, sizeof(line)), -ESTALE);
    assert_int_equal(ub_text_source("a.c", 2, 0, line, sizeof(line)), -EPERM); /* relative */
    assert_int_equal(ub_text_source("/etc/passwd", 1, 0, line, sizeof(line)), -EPERM);
    assert_int_equal(ub_text_source("/nowhere/a.c", 1, 0, line, sizeof(line)), -ENOENT);

    snprintf(other, sizeof(other), "%s/fifo.c", folder); /* must not wait for a writer */
    assert_int_equal(mkfifo(other, 0600), 0);
    assert_int_equal(ub_text_source(other, 1, 0, line, sizeof(line)), -EPERM);
    snprintf(other, sizeof(other), "%s/folder.c", folder);
    assert_int_equal(mkdir(other, 0700), 0);
    assert_int_equal(ub_text_source(other, 1, 0, line, sizeof(line)), -EPERM);
    snprintf(other, sizeof(other), "%s/zero.c", folder);
    assert_int_equal(symlink("/dev/zero", other), 0);
    assert_int_equal(ub_text_source(other, 1, 0, line, sizeof(line)), -EPERM);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_durations),
        cmocka_unit_test(test_escapes),
        cmocka_unit_test(test_functions_without_arguments),
        cmocka_unit_test(test_long_paths_lose_their_middle),
        cmocka_unit_test_setup_teardown(test_source_lines, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
