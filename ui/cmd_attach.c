/*
 * unblock attach: enters a running process, watches it as `run` would, and
 * leaves it again.
 */
#include "agent_path.h"
#include "attach_children.h"
#include "command.h"
#include "control.h"
#include "json_get.h"
#include "kernel_view.h"
#include "offload_choice.h"
#include "options.h"
#include "refuse.h"
#include "say.h"
#include "settings.h"
#include "text.h"
#include "watching.h"
#include "write_all.h"

#include "../common/arena.h"
#include "../common/clock.h"
#include "../common/offload.h"
#include "../tracer/bpf/bpf.h"
#include "../tracer/elffile.h"
#include "../tracer/inject.h"
#include "../tracer/procfile.h"
#include "../tracer/targets.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#define TELL_WAITING_NS 1000000000u
#define CHECK_MS        60000 /* whether the targets still are ours */
#define CHILDREN_MS     1000  /* whether there are new ones, or one has come to a loop */
#define FIRST_TRY_NS    300000000u
#define LATER_TRY_NS    20000000u
#define BRIEF_LOOKS     30
#define LEAVES_NS       60000000u
#define LEAVE_MAX_NS    2000000000u

struct attach {
    struct ub_settings set;
    struct ub_watching w;
    bool want_bpf;
    const char *offload_text;
    uint32_t offload;   /* enum ub_offload_mode */
    struct ub_bpf *bpf; /* NULL: the agent alone */
    char agent[PATH_MAX];
    struct ub_dump_target target;
    char command[4096]; /* the process's own, for the recording */
    char *argv[64];
    int argc;
    int signals;
    int arena_fd;
    struct ub_targets *targets;
    const struct ub_arena_header *arena; /* our own view of it: the watch takes its away with it */
    uint64_t asked_ns;                   /* when we began to wait for a loop */
    bool told_waiting, stopped;          /* a signal says that it is enough */
    bool children;
    struct ub_family family;
};

static const char about[] = "Enters process PID while it runs, and watches its event loops as `unblock run` would.\n"
                            "First all its threads are shown as they are (as by `unblock dump`); then the agent\n"
                            "is brought in when a loop comes round to its wait, which takes a moment. Ctrl-C, or\n"
                            "unblock detach PID, takes it out again: the process goes on as if nothing had been.";

static const char more[] = "Examples:\n"
                           "  unblock attach 4242\n"
                           "  unblock attach -t 20ms --duration 60s -o app.jsonl $(pgrep -o redis-server)\n"
                           "  unblock attach --children $(pgrep -o nginx)\n"
                           "\n"
                           "A loop that never comes round, because it is stuck, is shown and waited for.\n"
                           "What the program starts by exec is not watched. `unblock doctor PID` tells\n"
                           "beforehand what stands in the way; `unblock trace PID` enters nothing and\n"
                           "takes root.\n"
                           "\n"
                           "Exit status:\n"
                           "  0    it was watched, until the end of it or of the watching\n"
                           "  1    --fail-on was exceeded\n"
                           "  125  it was not entered: the reason is told\n";

static int parse(struct attach *a, int argc, char **argv, int *ret_first, char *why)
{
    struct ub_option option[UB_SETTINGS_MAX + 3];
    uint32_t count = ub_settings_options(&a->set, option);
    const struct ub_options options = {
        .usage = "unblock attach [OPTION...] PID", .about = about, .more = more, .option = option, .count = count + 3};

    ub_kernel_view_option(&a->want_bpf, &option[count]);
    option[count + 1] = (struct ub_option){.name = "children",
                                           .kind = UB_OPTION_FLAG,
                                           .value = &a->children,
                                           .help = "enter its children too, those there are and those to come"};
    option[count + 2] = (struct ub_option){.name = "offload",
                                           .kind = UB_OPTION_TEXT,
                                           .value = &a->offload_text,
                                           .argument = "MODE",
                                           .bare = "dry-run",
                                           .help = "off (default) or dry-run (also without =MODE): say of each\nslow "
                                                   "call whether `unblock run --offload` could move it\noff the loop, "
                                                   "what that would save, or what keeps it\nthere. Locks are seen that "
                                                   "are taken from now on"};
    return ub_options_read(&options, argc, argv, ret_first, why);
}

