/*
 * The commands of `unblock`. One line in the table of main.c each, one file
 * cmd_NAME.c each.
 *
 * A command gets its own name in argv[0] and returns the exit status of the
 * process. It prints its own messages: one line on standard error that says
 * what happened, to what, and what to do ("unblock run: ...").
 */
#ifndef UB_UI_COMMAND_H
#define UB_UI_COMMAND_H

/* Exit status of a failure of our own. `run` leaves the small numbers to the program it runs, like env(1). */
#define UB_EXIT_FINDING        1   /* check, diff, --fail-on: something was found */
#define UB_EXIT_USAGE          2   /* report, dump: wrong use, unreadable input, no such process */
#define UB_EXIT_RUN_FAILED     125 /* run: wrong use, or we could not start it */
#define UB_EXIT_NOT_EXECUTABLE 126 /* run: found, but cannot be executed */
#define UB_EXIT_NOT_FOUND      127 /* run: no such command */

struct ub_command {
    const char *name;
    const char *help; /* one line */
    int (*main)(int argc, char **argv);
};

int ub_cmd_run(int argc, char **argv);
int ub_cmd_trace(int argc, char **argv);
int ub_cmd_attach(int argc, char **argv);
int ub_cmd_detach(int argc, char **argv);
int ub_cmd_report(int argc, char **argv);
int ub_cmd_doctor(int argc, char **argv);
int ub_cmd_dump(int argc, char **argv);
int ub_cmd_ps(int argc, char **argv);
int ub_cmd_watch(int argc, char **argv);
int ub_cmd_check(int argc, char **argv);
int ub_cmd_diff(int argc, char **argv);
int ub_cmd_top(int argc, char **argv);
int ub_cmd_offload(int argc, char **argv);
int ub_cmd_policy(int argc, char **argv);
int ub_cmd_completion(int argc, char **argv);

#endif
