/*
 * unblock __watch: the helper that an agent starts when only LD_PRELOAD is set.
 * Not for people: it wants the agent's arena at UB_HELPER_FD.
 *
 * It lives as long as a process of the tree that it was started in, and holds
 * nothing of theirs: no descriptor, terminal, folder, process group, CPU set or
 * scheduling class. What it has to say goes into the recording.
 */
#include "command.h"
#include "control.h"
#include "json_get.h"
#include "metrics.h"
#include "model.h"
#include "recording.h"
#include "say.h"
#include "settings.h"
#include "text.h"

#include "../common/arena.h"
#include "../common/clock.h"
#include "../common/tree.h"
#include "../tracer/procfile.h"
#include "../tracer/targets.h"
#include "../tracer/watch.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define COMMAND_BYTES 4096
#define WORDS_MAX     64
#define NOTES_MAX     32
#define CHECK_MS      60000        /* whether targets still are ours */
#define GRACE_NS      10000000000u /* after SIGTERM, for the targets to end first */
#define SETTLE_NS     20000000     /* a target that is just executing itself anew maps nothing for a moment */
#define SHORT_RUN_NS  10000000000u
#define OWN_OOM_SCORE 500

struct helper {
    struct ub_settings set;
    char command[COMMAND_BYTES]; /* of the process that started us */
    char *argv[WORDS_MAX + 1];
    int argc;
    char *notes[NOTES_MAX]; /* for when there is a recording */
    uint32_t note_count;
    char *path;      /* of the recording, absolute or "-"; NULL: none */
    bool own_folder; /* nobody gave it a name */
    struct ub_recording_writer *writer;
    struct ub_model *model;
    struct ub_text_live *text;
    struct ub_control *control;
    int recording_error; /* -errno: why there is none */
    struct ub_metrics *metrics;
    struct ub_sink sinks[4];
    struct ub_watch *watch;
    struct ub_targets *targets;
    struct ub_watch_totals totals;
    uint64_t started_ns;
};

static void note(void *self, const char *text)
{
    struct helper *h = self;

    if (h->note_count < NOTES_MAX)
        h->notes[h->note_count++] = strdup(text);
}

/* Nothing of what the program runs under is meant for us. */
static void leave_the_programs_ways(void)
{
    const struct rlimit none = {0, 0};
    const struct sched_param normal = {0};
    cpu_set_t all;
    sigset_t signals;
    FILE *score;

    sigfillset(&signals);
    pthread_sigmask(SIG_SETMASK, &signals, NULL);
    signal(SIGCHLD, SIG_DFL);
    setrlimit(RLIMIT_CORE, &none);
    sched_setscheduler(0, SCHED_OTHER, &normal);
    memset(&all, 0xff, sizeof(all));
    sched_setaffinity(0, sizeof(all), &all);
    umask(077);
    score = fopen("/proc/self/oom_score_adj", "r+e");
    if (score != NULL) {
        int old = 0;

        if (fscanf(score, "%d", &old) == 1 && old < OWN_OOM_SCORE) {
            rewind(score);
            fprintf(score, "%d", OWN_OOM_SCORE);
        }
        fclose(score);
    }
}

/* ---- what it is told ------------------------------------------------------ */

static void read_settings(struct helper *h)
{
    struct ub_option option[UB_SETTINGS_MAX];
    const struct ub_options options = {.option = option, .count = ub_settings_options(&h->set, option)};

    ub_settings_init(&h->set);
    h->set.live = UB_LIVE_NONE;
    ub_options_environment(&options, note, h);
}

static void read_command(struct helper *h, pid_t pid)
{
    size_t len = ub_procfile_read(h->command, sizeof(h->command), "/proc/%d/cmdline", (int)pid);

    while (len > 0 && h->command[len - 1] == '\0')
        len--;
    for (size_t at = 0; at < len && h->argc < WORDS_MAX; at += strlen(h->command + at) + 1)
        h->argv[h->argc++] = h->command + at;
}

/* ---- the recording -------------------------------------------------------- */

static char *absolute(char *path)
{
    char folder[PATH_MAX], *whole;

    if (path == NULL || *path == '/' || !strcmp(path, "-"))
        return path;
    if (getcwd(folder, sizeof(folder)) == NULL || *folder != '/' || asprintf(&whole, "%s/%s", folder, path) < 0)
        return path;
    free(path);
    return whole;
}

