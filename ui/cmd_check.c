/*
 * unblock check: for CI. Fails when a stall of a recording reached a limit.
 */
#include "advice.h"
#include "command.h"
#include "export.h"
#include "input.h"
#include "output.h"
#include "say.h"
#include "text.h"
#include "text_escape.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

struct check {
    uint64_t fail_on_ns;
    int format;
    const char *output, *allow_path, *suppress_path;
    bool shrink;
    struct ub_input in;
    struct ub_rules allow, suppress;
    struct ub_findings findings;
};

static const char about[] = "Fails when a stall of a recording reached TIME: for CI. A list of allowed stalls\n"
                            "(--allow) keeps known ones from failing until a day that it names; it is meant\n"
                            "to become shorter, and --shrink takes out what no longer occurs.";

static const char more[] = "Lists (--allow, --suppress), one stall a line:\n"
                           "  7f3a91c2  until 2026-12-31                    a site; # begins a comment\n"
                           "  call:fsync function:wal_*  max 200ms          all words must fit; also\n"
                           "                        program: module: thread: loop:\n"
                           "Formats: text, json, junit (XML), github (annotations), sarif.\n"
                           "\n"
                           "Examples:\n"
                           "  unblock check r.jsonl --fail-on 100ms --cause call,cpu,lock\n"
                           "  unblock check r.jsonl --fail-on 100ms --allow known.txt -f junit -o stalls.xml\n"
                           "\n"
                           "Exit status: 0 no stall reached TIME; 1 one did that is not allowed; 2 wrong\n"
                           "use, or a recording or list that cannot be read.\n";

/* ---- the recording must be able to answer ------------------------------ */

static int judge_thresholds(const struct check *check)
{
    char have[UB_TEXT_DURATION_MAX], want[UB_TEXT_DURATION_MAX];
    uint32_t i;

    snprintf(want, sizeof(want), "%gms", (double)check->fail_on_ns / 1e6);

    for (i = 0; i < ub_model_runs(check->in.model); i++) {
        uint64_t threshold = ub_json_u64_or(ub_model_run(check->in.model, i)->header, "threshold_ns", 0);

        if (threshold <= check->fail_on_ns)
            continue;
        ub_say("check",
               "--fail-on %s is below the threshold of the recording, %s: shorter stalls are not in it; record "
               "with unblock run -t %s",
               want, ub_text_duration(threshold, have, sizeof(have)), want);
        return -EINVAL;
    }
    return 0;
}

static void warn_of_nothing(const struct check *check)
{
    size_t loops;

    free((void *)ub_model_loops(check->in.model, &loops));
    if (loops == 0)
        ub_say("check", "warning: no event loop was seen in the recording, so there was nothing that could fail");
}

/* ---- text ------------------------------------------------------------- */

static void put_words(FILE *out, enum ub_finding_state state)
{
    static const char *const words[] = {"FAILED   ", "allowed  ", "EXPIRED  ", "TOO LONG "};

    fputs(words[state], out);
}

static void put_finding(FILE *out, const struct ub_finding *f)
{
    char figures[UB_FINDING_FIGURES_MAX], words[UB_ADVICE_WORDS_MAX];
    const char *file = f->frame ? ub_export_file(f->frame) : NULL;
    const char *advice = ub_finding_fails(f) ? ub_advice_site_words(f->site, words, sizeof(words)) : NULL;

    put_words(out, f->state);
    fprintf(out, "%s\n  lost   %s\n  why    %s\n", f->what, ub_finding_figures(f, figures), f->why);
    if (file) {
        fputs("  where  ", out);
        ub_escape_put_path(out, file, 200);
        fprintf(out, ":%" PRIu64 "\n", ub_json_u64_or(f->frame, "line", 0));
    }
    if (f->rule) {
        fputs("  rule   ", out);
        ub_escape_put(out, f->rule->text, 200);
        fprintf(out, "   (line %u)\n", f->rule->line);
    }
    if (advice) {
        fputs("  do     ", out);
        ub_escape_put(out, advice, 400);
        fputc('\n', out);
    }
    fputs("  site   ", out);
    ub_escape_put(out, f->site->id, 64);
    fputs("\n\n", out);
}

