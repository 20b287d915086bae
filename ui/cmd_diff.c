/*
 * unblock diff: which call sites came, went, got better or worse.
 */
#include "command.h"
#include "diff.h"
#include "input.h"
#include "output.h"
#include "rules.h"
#include "say.h"
#include "text_private.h"
#include "text_escape.h"

#include <stdlib.h>
#include <time.h>

enum format { FORMAT_TEXT, FORMAT_JSON };

static const char *const format_choices[] = {"text", "json", NULL};
static const char *const change_names[UB_CHANGES] = {"new", "worse", "better", "gone", "unsure", "same"};
static const enum ub_ink change_inks[UB_CHANGES] = {UB_INK_STALL, UB_INK_STALL, UB_INK_GOOD,
                                                    UB_INK_GOOD,  UB_INK_PLAIN, UB_INK_FAINT};

struct diff_command {
    int format, colour;
    const char *output, *suppress_path;
    struct ub_input base, now;
    struct ub_rules suppress;
};

static const char about[] = "Compares two recordings, BASE and NEW, call site by call site: which stall now,\n"
                            "no more, more often or longer. Counts are held against the time that each\n"
                            "recording covers; what chance explains (1 %) is no change.";

static const char more[] = "  new      did not stall in BASE          gone    stalls no more\n"
                           "  worse    more often, or longer          better  less often, or shorter\n"
                           "  unsure   not seen in NEW, which may be chance: record for longer\n"
                           "Both runs should have done the same work: a busier one stalls more often.\n"
                           "\n"
                           "Examples:\n"
                           "  unblock diff before.jsonl after.jsonl\n"
                           "  unblock diff --min 100ms --format json main.jsonl branch.jsonl | jq .changes\n"
                           "\n"
                           "Exit status: 0 no worse; 1 a site is new or worse; 2 wrong use or an unreadable\n"
                           "recording.\n";

/* ---- text ------------------------------------------------------------- */

static void put_figures(const struct ub_text_view *view, const struct ub_site *site)
{
    const struct ub_distribution *d;

    if (!site) {
        fputs("none", view->pen.out);
        return;
    }
    d = &site->durations;
    ub_text_count(view, UB_INK_PLAIN, d->count, "stall", "stalls");
    fputs(", p50 ", view->pen.out);
    ub_text_put_duration(view, UB_INK_PLAIN, ub_distribution_percentile(d, 500));
    fputs(", max ", view->pen.out);
    ub_text_put_duration(view, UB_INK_PLAIN, d->max_ns);
    fputs(", lost ", view->pen.out);
    ub_text_put_duration(view, UB_INK_PLAIN, d->total_ns);
}

static void put_change(const struct ub_text_view views[2], const struct ub_site_change *c)
{
    const struct ub_site *site = c->now ? c->now : c->base;
    const struct ub_text_view *view = &views[c->now ? 1 : 0];
    UB_CLEANUP(ub_chain_clear) struct ub_chain chain;

    ub_chain_of_site(site, &chain);
    ub_pen_printf(&view->pen, change_inks[c->change], "%-7s", change_names[c->change]);
    ub_text_what(view, site->worst, &chain, ub_advice_of_site(site), false);
    fputs(c->longer ? "  (each is longer)\n" : c->shorter ? "  (each is shorter)\n" : "\n", view->pen.out);
    ub_pen_label(&view->pen, "base");
    put_figures(&views[0], c->base);
    fputc('\n', view->pen.out);
    ub_pen_label(&view->pen, "new");
    put_figures(&views[1], c->now);
    fputc('\n', view->pen.out);
    ub_pen_label(&view->pen, "site");
    ub_pen_put(&view->pen, UB_INK_FAINT, site->id, UB_TEXT_NAME_COLUMNS);
    fputs("\n\n", view->pen.out);
}

static void write_text(FILE *out, const struct diff_command *cmd, const struct ub_diff *diff, bool colour)
{
    struct ub_text_view views[2];
    const char *comma = "";
    size_t i;

    ub_text_view_init(&views[0], out, cmd->base.model, colour);
    ub_text_view_init(&views[1], out, cmd->now.model, colour);
    for (i = 0; i < diff->sites; i++)
        put_change(views, &diff->site[i]);
    fputs("watched: base ", out);
    ub_text_put_duration(&views[0], UB_INK_PLAIN, diff->base_ns);
    fputs(", new ", out);
    ub_text_put_duration(&views[0], UB_INK_PLAIN, diff->now_ns);
    fputs("\ncall sites: ", out);
    for (i = 0; i < UB_CHANGES; i++) {
        if (diff->count[i] == 0)
            continue;
        fprintf(out, "%s%zu %s", comma, diff->count[i], change_names[i]);
        comma = ", ";
    }
    fputs(*comma ? "\n" : "none\n", out);
}

/* ---- JSON ------------------------------------------------------------- */

static json_t *side_json(const struct ub_site *site)
{
    const struct ub_distribution *d = &site->durations;

    return json_pack("{s:I, s:I, s:I, s:I}", "stalls", (json_int_t)d->count, "total_ns", (json_int_t)d->total_ns,
                     "max_ns", (json_int_t)d->max_ns, "p50_ns", (json_int_t)ub_distribution_percentile(d, 500));
}

