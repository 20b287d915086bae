/*
 * One HTML file that needs nothing else: ui/html/ is the page, this is its data.
 *
 * All text of strangers is made harmless twice: control characters and those
 * that change the order of others are escaped as for a terminal, and in the JSON
 * block '<', '>' and '&' are written as numbers, so that no "</script>" ends it.
 * The page itself only ever sets textContent. Nothing is loaded from anywhere:
 * default-src 'none', and a nonce for the one style and the one script.
 *
 * Longer than most files here: it is one document, whose parts share the indexes
 * of frames and sites.
 */
#include "export.h"
#include "advice.h"
#include "chain.h"
#include "html_data.h"
#include "html_page.h"
#include "lost.h"
#include "places.h"
#include "text_escape.h"
#include "text_frames.h"
#include "text_private.h"
#include "timeline.h"

#include <inttypes.h>
#include <stdlib.h>
#include <sys/random.h>

#define SITES_MAX   1000  /* with their stacks; the rest is counted */
#define MARKS_MAX   20000 /* stalls drawn one by one: the longest; the others as sums of a time */
#define BUCKETS     600
#define TRACKS_MAX  200
#define EDGES_MAX   160 /* of a histogram */
#define NOTES_SHOWN 100

/* ---- text ------------------------------------------------------------- */

static json_t *text(const char *s)
{
    return ub_html_text(s, UB_HTML_TEXT_MAX);
}

static void set(json_t *o, const char *key, json_t *value)
{
    json_object_set_new(o, key, value);
}

static void set_text(json_t *o, const char *key, const char *value)
{
    if (value && *value)
        set(o, key, text(value));
}

/* JSON as the content of a script element. */
static int put_json(const char *bytes, size_t len, void *out)
{
    size_t i;

    for (i = 0; i < len; i++) {
        if (bytes[i] == '<' || bytes[i] == '>' || bytes[i] == '&')
            fprintf(out, "\\u%04x", bytes[i]);
        else
            fputc(bytes[i], out);
    }
    return 0;
}

/* ---- figures ------------------------------------------------------------ */

static json_t *totals_json(const struct ub_stall_totals *t)
{
    return json_pack("{s:o, s:o, s:o, s:o}", "n", ub_html_number(t->count), "total", ub_html_number(t->total_ns), "max",
                     ub_html_number(t->max_ns), "ongoing", ub_html_number(t->ongoing));
}

static void set_distribution(json_t *o, const struct ub_distribution *d)
{
    static const struct {
        const char *name;
        uint32_t permille;
    } points[] = {{"p50", 500}, {"p99", 990}, {"p999", 999}};
    json_t *edges = json_array();
    uint32_t i, step = d->used / EDGES_MAX + 1;

    for (i = 0; i < UB_ARRAY_LEN(points); i++)
        set(o, points[i].name, ub_html_number(ub_distribution_percentile(d, points[i].permille)));
    for (i = 0; i < d->used; i += step) {
        uint64_t count = 0, sum = 0;
        uint32_t k;

        for (k = i; k < i + step && k < d->used; k++) {
            count = ub_add_saturated(count, d->bucket[k].count);
            sum = ub_add_saturated(sum, d->bucket[k].sum_ns);
        }
        if (count > 0) {
            json_array_append_new(edges, ub_html_number(sum / count));
            json_array_append_new(edges, ub_html_number(count));
        }
    }
    set(o, "hist", edges);
}

