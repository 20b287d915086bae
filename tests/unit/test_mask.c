/* Secrets in command lines, and the escaping of what strangers call themselves. */
#include "../../tracer/mask.h"

#include "unit.h"

#include <stdio.h>
#include <string.h>

static const char *masked(const char *text)
{
    static char buf[512];
    struct ub_line line;

    ub_line_begin(&line, buf, sizeof(buf));
    ub_mask_text(&line, text);
    return buf;
}

static void test_masked(void **state)
{
    assert_string_equal(masked("--password=hunter2"), "--password=***");
    assert_string_equal(masked("DB_PASSWORD=a b c"), "DB_PASSWORD=***");
    assert_string_equal(masked("--api-key=x"), "--api-key=***");
    assert_string_equal(masked("API_KEY=x"), "API_KEY=***");
    assert_string_equal(masked("--Token=x"), "--Token=***");
    assert_string_equal(masked("client_secret: x"), "client_secret:***");
    assert_string_equal(masked("Authorization: Bearer abc"), "Authorization:***");
    assert_string_equal(masked("{\"token\": \"abc\"}"), "{\"token\":***");
    assert_string_equal(masked("/cb?a=1&token=x&b=2"), "/cb?a=1&token=***&b=2");
    assert_string_equal(masked("token=a&password=b"), "token=***&password=***");
    assert_string_equal(masked("postgres://me:pw@db:5432/x"), "postgres://***@db:5432/x");
    assert_string_equal(masked("https://me:p@ss@h/?secret=1"), "https://***@h/?secret=***");
    assert_string_equal(masked("--password="), "--password=");
}

static void test_left_alone(void **state)
{
    static const char *const plain[] = {"--port=7000",
                                        "host:8080",
                                        "monkey=1",
                                        "keyboard=us",
                                        "https://h/@x",
                                        "https://host/a:b",
                                        "a=b&c=d",
                                        "--monkey=x",
                                        "=x",
                                        ":",
                                        "",
                                        "token",
                                        "/srv/secret/file"};

    for (size_t i = 0; i < UB_ARRAY_LEN(plain); i++)
        assert_string_equal(masked(plain[i]), plain[i]);
}

static void test_next_argument(void **state)
{
    assert_true(ub_mask_next("--password"));
    assert_true(ub_mask_next("-token"));
    assert_true(ub_mask_next("--api-key"));
    assert_false(ub_mask_next("--password=x"));
    assert_false(ub_mask_next("password"));
    assert_false(ub_mask_next("--port"));
    assert_false(ub_mask_next("--"));
    assert_false(ub_mask_next("-"));
    assert_false(ub_mask_next(""));
}

static void test_masked_text_is_escaped(void **state)
{
    assert_string_equal(masked("a\x1b[0m=\xff"), "a\\x1b[0m=\\xff");
}

static const char *escaped(const char *text, size_t len, char quote)
{
    static char buf[256];
    struct ub_line line;

    ub_line_begin(&line, buf, sizeof(buf));
    ub_line_escape(&line, text, len, quote);
    return buf;
}

static void test_escape(void **state)
{
    assert_string_equal(escaped("a\0b", 3, 0), "a\\x00b");
    assert_string_equal(escaped("\t\r\n\x7f", 4, 0), "\\t\\r\\n\\x7f");
    assert_string_equal(escaped("\xc2\x85", 2, 0), "\\xc2\\x85");          /* C1 */
    assert_string_equal(escaped("\xe2\x80\xae", 3, 0), "\\xe2\\x80\\xae"); /* right-to-left override */
    assert_string_equal(escaped("\xf0\x9f\x98\x80", 4, 0), "\xf0\x9f\x98\x80");
    assert_string_equal(escaped("\xf0\x9f\x98", 3, 0), "\\xf0\\x9f\\x98"); /* cut short */
    assert_string_equal(escaped("\xed\xa0\x80", 3, 0), "\\xed\\xa0\\x80"); /* a surrogate */
    assert_string_equal(escaped("\xc0\xaf", 2, 0), "\\xc0\\xaf");          /* overlong */
    assert_string_equal(escaped("q\"\\", 3, '"'), "q\\\"\\\\");
    assert_string_equal(escaped("q\"\\", 3, 0), "q\"\\");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_masked),        cmocka_unit_test(test_left_alone),
        cmocka_unit_test(test_next_argument), cmocka_unit_test(test_masked_text_is_escaped),
        cmocka_unit_test(test_escape),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