static void write_text(FILE *out, const struct check *check)
{
    const struct ub_findings *f = &check->findings;
    uint64_t suppressed = ub_model_totals(check->in.model, UB_STALL_SUPPRESSED)->count;
    char limit[UB_TEXT_DURATION_MAX];
    size_t i;

    for (i = 0; i < f->count; i++)
        put_finding(out, &f->finding[i]);
    ub_text_duration(f->limit_ns, limit, sizeof(limit));
    if (f->failed > 0)
        fprintf(out, "failed: %zu call site%s blocked for %s or longer", f->failed, f->failed == 1 ? "" : "s", limit);
    else
        fprintf(out, "passed: no stall of %s or longer%s", limit, f->count > 0 ? " but allowed ones" : "");
    if (f->count > f->failed)
        fprintf(out, ", %zu allowed", f->count - f->failed);
    if (suppressed > 0)
        fprintf(out, ", %" PRIu64 " stalls suppressed", suppressed);
    fputc('\n', out);
}

/* ---- JSON ------------------------------------------------------------- */

static json_t *finding_json(const struct ub_finding *f)
{
    static const char *const states[] = {"failed", "allowed", "expired", "too-long"};
    const struct ub_distribution *d = &f->site->durations;
    json_t *o = json_pack("{s:s, s:s*, s:s, s:s, s:s, s:I, s:I, s:I}", "site", f->site->id, "program", f->site->program,
                          "state", states[f->state], "what", f->what, "why", f->why, "stalls", (json_int_t)d->count,
                          "total_ns", (json_int_t)d->total_ns, "max_ns", (json_int_t)d->max_ns);

    if (f->frame && ub_json_string(f->frame, "file")) {
        json_object_set_new(o, "file", json_string(ub_export_file(f->frame)));
        json_object_set(o, "line", json_object_get(f->frame, "line"));
    }
    if (f->rule)
        json_object_set_new(o, "rule", json_string(f->rule->text));
    return o;
}

static void write_json(FILE *out, const struct check *check)
{
    json_t *list = json_array(), *o;
    size_t i;

    for (i = 0; i < check->findings.count; i++)
        json_array_append_new(list, finding_json(&check->findings.finding[i]));
    o = json_pack("{s:s, s:i, s:I, s:b, s:o}", "schema", "unblock-check", "version", 1, "fail_on_ns",
                  (json_int_t)check->fail_on_ns, "passed", check->findings.failed == 0, "findings", list);
    json_dumpf(o, out, JSON_INDENT(2));
    fputc('\n', out);
    json_decref(o);
}

/* ---- the list that only shrinks ----------------------------------------- */

static bool is_stale(const struct ub_rule *rule)
{
    return !rule->used;
}

static void tell_stale(const struct check *check)
{
    uint32_t i;

    for (i = 0; i < check->allow.count; i++)
        if (is_stale(&check->allow.rule[i]))
            ub_say("check", "%s:%u: no stall fits any more: take it out (--shrink does): %s", check->allow.path,
                   check->allow.rule[i].line, check->allow.rule[i].text);
}

static bool line_stays(const struct ub_rules *rules, uint32_t line)
{
    uint32_t i;

    for (i = 0; i < rules->count; i++)
        if (rules->rule[i].line == line)
            return !is_stale(&rules->rule[i]);
    return true; /* comments and empty lines */
}

/* A new file in its place: whoever is interrupted keeps the old one. */
static int shrink(const struct check *check)
{
    char temporary[4096];
    FILE *from = fopen(check->allow.path, "re"), *to = NULL;
    char *text = NULL;
    size_t size = 0;
    uint32_t line = 0;
    int fd, r = 0;

    snprintf(temporary, sizeof(temporary), "%.4000s.XXXXXX", check->allow.path);
    fd = from ? mkostemp(temporary, O_CLOEXEC) : -1;
    to = fd >= 0 ? fdopen(fd, "w") : NULL;
    if (!to)
        r = -errno;
    while (to && getline(&text, &size, from) > 0)
        if (line_stays(&check->allow, ++line))
            fputs(text, to);
    if (to && (fchmod(fd, 0644) < 0 || fclose(to) != 0 || rename(temporary, check->allow.path) < 0)) {
        r = -errno;
        unlink(temporary);
    }
    if (from)
        fclose(from);
    free(text);
    if (r < 0)
        ub_say("check", "--shrink: %s cannot be written: %s", check->allow.path, strerror(-r));
    return r;
}

/* ---- the command ------------------------------------------------------- */

