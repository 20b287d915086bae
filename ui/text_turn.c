/*
 * A turn that was slow although no callback in it was: how many there were, and
 * which of them took most.
 */
#include "text_private.h"
#include "text_escape.h"
#include "text_frames.h"

#define SHOWN 5

bool ub_text_is_whole_turn(const json_t *slow)
{
    return json_is_array(json_object_get(slow, "callbacks"));
}

/* "240 x worker()  app.py:12  72 ms" */
static void put_big(const struct ub_text_view *view, const json_t *big)
{
    const json_t *callback = json_object_get(big, "callback");
    const char *function = ub_json_string(callback, "function"), *kind = ub_json_string(big, "kind");
    uint64_t count = ub_json_u64_or(big, "count", 1);
    char name[1024], place[256];

    ub_pen_label(&view->pen, "");
    fprintf(view->pen.out, "%" PRIu64 " x ", count);
    if (function)
        ub_pen_put(&view->pen, UB_INK_FUNCTION, ub_text_function_name(function, name, sizeof(name)),
                   UB_TEXT_NAME_COLUMNS);
    else
        ub_escape_put(view->pen.out, kind ? kind : "?", UB_TEXT_NAME_COLUMNS);
    if (*ub_text_frame_place(callback, place, sizeof(place))) {
        fputs("  ", view->pen.out);
        ub_escape_put_path(view->pen.out, place, UB_TEXT_PLACE_COLUMNS);
    }
    fputs("  ", view->pen.out);
    ub_text_put_duration(view, UB_INK_STALL, ub_json_u64_or(big, "duration_ns", 0));
    fputc('\n', view->pen.out);
}

void ub_text_turn(const struct ub_text_view *view, const json_t *slow)
{
    const json_t *bigs = json_object_get(slow, "callbacks"), *big;
    uint64_t count = ub_json_u64_or(slow, "callback_count", 0);
    bool tasks = ub_json_is(json_array_get(bigs, 0), "kind", "task");
    size_t i;

    if (!ub_text_is_whole_turn(slow))
        return;
    ub_pen_label(&view->pen, "turn");
    fprintf(view->pen.out, "%" PRIu64 " %s%s in one turn, none of them slow by itself%s\n", count,
            tasks ? "step" : "callback", count == 1 ? "" : "s", json_array_size(bigs) ? "; most took:" : "");
    json_array_foreach (bigs, i, big) {
        if (i < SHOWN)
            put_big(view, big);
    }
}