/* What moves calls has to be there from the program's start: it knows each loop, each callback and each lock. */
static int choose_offload(struct attach *a, char *why)
{
    struct ub_offload_choice choice;
    int r = a->offload_text ? ub_offload_choose("attach", a->offload_text, &choice, why) : 0;

    if (r < 0 || !a->offload_text)
        return r;
    ub_offload_choice_clear(&choice);
    a->offload = choice.mode;
    if (choice.mode <= UB_OFFLOAD_DRY_RUN)
        return 0;
    snprintf(why, UB_WHY_MAX,
             "--offload=%.100s: calls can be moved only in a program that was started for it: unblock run "
             "--offload=%.100s -- CMD; here --offload=dry-run tells what would move",
             a->offload_text, a->offload_text);
    return -EINVAL;
}

/* ---- may it be entered? ---------------------------------------------------- */

/* `watcher`: its process; 0: not known. */
static void say_watched(const struct attach *a, pid_t watcher, const char *how)
{
    ub_say("attach",
           "process %d (%s) is watched already, by process %d%s%s: unblock top %d shows it, unblock detach %d ends it",
           (int)a->target.pid, a->target.name, (int)watcher, *how ? ", unblock " : "", how, (int)a->target.pid,
           (int)a->target.pid);
}

static bool is_watched(const struct attach *a)
{
    struct ub_control_client *client;
    json_t *status = NULL;
    uint64_t watcher = 0;
    const char *mode;
    int r = ub_control_find(a->target.pid, &client);

    if (r < 0)
        return false;
    if (ub_control_request(client, "status", &status) == 0)
        ub_json_u64(status, "watcher", &watcher);
    mode = ub_json_string(status, "mode");
    say_watched(a, (pid_t)watcher, mode ? mode : "");
    json_decref(status);
    ub_control_hang_up(client);
    return true;
}

static int check(struct attach *a, pid_t pid)
{
    enum ub_inject_obstacle obstacle;
    long detail;

    if (ub_refuse("attach", pid, &a->target) < 0)
        return -EINVAL;
    if (a->target.pid == getpid()) {
        ub_say("attach", "%d is unblock itself: name the process to be watched", (int)pid);
        return -EINVAL;
    }
    if (is_watched(a))
        return -EBUSY;
    obstacle = ub_inject_look(a->target.pid, &detail);
    /* Another unblock, for some milliseconds; a program that just begins, and whose libc is not there yet. */
    for (int i = 0; (obstacle == UB_INJECT_TRACED || obstacle == UB_INJECT_LIBC) && i < BRIEF_LOOKS; i++) {
        nanosleep(&(struct timespec){0, 10000000}, NULL);
        obstacle = ub_inject_look(a->target.pid, &detail);
    }
    if (obstacle == UB_INJECT_POSSIBLE)
        return 0;
    if (obstacle == UB_INJECT_TRACED)
        ub_say("attach",
               "process %d (%s) cannot be entered: process %ld traces it (a debugger or strace): end that one",
               (int)a->target.pid, a->target.name, detail);
    else
        ub_say("attach", "process %d (%s) cannot be entered: %s. %s", (int)a->target.pid, a->target.name,
               ub_inject_obstacle_text(obstacle), ub_inject_obstacle_mend(obstacle));
    return -EINVAL;
}

/* ---- what it does now -------------------------------------------------------- */

struct look {
    FILE *out;
    struct ub_model *model;
    bool colour;
};

