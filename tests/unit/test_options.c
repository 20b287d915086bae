/* Options: values with units, the table, the environment, suggestions, colour. */
#include "../../ui/options.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define MS 1000000ull

static char why[UB_WHY_MAX];

static uint64_t time_of(const char *text)
{
    uint64_t ns = 0;

    assert_int_equal(ub_option_time(text, UB_THRESHOLD_MIN_NS, UB_THRESHOLD_MAX_NS, &ns, why), 0);
    return ns;
}

/* The time is refused, and the message says `hint`; the value is left alone. */
static void refuse_time(const char *text, const char *hint)
{
    uint64_t ns = 77;

    why[0] = '\0';
    assert_int_equal(ub_option_time(text, UB_THRESHOLD_MIN_NS, UB_THRESHOLD_MAX_NS, &ns, why), -EINVAL);
    assert_int_equal(ns, 77);
    if (strstr(why, hint) == NULL)
        fail_msg("'%s': the message \"%s\" does not say \"%s\"", text, why, hint);
}

static void test_times(void **state)
{
    assert_int_equal(time_of("50ms"), 50 * MS);
    assert_int_equal(time_of("1.5ms"), 1500000);
    assert_int_equal(time_of("0.1ms"), 100000);
    assert_int_equal(time_of("100us"), 100000);
    assert_int_equal(time_of("2s"), 2000 * MS);
    assert_int_equal(time_of("0.25s"), 250 * MS);
    assert_int_equal(time_of("3600s"), 3600000 * MS);
    assert_int_equal(time_of("100.5us"), 100500);
    assert_int_equal(time_of("0.000200000000s"), 200000);
}

static void test_times_refused(void **state)
{
    refuse_time("50", "50 has no unit: write 50ms");
    refuse_time("0", "0 has no unit");
    refuse_time("0ms", "out of range: from 100us to 1 h");
    refuse_time("99us", "out of range: from 100us to 1 h");
    refuse_time("3601s", "out of range");
    refuse_time("-5ms", "-5ms is negative");
    refuse_time("50m", "known are us, ms and s");
    refuse_time("50MS", "known are us, ms and s");
    refuse_time("50 ms", "known are us, ms and s");
    refuse_time("50msec", "known are us, ms and s");
    refuse_time("", "not a number with a unit");
    refuse_time("ms", "not a number with a unit");
    refuse_time(".5ms", "not a number with a unit");
    refuse_time("5.ms", "not a number with a unit");
    refuse_time("1e3ms", "known are us, ms and s");
    refuse_time("1,5ms", "known are us, ms and s");
    refuse_time("nan", "not a number");
    refuse_time("99999999999999999999999999s", "not a number");
    refuse_time("999999999999s", "out of range");
}

static void test_sizes(void **state)
{
    uint64_t bytes = 0;

    assert_int_equal(ub_option_size("256M", 65536, 0, &bytes, why), 0);
    assert_int_equal(bytes, 256u << 20);
    assert_int_equal(ub_option_size("64k", 65536, 0, &bytes, why), 0);
    assert_int_equal(bytes, 65536);
    assert_int_equal(ub_option_size("1.5G", 65536, 0, &bytes, why), 0);
    assert_int_equal(bytes, 3ull << 29);
    assert_int_equal(ub_option_size("0", 65536, 0, &bytes, why), 0);
    assert_int_equal(bytes, 0);
    assert_int_equal(ub_option_size("256", 65536, 0, &bytes, why), -EINVAL);
    assert_string_equal(why, "256 has no unit: write 256M");
    assert_int_equal(ub_option_size("63k", 65536, 0, &bytes, why), -EINVAL);
    assert_non_null(strstr(why, "from 64k"));
    assert_int_equal(ub_option_size("1T", 65536, 0, &bytes, why), -EINVAL);
    assert_int_equal(ub_option_size("999999999999G", 65536, 0, &bytes, why), -EINVAL);
    assert_int_equal(bytes, 0);
}

/* ---- the table ------------------------------------------------------- */

static const char *const how[] = {"full", "line", "none", NULL};

static struct {
    uint64_t threshold;
    const char *output;
    bool force, quiet, given;
    int live;
} got;