static json_t *runs_json(const struct ub_model *m)
{
    json_t *list = json_array();
    uint32_t i;
    size_t k;

    for (i = 0; i < ub_model_runs(m) && i < 50; i++) {
        const struct ub_run *run = ub_model_run(m, i);
        json_t *o = json_object(), *words = json_array();
        const json_t *word;
        uint64_t begin = ub_json_u64_or(run->header, "monotonic_ns", 0);

        json_array_foreach (json_object_get(run->header, "command"), k, word)
            if (k < 12)
                json_array_append_new(words, ub_html_text(json_string_value(word), 100));
        set(o, "command", words);
        set_text(o, "host", ub_json_string(run->header, "host"));
        set_text(o, "started", ub_json_string(run->header, "started"));
        set(o, "threshold", ub_html_number(ub_json_u64_or(run->header, "threshold_ns", 0)));
        set(o, "length", ub_html_number(run->last_ns > begin && begin > 0 ? run->last_ns - begin : 0));
        set(o, "ended", json_boolean(run->end != NULL));
        if (json_is_integer(json_object_get(run->end, "exit")))
            json_object_set(o, "exit", json_object_get(run->end, "exit"));
        if (json_is_integer(json_object_get(run->end, "signal")))
            json_object_set(o, "signal", json_object_get(run->end, "signal"));
        json_array_append_new(list, o);
    }
    return list;
}

static json_t *loops_json(const struct ub_model *m)
{
    size_t count, i;
    const struct ub_loop **loops = ub_model_loops(m, &count);
    json_t *list = json_array();

    for (i = 0; i < count && i < TRACKS_MAX; i++) {
        const struct ub_loop *loop = loops[i];
        json_t *o = json_object();

        set_text(o, "program", loop->program);
        set_text(o, "kind", loop->kind);
        set_text(o, "thread", loop->thread);
        set(o, "pid", ub_html_number(loop->pid));
        set(o, "tid", ub_html_number(loop->tid));
        if (loop->has_stats) {
            set(o, "turns", ub_html_number(loop->turns ? loop->turns : loop->callbacks));
            set(o, "busy", ub_html_number(loop->busy_ns));
            set(o, "observed", ub_html_number(loop->observed_ns));
            set(o, "max", ub_html_number(loop->max_ns));
            set_distribution(o, &loop->duration);
        }
        json_array_append_new(list, o);
    }
    free(loops);
    return list;
}

/* ---- call sites --------------------------------------------------------- */

struct page {
    const struct ub_model *m;
    json_t *frames, *sites;
    struct ub_places *frame, *site;
};

/* [name, place, 1 when it is the program's own] */
static json_int_t frame_index(struct page *page, const json_t *frame, const char *exe)
{
    json_int_t index = ub_places_find(page->frame, frame);
    char name[1024], place[1024];

    if (index >= 0)
        return index;
    index = (json_int_t)json_array_size(page->frames);
    ub_places_add(&page->frame, frame, index);
    json_array_append_new(page->frames,
                          json_pack("[o, o, i]", ub_html_text(ub_lost_frame_name(frame, name, sizeof(name)), 120),
                                    ub_html_text(ub_text_frame_place(frame, place, sizeof(place)), 80),
                                    ub_text_frame_class(frame, exe) == UB_SHOWN_USER));
    return index;
}

static json_t *where_json(struct page *page, const struct ub_site *site)
{
    UB_CLEANUP(ub_chain_clear) struct ub_chain chain;
    json_t *list = json_array();
    uint32_t i;

    ub_chain_of_site(site, &chain);
    for (i = 0; i < chain.count; i++)
        json_array_append_new(list, json_pack("[I, o]", frame_index(page, chain.link[i].frame, site->exe),
                                              ub_html_number(chain.link[i].samples)));
    return list;
}

static void take_stack(void *self, const struct ub_lost_stack *stack)
{
    struct page *page = self;
    json_int_t site = ub_places_find(page->site, stack->site);
    json_t *ids;
    size_t i = json_array_size(stack->frames);

    if (site < 0)
        return;
    ids = json_array();
    while (i-- > 0) /* outermost first */
        json_array_append_new(ids, json_integer(frame_index(page, json_array_get(stack->frames, i), stack->site->exe)));
    json_array_append_new(json_object_get(json_array_get(page->sites, (size_t)site), "stacks"),
                          json_pack("[o, o]", ub_html_number(stack->ns), ids));
}

/* What the text report says behind a label, when it says anything; escaped already. */
static void set_label(json_t *o, const char *key, char *line)
{
    char *words = line + strspn(line, " ");

    words[strcspn(words, "\n")] = 0;
    if (strncmp(words, key, strlen(key)) == 0)
        set(o, key, json_string(words + strlen(key) + strspn(words + strlen(key), " ")));
}

