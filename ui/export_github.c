/*
 * Workflow commands of GitHub Actions: each finding becomes an annotation at
 * the innermost line of the program's own code.
 */
#include "export.h"
#include "advice.h"
#include "text_escape.h"

#include <inttypes.h>
#include <stdlib.h>

/* Escaped for a terminal first: a log is shown in one, too. */
static char *harmless(const char *text)
{
    char *buf = NULL;
    size_t size;
    FILE *out = open_memstream(&buf, &size);

    if (!out)
        return NULL;
    ub_escape_put(out, text ? text : "", 0);
    fclose(out);
    return buf;
}

static void put(FILE *out, const char *text, bool property)
{
    char *safe = harmless(text), *p;

    for (p = safe; p && *p; p++) {
        if (*p == '%' || (property && (*p == ':' || *p == ',')))
            fprintf(out, "%%%02X", (unsigned char)*p);
        else
            fputc(*p, out);
    }
    free(safe);
}

static void put_finding(FILE *out, const struct ub_finding *f)
{
    char words[UB_ADVICE_WORDS_MAX];
    const char *advice = ub_advice_site_words(f->site, words, sizeof(words));
    const char *file = f->frame ? ub_export_file(f->frame) : NULL;
    char figures[UB_FINDING_FIGURES_MAX];

    fprintf(out, "::%s ", ub_finding_fails(f) ? "error" : "notice");
    if (file) {
        fputs("file=", out);
        put(out, file, true);
        fprintf(out, ",line=%" PRIu64 ",", ub_json_u64_or(f->frame, "line", 1));
    }
    fputs("title=", out);
    put(out, ub_finding_fails(f) ? "event loop blocked" : "event loop blocked (allowed)", true);
    fputs("::", out);
    put(out, f->what, false);
    fprintf(out, "%%0A%s%%0Awhy: ", ub_finding_figures(f, figures));
    put(out, f->why, false);
    if (advice) {
        fputs("%0Ado: ", out);
        put(out, advice, false);
    }
    fputs("%0Asite: ", out);
    put(out, f->site->id, false);
    fputc('\n', out);
}

static void write_github(FILE *out, const struct ub_export_job *job)
{
    size_t i;

    for (i = 0; i < job->findings->count; i++)
        put_finding(out, &job->findings->finding[i]);
}

const struct ub_export ub_export_github = {.name = "github", .check = true, .write = write_github};