static const struct ub_option table[] = {
    {.letter = 't',
     .name = "threshold",
     .kind = UB_OPTION_TIME,
     .value = &got.threshold,
     .argument = "TIME",
     .help = "a",
     .env = "UNBLOCK_THRESHOLD",
     .min = UB_THRESHOLD_MIN_NS,
     .max = UB_THRESHOLD_MAX_NS,
     .given = &got.given},
    {.letter = 'o',
     .name = "output",
     .kind = UB_OPTION_TEXT,
     .value = &got.output,
     .argument = "FILE",
     .help = "b\nc",
     .env = "UNBLOCK_OUTPUT"},
    {.name = "force", .kind = UB_OPTION_FLAG, .value = &got.force, .help = "d", .env = "UNBLOCK_FORCE"},
    {.letter = 'q', .name = "quiet", .kind = UB_OPTION_FLAG, .value = &got.quiet, .help = "e"},
    {.name = "live", .kind = UB_OPTION_CHOICE, .value = &got.live, .argument = "HOW", .help = "f", .choices = how},
};

/* Parses the words, NULL-terminated; what is left over is joined by spaces into `rest`. */
static int parse(bool stop_at_word, char *rest, ...)
{
    const struct ub_options options = {
        .usage = "u", .about = "a", .stop_at_word = stop_at_word, .option = table, .count = UB_ARRAY_LEN(table)};
    char *argv[16] = {"cmd"};
    int argc = 1, first, r;
    va_list ap;

    memset(&got, 0, sizeof(got));
    va_start(ap, rest);
    while ((argv[argc] = va_arg(ap, char *)) != NULL)
        argc++;
    va_end(ap);
    rest[0] = why[0] = '\0';
    r = ub_options_parse(&options, argc, argv, &first, why);
    for (int i = first; r == 0 && i < argc; i++)
        strcat(strcat(rest, i > first ? " " : ""), argv[i]);
    return r;
}

static char rest[256];

static void test_forms(void **state)
{
    assert_int_equal(parse(true, rest, "-t", "20ms", "--output=x", "--force", "--", "prog", "-t", NULL), 0);
    assert_int_equal(got.threshold, 20 * MS);
    assert_true(got.given && got.force && !got.quiet);
    assert_string_equal(got.output, "x");
    assert_string_equal(rest, "prog -t");
    assert_int_equal(parse(true, rest, "-qt20ms", "--output", "-", "prog", "--force", NULL), 0);
    assert_true(got.quiet && !got.force);
    assert_int_equal(got.threshold, 20 * MS);
    assert_string_equal(got.output, "-");
    assert_string_equal(rest, "prog --force");
    assert_int_equal(parse(true, rest, NULL), 0);
    assert_string_equal(rest, "");
    assert_int_equal(parse(true, rest, "--", NULL), 0);
    assert_string_equal(rest, "");
    assert_int_equal(parse(true, rest, "--live", "line", "--", "--", "x", NULL), 0);
    assert_int_equal(got.live, 1);
    assert_string_equal(rest, "-- x");
}

static void test_options_after_words(void **state)
{
    assert_int_equal(parse(false, rest, "a", "-t", "20ms", "b", "--force", "c", NULL), 0);
    assert_string_equal(rest, "a b c");
    assert_true(got.force);
    assert_int_equal(parse(false, rest, "a", "-q", "--", "-b", "--force", NULL), 0);
    assert_string_equal(rest, "a -b --force");
    assert_true(got.quiet && !got.force);
    assert_int_equal(parse(false, rest, "-", NULL), 0);
    assert_string_equal(rest, "-");
}

static void test_mistakes(void **state)
{
    assert_int_equal(parse(true, rest, "--thresold", "5ms", NULL), -EINVAL);
    assert_string_equal(why, "unknown option --thresold: did you mean --threshold?");
    assert_int_equal(parse(true, rest, "--thresh=5ms", NULL), -EINVAL);
    assert_string_equal(why, "unknown option --thresh: did you mean --threshold?");
    assert_int_equal(parse(true, rest, "--offload", NULL), -EINVAL);
    assert_string_equal(why, "unknown option --offload (see --help)");
    assert_int_equal(parse(true, rest, "-qz", NULL), -EINVAL);
    assert_string_equal(why, "unknown option -z (see --help)");
    assert_int_equal(parse(true, rest, "--force=1", NULL), -EINVAL);
    assert_string_equal(why, "--force takes no value");
    assert_int_equal(parse(true, rest, "--threshold", NULL), -EINVAL);
    assert_string_equal(why, "--threshold needs a value: --threshold TIME");
    assert_int_equal(parse(true, rest, "-t", NULL), -EINVAL);
    assert_string_equal(why, "-t needs a value: -t TIME");
    assert_int_equal(parse(true, rest, "-t", "50", NULL), -EINVAL);
    assert_string_equal(why, "-t: 50 has no unit: write 50ms");
    assert_int_equal(parse(true, rest, "--live=ful", NULL), -EINVAL);
    assert_string_equal(why, "--live: 'ful' is none of full, line, none");
    assert_int_equal(parse(true, rest, "-q", "--help", "--bad", NULL), UB_OPTIONS_HELP);
    assert_int_equal(parse(true, rest, "-qh", NULL), UB_OPTIONS_HELP);
    assert_int_equal(parse(true, rest, "prog", "--help", NULL), 0);
}

