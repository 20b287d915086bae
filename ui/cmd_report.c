/*
 * unblock report: what recordings tell, as text or JSON.
 */
#include "command.h"
#include "filter.h"
#include "model.h"
#include "options.h"
#include "recording.h"
#include "say.h"
#include "text.h"

#include <errno.h>
#include <glob.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum format { FORMAT_TEXT, FORMAT_JSON };

static const char *const format_choices[] = {"text", "json", NULL};
static const char *const sort_choices[] = {"total", "max", "count", "p99", NULL}; /* enum ub_sort */

struct report {
    int format, sort, colour;
    const char *output;
    struct ub_filter_options filter_options;
    struct ub_filter filter;
    struct ub_sink model_sink, sink;
    struct ub_taker taker;
    struct ub_model *model;
    struct stat *read; /* identities of the files read so far */
    int read_count;
};

/* ---- reading --------------------------------------------------------- */

static void say_unreadable(const char *path, int error)
{
    switch (error) {
    case -ENODATA:
        ub_say("report", "%s is empty: nothing was recorded", path);
        break;
    case -EINVAL:
        ub_say("report", "%s is no recording: give the .jsonl file that unblock run wrote", path);
        break;
    case -EPROTONOSUPPORT:
        ub_say("report", "%s was written by a newer unblock: read it with that one", path);
        break;
    case -ENOENT:
        ub_say("report", "%s: no such file", path);
        break;
    case -EACCES:
        ub_say("report",
               "%s: permission denied: recordings are readable by the user who made them; sudo unblock report ...",
               path);
        break;
    default:
        ub_say("report", "%s: %s", path, strerror(-error));
    }
}

/* The same file twice (overlapping patterns) would count everything twice. */
static bool was_read(struct report *report, FILE *file)
{
    struct stat st;
    int i;

    if (fstat(fileno(file), &st) < 0 || !S_ISREG(st.st_mode))
        return false;
    for (i = 0; i < report->read_count; i++)
        if (report->read[i].st_dev == st.st_dev && report->read[i].st_ino == st.st_ino)
            return true;
    report->read[report->read_count++] = st;
    return false;
}

static int read_stream(struct report *report, FILE *file, const char *name)
{
    struct ub_recording_stats stats;
    int r;

    if (was_read(report, file)) {
        ub_say("report", "%s is given twice: read once", name);
        return 0;
    }
    r = ub_recording_read_fast(file, &report->sink, &report->taker, &stats);
    if (r < 0)
        say_unreadable(name, r);
    else
        ub_model_file_read(report->model, name, &stats);
    return r;
}

static int read_file(struct report *report, const char *path)
{
    FILE *file;
    int r;

    if (strcmp(path, "-") == 0)
        return read_stream(report, stdin, "standard input");
    file = fopen(path, "re");
    if (!file) {
        r = -errno;
        say_unreadable(path, r);
        return r;
    }
    r = read_stream(report, file, path);
    fclose(file);
    return r;
}

/* What was left out on request is said where the figures are read. */
static void note_filter(struct report *report)
{
    json_t *note;

    if (!ub_filter_is_set(&report->filter))
        return;
    note =
        json_pack("{s:s, s:s, s:o*}", "type", "note", "level", "info", "text",
                  json_sprintf("filtered: %llu stall lines were left out as asked; the figures of the loops are of all",
                               (unsigned long long)report->filter.left_out));
    ub_model_line(report->model, note);
    json_decref(note);
}

/* ---- writing --------------------------------------------------------- */

static void write_report(const struct report *report, FILE *out, bool colour)
{
    json_t *json;

    if (report->format == FORMAT_TEXT) {
        ub_text_report(out, report->model, colour);
        return;
    }
    json = ub_model_json(report->model);
    json_dumpf(json, out, JSON_INDENT(2));
    fputc('\n', out);
    json_decref(json);
}

static bool is_input(const struct report *report, const char *path)
{
    struct stat st;
    int i;

    if (stat(path, &st) < 0)
        return false;
    for (i = 0; i < report->read_count; i++)
        if (report->read[i].st_dev == st.st_dev && report->read[i].st_ino == st.st_ino)
            return true;
    return false;
}

static int finish(FILE *out, const char *name)
{
    bool failed = fflush(out) != 0 || ferror(out);
    int error = errno;

    if (out != stdout && fclose(out) != 0 && !failed) {
        failed = true;
        error = errno;
    }
    if (!failed)
        return 0;
    ub_say("report", "the report could not be written to %s: %s", name, strerror(error));
    return -error;
}

static int write_out(const struct report *report)
{
    const char *path = report->output;
    FILE *out = stdout;

    if (path && strcmp(path, "-") != 0) {
        if (is_input(report, path)) {
            ub_say("report", "-o %s is the recording itself: choose another file", path);
            return -EINVAL;
        }
        out = fopen(path, "we");
        if (!out) {
            ub_say("report", "-o %s: %s", path, strerror(errno));
            return -errno;
        }
    }
    write_report(report, out, ub_colour_use((enum ub_colour)report->colour, fileno(out)));
    return finish(out, path && out != stdout ? path : "standard output");
}

