/*
 * One stall: the block of a terminal, and the line of a log.
 */
#include "text_private.h"
#include "text_escape.h"
#include "text_frames.h"
#include "../tracer/python.h"

#define UNCLEAR_SHARE 10 /* of a stall: less than that is not worth a word */

/* The program's own coroutines shown of a chain, besides the outermost one. */
#define AWAIT_SHOWN 8

static void put_bare_duration(const struct ub_text_view *view, uint64_t ns)
{
    char buf[UB_TEXT_DURATION_MAX];

    fputs(ub_text_duration(ns, buf, sizeof(buf)), view->pen.out);
}

/* "unblock: BLOCKED 312 ms" */
static void put_head(const struct ub_text_view *view, const json_t *slow)
{
    fputs("unblock: ", view->pen.out);
    ub_pen_take(&view->pen, UB_INK_STALL);
    fputs(ub_json_true(slow, "ongoing") ? "STILL BLOCKED " : "BLOCKED ", view->pen.out);
    put_bare_duration(view, ub_json_u64_or(slow, "duration_ns", 0));
    ub_pen_drop(&view->pen);
}

/* "redis-server pid 42", with the thread where it is not the main one. */
static void put_process(const struct ub_text_view *view, const json_t *slow)
{
    uint64_t pid = ub_json_u64_or(slow, "pid", 0), tid = ub_json_u64_or(slow, "tid", pid);
    const char *program = ub_model_program(view->m, pid), *thread = ub_json_string(slow, "thread");

    if (program) {
        ub_escape_put(view->pen.out, program, UB_TEXT_NAME_COLUMNS);
        fputc(' ', view->pen.out);
    }
    fprintf(view->pen.out, "pid %" PRIu64, pid);
    if (tid == pid)
        return;
    fputs(" thread ", view->pen.out);
    if (thread && *thread) {
        ub_escape_put(view->pen.out, thread, UB_TEXT_NAME_COLUMNS);
        fputc(' ', view->pen.out);
    }
    fprintf(view->pen.out, "tid %" PRIu64, tid);
}

/* "libuv timer"; a loop of which only turns are known is "turn", "libuv turn". */
static void put_loop(const struct ub_text_view *view, const json_t *slow)
{
    const char *loop = ub_json_string(slow, "loop"), *kind = ub_json_string(slow, "kind");

    if (loop && kind && strcmp(loop, kind) == 0)
        kind = NULL;
    if (loop)
        ub_escape_put(view->pen.out, loop, UB_TEXT_NAME_COLUMNS);
    if (kind) {
        fputs(loop ? " " : "", view->pen.out);
        ub_escape_put(view->pen.out, kind, UB_TEXT_NAME_COLUMNS);
    }
}

/* Why it does not count in the verdict, or how much of it may be something else. */
static void put_tags(const struct ub_text_view *view, const json_t *slow)
{
    uint64_t unclear_ns = ub_json_u64_or(slow, "unclear_start_ns", 0);
    char buf[UB_TEXT_DURATION_MAX];

    if (ub_json_true(slow, "startup"))
        ub_pen_printf(&view->pen, UB_INK_FAINT, "  (at start-up, not counted)");
    if (ub_json_true(slow, "unclear"))
        ub_pen_printf(&view->pen, UB_INK_FAINT, "  (perhaps several short turns, not counted)");
    else if (unclear_ns > ub_json_u64_or(slow, "duration_ns", 0) / UNCLEAR_SHARE)
        ub_pen_printf(&view->pen, UB_INK_FAINT, "  (its first %s may be turns before it)",
                      ub_text_duration(unclear_ns, buf, sizeof(buf)));
    if (ub_json_is(slow, "cause", "stopped"))
        ub_pen_printf(&view->pen, UB_INK_FAINT, "  (stopped, not counted)");
}

static void put_callback(const struct ub_text_view *view, const json_t *slow)
{
    const json_t *callback = json_object_get(slow, "callback");
    const char *name = ub_json_string(callback, "name"), *function = ub_json_string(callback, "function");
    char buf[1024];

    if (name) {
        ub_pen_put(&view->pen, UB_INK_FUNCTION, name, UB_TEXT_NAME_COLUMNS);
        fputs(function ? " " : "  ", view->pen.out);
    }
    if (function) {
        ub_pen_put(&view->pen, UB_INK_FUNCTION, ub_text_function_name(function, buf, sizeof(buf)),
                   UB_TEXT_NAME_COLUMNS);
        fputs("  ", view->pen.out);
    }
}

static void put_first_line(const struct ub_text_view *view, const json_t *slow)
{
    put_head(view, slow);
    fputs("  ", view->pen.out);
    put_callback(view, slow);
    put_loop(view, slow);
    fputs("  ", view->pen.out);
    put_process(view, slow);
    put_tags(view, slow);
    fputc('\n', view->pen.out);
}

void ub_text_do(const struct ub_text_view *view, const struct ub_advice_query *query)
{
    const struct ub_advice *advice = ub_advice_find(query);
    char words[UB_ADVICE_WORDS_MAX];

    if (!advice)
        return;
    ub_pen_label(&view->pen, "do");
    ub_pen_put(&view->pen, UB_INK_ADVICE, ub_advice_words(query, advice, words, sizeof(words)), UB_TEXT_LINE_COLUMNS);
    fputc('\n', view->pen.out);
}

