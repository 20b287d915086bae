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

/* "  Task-2", "  GIL held" */
static void put_python(const struct ub_text_view *view, const json_t *thread)
{
    const char *name = ub_json_string(json_object_get(thread, "task"), "name");

    if (name) {
        fputs("  ", view->pen.out);
        ub_pen_put(&view->pen, UB_INK_FUNCTION, name, UB_TEXT_NAME_COLUMNS);
    }
    if (ub_json_is(thread, "gil", "held"))
        fputs("  holds the GIL", view->pen.out);
    else if (ub_json_is(thread, "gil", "waited"))
        fputs("  waits for the GIL", view->pen.out);
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
    put_python(&view, thread);
    fputc('\n', out);
    if (frames)
        ub_text_stack(&view, frames, ub_model_exe(model, pid));
    put_doubts(&view, thread, frames);
}

void ub_text_task(FILE *out, const struct ub_model *model, json_t *task, bool colour)
{
    const char *name = ub_json_string(task, "name"), *state = ub_json_string(task, "state");
    const char *other = ub_json_string(task, "waits_for");
    const json_t *chain = json_object_get(task, "await");
    UB_CLEANUP(ub_json_drop) json_t *inwards = json_array();
    struct ub_text_view view;
    size_t i;

    ub_text_view_init(&view, out, model, colour);
    ub_pen_put(&view.pen, UB_INK_FUNCTION, name && *name ? name : "task", UB_TEXT_NAME_COLUMNS);
    fputs("  task  ", out);
    ub_escape_put(out, state ? state : "?", UB_TEXT_NAME_COLUMNS);
    if (other) {
        fputs(" for ", out);
        ub_escape_put(out, other, UB_TEXT_NAME_COLUMNS);
    }
    fputc('\n', out);
    for (i = json_array_size(chain); i-- > 0;) {
        json_t *frame = json_deep_copy(json_array_get(chain, i));

        if (frame)
            json_object_set_new(frame, "language", json_string("python"));
        json_array_append_new(inwards, frame);
    }
    ub_text_stack(&view, inwards, NULL);
}
