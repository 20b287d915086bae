/*
 * SARIF 2.1.0, for code scanning: a rule a cause, a result a call site, at the
 * innermost line of the program's own code. The fingerprint is the site, which is
 * the same across runs, hosts and rebuilds.
 */
#include "export.h"
#include "advice.h"

static json_t *uri_of(const char *file)
{
    char uri[4096 * 3], *to = uri;
    const unsigned char *p = (const unsigned char *)file;

    for (; *p && to < uri + sizeof(uri) - 4; p++) {
        if (strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./+-", *p))
            *to++ = (char)*p;
        else
            to += sprintf(to, "%%%02X", *p);
    }
    *to = 0;
    return json_sprintf("%s%s", *file == '/' ? "file://" : "", uri);
}

static json_t *location(const json_t *frame, const char *function)
{
    const char *file = frame ? ub_export_file(frame) : NULL;
    uint64_t line = ub_json_u64_or(frame, "line", 0);
    json_t *o = json_object(), *physical;

    if (file) {
        physical = json_pack("{s:{s:o}}", "artifactLocation", "uri", uri_of(file));
        if (line > 0 && line < INT32_MAX)
            json_object_set_new(physical, "region", json_pack("{s:I}", "startLine", (json_int_t)line));
        json_object_set_new(o, "physicalLocation", physical);
    }
    if (function)
        json_object_set_new(o, "logicalLocations", json_pack("[{s:s, s:s}]", "name", function, "kind", "function"));
    return o;
}

static json_t *result(const struct ub_finding *f)
{
    char words[UB_ADVICE_WORDS_MAX];
    const char *advice = ub_advice_site_words(f->site, words, sizeof(words));
    char figures[UB_FINDING_FIGURES_MAX];
    json_t *o =
        json_pack("{s:s, s:s, s:{s:o}, s:{s:s}}", "ruleId", ub_model_cause_name(ub_model_site_cause(f->site)), "level",
                  ub_finding_fails(f) ? "error" : "note", "message", "text",
                  json_sprintf("Event loop blocked: %s. %s. Why: %s.%s%s", f->what, ub_finding_figures(f, figures),
                               f->why, advice ? " Do: " : "", advice ? advice : ""),
                  "partialFingerprints", "unblockSite/v1", f->site->id);

    if (f->frame)
        json_object_set_new(o, "locations", json_pack("[o]", location(f->frame, ub_json_string(f->frame, "function"))));
    if (f->state == UB_FINDING_ALLOWED)
        json_object_set_new(o, "suppressions",
                            json_pack("[{s:s, s:s}]", "kind", "external", "justification", f->rule->text));
    return o;
}

static json_t *rules(void)
{
    json_t *list = json_array();
    int i;

    for (i = 0; i < UB_CAUSES; i++)
        json_array_append_new(
            list,
            json_pack("{s:s, s:{s:o}}", "id", ub_model_cause_name((enum ub_cause)i), "shortDescription", "text",
                      json_sprintf("An event loop was blocked; cause: %s", ub_model_cause_name((enum ub_cause)i))));
    return list;
}

static void write_sarif(FILE *out, const struct ub_export_job *job)
{
    json_t *results = json_array(), *o;
    size_t i;

    for (i = 0; i < job->findings->count; i++)
        json_array_append_new(results, result(&job->findings->finding[i]));
    o = json_pack("{s:s, s:s, s:[{s:{s:{s:s, s:s, s:o}}, s:o}]}", "$schema",
                  "https://json.schemastore.org/sarif-2.1.0.json", "version", "2.1.0", "runs", "tool", "driver", "name",
                  "unblock", "version", UB_VERSION, "rules", rules(), "results", results);
    json_dumpf(o, out, JSON_INDENT(1));
    fputc('\n', out);
    json_decref(o);
}

const struct ub_export ub_export_sarif = {.name = "sarif", .check = true, .write = write_sarif};
