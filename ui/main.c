/*
 * unblock: which callback blocked the event loop, for how long, in what call.
 * This file: the table of commands and the help that teaches.
 */
#include "command.h"
#include "options.h"
#include "say.h"

#include "../common/base.h"
#include "../common/tree.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const struct ub_command commands[] = {
    {"run", "start a program and watch its event loops", ub_cmd_run},
    {"attach", "enter a running process and watch its event loops", ub_cmd_attach},
    {"detach", "take the agent out of a process again", ub_cmd_detach},
    {"trace", "watch running processes from the kernel; nothing enters them", ub_cmd_trace},
    {"report", "what a recording tells: verdict, call sites, stacks, advice", ub_cmd_report},
    {"top", "a live view of a watched program, or of a recording as it grows", ub_cmd_top},
    {"check", "for CI: fails when a stall reached a limit", ub_cmd_check},
    {"diff", "two recordings: what came, went, got better or worse", ub_cmd_diff},
    {"dump", "one look at a running process: what every thread does now", ub_cmd_dump},
    {"offload", "switches what leaves the loops of a watched program", ub_cmd_offload},
    {"policy", "which calls may leave the loops: written from a recording, checked", ub_cmd_policy},
    {"doctor", "what works here, what does not, and what mends it", ub_cmd_doctor},
    {"ps", "what is being watched on this host, and by whom", ub_cmd_ps},
    {"completion", "completion of commands and options for bash, zsh and fish", ub_cmd_completion},
};

static void help(FILE *out)
{
    fputs("unblock finds what blocks an event loop: which callback, for how long, in what\n"
          "call and with which stack, in programs that nobody changed or rebuilt.\n"
          "\n"
          "  unblock run -- redis-server            watch a program from its start\n"
          "  unblock attach 4242                    enter a running process and watch it\n"
          "  unblock trace 4242                     watch a running process from the kernel\n"
          "  unblock report unblock-*.jsonl         read what was recorded\n"
          "  unblock dump 4242                      what a running process does right now\n"
          "\n"
          "Commands:\n",
          out);
    for (size_t i = 0; i < UB_ARRAY_LEN(commands); i++)
        fprintf(out, "  %-10s %s\n", commands[i].name, commands[i].help);
    fputs("\n"
          "unblock CMD --help tells more about each; unblock --version tells which this is.\n"
          "\n"
          "Exit status: `run` ends as the program it ran, or with 125 when it could not\n"
          "start it, 126 when it cannot be executed, 127 when it was not found, 1 when\n"
          "--fail-on was exceeded. The others: 0 done, 1 something was found, 2 wrong use\n"
          "or unreadable input.\n",
          out);
}

static const struct ub_command *find(const char *name)
{
    for (size_t i = 0; i < UB_ARRAY_LEN(commands); i++)
        if (!strcmp(name, commands[i].name))
            return &commands[i];
    return NULL;
}

static int unknown(const char *word)
{
    const char *names[UB_ARRAY_LEN(commands) + 1] = {NULL}, *nearest;

    for (size_t i = 0; i < UB_ARRAY_LEN(commands); i++)
        names[i] = commands[i].name;
    nearest = ub_nearest(word, names);
    if (*word == '-')
        ub_say(NULL, "unknown option %s: options come after the command, see unblock --help", word);
    else if (nearest != NULL)
        ub_say(NULL, "unknown command '%s': did you mean %s?", word, nearest);
    else if (access(word, X_OK) == 0)
        ub_say(NULL, "unknown command '%s': to run it write: unblock run -- %s", word, word);
    else
        ub_say(NULL, "unknown command '%s': see unblock --help", word);
    return UB_EXIT_USAGE;
}

/*
 * Standard descriptors that came closed are filled, so that no file of ours
 * takes their place and gets what is meant for a terminal. Close-on-exec: the
 * program that `run` starts finds them closed, as it would without us.
 */
static void fill_standard_descriptors(void)
{
    for (int fd = 0; fd <= 2; fd++)
        while (fcntl(fd, F_GETFD) < 0 && errno == EBADF && open("/", O_PATH | O_CLOEXEC) >= 0)
            ;
}

int main(int argc, char **argv)
{
    const struct ub_command *command;

    fill_standard_descriptors();
    if (argc < 2) {
        help(stderr);
        return UB_EXIT_USAGE;
    }
    if (!strcmp(argv[1], "help") && argc > 2) {
        argv[1] = argv[2]; /* help CMD is CMD --help */
        argv[2] = "--help";
        argc = 3;
    }
    if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help")) {
        help(stdout);
        return 0;
    }
    if (!strcmp(argv[1], "--help=table")) { /* for completion */
        for (size_t i = 0; i < UB_ARRAY_LEN(commands); i++)
            printf("%s\t%s\n", commands[i].name, commands[i].help);
        return 0;
    }
    if (!strcmp(argv[1], "--version") || !strcmp(argv[1], "-V")) {
        puts("unblock " UB_VERSION);
        return 0;
    }
    if (!strcmp(argv[1], UB_HELPER_COMMAND)) /* not for people, so not in the table */
        return ub_cmd_watch(argc - 1, argv + 1);
    command = find(argv[1]);
    return command != NULL ? command->main(argc - 1, argv + 1) : unknown(argv[1]);
}
