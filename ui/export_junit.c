/*
 * JUnit XML as Jenkins, GitLab and GitHub's reporters read it: a call site is a
 * test case that failed, or was skipped when it is allowed; no stall is one that passed.
 */
#include "export.h"
#include "advice.h"
#include "text.h"
#include "utf8.h"

#include <inttypes.h>

/* XML 1.0 has no way to write control characters and the like, not even escaped: they become '?'. */
static void put_xml(FILE *out, const char *text)
{
    size_t len = text ? strlen(text) : 0, n;
    uint32_t c;

    for (; len > 0; text += n, len -= n) {
        n = ub_utf8_decode((const unsigned char *)text, len, &c);
        if (n == 0 || (c < 0x20 && c != '\n' && c != '\t') || c == 0x7f || c == 0xfffe || c == 0xffff) {
            fputc('?', out);
            n = 1;
        } else if (c == '<') {
            fputs("&lt;", out);
        } else if (c == '>') {
            fputs("&gt;", out);
        } else if (c == '&') {
            fputs("&amp;", out);
        } else if (c == '"') {
            fputs("&quot;", out);
        } else if (c < 0x20) {
            fprintf(out, "&#%u;", (unsigned)c);
        } else {
            fwrite(text, 1, n, out);
        }
    }
}

static void put_attribute(FILE *out, const char *name, const char *value)
{
    fprintf(out, " %s=\"", name);
    put_xml(out, value);
    fputc('"', out);
}

static void put_outcome(FILE *out, const struct ub_finding *f, const char *figures)
{
    static const char *const words[] = {[UB_FINDING_FAILS] = "",
                                        [UB_FINDING_ALLOWED] = "allowed: ",
                                        [UB_FINDING_EXPIRED] = "its allowance expired: ",
                                        [UB_FINDING_TOO_LONG] = "longer than its allowance: "};
    char buf[UB_ADVICE_WORDS_MAX];
    const char *advice = ub_advice_site_words(f->site, buf, sizeof(buf));
    char message[UB_FINDING_FIGURES_MAX + 64];

    snprintf(message, sizeof(message), "%s%s", words[f->state], figures);
    fprintf(out, "      <%s", ub_finding_fails(f) ? "failure" : "skipped");
    put_attribute(out, "message", message);
    if (!ub_finding_fails(f)) {
        fputs("/>\n", out);
        return;
    }
    put_attribute(out, "type", ub_model_cause_name(ub_model_site_cause(f->site)));
    fputs(">why: ", out);
    put_xml(out, f->why);
    if (f->frame && ub_export_file(f->frame)) {
        fputs("\nwhere: ", out);
        put_xml(out, ub_export_file(f->frame));
        fprintf(out, ":%" PRIu64, ub_json_u64_or(f->frame, "line", 0));
    }
    if (advice) {
        fputs("\ndo: ", out);
        put_xml(out, advice);
    }
    fputs("\n</failure>\n", out);
}

static void put_case(FILE *out, const struct ub_finding *f)
{
    char figures[UB_FINDING_FIGURES_MAX], name[1024];

    snprintf(name, sizeof(name), "%s [%s]", f->what, f->site->id);
    fputs("    <testcase", out);
    put_attribute(out, "classname", f->site->program ? f->site->program : "unblock");
    put_attribute(out, "name", name);
    fprintf(out, " time=\"%.6f\"", (double)f->site->durations.max_ns / 1e9);
    if (f->frame && ub_export_file(f->frame)) {
        put_attribute(out, "file", ub_export_file(f->frame));
        fprintf(out, " line=\"%" PRIu64 "\"", ub_json_u64_or(f->frame, "line", 0));
    }
    fputs(">\n", out);
    put_outcome(out, f, ub_finding_figures(f, figures));
    fputs("    </testcase>\n", out);
}

static void write_junit(FILE *out, const struct ub_export_job *job)
{
    const struct ub_findings *f = job->findings;
    char limit[UB_TEXT_DURATION_MAX];
    size_t i;

    fprintf(out,
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n"
            "  <testsuite name=\"unblock\" tests=\"%zu\" failures=\"%zu\" errors=\"0\" skipped=\"%zu\">\n",
            f->count ? f->count : 1, f->failed, f->count - f->failed);
    if (f->count == 0)
        fprintf(out, "    <testcase classname=\"unblock\" name=\"no stall of %s\"/>\n",
                f->limit_ns ? ub_text_duration(f->limit_ns, limit, sizeof(limit)) : "the threshold");
    for (i = 0; i < f->count; i++)
        put_case(out, &f->finding[i]);
    fputs("  </testsuite>\n</testsuites>\n", out);
}

const struct ub_export ub_export_junit = {.name = "junit", .check = true, .write = write_junit};