static char *name_of_recording(struct helper *h, pid_t pid)
{
    const char *program = h->argc > 0 ? h->argv[0] : "program";
    char *folder, *name, *path = NULL;

    if (h->set.output != NULL)
        return absolute(ub_recording_name(h->set.output, program, pid));
    h->own_folder = true;
    folder = ub_recording_folder();
    if (folder == NULL)
        return NULL;
    name = ub_recording_name(NULL, program, pid);
    if (name != NULL && asprintf(&path, "%s/%s", folder, name) < 0)
        path = NULL;
    free(name);
    free(folder);
    return path;
}

/* "app.jsonl" -> "app-4242.jsonl", with our pid. */
static char *other_name(const char *path)
{
    const char *base = ub_path_base(path), *dot = strrchr(base, '.');
    int stem = (int)(dot != NULL && dot != base ? dot - path : (ptrdiff_t)strlen(path));
    char *name;

    return asprintf(&name, "%.*s-%d%s", stem, path, (int)getpid(), path + stem) < 0 ? NULL : name;
}

/* An existing file is added to, unless another watcher is writing it: then ours gets a name of its own. */
static void open_recording(struct helper *h, pid_t pid)
{
    struct ub_recording_options options = {.append = true, .lock = true, .force = false, .max_size = h->set.max_size};
    int r;

    h->path = name_of_recording(h, pid);
    options.path = h->path;
    r = h->path == NULL ? -ENOENT : ub_recording_create(&options, &h->writer);
    if (r == -EWOULDBLOCK) {
        char *other = other_name(h->path);

        free(h->path);
        options.path = h->path = other;
        r = other == NULL ? -ENOMEM : ub_recording_create(&options, &h->writer);
    }
    if (r < 0) {
        h->writer = NULL;
        h->recording_error = r;
    }
}

/* Of a short program that nobody asked to be recorded, and in which nothing was found, nothing is kept. */
static bool is_worth_keeping(const struct helper *h)
{
    return !h->own_folder || h->totals.slow > 0 || h->note_count > 0 ||
           ub_clock_monotonic_ns() - h->started_ns > SHORT_RUN_NS;
}

static void close_recording(struct helper *h)
{
    struct stat st;

    if (h->writer == NULL)
        return;
    ub_recording_close(h->writer, NULL);
    if (!is_worth_keeping(h) && lstat(h->path, &st) == 0 && S_ISREG(st.st_mode)) /* not /dev/null, a pipe */
        unlink(h->path);
}

/* ---- watching -------------------------------------------------------------- */

static uint64_t recording_lost(void *self)
{
    const struct helper *h = self;

    return h->writer != NULL ? ub_recording_lost(h->writer) : 0;
}

/* From the control thread. */
static void detach(void *self)
{
    (void)self;
    kill(getpid(), SIGUSR1);
}

static void open_control(struct helper *h, pid_t pid)
{
    const struct ub_control_options options = {.mode = "preload",
                                               .pid = pid,
                                               .recording = h->writer != NULL ? h->path : NULL,
                                               .recording_error =
                                                   h->writer == NULL ? strerror(-h->recording_error) : NULL,
                                               .recording_lost = recording_lost,
                                               .detach = detach,
                                               .self = h};

    h->control = ub_control_new(&options);
}

static int start_watching(struct helper *h)
{
    struct ub_watch_options options = {.threshold_ns = h->set.threshold_ns,
                                       .redact = h->set.redact,
                                       .sinks = h->sinks,
                                       .argc = h->argc,
                                       .argv = h->argv,
                                       .adopt = true,
                                       .arena_fd = UB_HELPER_FD};
    char why[UB_WHY_MAX];
    int r;

    h->model = ub_model_new();
    if (h->model == NULL)
        return -ENOMEM;
    if (h->set.live != UB_LIVE_NONE)
        h->text = ub_text_live_new(STDERR_FILENO, (enum ub_live)h->set.live,
                                   ub_colour_use((enum ub_colour)h->set.colour, STDERR_FILENO), h->model);
    if (h->set.metrics != NULL && ub_metrics_start(h->set.metrics, h->model, &h->metrics, why) < 0)
        note(h, why);
    h->sinks[options.sink_count++] = h->metrics != NULL ? ub_metrics_sink(h->metrics) : ub_model_sink(h->model);
    if (h->writer != NULL)
        h->sinks[options.sink_count++] = ub_recording_sink(h->writer);
    if (h->text != NULL)
        h->sinks[options.sink_count++] = ub_text_live_sink(h->text);
    if (h->control != NULL)
        h->sinks[options.sink_count++] = ub_control_sink(h->control);
    r = ub_watch_start(&options, &h->watch);
    if (r == 0 && h->control != NULL)
        ub_control_open(h->control, h->watch);
    for (uint32_t i = 0; r == 0 && i < h->note_count; i++)
        if (h->notes[i] != NULL)
            ub_watch_note(h->watch, "warning", "%s", h->notes[i]);
    return r;
}

