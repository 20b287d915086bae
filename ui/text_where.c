/*
 * Stacks: the rows of `where`, in columns place, function, source.
 */
#include "text_private.h"
#include "text_escape.h"
#include "text_frames.h"
#include "text_source.h"

#include <stdlib.h>

#define ROWS_INNER      10 /* frames shown from the inside */
#define ALIGNED_COLUMNS 28 /* a longer place stands out of its column rather than pushing all others away */
#define ROWS_OUTER      2  /* and from the outside, when there are more */

struct row {
    const struct ub_chain_link *link; /* NULL: `more` frames are left out here */
    bool library;                     /* the row is about what the link's function called in a library */
    uint32_t more;
    char place[256];
    char function[1024];
    char source[512];
};

struct table {
    struct row *row;
    uint32_t count;
    size_t place_columns, function_columns;
};

static void set_row(const struct ub_text_view *view, struct row *row)
{
    const json_t *frame = row->library ? row->link->library : row->link->frame;
    const char *file = ub_json_string(frame, "file");

    ub_text_frame_place(frame, row->place, sizeof(row->place));
    ub_text_frame_function(frame, row->function, sizeof(row->function));
    if (row->library) {
        const char *module = ub_json_string(frame, "module");

        if (!file)
            snprintf(row->place, sizeof(row->place), "%s", module ? ub_path_base(module) : "library");
        if (row->link->folded > 1)
            snprintf(row->source, sizeof(row->source), "(and %u more inside)", row->link->folded - 1);
    } else if (file) {
        if (ub_text_source(file, ub_json_u64_or(frame, "line", 0), view->not_after, row->source, sizeof(row->source)) <
            0)
            row->source[0] = 0;
    }
}

static void add_row(const struct ub_text_view *view, struct table *t, const struct ub_chain_link *link, bool library)
{
    struct row *row = &t->row[t->count++];
    size_t columns;

    row->link = link;
    row->library = library;
    set_row(view, row);
    columns = ub_escape_columns(row->place);
    if (columns > t->place_columns && columns <= ALIGNED_COLUMNS)
        t->place_columns = columns;
    columns = ub_escape_columns(row->function);
    if (columns > UB_TEXT_NAME_COLUMNS)
        columns = UB_TEXT_NAME_COLUMNS;
    if (row->source[0] && columns > t->function_columns)
        t->function_columns = columns;
}

static void fill(const struct ub_text_view *view, struct table *t, const struct ub_chain *chain)
{
    uint32_t i;

    for (i = 0; i < chain->count; i++) {
        bool skip = chain->count > ROWS_INNER + ROWS_OUTER + 1 && i >= ROWS_INNER && i < chain->count - ROWS_OUTER;

        if (skip) {
            if (i == ROWS_INNER)
                t->row[t->count++].more = chain->count - ROWS_INNER - ROWS_OUTER;
            continue;
        }
        if (chain->link[i].folded > 0)
            add_row(view, t, &chain->link[i], true);
        add_row(view, t, &chain->link[i], false);
    }
}

static void put_padded(const struct ub_pen *pen, enum ub_ink ink, const char *text, size_t max, size_t width)
{
    size_t used = ub_pen_put(pen, ink, text, max);

    if (used < width)
        ub_pen_spaces(pen, width - used);
}

/* Cut in its middle: the line or offset at its end is what is looked for. */
static void put_place(const struct ub_pen *pen, enum ub_ink ink, const char *place, size_t width)
{
    size_t used;

    ub_pen_take(pen, ink);
    used = ub_escape_put_path(pen->out, place, UB_TEXT_PLACE_COLUMNS);
    if (ink != UB_INK_PLAIN)
        ub_pen_drop(pen);
    if (used < width)
        ub_pen_spaces(pen, width - used);
}

static void put_row(const struct ub_text_view *view, const struct table *t, const struct row *row, const char *label)
{
    const struct ub_pen *pen = &view->pen;
    size_t width = row->source[0] ? t->function_columns : 0;

    ub_pen_label(pen, label);
    if (!row->link) {
        ub_pen_printf(pen, UB_INK_FAINT, "... %u more frames", row->more);
        return;
    }
    if (t->place_columns > 0 || row->place[0]) {
        put_place(pen, row->library ? UB_INK_FAINT : UB_INK_PLAIN, row->place, t->place_columns);
        fputs("  ", pen->out);
    }
    put_padded(pen, row->library ? UB_INK_FAINT : UB_INK_FUNCTION, *row->function ? row->function : "?",
               UB_TEXT_NAME_COLUMNS, width);
    if (row->source[0]) {
        fputs("  ", pen->out);
        ub_pen_put(pen, row->library ? UB_INK_FAINT : UB_INK_PLAIN, row->source, UB_TEXT_SOURCE_COLUMNS);
    }
}

/* The arrow stands at the innermost user frame; further out only where more samples passed. */
static void put_samples(const struct ub_text_view *view, const struct ub_chain *chain, const struct ub_chain_link *link)
{
    if (link == chain->link) {
        ub_pen_printf(&view->pen, UB_INK_POINTER, "   <- ");
        ub_pen_printf(&view->pen, UB_INK_PLAIN, "%" PRIu64 " of %" PRIu64 " sample%s", link->samples, chain->samples,
                      chain->samples == 1 ? "" : "s");
    } else if (link->samples != link[-1].samples) {
        ub_pen_printf(&view->pen, UB_INK_FAINT, "   %" PRIu64 " of %" PRIu64, link->samples, chain->samples);
    }
}

