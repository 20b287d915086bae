/*
 * What `top` shows, as rows of text: the same for the screen and for --once.
 */
#include "top.h"
#include "findings.h"
#include "text.h"
#include "text_escape.h"
#include "text_private.h"
#include "utf8.h"

#include <stdlib.h>
#include <strings.h>
#include <wchar.h>

#define SPARK_MAX 24

/* ---- rows ------------------------------------------------------------------ */

static FILE *row_begin(char **text, size_t *size)
{
    *text = NULL;
    return open_memstream(text, size);
}

static void add(struct ub_top_view *v, char *text, enum ub_ink ink, bool chosen)
{
    if (v->height > 0 && v->rows >= v->height) {
        free(text);
        return;
    }
    if (v->rows == v->size) {
        uint32_t size = v->size ? v->size * 2 : 64;
        struct ub_top_row *row = realloc(v->row, size * sizeof(*row));

        if (!row) {
            free(text);
            return;
        }
        v->row = row;
        v->size = size;
    }
    v->row[v->rows++] = (struct ub_top_row){.text = text ? text : strdup(""), .ink = ink, .chosen = chosen};
}

static void add_text(struct ub_top_view *v, enum ub_ink ink, const char *text)
{
    add(v, strdup(text), ink, false);
}

void ub_top_view_clear(struct ub_top_view *v)
{
    uint32_t i;

    for (i = 0; i < v->rows; i++)
        free(v->row[i].text);
    v->rows = 0;
}

/* A name in exactly `columns`, to the left. */
static void put_left(FILE *out, const char *text, size_t columns)
{
    size_t used = ub_escape_put(out, text ? text : "", columns);

    for (; used < columns; used++)
        fputc(' ', out);
}

static void put_time(FILE *out, uint64_t ns)
{
    char buf[UB_TEXT_DURATION_MAX];

    fprintf(out, " %8s", ub_text_duration(ns, buf, sizeof(buf)));
}

/* ---- heading --------------------------------------------------------------- */

static void add_heading(struct ub_top_view *v, struct ub_top_source *s)
{
    const struct ub_model *m = ub_top_model(s);
    const struct ub_stall_totals *t = ub_model_totals(m, UB_STALL_COUNTED);
    const struct ub_run *run = ub_model_current_run(m);
    char *text, total[UB_TEXT_DURATION_MAX], max[UB_TEXT_DURATION_MAX];
    uint64_t begin = run ? ub_json_u64_or(run->header, "monotonic_ns", 0) : 0;
    size_t size;
    FILE *out = row_begin(&text, &size);

    if (!out)
        return;
    fputs("unblock top  ", out);
    ub_escape_put_path(out, ub_top_name(s), v->width > 60 ? v->width - 40 : 24);
    if (run && begin > 0 && run->last_ns > begin) {
        fputc(' ', out);
        put_time(out, run->last_ns - begin);
    }
    fputs(v->paused ? "  PAUSED" : ub_top_ended(s) ? "  ended" : "  live", out);
    fclose(out);
    add(v, text, UB_INK_LABEL, false);
    out = row_begin(&text, &size);
    if (!out)
        return;
    if (t->count == 0)
        fputs("no stalls", out);
    else
        fprintf(out, "%" PRIu64 " stall%s, %s lost, worst %s", t->count, t->count == 1 ? "" : "s",
                ub_text_duration(t->total_ns, total, sizeof(total)), ub_text_duration(t->max_ns, max, sizeof(max)));
    if (t->ongoing > 0)
        fprintf(out, "; %" PRIu64 " %s on now", t->ongoing, t->ongoing == 1 ? "goes" : "go");
    fclose(out);
    add(v, text, t->count ? UB_INK_STALL : UB_INK_GOOD, false);
}

/* Calls that were moved so far, pins, the executor. */
static void add_offload(struct ub_top_view *v, struct ub_top_source *s)
{
    struct ub_text_view view;
    char *text, *line, *rest;
    size_t size;
    FILE *out = row_begin(&text, &size);

    if (!out)
        return;
    ub_text_view_init(&view, out, ub_top_model(s), false);
    ub_text_offload_live(&view);
    fclose(out);
    for (rest = text; rest && (line = strsep(&rest, "\n")) && *line;)
        add_text(v, UB_INK_PLAIN, line);
    free(text);
}

/* ---- loops ----------------------------------------------------------------- */

