/*
 * unblock run: starts a program under watch and is invisible to it.
 */
#include "agent_path.h"
#include "child.h"
#include "command.h"
#include "control.h"
#include "json_get.h"
#include "metrics.h"
#include "model.h"
#include "options.h"
#include "recording.h"
#include "rules.h"
#include "say.h"
#include "target.h"
#include "text.h"
#include "settings.h"
#include "strangers.h"
#include "write_all.h"

#include "../common/clock.h"
#include "../tracer/bpf/bpf.h"
#include "../tracer/watch.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct run {
    struct ub_settings set;
    bool want_bpf;

    /* while it runs */
    char **argv;
    char agent[PATH_MAX];
    enum ub_image target;
    char interpreter[PATH_MAX]; /* of a script */
    char *path;                 /* of the recording */
    struct ub_recording_writer *writer;
    struct ub_model *model;
    struct ub_text_live *text;
    struct ub_rules suppress;
    struct ub_metrics *metrics;
    struct ub_sink text_sink;
    struct ub_control *control;
    struct ub_strangers strangers;
    char full_path[PATH_MAX]; /* of the recording, for those who ask */
    struct ub_sink sinks[4];  /* the watcher refers to them until it stops */
    struct ub_bpf *bpf;       /* NULL: the agents alone */
    struct ub_watch *watch;
    struct ub_watch_totals totals;
    struct ub_child child;
    int status; /* of the child */
};

static const char about[] = "Starts CMD and watches its event loops. A loop turn that takes longer than the\n"
                            "threshold is reported while it is still blocked, with its stack, and recorded.\n"
                            "CMD sees no difference: its input, output, signals, terminal and exit status\n"
                            "are as without unblock. Its children are watched too.";

static const char more[] = "Examples:\n"
                           "  unblock run -- redis-server --port 7000\n"
                           "  unblock run -t 20ms -o app.jsonl -- python3 app.py\n"
                           "  unblock run -q --fail-on 100ms -- node test.js      for CI: exit 1 on a stall\n"
                           "\n"
                           "Variables: UNBLOCK_AGENT path of libunblock.so; NO_COLOR, CLICOLOR_FORCE.\n"
                           "\n"
                           "Exit status: that of CMD, also when a signal ended it; and\n"
                           "  1    CMD ended with 0, but --fail-on was exceeded\n"
                           "  125  unblock itself failed: CMD was not started\n"
                           "  126  CMD was found but cannot be executed\n"
                           "  127  CMD was not found\n";

static int parse(struct run *run, int argc, char **argv, int *ret_first, char *why)
{
    struct ub_option option[UB_SETTINGS_MAX + 1];
    uint32_t count = ub_settings_options(&run->set, option);
    const struct ub_options options = {.usage = "unblock run [OPTION...] [--] CMD [ARG...]",
                                       .about = about,
                                       .more = more,
                                       .stop_at_word = true,
                                       .option = option,
                                       .count = count + 1};
    int r;

    option[count] =
        (struct ub_option){.name = "bpf",
                           .kind = UB_OPTION_FLAG,
                           .value = &run->want_bpf,
                           .help = "add what the kernel knows of each stall (needs root): exact\ntimes, all "
                                   "long calls, who held the lock, who had\nthe CPU"};
    r = ub_options_parse(&options, argc, argv, ret_first, why);

    if (r == UB_OPTIONS_HELP)
        ub_options_help(stdout, &options);
    return r;
}

/* What the options say together. */
static int settle(struct run *run, char *why)
{
    if (run->set.force && run->set.append) {
        snprintf(why, UB_WHY_MAX, "--force and --append exclude each other: replace the recording, or add to it");
        return -EINVAL;
    }
    /* Stalls below the threshold are not seen: an explicit contradiction is refused, the default gives way. */
    if (run->set.fail_on_ns != 0 && run->set.fail_on_ns < run->set.threshold_ns) {
        if (run->set.threshold_given) {
            snprintf(why, UB_WHY_MAX,
                     "--fail-on is below the threshold, so it would miss stalls: lower --threshold to it");
            return -EINVAL;
        }
        run->set.threshold_ns = run->set.fail_on_ns;
    }
    if (!run->set.live_given)
        run->set.live = isatty(STDERR_FILENO) ? UB_LIVE_FULL : UB_LIVE_LINE;
    if (run->set.quiet)
        run->set.live = UB_LIVE_NONE;
    return 0;
}

