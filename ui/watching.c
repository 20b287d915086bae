#include "watching.h"
#include "command.h"
#include "control.h"
#include "metrics.h"
#include "output.h"
#include "offload_choice.h"
#include "say.h"
#include "text.h"
#include "write_all.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

int ub_watching_signals(int more)
{
    sigset_t stops;

    sigemptyset(&stops);
    sigaddset(&stops, SIGINT);
    sigaddset(&stops, SIGTERM);
    sigaddset(&stops, SIGHUP);
    sigaddset(&stops, SIGQUIT);
    if (more)
        sigaddset(&stops, more);
    sigprocmask(SIG_BLOCK, &stops, NULL);
    return signalfd(-1, &stops, SFD_CLOEXEC | SFD_NONBLOCK);
}

int ub_watching_settle(struct ub_settings *set, char *why)
{
    if (set->force && set->append) {
        snprintf(why, UB_WHY_MAX, "--force and --append exclude each other: replace the recording, or add to it");
        return -EINVAL;
    }
    /* Stalls below the threshold are not seen: an explicit contradiction is refused, the default gives way. */
    if (set->fail_on_ns != 0 && set->fail_on_ns < set->threshold_ns) {
        if (set->threshold_given) {
            snprintf(why, UB_WHY_MAX,
                     "--fail-on is below the threshold, so it would miss stalls: lower --threshold to it");
            return -EINVAL;
        }
        set->threshold_ns = set->fail_on_ns;
    }
    if (!set->live_given)
        set->live = isatty(STDERR_FILENO) ? UB_LIVE_FULL : UB_LIVE_LINE;
    if (set->quiet)
        set->live = UB_LIVE_NONE;
    return 0;
}

int ub_watching_init(struct ub_watching *w, const char *command, const struct ub_settings *set, char *why)
{
    char reason[UB_WHY_MAX];
    int r = 0;

    *w = (struct ub_watching){.command = command, .set = set};
    if (set->suppress)
        r = ub_rules_read(set->suppress, time(NULL), &w->suppress, reason);
    if (r < 0)
        snprintf(why, UB_WHY_MAX, "--suppress %.480s", reason);
    return r;
}

int ub_watching_open(struct ub_watching *w, const char *program, pid_t pid)
{
    const struct ub_settings *set = w->set;
    struct ub_recording_options options = {.force = set->force, .append = set->append, .max_size = set->max_size};
    int r;

    w->path = ub_recording_name(set->output, program, pid);
    options.path = w->path;
    r = w->path ? ub_recording_create(&options, &w->writer) : -ENOMEM;
    if (r < 0)
        ub_output_refused(w->command, "the recording ", w->path ? w->path : "", r, true);
    return r;
}

/* What --suppress lists is recorded, but not shown. */
static void show_line(void *self, json_t *record)
{
    struct ub_watching *w = self;

    if (w->suppress.count == 0 || !ub_json_is(record, "type", "slow") ||
        !ub_rules_fit_record(&w->suppress, w->model, record))
        w->text_sink.line(w->text_sink.self, record);
}

static uint64_t recording_lost(void *self)
{
    const struct ub_watching *w = self;

    return ub_recording_lost(w->writer);
}

/* In the control thread. Where calls were not to be moved from the beginning the agents have not the hooks for it. */
static int switch_offload(void *self, const char *mode, char *why)
{
    struct ub_watching *w = self;
    struct ub_offload_choice choice;
    int r;

    if (w->offload <= UB_OFFLOAD_DRY_RUN) {
        snprintf(why, UB_WHY_MAX,
                 "it was started %s: calls can be moved only where it is started with --offload=flagged, "
                 "eager or a file",
                 w->offload == UB_OFFLOAD_OFF ? "without --offload" : "with --offload=dry-run");
        return -EPERM;
    }
    r = ub_offload_choose(w->command, mode, &choice, why);
    return r == 0 ? ub_watch_offload(w->watch, choice.mode, choice.policy) : r;
}

static void open_control(struct ub_watching *w, pid_t pid)
{
    const struct ub_control_options options = {.mode = w->command,
                                               .pid = pid,
                                               .recording = realpath(w->path, w->full_path) ? w->full_path : w->path,
                                               .recording_lost = recording_lost,
                                               .detach = w->detach,
                                               .offload = switch_offload,
                                               .self = w};

    w->control = ub_control_new(&options);
}

static void close_control(struct ub_watching *w)
{
    ub_control_free(w->control);
    w->control = NULL;
}

