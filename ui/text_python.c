/* What became of a run's Python tasks: those that yielded, functions called elsewhere, and what kept them from it. */
#include "figures.h"
#include "text_private.h"
#include "text_escape.h"

#include "../common/python_table.h"

#include <inttypes.h>
#include <string.h>

#define LIVE_MAX 3u /* the live view is for the loops and the call sites */

/* How many lines of a kind there are, and the sum of a number of theirs. */
static uint64_t sum_of(const struct ub_text_view *view, const char *kind, const char *key, uint64_t *ret_lines)
{
    const json_t *line;
    uint64_t sum = 0;
    size_t i;

    *ret_lines = 0;
    json_array_foreach (ub_model_python(view->m), i, line) {
        if (!ub_json_string(line, "kind") || strcmp(ub_json_string(line, "kind"), kind) != 0)
            continue;
        ++*ret_lines;
        sum = ub_add_saturated(sum, ub_json_u64_or(line, key, 0));
    }
    return sum;
}

static void put_name(const struct ub_text_view *view, const json_t *line)
{
    const char *name = ub_json_string(line, "function"), *place = ub_json_string(line, "place");

    ub_pen_put(&view->pen, UB_INK_FUNCTION, name ? name : "?", UB_TEXT_NAME_COLUMNS);
    if (place && *place) {
        fputs(" (", view->pen.out);
        ub_escape_put(view->pen.out, place, UB_TEXT_PLACE_COLUMNS);
        fputc(')', view->pen.out);
    }
}

static void put_yield(const struct ub_text_view *view, const json_t *line)
{
    put_name(view, line);
    fputs(" yielded ", view->pen.out);
    ub_text_count(view, UB_INK_PLAIN, ub_json_u64_or(line, "count", 0), "time", "times");
    fputs(", away for ", view->pen.out);
    ub_text_put_duration(view, UB_INK_PLAIN, ub_json_u64_or(line, "ns", 0));
}

static void put_held(const struct ub_text_view *view, const json_t *line)
{
    const char *called = ub_json_string(line, "text");

    fputs("could not yield in ", view->pen.out);
    put_name(view, line);
    fputs(": ", view->pen.out);
    if (called && *called) {
        ub_escape_put(view->pen.out, called, UB_TEXT_NAME_COLUMNS);
        fputs("(), ", view->pen.out);
    }
    ub_text_count(view, UB_INK_PLAIN, ub_json_u64_or(line, "count", 0), "time", "times");
    fputs(", the longest ", view->pen.out);
    ub_text_put_duration(view, UB_INK_STALL, ub_json_u64_or(line, "longest_ns", 0));
}

static void put_where(const struct ub_text_view *view, const json_t *line)
{
    const char *place = ub_json_string(line, "place");

    ub_escape_put(view->pen.out, place ? place : "?", UB_TEXT_PLACE_COLUMNS);
}

static void put_moved(const struct ub_text_view *view, const json_t *line)
{
    const char *name = ub_json_string(line, "function"), *place = ub_json_string(line, "place");

    ub_pen_put(&view->pen, UB_INK_FUNCTION, name ? name : "?", UB_TEXT_NAME_COLUMNS);
    fputs(place && !strchr(place, '(') ? " ran in a " : " ran in ", view->pen.out);
    put_where(view, line);
    fputc(' ', view->pen.out);
    ub_text_count(view, UB_INK_PLAIN, ub_json_u64_or(line, "count", 0), "time", "times");
    fputs(", away for ", view->pen.out);
    ub_text_put_duration(view, UB_INK_PLAIN, ub_json_u64_or(line, "ns", 0));
    fputs(", the longest ", view->pen.out);
    ub_text_put_duration(view, UB_INK_PLAIN, ub_json_u64_or(line, "longest_ns", 0));
}

static void put_stayed(const struct ub_text_view *view, const json_t *line)
{
    const char *name = ub_json_string(line, "function"), *why = ub_json_string(line, "text");

    ub_pen_put(&view->pen, UB_INK_FUNCTION, name ? name : "?", UB_TEXT_NAME_COLUMNS);
    fputs(" (", view->pen.out);
    put_where(view, line);
    fputs(ub_text_is_dry_run(view->m) ? ") would stay " : ") stayed ", view->pen.out);
    ub_text_count(view, UB_INK_PLAIN, ub_json_u64_or(line, "count", 0), "time", "times");
    fputs(": ", view->pen.out);
    ub_escape_put(view->pen.out, why && *why ? why : "?", UB_TEXT_LINE_COLUMNS);
    fputs(", the longest ", view->pen.out);
    ub_text_put_duration(view, UB_INK_STALL, ub_json_u64_or(line, "longest_ns", 0));
}

static void put_refused(const struct ub_text_view *view, const json_t *line)
{
    const char *name = ub_json_string(line, "function"), *why = ub_json_string(line, "text");

    ub_pen_put(&view->pen, UB_INK_FUNCTION, name ? name : "?", UB_TEXT_NAME_COLUMNS);
    fputs(" (", view->pen.out);
    put_where(view, line);
    fputs(") stays: ", view->pen.out);
    ub_escape_put(view->pen.out, why && *why ? why : "?", UB_TEXT_LINE_COLUMNS);
}

