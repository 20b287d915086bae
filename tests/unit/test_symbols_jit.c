/* Code that a runtime describes in /tmp/perf-PID.map. */
#include "unit.h"

#include "../../tracer/symbols.h"
#include "elf_builder.h"

#include <errno.h>
#include <sys/mman.h>

static char map_path[64];

static int open_map_path(void **state)
{
    snprintf(map_path, sizeof(map_path), "/tmp/perf-%d.map", (int)getpid());
    return unlink(map_path) < 0 && errno != ENOENT ? -1 : 0;
}

static int remove_map(void **state)
{
    unlink(map_path);
    return 0;
}

static void append(const char *text)
{
    FILE *f = fopen(map_path, "ae");

    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static struct ub_symbol resolve(uint64_t address)
{
    struct ub_maps maps = {.refs = 1, .pid = getpid()};
    struct ub_symbol s[UB_INLINES_MAX];

    assert_int_equal(ub_symbols_resolve(&maps, address, s, UB_INLINES_MAX), 1);
    return s[0];
}

static void check(uint64_t address, const char *function)
{
    struct ub_symbol s = resolve(address);

    if (function)
        assert_string_equal(s.function, function);
    else
        assert_null(s.function);
}

static void test_lines(void **state)
{
    check(0x1000, NULL); /* no such file yet */
    append("1000 100 first\n"
           "2000 80 name with spaces\n"
           "garbage\n"
           "3000 zz nothing\n"
           "3000 0 empty\n"
           "\n"
           "0x4000 10 prefixed\n"
           "ffffffffffffff00 1000 wraps\n"
           "5000 10 unfinished");
    check(0xfff, NULL);
    check(0x1000, "first");
    check(0x10ff, "first");
    check(0x1100, NULL);
    check(0x2010, "name with spaces");
    check(0x3000, NULL);
    check(0x4008, "prefixed");
    check(0xffffffffffffff80, NULL);
    check(0x5000, NULL); /* its line has not ended */
    append("_no_more\n");
    check(0x5000, "unfinished_no_more");
    assert_int_equal(resolve(0x1010).offset, 0x10);
    assert_int_equal(resolve(0x1010).language, UB_LANGUAGE_UNKNOWN);
}

static void test_last_one_counts(void **state)
{
    append("1000 100 old\n1200 100 beside\n");
    check(0x1050, "old");
    append("1040 20 new\n");
    check(0x1030, "old");
    check(0x1050, "new");
    check(0x1060, "old");
    append("1000 300 newest\n");
    check(0x1050, "newest");
    check(0x1250, "newest");
}

/* Enough entries for the sorted table, then a few more: the two must agree on what is last. */
static void test_many(void **state)
{
    char line[64];
    FILE *f = fopen(map_path, "we");

    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < 3000; i++)
            fprintf(f, "%x 10 f%d_%d\n", 0x10000 + i * 16, round, i);
    }
    fclose(f);
    check(0x10000, "f1_0");
    check(0x10000 + 2999 * 16, "f1_2999");
    append("10000 10 again\n");
    check(0x10000, "again");
    check(0x10010, "f1_1");
    for (int i = 0; i < 1000; i++) {
        snprintf(line, sizeof(line), "%x 8 g%d\n", 0x10000 + i * 16, i);
        append(line);
        if (i % 100 == 0) {
            snprintf(line, sizeof(line), "g%d", i);
            check(0x10000 + (uint64_t)i * 16, line);
        }
    }
    check(0x10000 + 999 * 16, "g999");
    check(0x10008, "again");
}

/* Written anew from the start, in the same file and in another one. */
static void test_restarted(void **state)
{
    append("1000 100 a_name_long_enough_to_fill_the_part_of_the_file_that_is_compared\n");
    check(0x1000, "a_name_long_enough_to_fill_the_part_of_the_file_that_is_compared");
    write_file(map_path, "1000 100 short\n", 15);
    check(0x1000, "short");
    write_file(map_path, "", 0);
    append("1000 100 another_name_that_is_longer_than_what_was_there_before_it_was_begun_anew_and_more\n");
    check(0x1000, "another_name_that_is_longer_than_what_was_there_before_it_was_begun_anew_and_more");
    unlink(map_path);
    append("1000 100 new_file\n");
    check(0x1000, "new_file");
    unlink(map_path);
    check(0x1000, "new_file"); /* what was read stays known */
}

static void check_js(uint64_t address, const char *function, const char *file, uint32_t line)
{
    struct ub_symbol s = resolve(address);

    assert_string_equal(s.function, function);
    if (file)
        assert_string_equal(s.file, file);
    else
        assert_null(s.file);
    assert_int_equal(s.line, line);
    assert_int_equal(s.language, UB_LANGUAGE_JS);
}

static void test_javascript(void **state)
{
    append("1000 10 JS:*fib /srv/app/x.js:12:34\n"
           "2000 10 JS:~get value /srv/my app/x.js:7:1\n"
           "3000 10 JS:^ node:internal/timers:514:24\n"
           "4000 10 Eval:~ /tmp/x.js:1:1\n"
           "5000 10 LazyCompile:*onread file:///srv/y.mjs:3:4\n"
           "6000 10 Builtin:ArrayMap\n"
           "7000 10 JS:*plain\n"
           "8000 10 JS:*f /odd/file:name\n");
    check_js(0x1004, "fib", "/srv/app/x.js", 12);
    check_js(0x2004, "get value", "/srv/my app/x.js", 7);
    check_js(0x3004, "(anonymous)", "node:internal/timers", 514);
    check_js(0x4004, "(anonymous)", "/tmp/x.js", 1);
    check_js(0x5004, "onread", "/srv/y.mjs", 3);
    check_js(0x7004, "plain", NULL, 0);
    check_js(0x8004, "f", "/odd/file:name", 0);
    check(0x6004, "Builtin:ArrayMap");
    assert_int_equal(resolve(0x6004).language, UB_LANGUAGE_UNKNOWN);
}

/* Anybody may put a file into /tmp. */
static void test_foreign_file(void **state)
{
    if (geteuid() != 0)
        skip();
    append("1000 10 lie\n");
    assert_int_equal(chown(map_path, 54321, 54321), 0);
    check(0x1000, NULL);
    unlink(map_path);
    assert_int_equal(mkfifo(map_path, 0600), 0);
    check(0x1000, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_foreign_file, open_map_path, remove_map),
        cmocka_unit_test_setup_teardown(test_lines, open_map_path, remove_map),
        cmocka_unit_test_setup_teardown(test_last_one_counts, open_map_path, remove_map),
        cmocka_unit_test_setup_teardown(test_many, open_map_path, remove_map),
        cmocka_unit_test_setup_teardown(test_restarted, open_map_path, remove_map),
        cmocka_unit_test_setup_teardown(test_javascript, open_map_path, remove_map),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
