/*
 * unblock dump: what every thread of a process does now, seen from outside.
 */
#include "command.h"
#include "model.h"
#include "options.h"
#include "output.h"
#include "recording.h"
#include "refuse.h"
#include "say.h"
#include "text.h"

#include "../tracer/dump.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum format { FORMAT_TEXT, FORMAT_JSON };

static const char *const format_choices[] = {"text", "json", NULL};

struct dump_command {
    /* options */
    const char *output;
    int format, colour;
    bool format_given, force, redact;

    struct ub_model *model; /* text: knows the stacks that threads refer to */
    struct ub_output out;   /* text */
    bool use_colour;
};

static const char about[] = "Shows what every thread of process PID does at this moment: its state, the\n"
                            "system call it waits in with arguments, file or peer, and its stack. Nothing is\n"
                            "injected into the process, and nothing of it is stopped or signalled.";

static const char more[] = "Examples:\n"
                           "  unblock dump 4242\n"
                           "  unblock dump $(pgrep -o redis-server)\n"
                           "  unblock dump 4242 -o dump.jsonl && unblock report dump.jsonl\n"
                           "\n"
                           "A process of your own can be looked at as you are, unless kernel.yama.ptrace_scope\n"
                           "forbids it; one of another user takes root.\n"
                           "\n"
                           "Exit status:\n"
                           "  0  every thread was shown\n"
                           "  1  some threads were shown without a stack\n"
                           "  2  wrong use, no such process, or no permission\n";

static int parse(struct dump_command *cmd, int argc, char **argv, int *ret_first, char *why)
{
    const struct ub_option option[] = {
        {.letter = 'o',
         .name = "output",
         .kind = UB_OPTION_TEXT,
         .value = &cmd->output,
         .argument = "FILE",
         .help = "write there instead of standard output; a recording\n(%p pid, %t time, %h host), text with --format "
                 "text"},
        {.name = "force", .kind = UB_OPTION_FLAG, .value = &cmd->force, .help = "replace an existing FILE"},
        {.name = "format",
         .kind = UB_OPTION_CHOICE,
         .value = &cmd->format,
         .argument = "FORMAT",
         .help = "text or json (the lines of a recording; default: text,\njson into a FILE)",
         .choices = format_choices,
         .given = &cmd->format_given},
        {.name = "redact",
         .kind = UB_OPTION_FLAG,
         .value = &cmd->redact,
         .help = "no arguments, paths or peers",
         .env = "UNBLOCK_REDACT"},
        UB_OPTION_COLOUR(&cmd->colour),
    };
    const struct ub_options options = {.usage = "unblock dump [OPTION...] PID",
                                       .about = about,
                                       .more = more,
                                       .option = option,
                                       .count = UB_ARRAY_LEN(option)};

    return ub_options_read(&options, argc, argv, ret_first, why);
}

static int parse_pid(int argc, char **argv, int first, pid_t *ret, char *why)
{
    if (argc - first != 1) {
        snprintf(why, UB_WHY_MAX, argc == first ? "no process named: unblock dump PID" : "one PID at a time");
        return -EINVAL;
    }
    return ub_option_pid(argv[first], ret, why);
}

/* ---- output ---------------------------------------------------------- */

static void text_line(void *self, json_t *record)
{
    struct dump_command *cmd = self;
    const char *type = json_string_value(json_object_get(record, "type"));

    if (type != NULL && strcmp(type, "task") == 0)
        ub_text_task(cmd->out.file, cmd->model, record, cmd->use_colour);
    if (type == NULL || strcmp(type, "thread") != 0)
        return;
    ub_text_thread(cmd->out.file, cmd->model, record, cmd->use_colour);
    fputc('\n', cmd->out.file);
}

static int write_json(struct dump_command *cmd, struct ub_dump_options options, const char *path,
                      struct ub_dump_result *ret)
{
    const struct ub_recording_options recording = {.path = path, .force = cmd->force};
    struct ub_recording_writer *writer;
    struct ub_sink sink;
    int r = ub_recording_create(&recording, &writer), closed;

    if (r == 0) {
        sink = ub_recording_sink(writer);
        options.sinks = &sink;
        options.sink_count = 1;
        r = ub_dump(&options, ret);
        closed = ub_recording_close(writer, NULL);
        if (closed == 0)
            return r;
        r = closed;
    }
    ub_output_refused("dump", "", path, r, false);
    return -EIO;
}

static int write_text(struct dump_command *cmd, struct ub_dump_options options, const char *path,
                      struct ub_dump_result *ret)
{
    struct ub_sink sinks[2] = {ub_model_sink(cmd->model), {text_line, cmd}};
    int r = ub_output_create(&cmd->out, "dump", path, cmd->force);

    if (r < 0)
        return -EIO;
    cmd->use_colour = ub_colour_use((enum ub_colour)cmd->colour, fileno(cmd->out.file));
    fprintf(cmd->out.file, "process %d (%s)\n\n", (int)options.target->pid, options.target->name);
    options.sinks = sinks;
    options.sink_count = 2;
    r = ub_dump(&options, ret);
    return ub_output_close(&cmd->out) < 0 ? -EIO : r;
}

static int dump(struct dump_command *cmd, int argc, char **argv, pid_t pid)
{
    struct ub_dump_target target;
    struct ub_dump_options options = {.target = &target, .redact = cmd->redact, .argc = argc, .argv = argv};
    struct ub_dump_result result = {0};
    char *path;
    int r;

    if (ub_refuse("dump", pid, &target) < 0)
        return UB_EXIT_USAGE;
    path = cmd->output != NULL ? ub_recording_name(cmd->output, target.name, target.pid) : strdup("-");
    cmd->model = ub_model_new();
    if (path == NULL || cmd->model == NULL)
        r = -ENOMEM;
    else
        r = (cmd->format == FORMAT_JSON ? write_json : write_text)(cmd, options, path, &result);
    if (r < 0 && r != -EIO)
        ub_say("dump",
               r == -ESRCH ? "process %d (%s) ended before it could be looked at" : "process %d (%s): out of memory",
               (int)target.pid, target.name);
    ub_model_free(cmd->model);
    free(path);
    if (r < 0)
        return UB_EXIT_USAGE;
    return result.without_stack > 0 ? UB_EXIT_FINDING : 0;
}

int ub_cmd_dump(int argc, char **argv)
{
    struct dump_command cmd = {.colour = UB_COLOUR_AUTO};
    char why[UB_WHY_MAX];
    pid_t pid = 0;
    int first, r = parse(&cmd, argc, argv, &first, why);

    if (r == UB_OPTIONS_HELP)
        return 0;
    if (r == 0)
        r = parse_pid(argc, argv, first, &pid, why);
    if (r < 0) {
        ub_say("dump", "%s", why);
        return UB_EXIT_USAGE;
    }
    if (!cmd.format_given)
        cmd.format = cmd.output != NULL ? FORMAT_JSON : FORMAT_TEXT;
    return dump(&cmd, argc, argv, pid);
}