static void set_labels(const struct page *page, json_t *o, const struct ub_site *site)
{
    static const char *const keys[] = {"await", "cost", "pool", "serves", "input"};
    struct ub_text_view view;
    size_t i, size;

    for (i = 0; i < UB_ARRAY_LEN(keys); i++) {
        char *line = NULL;
        FILE *out = open_memstream(&line, &size);

        if (!out)
            return;
        ub_text_view_init(&view, out, page->m, false);
        if (i == 0)
            ub_text_await(&view, site->worst);
        else if (i == 1)
            ub_text_cost_of_longest(&view, site);
        else if (i == 2)
            ub_text_pool(&view, site->worst);
        else if (i == 3)
            ub_text_request(&view, site->worst);
        else
            ub_text_input(&view, site->worst);
        if (fclose(out) == 0)
            set_label(o, keys[i], line);
        free(line);
    }
}

static json_t *site_json(struct page *page, const struct ub_finding *f)
{
    char words[UB_ADVICE_WORDS_MAX];
    json_t *o = json_object();

    set(o, "id", ub_html_text(f->site->id, 64));
    set(o, "what", text(f->what));
    set(o, "why", text(f->why));
    set_text(o, "program", f->site->program);
    set_text(o, "loop", ub_json_string(f->site->worst, "loop"));
    set_text(o, "thread", ub_json_string(f->site->worst, "thread"));
    set(o, "cause", json_string(ub_model_cause_name(ub_model_site_cause(f->site))));
    set(o, "n", ub_html_number(f->site->durations.count));
    set(o, "total", ub_html_number(f->site->durations.total_ns));
    set(o, "max", ub_html_number(f->site->durations.max_ns));
    set(o, "ongoing", ub_html_number(f->site->ongoing));
    set_distribution(o, &f->site->durations);
    set(o, "samples", ub_html_number(f->site->samples));
    set(o, "where", where_json(page, f->site));
    set(o, "stacks", json_array());
    set_text(o, "do", ub_advice_site_words(f->site, words, sizeof(words)));
    set_labels(page, o, f->site);
    if (f->frame && ub_json_string(f->frame, "file"))
        set(o, "file",
            json_sprintf("%s:%" PRIu64, ub_path_base(ub_json_string(f->frame, "file")),
                         ub_json_u64_or(f->frame, "line", 0)));
    if (json_object_get(o, "file")) /* as all text */
        set(o, "file", text(ub_json_string(o, "file")));
    return o;
}

static size_t build_sites(struct page *page)
{
    struct ub_findings f;
    size_t i, count;

    if (ub_findings_make(page->m, 0, NULL, &f) < 0)
        return 0;
    count = f.count;
    for (i = 0; i < count && i < SITES_MAX; i++) {
        if (ub_places_add(&page->site, f.finding[i].site, (json_int_t)i) < 0)
            break;
        json_array_append_new(page->sites, site_json(page, &f.finding[i]));
    }
    ub_findings_clear(&f);
    ub_lost_each(page->m, take_stack, page);
    return count;
}

/* ---- the timeline --------------------------------------------------------- */