static int read_suppressed(struct run *run, char *why)
{
    char reason[UB_WHY_MAX];
    int r = ub_rules_read(run->set.suppress, time(NULL), &run->suppress, reason);

    if (r < 0)
        snprintf(why, UB_WHY_MAX, "--suppress %.480s", reason);
    return r;
}

/* Why CMD could not be executed, and the exit status for it. */
static int exec_failed(const struct run *run, int error)
{
    const char *name = run->argv[0];

    switch (error) {
    case -ENOENT:
        if (*run->interpreter != '\0' && access(run->interpreter, F_OK) != 0)
            ub_say("run",
                   "%s names the interpreter %s, which does not exist: install it or mend the first line of the script",
                   name, run->interpreter);
        else if (strchr(name, '/') != NULL)
            ub_say("run", "%s does not exist, or its loader does not: check the path", name);
        else
            ub_say("run", "%s: no such command in PATH: check the name, or give its path", name);
        return UB_EXIT_NOT_FOUND;
    case -ENOTDIR:
        ub_say("run", "%s does not exist: check the path", name);
        return UB_EXIT_NOT_FOUND;
    case -EISDIR:
        ub_say("run", "%s is a folder, not a program: name a program in it", name);
        return UB_EXIT_NOT_EXECUTABLE;
    case -EACCES:
        ub_say("run", "%s is not executable (%s): chmod +x it, or name its interpreter", name, strerror(-error));
        return UB_EXIT_NOT_EXECUTABLE;
    default:
        ub_say("run", "%s cannot be executed: %s", name, strerror(-error));
        return UB_EXIT_NOT_EXECUTABLE;
    }
}

static int look_at_target(struct run *run)
{
    char path[PATH_MAX];
    int r = ub_target_find(run->argv[0], path, sizeof(path));
    const char *warning;

    if (r < 0)
        return exec_failed(run, r);
    run->target = ub_target_look(path, run->interpreter, sizeof(run->interpreter));
    warning = ub_target_warning(run->target);
    if (warning != NULL)
        ub_say("run", "warning: %s %s", *run->interpreter != '\0' ? run->interpreter : run->argv[0], warning);
    return 0;
}

static int open_recording(struct run *run)
{
    struct ub_recording_options options = {
        .force = run->set.force, .append = run->set.append, .max_size = run->set.max_size};
    int r;

    run->path = ub_recording_name(run->set.output, run->argv[0], run->child.pid);
    options.path = run->path;
    r = run->path == NULL ? -ENOMEM : ub_recording_create(&options, &run->writer);
    if (r == -EEXIST)
        ub_say("run", "%s exists: --force replaces it, --append adds to it, or choose another -o FILE", run->path);
    else if (r < 0)
        ub_say("run", "cannot write the recording %s: %s: choose another -o FILE", run->path != NULL ? run->path : "",
               strerror(-r));
    return r;
}

/* What --suppress lists is recorded, but not shown. */
static void show_line(void *self, json_t *record)
{
    struct run *run = self;

    if (run->suppress.count == 0 || !ub_json_is(record, "type", "slow") ||
        !ub_rules_fit_record(&run->suppress, run->model, record))
        run->text_sink.line(run->text_sink.self, record);
}

static uint64_t recording_lost(void *self)
{
    const struct run *run = self;

    return ub_recording_lost(run->writer);
}

static void open_control(struct run *run)
{
    const struct ub_control_options options = {.mode = "run",
                                               .pid = run->child.pid,
                                               .recording = realpath(run->path, run->full_path) != NULL ? run->full_path
                                                                                                        : run->path,
                                               .recording_lost = recording_lost,
                                               .self = run};

    run->control = ub_control_new(&options);
}

static void close_control(struct run *run)
{
    ub_control_free(run->control);
    run->control = NULL;
}

