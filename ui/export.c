#include "export.h"
#include "json_get.h"
#include "text.h"

#include <stdlib.h>
#include <unistd.h>

static void write_text(FILE *out, const struct ub_export_job *job)
{
    ub_text_report(out, job->m, job->colour);
}

static void write_json(FILE *out, const struct ub_export_job *job)
{
    json_t *json = ub_model_json(job->m);

    json_dumpf(json, out, JSON_INDENT(2));
    fputc('\n', out);
    json_decref(json);
}

const struct ub_export ub_export_text = {.name = "text", .write = write_text};
const struct ub_export ub_export_json = {.name = "json", .write = write_json};

const struct ub_export *const ub_exports[] = {
    &ub_export_text,         &ub_export_html,
    &ub_export_json,         &ub_export_folded,
    &ub_export_speedscope,   &ub_export_prometheus,
    &ub_export_chrome,       &ub_export_pprof,
    &ub_export_junit,        &ub_export_github,
    &ub_export_sarif,        &ub_export_otlp,
    &ub_export_otlp_metrics, NULL,
};

const char *const *ub_export_names(bool check)
{
    static const char *all[UB_ARRAY_LEN(ub_exports)], *some[UB_ARRAY_LEN(ub_exports) + 2];
    size_t i, n = 0;

    for (i = 0; ub_exports[i]; i++)
        all[i] = ub_exports[i]->name;
    some[n++] = "text"; /* check has a text and a JSON of its own */
    some[n++] = "json";
    for (i = 0; ub_exports[i]; i++)
        if (ub_exports[i]->check)
            some[n++] = ub_exports[i]->name;
    some[n] = NULL;
    return check ? some : all;
}

const struct ub_export *ub_export_find(const char *name)
{
    size_t i;

    for (i = 0; ub_exports[i] && strcmp(ub_exports[i]->name, name) != 0; i++)
        ;
    return ub_exports[i];
}

const char *ub_export_file(const json_t *frame)
{
    static char folder[4096];
    const char *file = ub_json_string(frame, "file"), *workspace = getenv("GITHUB_WORKSPACE");
    size_t len;

    if (!file || *file != '/')
        return file;
    if (workspace && *workspace == '/')
        snprintf(folder, sizeof(folder), "%s", workspace);
    else if (!getcwd(folder, sizeof(folder)))
        return file;
    len = strlen(folder);
    return strncmp(file, folder, len) == 0 && file[len] == '/' ? file + len + 1 : file;
}