static int read_list(const char *option, const char *path, struct ub_rules *ret)
{
    char why[UB_WHY_MAX];
    int r = path ? ub_rules_read(path, time(NULL), ret, why) : 0;

    if (r < 0)
        ub_say("check", "%s %s", option, why);
    return r;
}

static int write_out(struct check *check)
{
    const char *name = ub_export_names(true)[check->format];
    struct ub_export_job job = {.m = check->in.model, .findings = &check->findings};
    struct ub_output out;
    int r = ub_output_open(&out, "check", check->output, &check->in);

    if (r < 0)
        return r;
    if (strcmp(name, "text") == 0)
        write_text(out.file, check);
    else if (strcmp(name, "json") == 0)
        write_json(out.file, check);
    else
        ub_export_find(name)->write(out.file, &job);
    return ub_output_close(&out);
}

static int run_check(struct check *check, char **files, int count)
{
    int r = read_list("--allow", check->allow_path, &check->allow);

    if (r == 0)
        r = read_list("--suppress", check->suppress_path, &check->suppress);
    /* Only what reached the limit is looked at, so the counts are of that. */
    if (check->in.filter_options.min_ns < check->fail_on_ns)
        check->in.filter_options.min_ns = check->fail_on_ns;
    if (r == 0)
        r = ub_input_read(&check->in, files, count);
    if (r == 0)
        r = judge_thresholds(check);
    if (r < 0)
        return r;
    warn_of_nothing(check);
    ub_rules_suppress(&check->suppress, check->in.model);
    r = ub_findings_make(check->in.model, check->fail_on_ns, &check->allow, &check->findings);
    if (r == 0)
        r = write_out(check);
    if (r == 0 && check->shrink && check->allow_path)
        r = shrink(check);
    else if (r == 0)
        tell_stale(check);
    return r;
}

static int parse(struct check *check, int argc, char **argv, int *ret_first)
{
    struct ub_option option[8 + UB_INPUT_OPTIONS_MAX] = {
        {.name = "fail-on",
         .kind = UB_OPTION_TIME,
         .value = &check->fail_on_ns,
         .argument = "TIME",
         .help = "the shortest stall that fails (unit needed: us ms s)",
         .env = "UNBLOCK_FAIL_ON",
         .min = UB_THRESHOLD_MIN_NS,
         .max = UB_THRESHOLD_MAX_NS},
        {.name = "allow",
         .kind = UB_OPTION_TEXT,
         .value = &check->allow_path,
         .argument = "FILE",
         .help = "stalls that FILE lists do not fail"},
        {.name = "shrink",
         .kind = UB_OPTION_FLAG,
         .value = &check->shrink,
         .help = "take lines out of the --allow FILE that fit nothing"},
        UB_OPTION_SUPPRESS(&check->suppress_path),
        {.letter = 'f',
         .name = "format",
         .kind = UB_OPTION_CHOICE,
         .value = &check->format,
         .argument = "FORMAT",
         .help = "text (default), json, junit, github or sarif",
         .choices = ub_export_names(true)},
        {.letter = 'o',
         .name = "output",
         .kind = UB_OPTION_TEXT,
         .value = &check->output,
         .argument = "FILE",
         .help = "write there, not to standard output"},
    };
    const struct ub_options options = {.usage = "unblock check [OPTION...] --fail-on TIME FILE...",
                                       .about = about,
                                       .more = more,
                                       .option = option,
                                       .count = 6 + ub_input_options(&check->in, option + 6)};

    return ub_options_command("check", &options, argc, argv, ret_first);
}

int ub_cmd_check(int argc, char **argv)
{
    struct check check = {.in.command = "check"};
    size_t failed;
    int first, r = parse(&check, argc, argv, &first);

    if (r != 0)
        return r < 0 ? UB_EXIT_USAGE : 0;
    if (first == argc || check.fail_on_ns == 0) {
        ub_say("check", first == argc ? "no recording is given: unblock check FILE --fail-on TIME"
                                      : "--fail-on is missing: say which stalls fail, as in --fail-on 100ms");
        return UB_EXIT_USAGE;
    }
    r = run_check(&check, argv + first, argc - first);
    failed = check.findings.failed;
    ub_findings_clear(&check.findings);
    ub_rules_clear(&check.allow);
    ub_rules_clear(&check.suppress);
    ub_input_clear(&check.in);
    return r < 0 ? UB_EXIT_USAGE : failed > 0 ? UB_EXIT_FINDING : 0;
}