struct loop_line {
    const char *program, *kind;
    uint64_t pid, tid, turns, busy_ns, observed_ns, running_ns, p50_ns, p99_ns, max_ns;
    bool figures;
};

/* Time lost in each of the last seconds, a full block is half a second or more. */
static void put_spark(FILE *out, const struct ub_top_view *v, const struct ub_top_source *s, uint64_t pid, uint64_t tid,
                      uint32_t count)
{
    static const char *const blocks[] = {" ",      "\u2581", "\u2582", "\u2583", "\u2584",
                                         "\u2585", "\u2586", "\u2587", "\u2588"};
    static const char plain[] = " .:-=+*#@";
    uint64_t lost[SPARK_MAX];
    uint32_t i;

    ub_top_recent(s, pid, tid, lost, count);
    fputc(' ', out);
    for (i = 0; i < count; i++) {
        uint32_t level = lost[i] == 0 ? 0 : (uint32_t)(1 + lost[i] * 7 / 500000000);

        level = level > 8 ? 8 : level;
        if (v->unicode)
            fputs(blocks[level], out);
        else
            fputc(plain[level], out);
    }
}

static void add_loop(struct ub_top_view *v, const struct ub_top_source *s, const struct loop_line *l)
{
    bool wide = v->width >= 96;
    char *text;
    size_t size;
    FILE *out = row_begin(&text, &size);

    if (!out)
        return;
    put_left(out, l->program ? l->program : "?", wide ? 20 : 12);
    fputc(' ', out);
    put_left(out, l->kind, 8);
    fprintf(out, " %7" PRIu64, l->tid);
    if (l->figures && l->observed_ns > 0)
        fprintf(out, " %5.1f%%", 100.0 * (double)l->busy_ns / (double)l->observed_ns);
    else
        fputs("      -", out);
    if (wide)
        put_time(out, l->p50_ns);
    put_time(out, l->p99_ns);
    put_time(out, l->max_ns);
    if (v->width >= 70 || v->height == 0)
        put_spark(out, v, s, l->pid, l->tid, wide || v->height == 0 ? SPARK_MAX : 10);
    fclose(out);
    add(v, text, UB_INK_PLAIN, false);
}

static bool read_live(const json_t *record, struct loop_line *l)
{
    *l = (struct loop_line){.program = ub_json_string(record, "program"),
                            .kind = ub_json_string(record, "loop"),
                            .pid = ub_json_u64_or(record, "pid", 0),
                            .tid = ub_json_u64_or(record, "tid", 0),
                            .p50_ns = ub_json_u64_or(record, "p50_ns", 0),
                            .p99_ns = ub_json_u64_or(record, "p99_ns", 0),
                            .max_ns = ub_json_u64_or(record, "max_ns", 0)};
    return l->pid != 0;
}

static void take_recorded(const struct ub_loop *loop, struct loop_line *l)
{
    l->program = loop->program ? loop->program : l->program;
    l->kind = *loop->kind ? loop->kind : l->kind;
    l->pid = loop->pid;
    l->tid = loop->tid;
    l->busy_ns = loop->busy_ns;
    l->observed_ns = loop->observed_ns;
    l->figures = loop->has_stats;
    if (l->p99_ns == 0) {
        l->p50_ns = ub_distribution_percentile(&loop->duration, 500);
        l->p99_ns = ub_distribution_percentile(&loop->duration, 990);
    }
    if (loop->max_ns > l->max_ns)
        l->max_ns = loop->max_ns;
}

static const json_t *live_of(const struct ub_top_source *s, uint64_t pid, uint64_t tid)
{
    const json_t *record;
    size_t i;

    json_array_foreach (ub_top_live_loops(s), i, record)
        if (ub_json_u64_or(record, "pid", 0) == pid && ub_json_u64_or(record, "tid", 0) == tid)
            return record;
    return NULL;
}

static void add_loops(struct ub_top_view *v, struct ub_top_source *s, uint32_t most)
{
    size_t count, i;
    const struct ub_loop **loops = ub_model_loops(ub_top_model(s), &count);
    char head[160];

    snprintf(head, sizeof(head), "%-*s %-8s %7s %6s%s %8s %8s%s", v->width >= 96 ? 20 : 12, "PROGRAM", "LOOP", "TID",
             "BUSY", v->width >= 96 ? "      P50" : "", "P99", "MAX",
             v->width >= 96 || v->height == 0 ? " LOST, LAST 24 S"
             : v->width >= 70                 ? " LAST 10 S"
                                              : "");
    add_text(v, UB_INK_LABEL, head);
    for (i = 0; i < count && i < most; i++) {
        struct loop_line l;
        const json_t *live = live_of(s, loops[i]->pid, loops[i]->tid);

        if (!read_live(live, &l))
            l = (struct loop_line){0};
        take_recorded(loops[i], &l);
        add_loop(v, s, &l);
    }
    if (count == 0)
        add_text(v, UB_INK_FAINT, "no event loop was seen yet");
    free(loops);
}

