/*
 * The program under `unblock run`, as if unblock were not there: same process
 * group, same descriptors, signals, limits and environment, and its end is our
 * end.
 *
 * The child is forked before the watcher's threads exist and then waits: its
 * pid is needed for the name of the recording, and nothing of it runs until
 * everything else is known to work.
 *
 * Signals. All are blocked in unblock and taken one by one (sigtimedwait):
 *
 *   from the terminal     the kernel sent it to the whole process group, the
 *   (si_code SI_KERNEL)   child has its own: not forwarded
 *   from kill(1) and the  meant for the program, which the sender believes to
 *   like                  be us: forwarded once. (A sender that signals the
 *                         whole group by kill(2) cannot be told from one that
 *                         signals us alone: the child then gets it twice.)
 *   SIGHUP of a hang-up   goes to the session leader only: forwarded when that is us
 *   SIGALRM               an alarm that was set before exec: forwarded
 *
 * One child a process. Not thread-safe: all from the main thread.
 */
#ifndef UB_UI_CHILD_H
#define UB_UI_CHILD_H

#include "../common/base.h"

#include <signal.h>
#include <sys/types.h>

struct ub_child {
    pid_t pid;
    int control;    /* socket to the child, on which it tells why it could not execute */
    int exec_error; /* after ub_child_wait: -errno of its execve, 0 when it did execute */
    sigset_t inherited_mask;
    struct sigaction inherited_chld;
    void (*on_stop)(void *self,
                    bool stopping); /* before we stop with the child, and after; NULL, or set after ub_child_init */
    void *on_stop_self;
};

/* Remembers how signals came in and blocks them all. Before any thread is started, so that all threads inherit it. */
void ub_child_init(struct ub_child *c);

/*
 * Forks the child, which waits for ub_child_exec. `argv` is what to execute
 * (searched in PATH); `preload` is put in front of its LD_PRELOAD, or NULL. 0 or -errno.
 */
int ub_child_fork(struct ub_child *c, char *const argv[], const char *preload);

/*
 * Lets the child execute, with UNBLOCK_ARENA set to `arena`. Does not wait for
 * that: a child may be stopped (Ctrl-Z) before it gets there, and we with it.
 * Whether it did is in `exec_error` after ub_child_wait.
 */
void ub_child_exec(struct ub_child *c, const char *arena);

/* Ends a child that has not executed yet. */
void ub_child_cancel(struct ub_child *c);

/*
 * Waits for the end of the child, forwards signals to it, stops and continues
 * with it, reaps orphans (as pid 1 of a container). Until CLOCK_MONOTONIC
 * `deadline_ns` (0: for ever). 0 with the wait status, or -ETIME.
 */
int ub_child_wait(struct ub_child *c, uint64_t deadline_ns, int *ret_status);

/* The child has ended: Ctrl-C ends us again (work on the recording may take a moment). */
void ub_child_signals_default(void);

/* Ends this process as the child ended: the same exit status, or the same signal without a core dump of ours. */
_Noreturn void ub_child_imitate(int status);

/* The value of LD_PRELOAD with `agent` in front of `existing` (NULL: none) and nowhere else. Caller frees. */
char *ub_child_preload(const char *agent, const char *existing);

#endif
