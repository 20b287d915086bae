/*
 * unblock run: starts a program under watch and is invisible to it.
 */
#include "agent_path.h"
#include "child.h"
#include "command.h"
#include "kernel_view.h"
#include "offload_choice.h"
#include "options.h"
#include "say.h"
#include "target.h"
#include "text.h"
#include "settings.h"
#include "strangers.h"
#include "watching.h"

#include "../common/clock.h"
#include "../common/offload.h"
#include "../common/python_table.h"
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
    bool want_bpf, want_js;
    const char *offload_text;
    struct ub_offload_choice offload;
    uint64_t yield_ns;
    char python_rules[UB_PYTHON_RULES];

    /* while it runs */
    char **argv;
    char agent[PATH_MAX];
    enum ub_image target;
    char interpreter[PATH_MAX]; /* of a script */
    struct ub_strangers strangers;
    struct ub_bpf *bpf; /* NULL: the agents alone */
    struct ub_watching w;
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
    struct ub_option option[UB_SETTINGS_MAX + 4];
    uint32_t count = ub_settings_options(&run->set, option);
    const struct ub_options options = {.usage = "unblock run [OPTION...] [--] CMD [ARG...]",
                                       .about = about,
                                       .more = more,
                                       .stop_at_word = true,
                                       .option = option,
                                       .count = count + 4};

    ub_kernel_view_option(&run->want_bpf, &option[count]);
    option[count + 1] = (struct ub_option){.name = "offload",
                                           .kind = UB_OPTION_TEXT,
                                           .value = &run->offload_text,
                                           .argument = "MODE",
                                           .bare = "dry-run",
                                           .help = "off (default); dry-run (also without =MODE): say of\n"
                                                   "each slow call whether it could be moved off the loop,\n"
                                                   "what that would save, or what keeps it there. And,\n"
                                                   "experimental, for libuv, libevent, GLib, sd-event,\n"
                                                   "libev and asyncio, after reading what it changes\n"
                                                   "(agent/offload/README.md): flagged moves a call once\n"
                                                   "one from the same place has blocked its loop; eager\n"
                                                   "also the first one that is sure to; a policy's FILE\n"
                                                   "(unblock policy) what its rules say; a recording's\n"
                                                   "FILE is flagged that knows what moved there",
                                           .env = "UNBLOCK_OFFLOAD"};
    option[count + 2] =
        (struct ub_option){.name = "js",
                           .kind = UB_OPTION_FLAG,
                           .value = &run->want_js,
                           .help = "names of JavaScript functions: adds options to\nNODE_OPTIONS, with which each node "
                                   "writes and leaves a\nfile /tmp/perf-PID.map, and runs a little slower"};
    option[count + 3] = (struct ub_option){
        .name = "yield",
        .kind = UB_OPTION_TIME,
        .value = &run->yield_ns,
        .argument = "TIME",
        .bare = "5ms",
        .min = 1000000,
        .max = 1000000000,
        .help = "experimental: tasks of asyncio that compute for longer\nthan this (5ms without =TIME) let the loop go "
                "on, between\ntwo bytecodes (agent/offload/python.md)",
        .env = "UNBLOCK_YIELD"};
    return ub_options_read(&options, argc, argv, ret_first, why);
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

/*
 * V8 tells the names of the code it makes only when asked at the start, and gives interpreted functions frames of their
 * own likewise. This is the one option that changes what the program does: nothing of it without --js.
 */
static int ask_node_for_names(void)
{
    static const char words[] = "--perf-basic-prof --interpreted-frames-native-stack";
    const char *existing = getenv("NODE_OPTIONS");
    char *value = NULL;
    int r;

    if (existing == NULL || *existing == '\0')
        return setenv("NODE_OPTIONS", words, 1) == 0 ? 0 : -errno;
    if (asprintf(&value, "%s %s", existing, words) < 0)
        return -ENOMEM;
    r = setenv("NODE_OPTIONS", value, 1) == 0 ? 0 : -errno;
    free(value);
    return r;
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

/* Exit status for --fail-on, or -1: the child's counts. */
static int judge(const struct run *run)
{
    uint64_t worst_ns = ub_watching_too_long(&run->w);
    char worst[UB_TEXT_DURATION_MAX], limit[UB_TEXT_DURATION_MAX];

    if (run->set.fail_on_ns != 0 && run->w.totals.images == 0)
        ub_say("run", "warning: --fail-on could not be checked: the agent was not loaded, nothing was watched");
    if (worst_ns == 0)
        return -1;
    if (WIFEXITED(run->status) && WEXITSTATUS(run->status) == 0)
        return ub_watching_fail(&run->w, worst_ns);
    ub_text_duration(worst_ns, worst, sizeof(worst));
    ub_text_duration(run->set.fail_on_ns, limit, sizeof(limit));
    ub_say("run", "--fail-on %s: the longest stall took %s, but the program failed by itself", limit, worst);
    return -1;
}

/* We stop with the child, and the watcher with us: it would not know why it saw nothing. */
static void stops_with_child(void *self, bool stopping)
{
    struct run *run = self;

    if (run->w.watch)
        ub_watch_stops(run->w.watch, stopping);
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
        ub_strangers_look(&run->strangers, run->w.watch, run->child.pid);
    }
    return ub_child_wait(&run->child, deadline, &run->status);
}