static int shorter_first(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

/* From which length on a stall is drawn by itself, so that there are at most MARKS_MAX. */
static uint64_t shortest_mark(const struct ub_timeline *t)
{
    uint64_t *all, edge;
    size_t i;

    if (t->count <= MARKS_MAX)
        return 0;
    all = calloc(t->count, sizeof(*all));
    if (!all)
        return UINT64_MAX;
    for (i = 0; i < t->count; i++)
        all[i] = t->stall[i].duration_ns;
    qsort(all, t->count, sizeof(*all), shorter_first);
    edge = all[t->count - MARKS_MAX] + 1; /* many of equal length: rather too few */
    free(all);
    return edge;
}

struct span {
    int64_t begin_ns, length_ns;
};

/* Nested ones are told by what contains them. */
static bool is_drawn(const struct ub_timeline_stall *s)
{
    return s->site->class == UB_STALL_COUNTED && !s->nested;
}

static struct span whole_span(const struct ub_timeline *t)
{
    int64_t begin = INT64_MAX, end = INT64_MIN;
    size_t i;

    for (i = 0; i < t->count; i++) {
        int64_t last;

        if (!is_drawn(&t->stall[i]))
            continue;
        if (__builtin_add_overflow(t->stall[i].at_ns, (int64_t)t->stall[i].duration_ns, &last))
            last = t->stall[i].at_ns;
        begin = t->stall[i].at_ns < begin ? t->stall[i].at_ns : begin;
        end = last > end ? last : end;
    }
    if (begin > end || __builtin_sub_overflow(end, begin, &(int64_t){0}))
        return (struct span){0, 1};
    return (struct span){begin, end - begin + 1};
}

struct bucket {
    uint64_t count, total_ns, max_ns;
};

struct track {
    json_t *marks; /* at in us, length in us, site, ... */
    struct bucket bucket[BUCKETS];
};

static void add_stall(struct page *page, struct track *track, const struct ub_timeline_stall *s, struct span span,
                      uint64_t edge)
{
    uint64_t at = (uint64_t)(s->at_ns - span.begin_ns);
    json_int_t site = ub_places_find(page->site, s->site);
    struct bucket *bucket;

    if (site >= 0 && s->duration_ns >= edge) {
        json_array_append_new(track->marks, ub_html_number(at / 1000));
        json_array_append_new(track->marks, ub_html_number(s->duration_ns / 1000));
        json_array_append_new(track->marks, json_integer(site));
        return;
    }
    bucket = &track->bucket[(uint64_t)((double)at / (double)span.length_ns * BUCKETS) % BUCKETS];
    bucket->count++;
    bucket->total_ns = ub_add_saturated(bucket->total_ns, s->duration_ns);
    bucket->max_ns = s->duration_ns > bucket->max_ns ? s->duration_ns : bucket->max_ns;
}

static json_t *track_json(const struct page *page, const struct ub_timeline_loop *loop, struct track *track)
{
    const char *host = ub_json_string(ub_model_run(page->m, loop->run)->header, "host");
    json_t *o = json_object(), *sums = json_array();
    uint32_t i;

    set_text(o, "program", loop->program);
    set_text(o, "host", host);
    set_text(o, "kind", loop->kind);
    set_text(o, "thread", loop->thread);
    set(o, "pid", ub_html_number(loop->pid));
    set(o, "tid", ub_html_number(loop->tid));
    set(o, "marks", track->marks);
    for (i = 0; i < BUCKETS; i++)
        if (track->bucket[i].count > 0)
            json_array_append_new(sums, json_pack("[i, o, o, o]", (int)i, ub_html_number(track->bucket[i].count),
                                                  ub_html_number(track->bucket[i].total_ns),
                                                  ub_html_number(track->bucket[i].max_ns)));
    set(o, "sums", sums);
    return o;
}

/* The stalls are sorted by loop. */
static json_t *tracks_json(struct page *page, const struct ub_timeline *t, struct span span)
{
    json_t *list = json_array();
    uint64_t edge = shortest_mark(t);
    size_t i = 0;

    while (i < t->count && json_array_size(list) < TRACKS_MAX) {
        uint32_t loop = t->stall[i].loop;
        struct track track = {.marks = json_array()};
        size_t counted = 0;

        for (; i < t->count && t->stall[i].loop == loop; i++) {
            if (!is_drawn(&t->stall[i]))
                continue;
            add_stall(page, &track, &t->stall[i], span, edge);
            counted++;
        }
        if (counted > 0)
            json_array_append_new(list, track_json(page, &t->loop[loop], &track));
        else
            json_decref(track.marks);
    }
    return list;
}

/* ---- all ------------------------------------------------------------------ */

static json_t *notes_json(const struct ub_model *m)
{
    json_t *list = json_array();
    const json_t *note;
    size_t i;

    json_array_foreach (ub_model_notes(m), i, note)
        if (i < NOTES_SHOWN)
            json_array_append_new(list, json_pack("{s:o, s:o}", "level", text(ub_json_string(note, "level")), "text",
                                                  text(ub_json_string(note, "text"))));
    return list;
}

/* The text report's lines, without their label; escaped there already. */
static json_t *lints_json(const struct ub_model *m)
{
    json_t *list = json_array();
    char *lines = NULL, *line, *rest;
    struct ub_text_view view;
    size_t size;
    FILE *out = open_memstream(&lines, &size);

    if (!out)
        return list;
    ub_text_view_init(&view, out, m, false);
    ub_text_lints(&view, "");
    if (fclose(out) == 0) {
        for (line = strtok_r(lines, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
            line += strncmp(line, "lint", 4) == 0 ? 4 : 0;
            json_array_append_new(list, json_string(line + strspn(line, " ")));
        }
    }
    free(lines);
    return list;
}

static json_t *page_json(const struct ub_export_job *job)
{
    struct page page = {.m = job->m, .frames = json_array(), .sites = json_array()};
    struct span span = whole_span(job->timeline);
    size_t sites = build_sites(&page);
    json_t *o = json_object(), *offload = ub_html_offload(job->m);

    set(o, "tool", json_string("unblock " UB_VERSION));
    set(o, "runs", runs_json(job->m));
    set(o, "verdict", totals_json(ub_model_totals(job->m, UB_STALL_COUNTED)));
    set(o, "startup", totals_json(ub_model_totals(job->m, UB_STALL_STARTUP)));
    set(o, "stopped", totals_json(ub_model_totals(job->m, UB_STALL_STOPPED)));
    set(o, "suppressed", totals_json(ub_model_totals(job->m, UB_STALL_SUPPRESSED)));
    set(o, "unclear", totals_json(ub_model_totals(job->m, UB_STALL_UNCLEAR)));
    set(o, "loops", loops_json(job->m));
    set(o, "begin", json_integer(span.begin_ns / 1000));
    set(o, "length", json_integer(span.length_ns / 1000 + 1));
    set(o, "buckets", json_integer(BUCKETS));
    set(o, "tracks", tracks_json(&page, job->timeline, span));
    set(o, "leftOut", ub_html_number(job->timeline->left_out));
    set(o, "sites", page.sites);
    set(o, "moreSites", ub_html_number(sites > SITES_MAX ? sites - SITES_MAX : 0));
    set(o, "frames", page.frames);
    set(o, "lints", lints_json(job->m));
    if (offload)
        set(o, "offload", offload);
    set(o, "notes", notes_json(job->m));
    ub_places_clear(&page.frame);
    ub_places_clear(&page.site);
    return o;
}

static void make_nonce(char nonce[33])
{
    uint8_t bytes[16] = {0};
    size_t i;

    if (getrandom(bytes, sizeof(bytes), 0) != sizeof(bytes)) /* never, since Linux 5.6; then it is only less strict */
        memset(bytes, 0x5a, sizeof(bytes));
    for (i = 0; i < sizeof(bytes); i++)
        snprintf(nonce + 2 * i, 3, "%02x", bytes[i]);
}

/* page.html with %NONCE%, %STYLE%, %SCRIPT% and %DATA% replaced. */
static void write_html(FILE *out, const struct ub_export_job *job)
{
    const char *p = ub_html_page, *mark;
    json_t *data = page_json(job);
    char nonce[33];

    make_nonce(nonce);
    for (; (mark = strchr(p, '%')); p = strchr(mark + 1, '%') + 1) {
        fwrite(p, 1, (size_t)(mark - p), out);
        if (strncmp(mark, "%NONCE%", 7) == 0)
            fputs(nonce, out);
        else if (strncmp(mark, "%STYLE%", 7) == 0)
            fputs(ub_html_style, out);
        else if (strncmp(mark, "%SCRIPT%", 8) == 0)
            fputs(ub_html_script, out);
        else if (strncmp(mark, "%DATA%", 6) == 0)
            json_dump_callback(data, put_json, out, JSON_COMPACT);
    }
    fputs(p, out);
    json_decref(data);
}

const struct ub_export ub_export_html = {.name = "html", .needs_timeline = true, .write = write_html};