static json_t *change_json(const struct ub_site_change *c)
{
    const struct ub_site *site = c->now ? c->now : c->base;
    json_t *o =
        json_pack("{s:s, s:s, s:s*}", "site", site->id, "change", change_names[c->change], "program", site->program);

    json_object_set(o, "callback", json_object_get(site->worst, "callback"));
    if (c->base)
        json_object_set_new(o, "base", side_json(c->base));
    if (c->now)
        json_object_set_new(o, "new", side_json(c->now));
    if (c->longer || c->shorter)
        json_object_set_new(o, "each", json_string(c->longer ? "longer" : "shorter"));
    return o;
}

static void write_json(FILE *out, const struct ub_diff *diff)
{
    json_t *o = json_pack("{s:s, s:i, s:I, s:I}", "schema", "unblock-diff", "version", 1, "base_ns",
                          (json_int_t)diff->base_ns, "new_ns", (json_int_t)diff->now_ns);
    json_t *counts = json_object(), *list = json_array();
    size_t i;

    for (i = 0; i < UB_CHANGES; i++)
        json_object_set_new(counts, change_names[i], json_integer((json_int_t)diff->count[i]));
    for (i = 0; i < diff->sites; i++)
        json_array_append_new(list, change_json(&diff->site[i]));
    json_object_set_new(o, "counts", counts);
    json_object_set_new(o, "changes", list);
    json_dumpf(o, out, JSON_INDENT(2));
    fputc('\n', out);
    json_decref(o);
}

/* ---- the command ------------------------------------------------------- */

/* The filters of both are the same ones. */
static int read_both(struct diff_command *cmd, char **files)
{
    char why[UB_WHY_MAX];
    int r = cmd->suppress_path ? ub_rules_read(cmd->suppress_path, time(NULL), &cmd->suppress, why) : 0;

    if (r < 0)
        ub_say("diff", "--suppress %s", why);
    cmd->now.filter_options = cmd->base.filter_options;
    if (r == 0)
        r = ub_input_read(&cmd->base, &files[0], 1);
    if (r == 0)
        r = ub_input_read(&cmd->now, &files[1], 1);
    if (r < 0)
        return r;
    ub_rules_suppress(&cmd->suppress, cmd->base.model);
    ub_rules_suppress(&cmd->suppress, cmd->now.model);
    return 0;
}

static uint64_t threshold(const struct ub_input *in)
{
    const struct ub_run *run = ub_model_current_run(in->model);

    return run ? ub_json_u64_or(run->header, "threshold_ns", 0) : 0;
}

static int compare(struct diff_command *cmd, size_t *ret_worse)
{
    struct ub_diff diff;
    struct ub_output out;
    int r;

    if (threshold(&cmd->base) != threshold(&cmd->now) && cmd->base.filter_options.min_ns == 0)
        ub_say("diff", "warning: the recordings have different thresholds: --min with the higher one makes them equal");
    r = ub_diff_make(cmd->base.model, cmd->now.model, &diff);
    if (r == 0)
        r = ub_output_open(&out, "diff", cmd->output, &cmd->base);
    if (r == 0) {
        if (cmd->format == FORMAT_JSON)
            write_json(out.file, &diff);
        else
            write_text(out.file, cmd, &diff, ub_colour_use((enum ub_colour)cmd->colour, fileno(out.file)));
        r = ub_output_close(&out);
    }
    *ret_worse = diff.count[UB_CHANGE_NEW] + diff.count[UB_CHANGE_WORSE];
    ub_diff_clear(&diff);
    return r;
}

static int parse(struct diff_command *cmd, int argc, char **argv, int *ret_first)
{
    struct ub_option option[8 + UB_INPUT_OPTIONS_MAX] = {
        {.letter = 'f',
         .name = "format",
         .kind = UB_OPTION_CHOICE,
         .value = &cmd->format,
         .argument = "FORMAT",
         .help = "text (default) or json",
         .choices = format_choices},
        {.letter = 'o',
         .name = "output",
         .kind = UB_OPTION_TEXT,
         .value = &cmd->output,
         .argument = "FILE",
         .help = "write there, not to standard output"},
        UB_OPTION_SUPPRESS(&cmd->suppress_path),
        UB_OPTION_COLOUR(&cmd->colour),
    };
    const struct ub_options options = {.usage = "unblock diff [OPTION...] BASE NEW",
                                       .about = about,
                                       .more = more,
                                       .option = option,
                                       .count = 4 + ub_input_options(&cmd->base, option + 4)};

    return ub_options_command("diff", &options, argc, argv, ret_first);
}

int ub_cmd_diff(int argc, char **argv)
{
    struct diff_command cmd = {.base.command = "diff", .now.command = "diff"};
    size_t worse = 0;
    int first, r = parse(&cmd, argc, argv, &first);

    if (r != 0)
        return r < 0 ? UB_EXIT_USAGE : 0;
    if (argc - first != 2) {
        ub_say("diff", "two recordings are compared: unblock diff BASE NEW");
        return UB_EXIT_USAGE;
    }
    r = read_both(&cmd, argv + first);
    if (r == 0)
        r = compare(&cmd, &worse);
    ub_input_clear(&cmd.base);
    ub_input_clear(&cmd.now);
    ub_rules_clear(&cmd.suppress);
    return r < 0 ? UB_EXIT_USAGE : worse > 0 ? UB_EXIT_FINDING : 0;
}