/* ---- call sites -------------------------------------------------------------- */

static bool fits(const struct ub_top_view *v, const struct ub_finding *f)
{
    return *v->search == 0 || strcasestr(f->what, v->search) || strcasestr(f->site->id, v->search) ||
           strcasestr(f->why, v->search) || (f->site->program && strcasestr(f->site->program, v->search)) ||
           strcasestr(ub_model_cause_name(ub_model_site_cause(f->site)), v->search);
}

/* What the list has room for beside the call sites themselves, which matter most. */
static bool shows_p99(const struct ub_top_view *v)
{
    return v->height == 0 || v->width >= 76;
}

static bool shows_all(const struct ub_top_view *v) /* p50 and cause */
{
    return v->height == 0 || v->width >= 100;
}

static void add_site(struct ub_top_view *v, const struct ub_finding *f, bool chosen)
{
    const struct ub_distribution *d = &f->site->durations;
    size_t used = shows_all(v) ? 58 : shows_p99(v) ? 38 : 29, columns = v->width > used + 8 ? v->width - used : 8;
    char *text;
    size_t size;
    FILE *out = row_begin(&text, &size);

    if (!out)
        return;
    fputs(chosen ? ">" : " ", out);
    put_time(out, d->total_ns);
    fprintf(out, " %6" PRIu64, d->count);
    if (shows_all(v))
        put_time(out, ub_distribution_percentile(d, 500));
    if (shows_p99(v))
        put_time(out, ub_distribution_percentile(d, 990));
    put_time(out, d->max_ns);
    if (shows_all(v))
        fprintf(out, "  %-9s", ub_model_cause_name(ub_model_site_cause(f->site)));
    fputs(f->site->ongoing > 0 ? " ! " : "   ", out);
    ub_escape_put(out, f->what, v->height == 0 ? 0 : columns);
    fclose(out);
    add(v, text, f->site->ongoing > 0 ? UB_INK_STALL : UB_INK_PLAIN, chosen);
}

/* The chosen one stays chosen, and in sight. */
static void settle_choice(struct ub_top_view *v, const struct ub_finding **list, size_t count)
{
    size_t i;

    for (i = 0; *v->chosen_site && i < count; i++)
        if (strncmp(list[i]->site->id, v->chosen_site, sizeof(v->chosen_site) - 1) == 0)
            v->chosen = i;
    if (v->chosen >= count)
        v->chosen = count > 0 ? count - 1 : 0;
    if (v->chosen < v->first)
        v->first = v->chosen;
    if (v->list_rows > 0 && v->chosen >= v->first + v->list_rows)
        v->first = v->chosen - v->list_rows + 1;
    if (v->list_rows > 0 && v->first + v->list_rows > count)
        v->first = count > v->list_rows ? count - v->list_rows : 0;
    if (count > 0)
        snprintf(v->chosen_site, sizeof(v->chosen_site), "%s", list[v->chosen]->site->id);
}

static void add_sites(struct ub_top_view *v, const struct ub_findings *f)
{
    static const char *const names[] = {"lost", "max", "count", "p99"};
    const struct ub_finding **list = calloc(f->count + 1, sizeof(*list)); /* NOLINT(bugprone-sizeof-expression) */
    char head[200];
    size_t i;

    if (!list)
        return;
    v->sites = 0;
    for (i = 0; i < f->count; i++)
        if (fits(v, &f->finding[i]))
            list[v->sites++] = &f->finding[i];
    v->list_rows = v->height > v->rows + 2 ? v->height - v->rows - 2 : 0;
    settle_choice(v, list, v->sites);
    snprintf(head, sizeof(head), " %8s  %6s%s%s %8s%s   CALL SITE (%zu%s, by %s)", "LOST", "STALLS",
             shows_all(v) ? "      P50" : "", shows_p99(v) ? "      P99" : "", "MAX", shows_all(v) ? "  CAUSE    " : "",
             v->sites, v->sites < f->count ? " found" : "", names[v->sort]);
    add_text(v, UB_INK_LABEL, head);
    for (i = v->height ? v->first : 0; i < v->sites && (v->height == 0 || i < v->first + v->list_rows); i++)
        add_site(v, list[i], v->height > 0 && i == v->chosen);
    free(list);
}