static void look_line(void *self, json_t *record)
{
    struct look *look = self;

    if (ub_json_is(record, "type", "task"))
        ub_text_task(look->out, look->model, record, look->colour);
    if (!ub_json_is(record, "type", "thread"))
        return;
    ub_text_thread(look->out, look->model, record, look->colour);
    fputc('\n', look->out);
}

/* The stall that is why one attaches is there already: it is shown before anything is done about it. */
static void show_dump(const struct attach *a)
{
    struct look look = {.model = ub_model_new(), .colour = ub_colour_use((enum ub_colour)a->set.colour, STDERR_FILENO)};
    struct ub_dump_options options = {.target = &a->target, .redact = a->set.redact, .argc = a->argc, .argv = a->argv};
    struct ub_dump_result result;
    struct ub_sink sinks[2];
    char *text = NULL;
    size_t len = 0;

    look.out = open_memstream(&text, &len);
    if (look.out && look.model) {
        sinks[0] = ub_model_sink(look.model);
        sinks[1] = (struct ub_sink){.line = look_line, .self = &look};
        options.sinks = sinks;
        options.sink_count = 2;
        fprintf(look.out, "process %d (%s) before it is entered\n\n", (int)a->target.pid, a->target.name);
        ub_dump(&options, &result);
    }
    if (look.out && fclose(look.out) == 0)
        ub_write_all(STDERR_FILENO, text, len, false, NULL);
    free(text);
    ub_model_free(look.model);
}

/* ---- entering ------------------------------------------------------------------ */

static bool was_stopped(struct attach *a)
{
    struct signalfd_siginfo info;

    a->stopped |= read(a->signals, &info, sizeof(info)) == sizeof(info);
    return a->stopped;
}

static bool waiting(void *self)
{
    struct attach *a = self;

    if (!a->told_waiting && ub_clock_monotonic_ns() - a->asked_ns > TELL_WAITING_NS) {
        a->told_waiting = true;
        if (!a->set.quiet)
            ub_say("attach", "waiting for an event loop of process %d to come round to its wait (Ctrl-C gives up)",
                   (int)a->target.pid);
    }
    return was_stopped(a);
}

/* The longest piece with its parts: which of them were ours, and which a busy machine's. */
static void say_held(const struct attach *a, const struct ub_inject_result *r)
{
    static const char *const name[UB_PARTS] = {"until it had stopped", "on the way to its wait", "stopped",
                                               "at work for us"};
    char parts[256];
    int len = 0;

    for (int i = 0; i < UB_PARTS; i++)
        len += snprintf(parts + len, sizeof(parts) - (size_t)len, ", %.2f (%.2f) %s",
                        (double)r->longest.part[i].took_ns / 1e6, (double)r->longest.part[i].starved_ns / 1e6, name[i]);
    ub_say("attach",
           "process %d, thread %d was kept from its work for %.2f ms in %u pieces, %.2f ms at most at a time, "
           "recording %s",
           (int)a->target.pid, (int)r->tid, (double)r->held_all_ns / 1e6, r->holds,
           (double)ub_inject_piece_ns(&r->longest) / 1e6, a->w.path);
    if (r->longest.what)
        ub_say("attach", "the longest piece, ms (of these without a CPU), %s: %s", r->longest.what, parts + 2);
}

static int enter(struct attach *a)
{
    struct ub_inject_options options = {
        .pid = a->target.pid, .agent = a->agent, .cancelled = waiting, .self = a, .offload = a->offload};
    struct ub_inject_result result;
    int r;

    a->asked_ns = ub_clock_monotonic_ns();
    if (a->set.duration_ns)
        options.deadline_ns = a->asked_ns + a->set.duration_ns;
    r = a->children ? ub_family_enter_one(&a->family, &options, &result) : ub_inject_enter(&options, &result);
    a->arena_fd = r == 0 ? result.arena_fd : -1;
    if (r == 0 && a->set.verbose && !a->children)
        say_held(a, &result);
    if (r == -EBUSY)
        say_watched(a, result.watcher, "");
    else if (r == -ETIME)
        ub_say("attach",
               "no event loop of process %d (%s) came round to its wait within --duration: it was not entered",
               (int)a->target.pid, a->target.name);
    else if (r == -ECANCELED)
        ub_say("attach", "process %d (%s) was not entered", (int)a->target.pid, a->target.name);
    else if (r == -ESRCH)
        ub_say("attach", "process %d (%s) ended before it could be entered", (int)a->target.pid, a->target.name);
    else if (r < 0)
        ub_say("attach", "process %d (%s) could not be entered, and goes on as before: %s", (int)a->target.pid,
               a->target.name, *result.why ? result.why : strerror(-r));
    return r;
}

