/*
 * unblock detach: takes the agent out of a process, whoever brought it in.
 */
#include "command.h"
#include "control.h"
#include "json_get.h"
#include "options.h"
#include "refuse.h"
#include "say.h"

#include "../common/arena.h"
#include "../common/clock.h"
#include "../tracer/capture.h"
#include "../tracer/inject.h"
#include "../tracer/process.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define WATCHER_ENDS_NS  12000000000u
#define WATCHER_COMES_NS 2000000000u
#define LOOP_COMES_NS    5000000000u
#define HOLD_MAX_NS      10000000u

static const char about[] = "Takes the agent out of process PID and ends its watching: the recording is closed, the\n"
                            "process goes on as if nothing had been. One that was started with LD_PRELOAD is left\n"
                            "asleep in the same way. What runs under `unblock run` stays watched.";

static const char more[] = "With --unload the agent's library is unloaded, too, if it can be shown that nothing in\n"
                           "the process leads into it any more; all its threads are stopped for that, for\n"
                           "--hold at most. Else it stays, asleep, some 0.5 MB, and the reason is told.\n"
                           "\n"
                           "Where the watcher was killed, the agent is asked directly, when a loop of the process\n"
                           "comes round to its wait.\n"
                           "\n"
                           "Exit status: 0 it is out; 1 it is told, and goes out with the loop's next turn,\n"
                           "or it is out, but not unloaded; 2 wrong use, no such process, nobody watches it, or no\n"
                           "permission\n";

struct detach {
    pid_t pid;
    bool unload;
    uint64_t hold_max_ns;
};

static int parse(int argc, char **argv, struct detach *d, char *why)
{
    const struct ub_option option[] = {
        {.name = "unload",
         .kind = UB_OPTION_FLAG,
         .value = &d->unload,
         .help = "unload the agent, where nothing leads into it"},
        {.name = "hold",
         .kind = UB_OPTION_TIME,
         .value = &d->hold_max_ns,
         .argument = "TIME",
         .min = 100000,
         .max = 10000000000u,
         .help = "with --unload: stop its threads no longer than this (10ms)"},
    };
    const struct ub_options options = {.usage = "unblock detach [OPTION...] PID",
                                       .about = about,
                                       .more = more,
                                       .option = option,
                                       .count = UB_ARRAY_LEN(option)};
    int first, r = ub_options_read(&options, argc, argv, &first, why);

    if (r != 0)
        return r;
    if (argc - first != 1) {
        snprintf(why, UB_WHY_MAX, argc == first ? "no process named: unblock detach PID" : "one PID at a time");
        return -EINVAL;
    }
    return ub_option_pid(argv[first], &d->pid, why);
}

/* It has a last word for its recording, and tells the agent. */
static int wait_for_end(pid_t watcher)
{
    uint64_t until = ub_clock_monotonic_ns() + WATCHER_ENDS_NS;
    struct ub_process *p;
    int r = ub_process_open(watcher, &p);

    if (r < 0)
        return 0; /* gone already */
    while (r == 0 && !ub_process_ended(p)) {
        nanosleep(&(struct timespec){0, 5000000}, NULL);
        if (ub_clock_monotonic_ns() > until)
            r = -ETIME;
    }
    ub_process_unref(p);
    return r;
}

/* One that has only just entered, or is about to, cannot be asked for a moment. */
static bool has_watcher(pid_t pid)
{
    struct ub_arena_header h;
    struct ub_maps *maps;
    bool found = false;

    if (ub_maps_load(pid, NULL, &maps) < 0)
        return false;
    for (uint32_t i = 0; i < maps->count && maps->has_arena; i++) {
        const struct ub_map *m = &maps->map[i];

        if (m->offset == 0 && strstr(m->path, "/memfd:" UB_ARENA_NAME) &&
            ub_capture_memory(pid, m->start, &h, sizeof(h)) == (int)sizeof(h))
            found = h.watcher_pid <= 0 || kill(h.watcher_pid, 0) == 0 || errno != ESRCH;
    }
    ub_maps_unref(maps);
    return found;
}

