/*
 * Habits that the agent has seen, not stalls: `lint` lines of the recording, and
 * what is too much of it.
 */
#include "text_private.h"
#include "text_escape.h"
#include "text_source.h"

#include "../tracer/python.h"

/*
 * sleep(0) is one turn of the loop, some tens of microseconds of it: after a step of a tenth of a millisecond the
 * program spends a good part of its time on giving way. A few times do not matter.
 */
#define OFTEN_COUNT 1000u
#define OFTEN_NS    100000u

static void put_place(const struct ub_text_view *view, const json_t *place)
{
    const char *file = ub_json_string(place, "file");
    uint64_t line = ub_json_u64_or(place, "line", 0);

    if (!file)
        return;
    ub_escape_put(view->pen.out, ub_path_base(file), UB_TEXT_PLACE_COLUMNS);
    if (line)
        fprintf(view->pen.out, ":%" PRIu64, line);
}

static void put_function(const struct ub_text_view *view, const json_t *place)
{
    char name[UB_TEXT_NAME_COLUMNS + 8];

    ub_escape_put(view->pen.out, ub_text_function_name(ub_json_string(place, "function"), name, sizeof(name)),
                  UB_TEXT_NAME_COLUMNS);
}

static void put_lead(const struct ub_text_view *view, const char *prefix, const json_t *place)
{
    fputs(prefix, view->pen.out);
    ub_pen_put(&view->pen, UB_INK_LABEL, "lint", 0);
    fputs("  ", view->pen.out);
    put_place(view, place);
    fputs("  ", view->pen.out);
    put_function(view, place);
}

static bool too_often(const json_t *lint)
{
    uint64_t count = ub_json_u64_or(lint, "count", 0), total = ub_json_u64_or(lint, "total_ns", 0);

    return count >= OFTEN_COUNT && total / count <= OFTEN_NS;
}

static bool put_sleep0(const struct ub_text_view *view, const char *prefix, const json_t *lint)
{
    uint64_t count = ub_json_u64_or(lint, "count", 0);

    if (!too_often(lint))
        return false;
    put_lead(view, prefix, json_object_get(lint, "callback"));
    fputs(" gave way by sleep(0) ", view->pen.out);
    ub_text_count(view, UB_INK_PLAIN, count, "time", "times");
    fputs(", after ", view->pen.out);
    ub_text_put_duration(view, UB_INK_PLAIN, ub_json_u64_or(lint, "total_ns", 0) / (count ? count : 1));
    fputs(" of work on average: each costs a turn of the loop, once in some milliseconds is enough\n", view->pen.out);
    return true;
}

/* The last part of a qualified name. */
static const char *last_name(const char *function)
{
    const char *dot = function ? strrchr(function, '.') : NULL;

    return dot ? dot + 1 : function;
}

/* Which of the functions that take a plain one stands on the line that let go of it, beside the coroutine's. */
static const char *given_to(const struct ub_text_view *view, const json_t *at, const char *function)
{
    static const char *const takers[] = {"run_in_executor", "to_thread",  "submit",
                                         "call_soon",       "call_later", "call_at"};
    const char *file = ub_json_string(at, "file"), *name = last_name(function);
    char text[512];
    size_t i;

    if (!file || !name ||
        ub_text_source(file, ub_json_u64_or(at, "line", 0), view->not_after, text, sizeof(text)) < 0 ||
        !strstr(text, name))
        return NULL;
    for (i = 0; i < UB_ARRAY_LEN(takers); i++) {
        const char *found = strstr(text, takers[i]);

        if (found && found[strlen(takers[i])] == '(')
            return takers[i];
    }
    return NULL;
}

static void put_coroutine(const struct ub_text_view *view, const json_t *callback)
{
    put_function(view, callback);
    fputs(" (", view->pen.out);
    put_place(view, callback);
    fputc(')', view->pen.out);
}

/*
 * Who let go of it may be the loop: then nobody says to whom the function was given. Else the source line may.
 */
static bool put_unawaited(const struct ub_text_view *view, const char *prefix, const json_t *lint)
{
    const json_t *at = json_object_get(lint, "at"), *callback = json_object_get(lint, "callback");
    bool user = at && ub_python_owner_of(ub_json_string(at, "file"), ub_json_string(at, "function")) == UB_PYTHON_USER;
    const char *taker = user ? given_to(view, at, ub_json_string(callback, "function")) : NULL;

    put_lead(view, prefix, user ? at : callback);
    if (taker) {
        fprintf(view->pen.out, " gave an async function to %s: ", taker);
        put_coroutine(view, callback);
        fputs(" was called, and its coroutine never ran; await it, or give a plain function\n", view->pen.out);
    } else if (user) {
        fputs(" let go of a coroutine that never ran: ", view->pen.out);
        put_coroutine(view, callback);
        fputs("; await it, or asyncio.create_task(...)\n", view->pen.out);
    } else {
        fputs(" was called, and its coroutine never ran: was it given to run_in_executor, call_soon or the like? They "
              "take plain functions\n",
              view->pen.out);
    }
    return true;
}

uint32_t ub_text_lints(const struct ub_text_view *view, const char *prefix)
{
    const char *key;
    json_t *lint;
    uint32_t n = 0;

    json_object_foreach ((json_t *)ub_model_lints(view->m), key, lint) {
        if (ub_json_is(lint, "lint", "sleep0"))
            n += put_sleep0(view, prefix, lint);
        else if (ub_json_is(lint, "lint", "never-awaited"))
            n += put_unawaited(view, prefix, lint);
    }
    return n;
}