static int ms_until(uint64_t deadline_ns)
{
    uint64_t now = ub_clock_monotonic_ns();

    if (deadline_ns <= now)
        return 0;
    return deadline_ns - now > CHECK_MS * 1000000ull ? CHECK_MS : (int)((deadline_ns - now) / 1000000 + 1);
}

static bool any_left(struct helper *h)
{
    if (ub_targets_update(h->targets) > 0)
        return true;
    nanosleep(&(struct timespec){0, SETTLE_NS}, NULL);
    return ub_targets_update(h->targets) > 0;
}

/*
 * A service manager stops all of a service's processes at once: the program's
 * last seconds are to be seen as well. SIGUSR1 is the control thread's.
 */
static void take_signal(int fd, uint64_t *deadline_ns)
{
    struct signalfd_siginfo info;
    uint64_t until = ub_clock_monotonic_ns();

    if (read(fd, &info, sizeof(info)) != sizeof(info))
        return;
    if (info.ssi_signo != SIGUSR1)
        until += GRACE_NS;
    if (until < *deadline_ns)
        *deadline_ns = until;
}

static void watch_to_the_end(struct helper *h)
{
    uint64_t deadline = h->set.duration_ns != 0 ? h->started_ns + h->set.duration_ns : UINT64_MAX;
    sigset_t stops;
    int fd;

    sigemptyset(&stops);
    sigaddset(&stops, SIGTERM);
    sigaddset(&stops, SIGINT);
    sigaddset(&stops, SIGQUIT);
    sigaddset(&stops, SIGUSR1);
    fd = signalfd(-1, &stops, SFD_CLOEXEC | SFD_NONBLOCK);
    while (any_left(h) && ub_clock_monotonic_ns() < deadline) {
        if (ub_targets_wait(h->targets, fd, ms_until(deadline)))
            take_signal(fd, &deadline);
    }
    if (fd >= 0)
        close(fd);
}

static bool is_arena(int fd)
{
    int seals = fcntl(fd, F_GET_SEALS);

    return seals >= 0 && (seals & F_SEAL_SHRINK);
}

/* Before there is a watch: the arena's own word for who made it. */
static pid_t starter(void)
{
    pid_t pid = 0;

    if (pread(UB_HELPER_FD, &pid, sizeof(pid), offsetof(struct ub_arena_header, starter_pid)) != sizeof(pid))
        return 0;
    return pid;
}

int ub_cmd_watch(int argc, char **argv)
{
    static struct helper h;

    (void)argc;
    (void)argv;
    if (!is_arena(UB_HELPER_FD)) {
        ub_say(NULL, UB_HELPER_COMMAND " is what the agent starts when LD_PRELOAD is set without `unblock run`");
        return UB_EXIT_USAGE;
    }
    leave_the_programs_ways();
    h.started_ns = ub_clock_monotonic_ns();
    read_settings(&h);
    read_command(&h, starter());
    open_recording(&h, starter());
    if (chdir("/") != 0)
        note(&h, "the helper could not leave the program's folder");
    open_control(&h, starter());
    if (start_watching(&h) < 0)
        return UB_EXIT_RUN_FAILED;
    h.targets = ub_targets_new(h.watch);
    if (h.targets != NULL)
        watch_to_the_end(&h);
    ub_control_leave(h.control);
    ub_watch_stop(h.watch, false, 0, &h.totals);
    ub_control_free(h.control);
    ub_metrics_stop(h.metrics);
    ub_targets_free(h.targets);
    ub_text_live_free(h.text);
    close_recording(&h);
    ub_model_free(h.model);
    free(h.path);
    return 0;
}