static int start_watching(struct run *run, int argc)
{
    struct ub_watch_options options = {.threshold_ns = run->set.threshold_ns,
                                       .redact = run->set.redact,
                                       .sinks = run->sinks,
                                       .argc = argc,
                                       .argv = run->argv,
                                       .bpf = run->bpf};
    char why[UB_WHY_MAX];
    int r = -ENOMEM;

    run->model = ub_model_new();
    if (run->model != NULL && run->set.metrics != NULL) {
        r = ub_metrics_start(run->set.metrics, run->model, &run->metrics, why);
        if (r < 0) {
            ub_say("run", "%s", why);
            return r;
        }
    }
    if (run->model != NULL && run->set.live != UB_LIVE_NONE)
        run->text = ub_text_live_new(STDERR_FILENO, (enum ub_live)run->set.live,
                                     ub_colour_use((enum ub_colour)run->set.colour, STDERR_FILENO), run->model);
    if (run->model != NULL && (run->text != NULL || run->set.live == UB_LIVE_NONE)) {
        run->sinks[options.sink_count++] =
            run->metrics != NULL ? ub_metrics_sink(run->metrics) : ub_model_sink(run->model);
        run->sinks[options.sink_count++] = ub_recording_sink(run->writer);
        if (run->text != NULL) {
            run->text_sink = ub_text_live_sink(run->text);
            run->sinks[options.sink_count++] = (struct ub_sink){.line = show_line, .self = run};
        }
        open_control(run);
        if (run->control != NULL)
            run->sinks[options.sink_count++] = ub_control_sink(run->control);
        r = ub_watch_start(&options, &run->watch);
        if (r == 0 && run->control != NULL)
            ub_control_open(run->control, run->watch); /* without it only `ps` and its like are blind */
    }
    if (r < 0)
        ub_say("run", "cannot start watching: %s", strerror(-r));
    return r;
}

static void tell_verdict(const struct run *run)
{
    bool on_stdout = !strcmp(run->path, "-");
    char *text = NULL;
    size_t len = 0;
    FILE *out = open_memstream(&text, &len);

    if (out == NULL)
        return;
    ub_text_verdict(out, run->model, on_stdout ? NULL : run->path,
                    ub_colour_use((enum ub_colour)run->set.colour, STDERR_FILENO));
    if (fclose(out) == 0)
        ub_write_all(STDERR_FILENO, text, len, false, NULL);
    free(text);
}

static void stop_watching(struct run *run, bool ended)
{
    uint64_t lost;
    int r;

    ub_control_leave(run->control);
    ub_watch_stop(run->watch, ended, run->status, &run->totals);
    run->watch = NULL;
    close_control(run);
    ub_metrics_stop(run->metrics);
    run->metrics = NULL;
    ub_text_live_free(run->text);
    run->text = NULL;
    r = ub_recording_close(run->writer, &lost);
    run->writer = NULL;
    if (r < 0)
        ub_say("run", "the recording %s lacks %llu lines: %s", run->path, (unsigned long long)lost, strerror(-r));
    ub_rules_suppress(&run->suppress, run->model);
    if (!run->set.quiet)
        tell_verdict(run);
}

/* Nothing ran: a recording of nothing is not left behind, unless it was there before. */
static void discard(struct run *run)
{
    ub_control_leave(run->control);
    if (run->watch != NULL)
        ub_watch_stop(run->watch, false, 0, &run->totals);
    close_control(run);
    ub_metrics_stop(run->metrics);
    ub_text_live_free(run->text);
    if (run->writer != NULL) {
        ub_recording_close(run->writer, NULL);
        if (!run->set.append && strcmp(run->path, "-") != 0)
            unlink(run->path);
    }
}

/* --fail-on says so in the last line, whatever else is silent. Exit status, or -1: the child's counts. */
static int judge(const struct run *run)
{
    char worst[UB_TEXT_DURATION_MAX], limit[UB_TEXT_DURATION_MAX];
    /* The watcher counts every stall, also those that were too many for their own lines; the model knows the
     * suppressed. */
    uint64_t worst_ns = run->suppress.count > 0 ? ub_model_totals(run->model, UB_STALL_COUNTED)->max_ns
                        : run->totals.slow > 0  ? run->totals.worst_ns
                                                : 0;

    if (run->set.fail_on_ns == 0)
        return -1;
    if (run->totals.images == 0)
        ub_say("run", "warning: --fail-on could not be checked: the agent was not loaded, nothing was watched");
    if (worst_ns == 0 || worst_ns < run->set.fail_on_ns)
        return -1;
    ub_text_duration(worst_ns, worst, sizeof(worst));
    ub_text_duration(run->set.fail_on_ns, limit, sizeof(limit));
    if (!WIFEXITED(run->status) || WEXITSTATUS(run->status) != 0) {
        ub_say("run", "--fail-on %s: the longest stall took %s, but the program failed by itself", limit, worst);
        return -1;
    }
    ub_say("run", "failed: the longest stall took %s, --fail-on is %s: exit 1", worst, limit);
    return UB_EXIT_FINDING;
}

/* We stop with the child, and the watcher with us: it would not know why it saw nothing. */
static void stops_with_child(void *self, bool stopping)
{
    struct run *run = self;

    if (run->watch)
        ub_watch_stops(run->watch, stopping);
}