/* ---- watching ------------------------------------------------------------------- */

static void detach(void *self)
{
    (void)self;
    kill(getpid(), SIGUSR1);
}

static int start(struct attach *a)
{
    struct ub_watch_options watch = {.argc = a->argc,
                                     .argv = a->argv,
                                     .adopt = true,
                                     .attached = true,
                                     .arena_fd = a->arena_fd,
                                     .offload = a->offload,
                                     .bpf = a->bpf};
    void *header = mmap(NULL, 4096, PROT_READ, MAP_SHARED, a->arena_fd, 0);

    a->arena = header != MAP_FAILED ? header : NULL;
    a->w.detach = detach;
    if (ub_watching_start(&a->w, &watch, a->target.pid) < 0)
        return -EIO;
    a->targets = ub_targets_new(a->w.watch);
    return a->targets ? 0 : -ENOMEM;
}

static int ms_until(uint64_t deadline_ns, uint64_t most)
{
    uint64_t now = ub_clock_monotonic_ns(), left = deadline_ns > now ? (deadline_ns - now) / 1000000 + 1 : 0;

    return (int)(left < most ? left : most);
}

static void enter_others(struct attach *a, uint64_t each_ns)
{
    const struct ub_inject_options options = {
        .agent = a->agent, .cancelled = waiting, .self = a, .join_fd = a->arena_fd, .offload = a->offload};

    a->told_waiting = true;
    ub_family_enter_others(&a->family, a->w.watch, &options, each_ns);
}

/* Processes that may still run a loop some time. */
static uint32_t update(struct attach *a)
{
    uint32_t left = ub_targets_update(a->targets);

    return a->children ? left + ub_trace_targets_left(&a->family.processes) : left;
}

/* Until it has ended, the time is over, or a signal says so. True: it has ended. */
static bool watch_to_the_end(struct attach *a)
{
    uint64_t deadline = a->set.duration_ns ? ub_clock_monotonic_ns() + a->set.duration_ns : UINT64_MAX;
    uint32_t left;

    if (a->children)
        enter_others(a, FIRST_TRY_NS);
    left = update(a);
    while (left > 0 && !was_stopped(a) && ub_clock_monotonic_ns() < deadline) {
        ub_targets_wait(a->targets, a->signals, ms_until(deadline, a->children ? CHILDREN_MS : CHECK_MS));
        if (a->children && !was_stopped(a))
            enter_others(a, LATER_TRY_NS);
        left = update(a);
    }
    return left == 0;
}

static bool has_left(const struct attach *a)
{
    return a->arena && ub_load_acquire(&a->arena->left) > 0;
}

/* A loop that turns sees for itself that the watch is over; an idle one is told. */
static void leave(struct attach *a)
{
    uint64_t until = ub_clock_monotonic_ns() + LEAVES_NS;
    struct ub_inject_options options = {.pid = a->target.pid, .deadline_ns = until + LEAVE_MAX_NS};
    struct ub_inject_result result;
    int r;

    while (a->arena && !has_left(a) && ub_clock_monotonic_ns() < until)
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    if (a->children) {
        uint32_t left = ub_family_leave(&a->family, &options, LEAVE_MAX_NS);

        if (left && !a->set.quiet)
            ub_say("attach", "%u processes go on unwatched; what is left of the agent goes with their loops' next turn",
                   left);
        return;
    }
    if (has_left(a))
        return;
    r = ub_inject_leave(&options, &result);
    if (r == 0 || a->set.quiet)
        return;
    if (r == -EACCES)
        ub_say("attach",
               "process %d goes on unwatched; the agent falls asleep with its loop's next turn, and stays: %s",
               (int)a->target.pid, result.why);
    else
        ub_say("attach", "process %d goes on unwatched; what is left of the agent goes with its loop's next turn",
               (int)a->target.pid);
}