static void wait_for_child(struct run *run)
{
    uint64_t deadline = run->set.duration_ns != 0 ? ub_clock_monotonic_ns() + run->set.duration_ns : 0;

    if (wait_and_look(run, deadline) == -ETIME) {
        ub_watching_stop(&run->w, false, run->status);
        if (!run->set.quiet)
            ub_say("run", "--duration is over: the program goes on, no longer watched");
        ub_child_wait(&run->child, 0, &run->status);
    }
    ub_child_signals_default();
}

static int start_watching(struct run *run, int argc)
{
    struct ub_watch_options options = {.argc = argc,
                                       .argv = run->argv,
                                       .bpf = run->bpf,
                                       .offload = run->offload.mode,
                                       .policy = run->offload.policy,
                                       .yield_ns = run->yield_ns,
                                       .python_rules = run->python_rules};

    return ub_watching_start(&run->w, &options, run->child.pid);
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
    r = ub_watching_open(&run->w, run->argv[0], run->child.pid);
    if (r == 0 && run->want_bpf)
        run->bpf = ub_kernel_view_open("run", &run->set, run->child.pid);
    if (r == 0)
        r = start_watching(run, argc);
    if (r < 0) {
        ub_child_cancel(&run->child);
        ub_watching_discard(&run->w);
        return r;
    }
    if (run->set.verbose)
        ub_say("run", "process %d, agent %s, recording %s", (int)run->child.pid, run->agent, run->w.path);
    ub_child_exec(&run->child, ub_watch_address(run->w.watch));
    return 0;
}

static int run_command(struct run *run, int argc)
{
    int r = look_at_target(run);

    if (r != 0)
        return r;
    if (run->want_js && ask_node_for_names() < 0) {
        ub_say("run", "NODE_OPTIONS cannot be set: out of memory");
        return UB_EXIT_RUN_FAILED;
    }
    if (start_child(run, argc) < 0)
        return UB_EXIT_RUN_FAILED;
    wait_for_child(run);
    if (run->child.exec_error != 0) {
        ub_watching_discard(&run->w);
        return exec_failed(run, run->child.exec_error);
    }
    if (run->w.watch != NULL)
        ub_watching_stop(&run->w, true, run->status);
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
        r = ub_watching_settle(&run.set, why);
    if (r == 0)
        r = ub_offload_choose("run", run.offload_text, &run.offload, why);
    if (r == 0 &&
        ub_offload_python_rules(run.offload.policy, run.python_rules, sizeof(run.python_rules), &run.yield_ns) < 0) {
        snprintf(why, sizeof(why), "--offload: the rules of [python], [yield] and [except] in %.200s are too many",
                 run.offload.policy->path);
        r = -E2BIG;
    }
    if (r == 0 && first >= argc) {
        snprintf(why, sizeof(why), "no command given: unblock run [OPTION...] -- CMD [ARG...]");
        r = -EINVAL;
    }
    if (r == 0)
        r = ub_watching_init(&run.w, "run", &run.set, why);
    if (r == 0)
        r = ub_agent_path(run.agent, sizeof(run.agent), why);
    if (r < 0) {
        ub_say("run", "%s", why);
        return UB_EXIT_RUN_FAILED;
    }
    if (run.yield_ns != 0 && run.offload.mode == UB_OFFLOAD_DRY_RUN) {
        ub_say("run", "--yield changes how the program runs, --offload=dry-run only looks: use one of them");
        return UB_EXIT_RUN_FAILED;
    }
    run.argv = argv + first;
    r = run_command(&run, argc - first);
    ub_bpf_close(run.bpf);
    ub_watching_clear(&run.w);
    return r;
}