/* "checkout <- handle_order": the coroutines that await one another, innermost first; and where the task was made. */
void ub_text_await(const struct ub_text_view *view, const json_t *slow)
{
    const json_t *task = json_object_get(slow, "task"), *chain = json_object_get(task, "await");
    const json_t *created = json_object_get(task, "created");
    const char *file = ub_json_string(created, "file");
    size_t count = json_array_size(chain), shown = 0, i;
    bool left_out = false;

    if (count < 2 && !file)
        return;
    ub_pen_label(&view->pen, "await");
    for (i = count; i-- > 0;) {
        const json_t *place = json_array_get(chain, i);
        const char *function = ub_json_string(place, "function");
        bool own = ub_python_owner_of(ub_json_string(place, "file"), function) == UB_PYTHON_USER;

        if (i > 0 && (!own || ++shown > AWAIT_SHOWN)) { /* a framework's own are many and say little */
            if (!left_out)
                fputs(i + 1 < count ? " <- ..." : "...", view->pen.out);
            left_out = true;
            continue;
        }
        left_out = false;
        fputs(i + 1 < count ? " <- " : "", view->pen.out);
        ub_escape_put(view->pen.out, function ? function : "?", UB_TEXT_NAME_COLUMNS);
    }
    if (file) {
        fputs(count ? "; task made at " : "task made at ", view->pen.out);
        ub_escape_put_path(view->pen.out, ub_path_base(file), UB_TEXT_PLACE_COLUMNS);
        fprintf(view->pen.out, ":%" PRIu64, ub_json_u64_or(created, "line", 0));
    }
    fputc('\n', view->pen.out);
}

void ub_text_request(const struct ub_text_view *view, const json_t *slow)
{
    const json_t *request = json_object_get(slow, "request");
    const char *method = ub_json_string(request, "method"), *where = ub_json_string(request, "route");

    if (!where)
        where = ub_json_string(request, "path");
    if (!method || !where)
        return;
    ub_pen_label(&view->pen, "serves");
    ub_escape_put(view->pen.out, method, UB_TEXT_NAME_COLUMNS);
    fputc(' ', view->pen.out);
    ub_escape_put(view->pen.out, where, UB_TEXT_PATH_COLUMNS);
    fputc('\n', view->pen.out);
}

static void put_descriptor(const struct ub_text_view *view, const json_t *of, uint64_t fd)
{
    const char *path = ub_json_string(of, "fd_path");

    fprintf(view->pen.out, "fd %" PRIu64, fd);
    if (!path)
        return;
    fputs(" = ", view->pen.out);
    ub_escape_put_path(view->pen.out, path, UB_TEXT_PATH_COLUMNS);
}

/*
 * The callback's own descriptor where it has one; of a hand-written loop, that it had read from last, which as a rule
 * is whom it served: "fd 8 = socket 127.0.0.1:40112, read from last (0.05 ms into the turn), after 2 others".
 */
void ub_text_input(const struct ub_text_view *view, const json_t *slow)
{
    const json_t *input = json_object_get(slow, "input"), *callback = json_object_get(slow, "callback");
    uint64_t fd, others = ub_json_u64_or(input, "others", 0);

    if (!ub_json_u64(input ? input : callback, "fd", &fd))
        return;
    ub_pen_label(&view->pen, "input");
    put_descriptor(view, input ? input : callback, fd);
    if (input) {
        fputs(", read from last (", view->pen.out);
        ub_text_put_duration(view, UB_INK_PLAIN, ub_json_u64_or(input, "at_ns", 0));
        fputs(" into the turn)", view->pen.out);
    }
    if (others > 0)
        fprintf(view->pen.out, ", after %" PRIu64 " other%s", others, others == 1 ? "" : "s");
    fputc('\n', view->pen.out);
}

void ub_text_block(const struct ub_text_view *view, const json_t *slow)
{
    UB_CLEANUP(ub_chain_clear) struct ub_chain chain;
    struct ub_advice_query query;
    const char *site = ub_json_string(slow, "site");

    ub_chain_of_record(view->m, slow, &chain);
    put_first_line(view, slow);
    ub_pen_label(&view->pen, "why");
    ub_text_why(view, slow);
    fputc('\n', view->pen.out);
    ub_text_turn(view, slow);
    if (chain.count > 0 || !ub_text_is_whole_turn(slow))
        ub_text_where(view, &chain);
    ub_text_request(view, slow);
    ub_text_input(view, slow);
    ub_text_await(view, slow);
    ub_text_cost(view, slow, ub_model_site_of(view->m, slow));
    ub_text_pool(view, slow);
    ub_text_offload(view, slow);
    ub_advice_query_record(view->m, slow, &query);
    ub_text_do(view, &query);
    if (site) {
        ub_pen_label(&view->pen, "site");
        ub_pen_put(&view->pen, UB_INK_FAINT, site, UB_TEXT_NAME_COLUMNS);
        fputc('\n', view->pen.out);
    }
}

void ub_text_line(const struct ub_text_view *view, const json_t *slow)
{
    UB_CLEANUP(ub_chain_clear) struct ub_chain chain;
    const char *site = ub_json_string(slow, "site");
    uint64_t repeats = ub_json_u64_or(slow, "repeats", 0);
    char place[256];

    ub_chain_of_record(view->m, slow, &chain);
    put_head(view, slow);
    fputc(' ', view->pen.out);
    put_process(view, slow);
    fputs(": ", view->pen.out);
    ub_text_what(view, slow, &chain, ub_advice_of_record(view->m, slow), true);
    if (chain.count > 0 && !chain.foreign && ub_json_string(chain.link[0].frame, "function") &&
        *ub_text_frame_place(chain.link[0].frame, place, sizeof(place))) {
        fputc(' ', view->pen.out);
        ub_escape_put(view->pen.out, place, UB_TEXT_PLACE_COLUMNS);
    }
    if (repeats > 0)
        fprintf(view->pen.out, ", and %" PRIu64 " more", repeats);
    if (site) {
        fputs(", site ", view->pen.out);
        ub_escape_put(view->pen.out, site, UB_TEXT_NAME_COLUMNS);
    }
    put_tags(view, slow);
}
