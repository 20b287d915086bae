/*
 * unblock offload: switches a watched program to another mode of offload.
 */
#include "command.h"
#include "control.h"
#include "json_get.h"
#include "offload_choice.h"
#include "options.h"
#include "refuse.h"
#include "say.h"

#include "../tracer/dump.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char about[] = "Switches process PID, which runs under `unblock run --offload=...`, to another mode:\n"
                            "off, dry-run, flagged, eager, or FILE, a policy or a recording (unblock policy).\n"
                            "Calls that are away come back as ever; those from now on follow the new mode.";

static const char more[] = "Calls can be moved only in a program that was started for it (--offload=flagged, eager\n"
                           "or a FILE): in one that was started with dry-run, or without --offload, nothing is\n"
                           "switched.\n"
                           "\n"
                           "Examples:\n"
                           "  unblock offload 4242 dry-run           nothing moves any more; told what would\n"
                           "  unblock offload 4242 server.policy     the rules as they are now in the file\n"
                           "\n"
                           "Exit status: 0 switched; 2 wrong use, no such process, nobody watches it, or it cannot\n"
                           "be switched\n";

static int parse(int argc, char **argv, pid_t *ret, const char **ret_mode, char *why)
{
    const struct ub_options options = {.usage = "unblock offload PID MODE|FILE", .about = about, .more = more};
    int first, r = ub_options_read(&options, argc, argv, &first, why);

    if (r != 0)
        return r;
    if (argc - first != 2) {
        snprintf(why, UB_WHY_MAX, "write: unblock offload PID off|dry-run|flagged|eager|FILE");
        return -EINVAL;
    }
    *ret_mode = argv[first + 1];
    return ub_option_pid(argv[first], ret, why);
}

/* The watcher reads the file itself, wherever it runs. It is checked here first, so that mistakes are told here. */
static int check(const char *mode, char path[PATH_MAX], char *why)
{
    struct ub_offload_choice choice;
    int r = ub_offload_choose("offload", mode, &choice, why);
    bool file = r == 0 && (choice.mode == UB_OFFLOAD_POLICY || choice.policy);

    if (r < 0)
        return r;
    ub_offload_choice_clear(&choice);
    if (!file)
        snprintf(path, PATH_MAX, "%s", mode);
    else if (!realpath(mode, path)) {
        snprintf(why, UB_WHY_MAX, "%.200s: %s", mode, strerror(errno));
        return -errno;
    }
    return 0;
}

static int ask(const struct ub_dump_target *target, const char *mode)
{
    UB_CLEANUP(ub_json_drop) json_t *answer = NULL;
    struct ub_control_client *client;
    int r;

    if (ub_control_find(target->pid, &client) < 0) {
        ub_say("offload", "process %d (%s) is not watched: see unblock ps", (int)target->pid, target->name);
        return UB_EXIT_USAGE;
    }
    r = ub_control_ask(client, json_pack("{s:s, s:s}", "request", "offload", "mode", mode), &answer);
    ub_control_hang_up(client);
    if (r == 0 && ub_json_is(answer, "type", "ok"))
        return 0;
    ub_say("offload", "process %d (%s): %s", (int)target->pid, target->name,
           r == 0 && ub_json_string(answer, "text") ? ub_json_string(answer, "text") : "its watcher does not answer");
    return UB_EXIT_USAGE;
}

int ub_cmd_offload(int argc, char **argv)
{
    struct ub_dump_target target;
    char why[UB_WHY_MAX], path[PATH_MAX];
    const char *mode;
    pid_t pid = 0;
    int r = parse(argc, argv, &pid, &mode, why);

    if (r == UB_OPTIONS_HELP)
        return 0;
    if (r == 0)
        r = check(mode, path, why);
    if (r < 0) {
        ub_say("offload", "%s", why);
        return UB_EXIT_USAGE;
    }
    return ub_refuse("offload", pid, &target) < 0 ? UB_EXIT_USAGE : ask(&target, path);
}