/* ---- one site ------------------------------------------------------------------ */

static const struct ub_finding *chosen_finding(const struct ub_top_view *v, const struct ub_findings *f)
{
    size_t i;

    for (i = 0; i < f->count; i++)
        if (strncmp(f->finding[i].site->id, v->chosen_site, sizeof(v->chosen_site) - 1) == 0)
            return &f->finding[i];
    return NULL;
}

#define LABEL_COLUMNS 9 /* "  where  " */

/*
 * Where a line of `text` must end to fit `columns`: behind a word that ends after `least`, else anywhere
 * between two characters.
 */
static size_t fold(const char *text, size_t columns, size_t least)
{
    size_t at = 0, used = 0, word = 0, left = strlen(text);

    while (left > 0) {
        uint32_t c = '?';
        size_t len = ub_utf8_decode((const unsigned char *)text + at, left, &c);
        int width = len > 0 ? wcwidth((wchar_t)c) : 1;

        used += width > 0 ? (size_t)width : 1;
        if (used > columns)
            return word > least ? word : at;
        at += len > 0 ? len : 1;
        left -= len > 0 ? len : 1;
        if (c == ' ')
            word = at;
    }
    return at;
}

/* The lines of `text`, those that are too long for the screen in several. */
static char *folded(const struct ub_top_view *v, const char *text)
{
    char *folded = NULL;
    size_t size, indent = 0;
    FILE *out = open_memstream(&folded, &size);

    while (out && *text) {
        size_t line = strcspn(text, "\n"), columns = v->width > 2 * LABEL_COLUMNS ? v->width : 2 * LABEL_COLUMNS, part;
        char *whole = strndup(text, line);

        part = whole ? fold(whole, columns - indent, indent > 0 ? 0 : LABEL_COLUMNS) : 0;
        fprintf(out, "%*s%.*s\n", (int)indent, "", (int)part, text);
        free(whole);
        if (part == 0) /* an empty line, or no memory */
            part = line;
        indent = part < line ? LABEL_COLUMNS : 0;
        text += part + (part == line && text[line] == '\n');
    }
    if (out)
        fclose(out);
    return folded;
}

static void add_details(struct ub_top_view *v, struct ub_top_source *s, const struct ub_finding *f)
{
    struct ub_text_view view;
    char *text, *whole, *line, *rest;
    size_t size, lines = 0, skip;
    FILE *out = row_begin(&whole, &size);

    if (!out)
        return;
    ub_text_view_init(&view, out, ub_top_model(s), false);
    ub_text_site(&view, f->site);
    fclose(out);
    text = folded(v, whole);
    free(whole);
    if (!text)
        return;
    for (line = text; (line = strchr(line, '\n')); line++)
        lines++;
    v->list_rows = v->height > v->rows + 1 ? v->height - v->rows - 1 : 1;
    if (v->details_first + v->list_rows > lines)
        v->details_first = lines > v->list_rows ? lines - v->list_rows : 0;
    skip = v->details_first;
    for (rest = text; (line = strsep(&rest, "\n")) && rest;) {
        if (skip > 0)
            skip--;
        else if (v->rows + 1 < v->height)
            add_text(v, UB_INK_PLAIN, line);
    }
    free(text);
}

/* ---- all ------------------------------------------------------------------------- */

void ub_top_build(struct ub_top_view *v, struct ub_top_source *s)
{
    struct ub_model *m = ub_top_model(s);
    const struct ub_finding *chosen;
    struct ub_findings f;

    ub_top_view_clear(v);
    if (ub_findings_make_sorted(m, v->sort, &f) < 0)
        return;
    add_heading(v, s);
    add_offload(v, s);
    chosen = v->details ? chosen_finding(v, &f) : NULL;
    if (chosen) {
        add_details(v, s, chosen);
    } else {
        v->details = false;
        add_loops(v, s, v->height == 0 ? 1000 : v->height < 16 ? 2 : v->height / 4);
        if (v->height == 0 || v->height >= 20)
            add_text(v, UB_INK_PLAIN, "");
        add_sites(v, &f);
    }
    ub_findings_clear(&f);
}
