/*
 * OTLP logs: every counted stall is a log record at its moment. The longest one
 * of a call site carries what is known of the site: why, stack, advice, totals.
 */
#include "export.h"
#include "advice.h"
#include "hash.h"
#include "lost.h"
#include "otlp.h"
#include "text.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

/* Collectors take requests of some megabytes (20 MiB is the default of OpenTelemetry's own). */
#define RECORDS_MAX 1000

#define SEVERITY_WARN 13

static const struct ub_otlp_words words = {"resourceLogs", "scopeLogs", "logRecords"};

struct site {
    const struct ub_site *site;
    const struct ub_finding *finding;
    json_t *attributes; /* the same for each of its stalls */
    bool told;          /* its longest stall has been met */
    UT_hash_handle hh;
};

struct logs {
    FILE *out;
    const struct ub_model *m;
    const struct ub_timeline *t;
    struct ub_findings findings;
    struct site *site;
    const struct ub_timeline_loop *loop; /* of the records that wait */
    json_t *records;
};

/* ---- call sites ---------------------------------------------------------- */

static json_t *site_attributes(const struct ub_finding *f)
{
    json_t *a = json_array();
    char name[1024];

    ub_otlp_text(a, "unblock.site", f->site->id);
    ub_otlp_text(a, "unblock.what", f->what);
    if (f->frame) {
        uint64_t line = ub_json_u64_or(f->frame, "line", 0);

        ub_otlp_text(a, "code.function.name", ub_lost_frame_name(f->frame, name, sizeof(name)));
        ub_otlp_text(a, "code.file.path", ub_json_string(f->frame, "file"));
        if (line > 0)
            ub_otlp_number(a, "code.line.number", line);
    }
    return a;
}

static int know_sites(struct logs *l)
{
    size_t i;
    int r = ub_findings_make(l->m, 0, NULL, &l->findings);

    for (i = 0; r == 0 && i < l->findings.count; i++) {
        struct site *site = calloc(1, sizeof(*site));

        if (!site)
            return -ENOMEM;
        site->finding = &l->findings.finding[i];
        site->site = site->finding->site;
        site->attributes = site_attributes(site->finding);
        HASH_ADD_PTR(l->site, site, site);
        if (!UB_HASHED(site)) {
            json_decref(site->attributes);
            free(site);
            return -ENOMEM;
        }
    }
    return r;
}

static void site_free(struct site *site)
{
    json_decref(site->attributes);
    free(site);
}

/* The stack that most samples showed, innermost first: "wal_commit (wal.c:212)". */
static void add_stack(json_t *attributes, const struct ub_site *site)
{
    const struct ub_site_stack *most = NULL;
    const json_t *frame;
    char *text = NULL, name[1024];
    size_t size, i;
    FILE *out;

    for (i = 0; i < site->stacks; i++)
        if (!most || site->stack[i].samples > most->samples)
            most = &site->stack[i];
    out = most ? open_memstream(&text, &size) : NULL;
    if (!out)
        return;
    json_array_foreach (most->frames, i, frame) {
        const char *file = ub_json_string(frame, "file");

        fprintf(out, "%s%s", i > 0 ? "\n" : "", ub_lost_frame_name(frame, name, sizeof(name)));
        if (file)
            fprintf(out, " (%s:%" PRIu64 ")", file, ub_json_u64_or(frame, "line", 0));
    }
    if (fclose(out) == 0)
        ub_otlp_text(attributes, "code.stacktrace", text);
    free(text);
}

static bool is_longest(const struct logs *l, const struct ub_timeline_stall *s)
{
    const struct ub_timeline_loop *loop = &l->t->loop[s->loop];
    const json_t *worst = s->site->worst;

    return s->duration_ns == ub_json_u64_or(worst, "duration_ns", 0) && loop->pid == ub_json_u64_or(worst, "pid", 0) &&
           loop->tid == ub_json_u64_or(worst, "tid", 0);
}