static void put_note(const struct ub_text_view *view, const json_t *line)
{
    uint64_t count = ub_json_u64_or(line, "count", 0);

    ub_escape_put(view->pen.out, ub_json_string(line, "text"), UB_TEXT_LINE_COLUMNS);
    if (count > 1)
        fprintf(view->pen.out, ", %" PRIu64 " times", count);
}

/* "pyseeds.is_prime would run in a process 1 time, 806 ms off the loop, the longest 806 ms" */
static void put_would(const struct ub_text_view *view, const json_t *line)
{
    const char *name = ub_json_string(line, "function");
    bool yields = ub_json_is(line, "place", "yield");

    ub_pen_put(&view->pen, UB_INK_FUNCTION, name ? name : "?", UB_TEXT_NAME_COLUMNS);
    fputs(yields ? " would " : " would run in a ", view->pen.out);
    put_where(view, line);
    fputc(' ', view->pen.out);
    ub_text_count(view, UB_INK_PLAIN, ub_json_u64_or(line, "count", 0), "time", "times");
    fputs(", saves ", view->pen.out);
    ub_text_put_duration(view, UB_INK_GOOD, ub_json_u64_or(line, "ns", 0));
    fputs(", the longest ", view->pen.out);
    ub_text_put_duration(view, UB_INK_PLAIN, ub_json_u64_or(line, "longest_ns", 0));
}

/* "3 calls of 2 functions elsewhere" */
static void put_elsewhere(const struct ub_text_view *view, uint64_t calls, uint64_t functions)
{
    ub_text_count(view, UB_INK_PLAIN, calls, "call", "calls");
    fputs(" of ", view->pen.out);
    ub_text_count(view, UB_INK_PLAIN, functions, "function elsewhere", "functions elsewhere");
}

void ub_text_python_live(const struct ub_text_view *view)
{
    json_t *functions = ub_figures_functions(view->m), *function;
    uint64_t calls = 0;
    size_t i, count = json_array_size(functions);

    json_array_foreach (functions, i, function)
        calls = ub_add_saturated(calls, ub_json_u64_or(function, "count", 0));
    if (count > 0) {
        fputs("python: ", view->pen.out);
        put_elsewhere(view, calls, count);
        fputc('\n', view->pen.out);
    }
    for (i = 0; i < count && i < LIVE_MAX; i++) {
        fputs("  ", view->pen.out);
        put_moved(view, json_array_get(functions, i));
        fputc('\n', view->pen.out);
    }
    if (count > LIVE_MAX) {
        fputs("  and ", view->pen.out);
        ub_text_count(view, UB_INK_PLAIN, count - LIVE_MAX, "more function", "more functions");
        fputc('\n', view->pen.out);
    }
    json_decref(functions);
}

/* One line of sums, and each below it. */
bool ub_text_python_run(const struct ub_text_view *view, const char *prefix)
{
    static void (*const put[UB_PYTHON_KINDS])(const struct ub_text_view *, const json_t *) = {
        [UB_PYTHON_YIELD] = put_yield,   [UB_PYTHON_HELD] = put_held,       [UB_PYTHON_MOVED] = put_moved,
        [UB_PYTHON_STAYED] = put_stayed, [UB_PYTHON_REFUSED] = put_refused, [UB_PYTHON_NOTE] = put_note,
        [UB_PYTHON_WOULD] = put_would}; /* NULL: not told */
    static const char *const kinds[] = {
#define X(name, text) text,
        UB_PYTHON_KIND_LIST(X)
#undef X
    };
    uint64_t yielding, yields = sum_of(view, "yield", "count", &yielding), moving, rules, near;
    uint64_t moved = sum_of(view, "moved", "count", &moving), could,
             stalls = sum_of(view, "would-move", "count", &could);
    const json_t *line;
    size_t i;

    sum_of(view, "rule", "count", &rules);
    sum_of(view, "nearest", "count", &near);
    if (json_array_size(ub_model_python(view->m)) == rules + near)
        return false;
    fprintf(view->pen.out, "%spython:", prefix);
    if (yielding) {
        fputc(' ', view->pen.out);
        ub_text_count(view, UB_INK_PLAIN, yields, "yield", "yields");
        fputs(" of ", view->pen.out);
        ub_text_count(view, UB_INK_PLAIN, yielding, "coroutine", "coroutines");
    }
    if (moving) {
        fputs(yielding ? ", " : " ", view->pen.out);
        put_elsewhere(view, moved, moving);
    }
    if (could) {
        fputc(' ', view->pen.out);
        ub_text_count(view, UB_INK_PLAIN, stalls, "stall", "stalls");
        fputs(" of ", view->pen.out);
        ub_text_count(view, UB_INK_PLAIN, could, "function", "functions");
        fputs(" that rules of a policy would move", view->pen.out);
    }
    fputc('\n', view->pen.out);
    for (size_t kind = 0; kind < UB_ARRAY_LEN(kinds); kind++) {
        json_array_foreach (ub_model_python(view->m), i, line) {
            if (!put[kind] || !ub_json_string(line, "kind") || strcmp(ub_json_string(line, "kind"), kinds[kind]) != 0)
                continue;
            fprintf(view->pen.out, "%s  ", prefix);
            put[kind](view, line);
            fputc('\n', view->pen.out);
        }
    }
    return true;
}
