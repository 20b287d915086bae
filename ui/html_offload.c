/* The HTML report's section of what left the loops. */
#include "html_data.h"
#include "figures.h"
#include "json_get.h"
#include "text_frames.h"
#include "text_private.h"

#define ROWS_MAX    200 /* of each table; the rest is counted */
#define REASONS_MAX 20  /* there are fewer */

/* [function, place]; [] when nothing is known of it. */
static json_t *place_json(const json_t *place)
{
    const char *function = ub_json_string(place, "function");
    char name[1026], at[256];

    if (!place)
        return json_array();
    return json_pack("[o, o]", ub_html_text(function ? ub_text_function_name(function, name, sizeof(name)) : "?", 120),
                     ub_html_text(ub_text_frame_place(place, at, sizeof(at)), 80));
}

static void copy_numbers(json_t *o, const json_t *line)
{
    static const char *const keys[] = {"moved", "saved_ns", "longest_ns", "wait_ns", "beside", "first", "first_ns"};

    for (size_t i = 0; i < UB_ARRAY_LEN(keys); i++)
        json_object_set_new(o, keys[i], ub_html_number(ub_json_u64_or(line, keys[i], 0)));
}

/* [[function, place], kind, count], the most frequent first; *others: those that are not among them. */
static json_t *meanwhile_json(const json_t *line, uint64_t *others)
{
    const json_t *list = json_object_get(line, "meanwhile"), *one;
    json_t *ret = json_array();
    size_t i;

    *others = ub_json_u64_or(line, "meanwhile_others", 0);
    json_array_foreach (list, i, one) {
        uint64_t count = ub_json_u64_or(one, "count", 0);

        if (i < UB_TEXT_MEANWHILE)
            json_array_append_new(ret, json_pack("[o, o, o]", place_json(one),
                                                 ub_html_text(ub_json_string(one, "kind"), 40), ub_html_number(count)));
        else
            *others += count;
    }
    return ret;
}

/* Calls that left, or did not only because nobody knew yet that they block. */
static json_t *moved_json(const json_t *line)
{
    const json_t *caller = json_object_get(line, "caller");
    json_t *o = json_pack("{s:o, s:o}", "call", ub_html_text(ub_json_string(line, "call"), 120), "at",
                          place_json(caller ? caller : json_object_get(line, "callback")));
    uint64_t others;

    copy_numbers(o, line);
    json_object_set_new(o, "meanwhile", meanwhile_json(line, &others));
    json_object_set_new(o, "others", ub_html_number(others));
    return o;
}

static json_t *would_json(const json_t *line)
{
    return json_pack("{s:o, s:o, s:o, s:o}", "call", ub_html_text(ub_json_string(line, "call"), 120), "site",
                     ub_html_text(ub_json_string(line, "site"), 64), "n",
                     ub_html_number(ub_json_u64_or(line, "would_move", 0)), "saved_ns",
                     ub_html_number(ub_json_u64_or(line, "saved_ns", 0)));
}

static json_t *pinned_json(const json_t *line)
{
    json_t *reasons = json_array();
    const json_t *pinned = json_object_get(line, "pinned"), *n;
    const char *reason;

    json_object_foreach ((json_t *)pinned, reason, n) {
        if (json_array_size(reasons) == REASONS_MAX)
            break;
        json_array_append_new(reasons, json_pack("[o, o, o]", ub_html_text(reason, 40),
                                                 ub_html_text(ub_text_offload_reason(reason), UB_HTML_TEXT_MAX),
                                                 ub_html_number(ub_json_u64_or(pinned, reason, 0))));
    }
    return json_pack("{s:o, s:o, s:o, s:o, s:o}", "call", ub_html_text(ub_json_string(line, "call"), 120), "site",
                     ub_html_text(ub_json_string(line, "site"), 64), "reasons", reasons, "ns",
                     ub_html_number(ub_json_u64_or(line, "pinned_ns", 0)), "lock",
                     place_json(json_object_get(line, "lock")));
}

/* The rows of one table; `hidden` counts what did not fit. */
static void add_row(json_t *rows, json_t *row, uint64_t *hidden)
{
    if (json_array_size(rows) < ROWS_MAX) {
        json_array_append_new(rows, row);
    } else {
        (*hidden)++;
        json_decref(row);
    }
}

static void set_tables(json_t *o, const json_t *lines)
{
    json_t *moved = json_array(), *would = json_array(), *pinned = json_array();
    const json_t *line;
    uint64_t hidden = 0;
    size_t i;

    json_array_foreach (lines, i, line) {
        if (ub_json_u64_or(line, "moved", 0) || json_object_get(line, "first"))
            add_row(moved, moved_json(line), &hidden);
        if (ub_json_u64_or(line, "would_move", 0))
            add_row(would, would_json(line), &hidden);
        if (json_object_size(json_object_get(line, "pinned")) > 0)
            add_row(pinned, pinned_json(line), &hidden);
    }
    json_object_set_new(o, "moved", moved);
    json_object_set_new(o, "would", would);
    json_object_set_new(o, "pinned", pinned);
    json_object_set_new(o, "hidden", ub_html_number(hidden));
}

/* Of the newest run. */
static const char *mode_of(const struct ub_model *m)
{
    const struct ub_run *run = ub_model_current_run(m);

    return run ? ub_json_string(run->header, "offload") : NULL;
}

static json_t *total_json(const struct ub_model *m)
{
    struct ub_figures_offload f;

    if (!ub_figures_offload(m, &f))
        return json_object();
    return json_pack("{s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "busy_ns", ub_html_number(f.busy_ns), "moved",
                     ub_html_number(f.moved), "saved_ns", ub_html_number(f.saved_ns), "wait_ns",
                     ub_html_number(f.wait_ns), "threads", ub_html_number(f.threads), "queued",
                     ub_html_number(f.queued), "stack", ub_html_number(f.stack_bytes), "beside",
                     ub_html_number(f.beside));
}

static void set_lag(json_t *list, const char *key, const struct ub_loop_lag *lag)
{
    if (lag->known)
        json_object_set_new(list, key,
                            json_pack("[o, o]", ub_html_number(lag->p99_ns), ub_html_number(lag->longest_ns)));
}

/* Of the loop that lags most: measured, and foretold by this run (a dry one) or for it (by the file `from`). */
static json_t *lag_json(const struct ub_model *m)
{
    const struct ub_loop *loop = ub_model_slowest_loop(m);
    const struct ub_run *run = ub_model_current_run(m);
    const json_t *before = run ? json_object_get(run->header, "predicted") : NULL;
    struct ub_loop_lag predicted = ub_model_lag(before);
    json_t *o = json_object();

    if (!loop)
        return o;
    set_lag(o, "measured", &loop->lag);
    set_lag(o, "moved", &loop->predicted);
    set_lag(o, "policy", &loop->predicted_policy);
    set_lag(o, "predicted", &predicted);
    if (predicted.known)
        json_object_set_new(o, "from", ub_html_text(ub_json_string(before, "from"), 120));
    return o;
}

json_t *ub_html_offload(const struct ub_model *m)
{
    const json_t *lines = ub_model_offload(m);
    json_t *o;

    if (json_array_size(lines) == 0)
        return NULL;
    o = json_pack("{s:o, s:o, s:o}", "mode", ub_html_text(mode_of(m), 40), "total", total_json(m), "lag", lag_json(m));
    set_tables(o, lines);
    return o;
}
