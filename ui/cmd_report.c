/*
 * unblock report: what recordings tell, in the format asked for.
 */
#include "command.h"
#include "export.h"
#include "input.h"
#include "output.h"
#include "say.h"
#include "text.h"

#include <errno.h>
#include <glob.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char *const sort_choices[] = {"total", "max", "count", "p99", NULL}; /* enum ub_sort */

struct report {
    int format, sort, colour;
    const char *output, *suppress;
    struct ub_input in;
    struct ub_rules rules;
    struct ub_timeline timeline;
};

static const char about[] = "What recordings tell: the verdict, the figures of each loop, and the call sites\n"
                            "that blocked it by time lost, with cause, stack and advice. Several files are\n"
                            "joined, also of several hosts; - reads standard input.";

static const char more[] = "Formats:\n"
                           "  text        for people\n"
                           "  html        one file for a browser: timeline, flame graph, call sites\n"
                           "  json        what text says, as one document\n"
                           "  folded      stacks with ns lost: flamegraph.pl, inferno, speedscope\n"
                           "  speedscope  the same for https://www.speedscope.app; pprof: go tool pprof\n"
                           "  chrome      every stall over time: Perfetto, chrome://tracing\n"
                           "  prometheus  metrics, for the textfile collector of node_exporter\n"
                           "  junit       one failed test a call site, for CI; github: annotations;\n"
                           "              sarif: code scanning\n"
                           "  otlp        every stall as an OpenTelemetry log record, requests of\n"
                           "              1,000 a line; otlp-metrics: the figures\n"
                           "\n"
                           "Examples:\n"
                           "  unblock report unblock-redis-server-42-20251121T030512Z.jsonl\n"
                           "  unblock report --min 100ms --cause call,lock --sort max web*.jsonl\n"
                           "  unblock report --format json r.jsonl | jq .verdict\n"
                           "\n"
                           "Exit status: 0, or 2 for wrong use or an unreadable recording.\n";

/* Somebody who names no file most likely means the one that was just written here. */
static void say_no_file(void)
{
    const char *newest = NULL;
    time_t newest_time = 0;
    struct stat st;
    glob_t found;
    size_t i;

    if (glob("unblock-*.jsonl", 0, NULL, &found) != 0) {
        ub_say("report", "no recording is given: unblock report FILE...");
        return;
    }
    for (i = 0; i < found.gl_pathc; i++) {
        if (stat(found.gl_pathv[i], &st) == 0 && st.st_mtime >= newest_time) {
            newest = found.gl_pathv[i];
            newest_time = st.st_mtime;
        }
    }
    ub_say("report", "no recording is given; the newest one here: unblock report %s", newest ? newest : "FILE");
    globfree(&found);
}

static int write_out(struct report *report)
{
    const struct ub_export *export = ub_exports[report->format];
    struct ub_findings findings = {0};
    struct ub_export_job job = {.m = report->in.model, .findings = &findings, .timeline = &report->timeline};
    struct ub_output out;
    int r = ub_output_open(&out, "report", report->output, &report->in);

    if (r < 0)
        return r;
    if (export->check)
        r = ub_findings_make(report->in.model, 0, NULL, &findings);
    job.colour = ub_colour_use((enum ub_colour)report->colour, fileno(out.file));
    if (r == 0)
        export->write(out.file, &job);
    else
        ub_say("report", "out of memory");
    ub_findings_clear(&findings);
    return r == 0 ? ub_output_close(&out) : r;
}

static int run_report(struct report *report, char **files, int count)
{
    char why[UB_WHY_MAX];
    int r = 0;

    if (report->suppress)
        r = ub_rules_read(report->suppress, time(NULL), &report->rules, why);
    if (r < 0) {
        ub_say("report", "--suppress %s", why);
        return r;
    }
    if (ub_exports[report->format]->needs_timeline)
        report->in.timeline = &report->timeline;
    r = ub_input_read(&report->in, files, count);
    if (r < 0)
        return r;
    ub_model_sort(report->in.model, (enum ub_sort)report->sort);
    ub_rules_suppress(&report->rules, report->in.model);
    return write_out(report);
}

static int parse(struct report *report, int argc, char **argv, int *ret_first)
{
    struct ub_option option[8 + UB_INPUT_OPTIONS_MAX] = {
        {.letter = 'f',
         .name = "format",
         .kind = UB_OPTION_CHOICE,
         .value = &report->format,
         .argument = "FORMAT",
         .help = "text (default), or one of those below",
         .choices = ub_export_names(false)},
        {.letter = 'o',
         .name = "output",
         .kind = UB_OPTION_TEXT,
         .value = &report->output,
         .argument = "FILE",
         .help = "write there, not to standard output"},
        {.name = "sort",
         .kind = UB_OPTION_CHOICE,
         .value = &report->sort,
         .argument = "KEY",
         .help = "call sites by total (default), max, count or p99",
         .choices = sort_choices},
        UB_OPTION_SUPPRESS(&report->suppress),
        UB_OPTION_COLOUR(&report->colour),
    };
    const struct ub_options options = {.usage = "unblock report [OPTION...] FILE...",
                                       .about = about,
                                       .more = more,
                                       .option = option,
                                       .count = 5 + ub_input_options(&report->in, option + 5)};

    return ub_options_command("report", &options, argc, argv, ret_first);
}

int ub_cmd_report(int argc, char **argv)
{
    struct report report = {.in.command = "report"};
    int first, r = parse(&report, argc, argv, &first);

    if (r != 0)
        return r < 0 ? UB_EXIT_USAGE : 0;
    if (first == argc) {
        say_no_file();
        return UB_EXIT_USAGE;
    }
    r = run_report(&report, argv + first, argc - first);
    ub_input_clear(&report.in);
    ub_rules_clear(&report.rules);
    ub_timeline_clear(&report.timeline);
    return r < 0 ? UB_EXIT_USAGE : 0;
}
