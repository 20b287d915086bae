/*
 * One thread of a dump.
 */
#include "text_private.h"
#include "text_escape.h"

static void put_state(const struct ub_text_view *view, const json_t *thread)
{
    const char *state = ub_json_string(thread, "state");
    uint64_t ns;

    if (state) {
        fputs("  ", view->pen.out);
        ub_escape_put(view->pen.out, state, UB_TEXT_NAME_COLUMNS);
    }
    if (ub_json_u64(thread, "in_state_ns", &ns)) {
        fputs(state ? " " : "  ", view->pen.out);
        ub_text_put_duration(view, UB_INK_PLAIN, ns);
    }
}

/* `call` is an object as in `slow`, or just a name. */
static void put_call(const struct ub_text_view *view, const json_t *thread)
{
    const json_t *call = json_object_get(thread, "call");

    if (json_is_object(call)) {
        fputs("  ", view->pen.out);
        ub_text_call(view, call);
    } else if (json_is_string(call)) {
        fputs("  ", view->pen.out);
        ub_pen_put(&view->pen, UB_INK_CAUSE, json_string_value(call), UB_TEXT_LINE_COLUMNS);
    }
}

static const json_t *frames_of(const struct ub_model *model, const json_t *thread)
{
    const json_t *frames = json_object_get(thread, "frames"), *id = json_object_get(thread, "stack");

    if (json_is_array(frames))
        return frames;
    return json_is_integer(id) ? ub_model_stack(model, json_integer_value(id)) : NULL;
}

static void put_doubts(const struct ub_text_view *view, const json_t *thread, const json_t *frames)
{
    const char *why = ub_json_string(thread, "error");

    if (!frames) {
        fputs("    ", view->pen.out);
        ub_pen_printf(&view->pen, UB_INK_WARNING, "no stack");
        if (why) {
            fputs(": ", view->pen.out);
            ub_escape_put(view->pen.out, why, UB_TEXT_LINE_COLUMNS);
        }
        fputc('\n', view->pen.out);
        return;
    }
    if (ub_json_is(thread, "proof", "unproven"))
        ub_pen_printf(&view->pen, UB_INK_WARNING, "    unproven: it may have run while its stack was copied\n");
    if (json_is_false(json_object_get(thread, "complete")))
        ub_pen_printf(&view->pen, UB_INK_WARNING, "    cut short: its outer frames are missing\n");
}

void ub_text_thread(FILE *out, const struct ub_model *model, json_t *thread, bool colour)
{
    uint64_t pid = ub_json_u64_or(thread, "pid", 0);
    const char *name = ub_json_string(thread, "name");
    const json_t *frames = frames_of(model, thread);
    struct ub_text_view view;

    ub_text_view_init(&view, out, model, colour);
    ub_pen_put(&view.pen, UB_INK_FUNCTION, name && *name ? name : "thread", UB_TEXT_NAME_COLUMNS);
    fprintf(out, "  tid %" PRIu64, ub_json_u64_or(thread, "tid", pid));
    put_state(&view, thread);
    put_call(&view, thread);
    fputc('\n', out);
    if (frames)
        ub_text_stack(&view, frames, ub_model_exe(model, pid));
    put_doubts(&view, thread, frames);
}
