/*
 * Chrome's trace event format (Perfetto, chrome://tracing, speedscope): every
 * counted stall is a complete event ("X") of its thread; nested ones nest. Times
 * are microseconds since the earliest stall.
 */
#include "export.h"
#include "hash.h"
#include "timeline.h"

#include <inttypes.h>
#include <stdlib.h>

struct name {
    const struct ub_site *site;
    char *json; /* of what it is, quoted */
    UT_hash_handle hh;
};

static char *quoted(const char *text)
{
    json_t *s = json_string(text);
    char *json = s ? json_dumps(s, JSON_ENCODE_ANY | JSON_ENSURE_ASCII) : NULL;

    json_decref(s);
    return json ? json : strdup("\"?\"");
}

static void name_sites(struct name **names, const struct ub_model *m)
{
    struct ub_findings f;
    size_t i;

    if (ub_findings_make(m, 0, NULL, &f) < 0)
        return;
    for (i = 0; i < f.count; i++) {
        struct name *name = calloc(1, sizeof(*name));

        if (!name)
            break;
        name->site = f.finding[i].site;
        name->json = quoted(f.finding[i].what);
        HASH_ADD_PTR(*names, site, name);
    }
    ub_findings_clear(&f);
}

static void name_free(struct name *name)
{
    free(name->json);
    free(name);
}

static void put_micros(FILE *out, uint64_t ns)
{
    fprintf(out, "%" PRIu64 ".%03" PRIu64, ns / 1000, ns % 1000);
}

static void put_metadata(FILE *out, const char *what, uint64_t pid, uint64_t tid, const char *name)
{
    char *json = quoted(name);

    fprintf(out, "{\"ph\":\"M\",\"name\":\"%s\",\"pid\":%" PRIu64 ",\"tid\":%" PRIu64 ",\"args\":{\"name\":%s}},\n",
            what, pid, tid, json);
    free(json);
}

/* Processes of different runs (hosts) may have the same id: then they get one that is theirs alone. */
static uint64_t track(const struct ub_timeline_loop *loop)
{
    return loop->run == 0 ? loop->pid : loop->pid + (uint64_t)loop->run * 10000000;
}

static void put_loops(FILE *out, const struct ub_model *m, const struct ub_timeline *t)
{
    uint32_t i;

    for (i = 0; i < t->loops; i++) {
        const struct ub_timeline_loop *loop = &t->loop[i];
        const char *host = ub_json_string(ub_model_run(m, loop->run)->header, "host");
        char name[512], thread[128];

        snprintf(name, sizeof(name), "%s%s%s", loop->program ? loop->program : "?", host ? " on " : "",
                 host ? host : "");
        snprintf(thread, sizeof(thread), "%s%s%s", loop->thread, *loop->thread ? " " : "", loop->kind);
        put_metadata(out, "process_name", track(loop), loop->tid, name);
        put_metadata(out, "thread_name", track(loop), loop->tid, thread);
    }
}

static void put_stall(FILE *out, const struct ub_timeline *t, const struct ub_timeline_stall *s, struct name *names,
                      int64_t begin)
{
    const struct ub_timeline_loop *loop = &t->loop[s->loop];
    char *id = quoted(s->site->id);
    struct name *name;

    HASH_FIND_PTR(names, &s->site, name);
    fprintf(out, "{\"ph\":\"X\",\"name\":%s,\"cat\":\"%s\",\"pid\":%" PRIu64 ",\"tid\":%" PRIu64 ",\"ts\":",
            name ? name->json : "\"?\"", ub_model_cause_name(ub_model_site_cause(s->site)), track(loop), loop->tid);
    put_micros(out, (uint64_t)(s->at_ns - begin));
    fputs(",\"dur\":", out);
    put_micros(out, s->duration_ns);
    fprintf(out, ",\"args\":{\"site\":%s%s}},\n", id, s->ongoing ? ",\"ongoing\":true" : "");
    free(id);
}

static void write_chrome(FILE *out, const struct ub_export_job *job)
{
    const struct ub_timeline *t = job->timeline;
    struct name *names = NULL;
    int64_t begin = INT64_MAX;
    size_t i;

    name_sites(&names, job->m);
    for (i = 0; i < t->count; i++)
        if (t->stall[i].site->class == UB_STALL_COUNTED && t->stall[i].at_ns < begin)
            begin = t->stall[i].at_ns;
    fputs("{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n", out);
    put_loops(out, job->m, t);
    for (i = 0; i < t->count; i++)
        if (t->stall[i].site->class == UB_STALL_COUNTED)
            put_stall(out, t, &t->stall[i], names, begin);
    fputs("{\"ph\":\"M\",\"name\":\"trace\",\"pid\":0,\"args\":{\"exporter\":\"unblock " UB_VERSION "\"}}\n]}\n", out);
    UB_HASH_DESTROY(struct name, names, name_free);
}

const struct ub_export ub_export_chrome = {.name = "chrome", .needs_timeline = true, .write = write_chrome};