/* Nothing at all when there is no name. */
static void put_name(const struct ub_text_view *view, const char *before, const char *name)
{
    if (!*name)
        return;
    fputs(before, view->pen.out);
    ub_escape_put(view->pen.out, name, UB_TEXT_NAME_COLUMNS);
}

static void put_also(const struct ub_text_view *view, const struct ub_chain *chain)
{
    uint64_t told = 0;
    uint32_t i;

    for (i = 0; i < chain->also_count; i++) {
        const struct ub_chain_also *also = &chain->also[i];
        char place[256], function[1024];

        ub_pen_label(&view->pen, "also");
        fprintf(view->pen.out, "%" PRIu64 " of %" PRIu64, also->samples, chain->samples);
        put_name(view, "  ", ub_text_frame_place(also->frame, place, sizeof(place)));
        put_name(view, "  ", ub_text_frame_function(also->frame, function, sizeof(function)));
        if (also->caller)
            put_name(view, " in ", ub_text_frame_function(also->caller, function, sizeof(function)));
        fputc('\n', view->pen.out);
        told += also->samples;
    }
    if (told < chain->also_samples) {
        ub_pen_label(&view->pen, "also");
        fprintf(view->pen.out, "%" PRIu64 " of %" PRIu64 "  elsewhere\n", chain->also_samples - told, chain->samples);
    }
}

/* How far the stacks can be believed. */
static void put_doubts(const struct ub_text_view *view, const struct ub_chain *chain)
{
    if (chain->foreign) {
        ub_pen_label(&view->pen, "");
        ub_pen_printf(&view->pen, UB_INK_FAINT, "(no frame of the program's own code is known)\n");
    }
    if (chain->unproven > 0) {
        ub_pen_label(&view->pen, "");
        ub_pen_printf(&view->pen, UB_INK_WARNING,
                      "unproven: %" PRIu64 " of %" PRIu64 " stacks; the thread may have run while it was copied\n",
                      chain->unproven, chain->samples);
    }
    if (chain->incomplete > 0) {
        ub_pen_label(&view->pen, "");
        ub_pen_printf(&view->pen, UB_INK_WARNING,
                      "cut short: %" PRIu64 " of %" PRIu64 " stacks lack their outer frames\n", chain->incomplete,
                      chain->samples);
    }
}

void ub_text_where(const struct ub_text_view *view, const struct ub_chain *chain)
{
    struct table t = {.row = calloc((size_t)(ROWS_INNER + ROWS_OUTER + 2) * 2, sizeof(*t.row))};
    uint32_t i;

    if (!t.row)
        return;
    fill(view, &t, chain);
    for (i = 0; i < t.count; i++) {
        put_row(view, &t, &t.row[i], i == 0 ? "where" : "");
        if (t.row[i].link && !t.row[i].library)
            put_samples(view, chain, t.row[i].link);
        fputc('\n', view->pen.out);
    }
    if (t.count == 0) {
        ub_pen_label(&view->pen, "where");
        ub_pen_printf(&view->pen, UB_INK_WARNING, "%s\n",
                      chain->no_stack > 0 ? "not known: its stack could not be taken"
                                          : "not known: it was over before it was looked at");
    }
    free(t.row);
    put_also(view, chain);
    put_doubts(view, chain);
}

static bool has_python(const json_t *frames)
{
    const json_t *frame;
    size_t i;

    json_array_foreach (frames, i, frame) {
        if (ub_json_is(frame, "language", "python"))
            return true;
    }
    return false;
}

void ub_text_stack(const struct ub_text_view *view, const json_t *frames, const char *exe)
{
    char place[256], function[1024], source[512];
    const json_t *frame;
    size_t i, width = 0;
    bool python = has_python(frames);

    json_array_foreach (frames, i, frame) {
        size_t columns = ub_escape_columns(ub_text_frame_place(frame, place, sizeof(place)));

        if (columns > width && columns <= ALIGNED_COLUMNS)
            width = columns;
    }
    json_array_foreach (frames, i, frame) {
        enum ub_shown class = ub_text_frame_class(frame, exe);
        bool own = class == UB_SHOWN_USER;

        if (python && class == UB_SHOWN_RUNTIME) /* the interpreter's own frames, between Python's */
            continue;
        fputs("    ", view->pen.out);
        ub_text_frame_place(frame, place, sizeof(place));
        put_place(&view->pen, own ? UB_INK_PLAIN : UB_INK_FAINT, place, width);
        fputs("  ", view->pen.out);
        ub_text_frame_function(frame, function, sizeof(function));
        ub_pen_put(&view->pen, own ? UB_INK_FUNCTION : UB_INK_FAINT, *function ? function : "?", UB_TEXT_NAME_COLUMNS);
        if (own && ub_json_is(frame, "language", "python") && ub_json_string(frame, "file") &&
            ub_text_source(ub_json_string(frame, "file"), ub_json_u64_or(frame, "line", 0), view->not_after, source,
                           sizeof(source)) == 0) {
            fputs("  ", view->pen.out);
            ub_pen_put(&view->pen, UB_INK_PLAIN, source, UB_TEXT_SOURCE_COLUMNS);
        }
        fputc('\n', view->pen.out);
    }
}