static void read_command(struct attach *a)
{
    size_t len = ub_procfile_read(a->command, sizeof(a->command), "/proc/%d/cmdline", (int)a->target.pid);

    while (len > 0 && a->command[len - 1] == '\0')
        len--;
    for (size_t at = 0; at < len && a->argc < (int)UB_ARRAY_LEN(a->argv); at += strlen(a->command + at) + 1)
        a->argv[a->argc++] = a->command + at;
    if (a->argc == 0)
        a->argv[a->argc++] = a->target.name;
}

static int attach(struct attach *a)
{
    uint64_t worst_ns;
    bool ended;

    a->signals = ub_watching_signals(SIGUSR1 /* the control thread's: detach */);
    read_command(a);
    if (a->set.live != UB_LIVE_NONE)
        show_dump(a);
    if (ub_watching_open(&a->w, a->target.name, a->target.pid) < 0)
        return UB_EXIT_RUN_FAILED;
    if (enter(a) < 0) {
        ub_watching_discard(&a->w);
        return UB_EXIT_RUN_FAILED;
    }
    if (a->want_bpf)
        a->bpf = ub_kernel_view_open("attach", &a->set, a->target.pid);
    if (a->bpf && a->children)
        ub_family_see_from_kernel(&a->family, a->bpf);
    if (start(a) < 0) {
        ub_watching_discard(&a->w);
        leave(a);
        return UB_EXIT_RUN_FAILED;
    }
    ended = watch_to_the_end(a);
    ub_targets_free(a->targets);
    ub_watching_stop(&a->w, false, 0);
    if (!ended)
        leave(a);
    worst_ns = ub_watching_too_long(&a->w);
    return worst_ns > 0 ? ub_watching_fail(&a->w, worst_ns) : 0;
}

int ub_cmd_attach(int argc, char **argv)
{
    static struct attach a;
    char why[UB_WHY_MAX];
    pid_t pid = 0;
    int first, r;

    ub_settings_init(&a.set);
    r = parse(&a, argc, argv, &first, why);
    if (r == UB_OPTIONS_HELP)
        return 0;
    if (r == 0 && argc - first != 1) {
        snprintf(why, UB_WHY_MAX, argc == first ? "no process named: unblock attach PID" : "one PID at a time");
        r = -EINVAL;
    }
    if (r == 0)
        r = ub_option_pid(argv[first], &pid, why);
    if (r == 0)
        r = choose_offload(&a, why);
    if (r == 0)
        r = ub_watching_settle(&a.set, why);
    if (r == 0)
        r = ub_watching_init(&a.w, "attach", &a.set, why);
    if (r == 0)
        r = ub_agent_path(a.agent, sizeof(a.agent), why);
    if (r < 0) {
        ub_say("attach", "%s", why);
        return UB_EXIT_RUN_FAILED;
    }
    ub_elf_stand_in(a.agent);
    a.arena_fd = -1;
    a.family.verbose = a.set.verbose;
    r = check(&a, pid);
    if (r == 0 && a.children) {
        r = ub_family_find(&a.family, a.target.pid, why);
        if (r < 0)
            ub_say("attach", "%s", why);
    }
    r = r < 0 ? UB_EXIT_RUN_FAILED : attach(&a);
    ub_trace_targets_clear(&a.family.processes);
    ub_bpf_close(a.bpf);
    ub_watching_clear(&a.w);
    return r;
}