/* ---- the command ----------------------------------------------------- */

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

static int run_report(struct report *report, char **files, int count)
{
    int i, r = 0;

    report->model = ub_model_new();
    report->read = calloc((size_t)count, sizeof(*report->read));
    if (!report->model || !report->read) {
        ub_say("report", "out of memory");
        return -ENOMEM;
    }
    report->model_sink = ub_model_sink(report->model);
    report->sink = ub_filter_sink(&report->filter);
    report->taker = ub_filter_taker(&report->filter, ub_model_taker(report->model));
    ub_model_sort(report->model, (enum ub_sort)report->sort);
    for (i = 0; i < count && r == 0; i++)
        r = read_file(report, files[i]);
    if (r < 0)
        return r;
    note_filter(report);
    return write_out(report);
}

static const char about[] = "What recordings tell: the verdict, the figures of each loop, and the call sites\n"
                            "that blocked it by time lost, with cause, stack and advice. Several files are\n"
                            "joined; - reads standard input.";

static const char more[] = "Examples:\n"
                           "  unblock report unblock-redis-server-42-20251121T030512Z.jsonl\n"
                           "  unblock report --min 100ms --cause call,lock --sort max web*.jsonl\n"
                           "  unblock report --format json r.jsonl | jq .verdict\n"
                           "\n"
                           "Exit status: 0, or 2 for wrong use or an unreadable recording.\n";

static int parse(struct report *report, int argc, char **argv, int *ret_first, char *why)
{
    struct ub_filter_options *f = &report->filter_options;
    const struct ub_option option[] = {
        {.letter = 'f',
         .name = "format",
         .kind = UB_OPTION_CHOICE,
         .value = &report->format,
         .argument = "FORMAT",
         .help = "text (default) or json",
         .choices = format_choices},
        {.letter = 'o',
         .name = "output",
         .kind = UB_OPTION_TEXT,
         .value = &report->output,
         .argument = "FILE",
         .help = "write there, not to standard output"},
        {.name = "since",
         .kind = UB_OPTION_TEXT,
         .value = &f->since,
         .argument = "TIME",
         .help = "stalls that ended after TIME: 10m (ago), +30s (after\nthe recording began) or 2025-11-21T03:05:00Z"},
        {.name = "site",
         .kind = UB_OPTION_TEXT,
         .value = &f->site,
         .argument = "ID",
         .help = "one call site, by its id or the first digits of it"},
        {.name = "loop",
         .kind = UB_OPTION_TEXT,
         .value = &f->loop,
         .argument = "LOOP",
         .help = "one kind of loop: libuv, glib, turn ..."},
        {.name = "thread",
         .kind = UB_OPTION_TEXT,
         .value = &f->thread,
         .argument = "THREAD",
         .help = "one thread, by its name or id"},
        {.name = "cause",
         .kind = UB_OPTION_TEXT,
         .value = &f->cause,
         .argument = "LIST",
         .help = "causes, with commas: call,lock,cpu,runqueue ..."},
        {.name = "min",
         .kind = UB_OPTION_TIME,
         .value = &f->min_ns,
         .argument = "TIME",
         .help = "stalls at least this long (unit needed: us ms s)"},
        {.name = "sort",
         .kind = UB_OPTION_CHOICE,
         .value = &report->sort,
         .argument = "KEY",
         .help = "call sites by total (default), max, count or p99",
         .choices = sort_choices},
        {.name = "color",
         .kind = UB_OPTION_CHOICE,
         .value = &report->colour,
         .argument = "WHEN",
         .help = "auto (default), always or never",
         .env = "UNBLOCK_COLOR",
         .choices = ub_colour_choices},
    };
    const struct ub_options options = {.usage = "unblock report [OPTION...] FILE...",
                                       .about = about,
                                       .more = more,
                                       .option = option,
                                       .count = UB_ARRAY_LEN(option)};
    int r = ub_options_parse(&options, argc, argv, ret_first, why);

    if (r == UB_OPTIONS_HELP)
        ub_options_help(stdout, &options);
    else if (r == 0)
        r = ub_filter_init(&report->filter, f, &report->model_sink, why);
    return r;
}

int ub_cmd_report(int argc, char **argv)
{
    struct report report = {0};
    char why[UB_WHY_MAX];
    int first, r = parse(&report, argc, argv, &first, why);

    if (r == UB_OPTIONS_HELP)
        return 0;
    if (r < 0) {
        ub_say("report", "%s", why);
        return UB_EXIT_USAGE;
    }
    if (first == argc) {
        say_no_file();
        return UB_EXIT_USAGE;
    }
    r = run_report(&report, argv + first, argc - first);
    ub_model_free(report.model);
    free(report.read);
    return r < 0 ? UB_EXIT_USAGE : 0;
}