static int find_watcher(pid_t pid, struct ub_control_client **ret)
{
    uint64_t until = ub_clock_monotonic_ns() + WATCHER_COMES_NS;
    int r = ub_control_find(pid, ret);

    while (r < 0 && ub_clock_monotonic_ns() < until && has_watcher(pid)) {
        nanosleep(&(struct timespec){0, 20000000}, NULL);
        r = ub_control_find(pid, ret);
    }
    return r;
}

/* The exit status; -ESRCH: nobody watches. */
static int ask_watcher(const struct ub_dump_target *target)
{
    struct ub_control_client *client;
    json_t *status = NULL, *answer = NULL;
    uint64_t watcher = 0;
    int r = find_watcher(target->pid, &client), ret = UB_EXIT_USAGE;

    if (r < 0)
        return -ESRCH;
    if (ub_control_request(client, "status", &status) == 0)
        ub_json_u64(status, "watcher", &watcher);
    if (ub_json_is(status, "mode", "run")) {
        ub_say("detach", "process %d (%s) was started by unblock run, which watches it to its end", (int)target->pid,
               target->name);
    } else if (ub_control_request(client, "detach", &answer) < 0 || !ub_json_is(answer, "type", "ok") || watcher == 0) {
        ub_say("detach", "the watcher of process %d (%s) does not obey: see unblock ps", (int)target->pid,
               target->name);
    } else {
        ret = wait_for_end((pid_t)watcher) == 0 ? 0 : UB_EXIT_FINDING;
    }
    json_decref(status);
    json_decref(answer);
    ub_control_hang_up(client);
    return ret;
}

/* An agent that nobody watches any more, or that is asleep already. */
static int ask_agent(const struct ub_dump_target *target)
{
    const struct ub_inject_options options = {.pid = target->pid,
                                              .deadline_ns = ub_clock_monotonic_ns() + LOOP_COMES_NS};
    struct ub_inject_result result;
    enum ub_inject_obstacle obstacle;
    long detail;
    int r;

    obstacle = ub_inject_look(target->pid, &detail);
    if (obstacle != UB_INJECT_POSSIBLE) {
        ub_say("detach", "process %d (%s): nobody watches it, and %s", (int)target->pid, target->name,
               ub_inject_obstacle_text(obstacle));
        return UB_EXIT_USAGE;
    }
    r = ub_inject_leave(&options, &result);
    if (r == -ENOENT)
        ub_say("detach", "process %d (%s) is not watched, and the agent is not in it: see unblock ps", (int)target->pid,
               target->name);
    else if (r == -ETIME)
        ub_say("detach", "no event loop of process %d (%s) came round to its wait: try again", (int)target->pid,
               target->name);
    else if (r < 0)
        ub_say("detach", "process %d (%s): %s", (int)target->pid, target->name,
               *result.why ? result.why : strerror(-r));
    return r == 0 ? 0 : r == -ETIME || r == -EAGAIN ? UB_EXIT_FINDING : UB_EXIT_USAGE;
}

/* It is out. */
static int unload(const struct ub_dump_target *target, const struct detach *d)
{
    const struct ub_inject_options options = {
        .pid = target->pid, .deadline_ns = ub_clock_monotonic_ns() + LOOP_COMES_NS, .hold_max_ns = d->hold_max_ns};
    struct ub_inject_result result;
    int r = ub_inject_unload(&options, &result);

    if (r == 0 || r == -ESRCH)
        return 0;
    ub_say("detach", "process %d (%s) was left, but the agent stays loaded in it, asleep: %s", (int)target->pid,
           target->name,
           r == -ETIME   ? "no event loop came round to its wait"
           : *result.why ? result.why
                         : strerror(-r));
    return UB_EXIT_FINDING;
}

int ub_cmd_detach(int argc, char **argv)
{
    struct detach d = {.hold_max_ns = HOLD_MAX_NS};
    struct ub_dump_target target;
    char why[UB_WHY_MAX];
    int r = parse(argc, argv, &d, why);

    if (r == UB_OPTIONS_HELP)
        return 0;
    if (r < 0) {
        ub_say("detach", "%s", why);
        return UB_EXIT_USAGE;
    }
    if (ub_refuse("detach", d.pid, &target) < 0)
        return UB_EXIT_USAGE;
    r = ask_watcher(&target);
    if (r == -ESRCH)
        r = ask_agent(&target);
    return r == 0 && d.unload ? unload(&target, &d) : r;
}