static void test_environment(void **state)
{
    setenv("UNBLOCK_THRESHOLD", "30ms", 1);
    setenv("UNBLOCK_OUTPUT", "from-env", 1);
    setenv("UNBLOCK_FORCE", "1", 1);
    assert_int_equal(parse(true, rest, "-t", "20ms", NULL), 0);
    assert_int_equal(got.threshold, 20 * MS); /* a flag wins */
    assert_string_equal(got.output, "from-env");
    assert_true(got.force);
    setenv("UNBLOCK_FORCE", "0", 1);
    setenv("UNBLOCK_OUTPUT", "", 1);
    assert_int_equal(parse(true, rest, NULL), 0);
    assert_int_equal(got.threshold, 30 * MS);
    assert_true(got.given && !got.force);
    assert_null(got.output);
    setenv("UNBLOCK_THRESHOLD", "30", 1);
    assert_int_equal(parse(true, rest, NULL), -EINVAL);
    assert_string_equal(why, "UNBLOCK_THRESHOLD: 30 has no unit: write 30ms");
    assert_int_equal(parse(true, rest, "--help", NULL), UB_OPTIONS_HELP); /* help helps with wrong settings too */
    unsetenv("UNBLOCK_THRESHOLD");
    setenv("UNBLOCK_FORCE", "maybe", 1);
    assert_int_equal(parse(true, rest, NULL), -EINVAL);
    unsetenv("UNBLOCK_FORCE");
    unsetenv("UNBLOCK_OUTPUT");
}

static void test_help_has_everything(void **state)
{
    const struct ub_options options = {
        .usage = "USAGE", .about = "ABOUT", .more = "MORE\n", .option = table, .count = UB_ARRAY_LEN(table)};
    char *text = NULL;
    size_t len;
    FILE *out = open_memstream(&text, &len);

    ub_options_help(out, &options);
    fclose(out);
    for (size_t i = 0; i < UB_ARRAY_LEN(table); i++) {
        assert_non_null(strstr(text, table[i].name));
        if (table[i].env != NULL)
            assert_non_null(strstr(text, table[i].env));
    }
    assert_non_null(strstr(text, "--help"));
    assert_non_null(strstr(text, "MORE"));
    free(text);
}

static void test_nearest(void **state)
{
    const char *const names[] = {"run", "report", "dump", NULL};

    assert_string_equal(ub_nearest("rnu", names), "run");
    assert_string_equal(ub_nearest("reprot", names), "report");
    assert_string_equal(ub_nearest("rep", names), "report");
    assert_string_equal(ub_nearest("dumps", names), "dump");
    assert_null(ub_nearest("attach", names));
    assert_null(ub_nearest("x", names));
    assert_null(ub_nearest("", names));
    assert_null(ub_nearest("a-word-of-quite-remarkable-length-that-is-no-command", names));
}

static void test_colour(void **state)
{
    int fds[2];

    assert_int_equal(pipe(fds), 0);
    unsetenv("NO_COLOR");
    unsetenv("CLICOLOR_FORCE");
    assert_false(ub_colour_use(UB_COLOUR_AUTO, fds[1]));
    assert_true(ub_colour_use(UB_COLOUR_ALWAYS, fds[1]));
    setenv("CLICOLOR_FORCE", "1", 1);
    assert_true(ub_colour_use(UB_COLOUR_AUTO, fds[1]));
    assert_false(ub_colour_use(UB_COLOUR_NEVER, fds[1]));
    setenv("NO_COLOR", "1", 1);
    assert_false(ub_colour_use(UB_COLOUR_AUTO, fds[1]));
    assert_true(ub_colour_use(UB_COLOUR_ALWAYS, fds[1]));
    setenv("NO_COLOR", "", 1);
    setenv("CLICOLOR_FORCE", "0", 1);
    assert_false(ub_colour_use(UB_COLOUR_AUTO, fds[1]));
    unsetenv("NO_COLOR");
    unsetenv("CLICOLOR_FORCE");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_times),       cmocka_unit_test(test_times_refused),       cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_forms),       cmocka_unit_test(test_options_after_words), cmocka_unit_test(test_mistakes),
        cmocka_unit_test(test_environment), cmocka_unit_test(test_help_has_everything), cmocka_unit_test(test_nearest),
        cmocka_unit_test(test_colour),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