/* Until `deadline` (0: for ever), with a look from time to time at who cannot be watched. 0 or -ETIME. */
static int wait_and_look(struct run *run, uint64_t deadline)
{
    static const uint64_t look_after_ms[] = {300, 2000, 10000, 60000};
    uint64_t started = ub_clock_monotonic_ns();

    for (uint32_t i = 0; i < UB_ARRAY_LEN(look_after_ms); i++) {
        uint64_t at = started + look_after_ms[i] * 1000000;

        if (deadline != 0 && deadline <= at)
            break;
        if (ub_child_wait(&run->child, at, &run->status) == 0)
            return 0;
        ub_strangers_look(&run->strangers, run->watch, run->child.pid);
    }
    return ub_child_wait(&run->child, deadline, &run->status);
}

static void wait_for_child(struct run *run)
{
    uint64_t deadline = run->set.duration_ns != 0 ? ub_clock_monotonic_ns() + run->set.duration_ns : 0;

    if (wait_and_look(run, deadline) == -ETIME) {
        stop_watching(run, false);
        if (!run->set.quiet)
            ub_say("run", "--duration is over: the program goes on, no longer watched");
        ub_child_wait(&run->child, 0, &run->status);
    }
    ub_child_signals_default();
}

/* The program is watched in any case. */
static void open_bpf(struct run *run)
{
    const struct ub_bpf_options options = {.threshold_ns = run->set.threshold_ns, .children = true};
    char why[UB_BPF_WHY_MAX] = "";
    int r = run->want_bpf ? ub_bpf_open(&options, &run->bpf, why) : 0;

    if (r == 0 && run->bpf != NULL && ub_bpf_add(run->bpf, run->child.pid) == 0 && ub_bpf_find(run->bpf) == 0)
        return;
    if (run->want_bpf)
        ub_say("run", "warning: without --bpf: %s", *why != '\0' ? why : "the kernel does not take the process");
    ub_bpf_close(run->bpf);
    run->bpf = NULL;
}

static int start_child(struct run *run, int argc)
{
    int r;

    ub_child_init(&run->child);
    run->child.on_stop = stops_with_child;
    run->child.on_stop_self = run;
    r = ub_child_fork(&run->child, run->argv, ub_image_may_preload(run->target) ? run->agent : NULL);
    if (r < 0) {
        ub_say("run", "cannot start a process: %s", strerror(-r));
        return r;
    }
    r = open_recording(run);
    if (r == 0)
        open_bpf(run);
    if (r == 0)
        r = start_watching(run, argc);
    if (r < 0) {
        ub_child_cancel(&run->child);
        discard(run);
        return r;
    }
    if (run->set.verbose)
        ub_say("run", "process %d, agent %s, recording %s", (int)run->child.pid, run->agent, run->path);
    ub_child_exec(&run->child, ub_watch_address(run->watch));
    return 0;
}

static int run_command(struct run *run, int argc)
{
    int r = look_at_target(run);

    if (r != 0)
        return r;
    if (start_child(run, argc) < 0)
        return UB_EXIT_RUN_FAILED;
    wait_for_child(run);
    if (run->child.exec_error != 0) {
        discard(run);
        return exec_failed(run, run->child.exec_error);
    }
    if (run->watch != NULL)
        stop_watching(run, true);
    r = judge(run);
    if (r >= 0)
        return r;
    ub_child_imitate(run->status);
}

int ub_cmd_run(int argc, char **argv)
{
    static struct run run;
    char why[UB_WHY_MAX];
    int first, r;

    ub_settings_init(&run.set);
    r = parse(&run, argc, argv, &first, why);
    if (r == UB_OPTIONS_HELP)
        return 0;
    if (r == 0)
        r = settle(&run, why);
    if (r == 0 && first >= argc) {
        snprintf(why, sizeof(why), "no command given: unblock run [OPTION...] -- CMD [ARG...]");
        r = -EINVAL;
    }
    if (r == 0 && run.set.suppress)
        r = read_suppressed(&run, why);
    if (r == 0)
        r = ub_agent_path(run.agent, sizeof(run.agent), why);
    if (r < 0) {
        ub_say("run", "%s", why);
        return UB_EXIT_RUN_FAILED;
    }
    run.argv = argv + first;
    r = run_command(&run, argc - first);
    ub_bpf_close(run.bpf);
    ub_model_free(run.model);
    ub_rules_clear(&run.suppress);
    free(run.path);
    return r;
}