/* Who hears of each line, the model first. 0 or -errno. */
static int open_sinks(struct ub_watching *w, struct ub_watch_options *options, pid_t pid)
{
    bool colour = ub_colour_use((enum ub_colour)w->set->colour, STDERR_FILENO);

    w->sinks[options->sink_count++] = w->metrics ? ub_metrics_sink(w->metrics) : ub_model_sink(w->model);
    w->sinks[options->sink_count++] = ub_recording_sink(w->writer);
    if (w->set->live != UB_LIVE_NONE) {
        w->text = ub_text_live_new(STDERR_FILENO, (enum ub_live)w->set->live, colour, w->model);
        if (!w->text)
            return -ENOMEM;
        w->text_sink = ub_text_live_sink(w->text);
        w->sinks[options->sink_count++] = (struct ub_sink){.line = show_line, .self = w};
    }
    open_control(w, pid);
    if (w->control)
        w->sinks[options->sink_count++] = ub_control_sink(w->control);
    options->sinks = w->sinks;
    return 0;
}

int ub_watching_start(struct ub_watching *w, struct ub_watch_options *options, pid_t pid)
{
    char why[UB_WHY_MAX] = "";
    int r = -ENOMEM;

    w->offload = options->offload;
    options->threshold_ns = w->set->threshold_ns;
    options->redact = w->set->redact;
    w->model = ub_model_new();
    if (w->model)
        r = w->set->metrics ? ub_metrics_start(w->set->metrics, w->model, &w->metrics, why) : 0;
    if (r == 0)
        r = open_sinks(w, options, pid);
    if (r == 0)
        r = ub_watch_start(options, &w->watch);
    if (r == 0 && w->control)
        ub_control_open(w->control, w->watch); /* without it only `ps` and its like are blind */
    if (r < 0 && *why)
        ub_say(w->command, "%s", why);
    else if (r < 0)
        ub_say(w->command, "cannot start watching: %s", strerror(-r));
    return r;
}

static void tell_verdict(const struct ub_watching *w)
{
    bool on_stdout = !strcmp(w->path, "-");
    char *text = NULL;
    size_t len = 0;
    FILE *out = open_memstream(&text, &len);

    if (!out)
        return;
    ub_text_verdict(out, w->model, on_stdout ? NULL : w->path,
                    ub_colour_use((enum ub_colour)w->set->colour, STDERR_FILENO));
    if (fclose(out) == 0)
        ub_write_all(STDERR_FILENO, text, len, false, NULL);
    free(text);
}

/* Everything but the recording. */
static void close_sinks(struct ub_watching *w, bool ended, int status)
{
    ub_control_leave(w->control);
    if (w->watch)
        ub_watch_stop(w->watch, ended, status, &w->totals);
    w->watch = NULL;
    close_control(w);
    ub_metrics_stop(w->metrics);
    w->metrics = NULL;
    ub_text_live_free(w->text);
    w->text = NULL;
}

void ub_watching_stop(struct ub_watching *w, bool ended, int status)
{
    uint64_t lost = 0;
    int r;

    close_sinks(w, ended, status);
    r = ub_recording_close(w->writer, &lost);
    w->writer = NULL;
    if (r < 0)
        ub_say(w->command, "the recording %s lacks %llu lines: %s", w->path, (unsigned long long)lost, strerror(-r));
    ub_rules_suppress(&w->suppress, w->model);
    if (!w->set->quiet)
        tell_verdict(w);
}

void ub_watching_discard(struct ub_watching *w)
{
    struct stat st;

    close_sinks(w, false, 0);
    if (!w->writer)
        return;
    ub_recording_close(w->writer, NULL);
    w->writer = NULL;
    /* A file of ours, not /dev/null or a pipe, which root could take away. */
    if (!w->set->append && strcmp(w->path, "-") != 0 && lstat(w->path, &st) == 0 && S_ISREG(st.st_mode))
        unlink(w->path);
}

uint64_t ub_watching_too_long(const struct ub_watching *w)
{
    /* The watcher counts every stall, also those that were too many for their own lines; the model knows the
     * suppressed. */
    uint64_t worst_ns = w->suppress.count > 0 ? ub_model_totals(w->model, UB_STALL_COUNTED)->max_ns
                        : w->totals.slow > 0  ? w->totals.worst_ns
                                              : 0;

    return w->set->fail_on_ns != 0 && worst_ns >= w->set->fail_on_ns ? worst_ns : 0;
}

int ub_watching_fail(const struct ub_watching *w, uint64_t worst_ns)
{
    char worst[UB_TEXT_DURATION_MAX], limit[UB_TEXT_DURATION_MAX];

    ub_text_duration(worst_ns, worst, sizeof(worst));
    ub_text_duration(w->set->fail_on_ns, limit, sizeof(limit));
    ub_say(w->command, "failed: the longest stall took %s, --fail-on is %s: exit 1", worst, limit);
    return UB_EXIT_FINDING;
}

void ub_watching_clear(struct ub_watching *w)
{
    ub_model_free(w->model);
    ub_rules_clear(&w->suppress);
    free(w->path);
    *w = (struct ub_watching){0};
}