static void add_details(json_t *attributes, const struct site *site)
{
    char text[UB_ADVICE_WORDS_MAX];

    ub_otlp_true(attributes, "unblock.site.longest");
    ub_otlp_number(attributes, "unblock.site.stalls", site->site->durations.count);
    ub_otlp_number(attributes, "unblock.site.total_ns", site->site->durations.total_ns);
    ub_otlp_text(attributes, "unblock.why", site->finding->why);
    ub_otlp_text(attributes, "unblock.advice", ub_advice_site_words(site->site, text, sizeof(text)));
    add_stack(attributes, site->site);
}

/* ---- stalls -------------------------------------------------------------- */

static void flush(struct logs *l)
{
    json_t *attributes;

    if (!l->records)
        return;
    attributes = ub_otlp_resource(l->loop->program, ub_json_string(ub_model_run(l->m, l->loop->run)->header, "host"));
    ub_otlp_number(attributes, "process.pid", l->loop->pid);
    ub_otlp_line(l->out, &words, attributes, l->records);
    l->records = NULL;
}

static void add_times(json_t *record, const struct logs *l, const struct ub_timeline_stall *s)
{
    int64_t unused;

    if (s->at_ns <= 0 || !ub_timeline_offset(ub_model_run(l->m, l->loop->run), &unused))
        return; /* no wall clock is known */
    json_object_set_new(record, "timeUnixNano", ub_otlp_u64((uint64_t)s->at_ns));
    json_object_set_new(record, "observedTimeUnixNano",
                        ub_otlp_u64(ub_add_saturated((uint64_t)s->at_ns, s->duration_ns)));
}

static void add_stall(struct logs *l, const struct ub_timeline_stall *s, struct site *site)
{
    json_t *attributes = json_copy(site->attributes);
    json_t *record = json_object();
    char duration[UB_TEXT_DURATION_MAX];

    ub_otlp_number(attributes, "unblock.duration_ns", s->duration_ns);
    ub_otlp_text(attributes, "unblock.cause", ub_model_cause_name(s->cause));
    ub_otlp_text(attributes, "unblock.loop", l->loop->kind);
    ub_otlp_number(attributes, "thread.id", l->loop->tid);
    ub_otlp_text(attributes, "thread.name", l->loop->thread);
    if (s->ongoing)
        ub_otlp_true(attributes, "unblock.ongoing");
    if (s->nested)
        ub_otlp_true(attributes, "unblock.nested");
    if (!site->told && is_longest(l, s)) {
        site->told = true;
        add_details(attributes, site);
    }
    add_times(record, l, s);
    json_object_set_new(record, "severityNumber", json_integer(SEVERITY_WARN));
    json_object_set_new(record, "severityText", json_string("WARN"));
    json_object_set_new(record, "eventName", json_string("unblock.stall"));
    json_object_set_new(
        record, "body",
        json_pack("{s:o}", "stringValue",
                  json_sprintf("event loop blocked %s: %s",
                               ub_text_duration(s->duration_ns, duration, sizeof(duration)), site->finding->what)));
    json_object_set_new(record, "attributes", attributes);
    json_array_append_new(l->records, record);
}

static void take(struct logs *l, const struct ub_timeline_stall *s)
{
    const struct ub_timeline_loop *loop = &l->t->loop[s->loop];
    struct site *site;

    HASH_FIND_PTR(l->site, &s->site, site);
    if (!site)
        return;
    if (l->records &&
        (loop->run != l->loop->run || loop->pid != l->loop->pid || json_array_size(l->records) >= RECORDS_MAX))
        flush(l);
    l->loop = loop;
    if (!l->records)
        l->records = json_array();
    add_stall(l, s, site);
}

static void write_otlp(FILE *out, const struct ub_export_job *job)
{
    struct logs l = {.out = out, .m = job->m, .t = job->timeline};
    size_t i;

    if (know_sites(&l) == 0)
        for (i = 0; i < l.t->count; i++)
            if (l.t->stall[i].site->class == UB_STALL_COUNTED)
                take(&l, &l.t->stall[i]);
    flush(&l);
    UB_HASH_DESTROY(struct site, l.site, site_free);
    ub_findings_clear(&l.findings);
}

const struct ub_export ub_export_otlp = {.name = "otlp", .needs_timeline = true, .write = write_otlp};
