/*
 * What a watched process executes: the agent must not disturb a program that it
 * cannot enter.
 */
#ifndef UB_AGENT_SUCCESSOR_H
#define UB_AGENT_SUCCESSOR_H

#include "../common/image.h"

/*
 * Room for a copy of the environment, on the caller's stack: `count` pointers
 * and `bytes` of text. count is 0 when the agent is not in it, or when it is so
 * large that it is left alone.
 */
struct ub_successor_room {
    size_t count;
    size_t bytes;
};

/* Signal-safe; no system call. */
struct ub_successor_room ub_successor_room(char *const environment[]);

/*
 * Whether the program must not be given the agent. The file is the one at
 * `path` below `dirfd`, or, when `path` is empty, `dirfd` itself. Leaves errno
 * alone. Signal-safe.
 */
bool ub_successor_refuses(int dirfd, const char *path);

/* The same for a name that is looked for in PATH as execvp does. */
bool ub_successor_refuses_name(const char *name);

/*
 * Copies the environment without the agent in LD_PRELOAD, and without LD_PRELOAD
 * when nothing else is in it. Order and all else stay. Signal-safe.
 */
void ub_successor_environment(char *const environment[], char **copy, char *text);

#endif
