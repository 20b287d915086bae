/*
 * Starting the program, and ending as it ended. See child.h.
 */
#include "child.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define ARENA_MAX 128

void ub_child_init(struct ub_child *c)
{
    sigset_t all;

    *c = (struct ub_child){.pid = -1, .control = -1};
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &c->inherited_mask);
    /* An ignored SIGCHLD (inherited) would reap the child behind our back. */
    sigaction(SIGCHLD, &(struct sigaction){.sa_handler = SIG_DFL}, &c->inherited_chld);
}

char *ub_child_preload(const char *agent, const char *existing)
{
    size_t agent_len = strlen(agent);
    char *value = malloc(agent_len + (existing != NULL ? strlen(existing) : 0) + 2), *end;

    if (value == NULL)
        return NULL;
    end = stpcpy(value, agent);
    while (existing != NULL && *existing != '\0') {
        size_t len = strcspn(existing, " :");

        if (len > 0 && !(len == agent_len && !memcmp(existing, agent, len))) {
            *end++ = ':';
            end = mempcpy(end, existing, len);
        }
        existing += len + (existing[len] != '\0');
    }
    *end = '\0';
    return value;
}

/* In the child. Returns only when it could not execute. */
static int execute(const struct ub_child *c, char *const argv[], const char *preload, const char *arena)
{
    char *value;

    if (preload != NULL) {
        value = ub_child_preload(preload, getenv("LD_PRELOAD"));
        if (value == NULL || setenv("LD_PRELOAD", value, 1) != 0 || setenv("UNBLOCK_ARENA", arena, 1) != 0)
            return -ENOMEM;
    }
    sigaction(SIGCHLD, &c->inherited_chld, NULL);
    pthread_sigmask(SIG_SETMASK, &c->inherited_mask, NULL);
    execvp(argv[0], argv);
    return -errno;
}

static _Noreturn void child_main(const struct ub_child *c, int control, char *const argv[], const char *preload)
{
    char arena[ARENA_MAX];
    ssize_t n = recv(control, arena, sizeof(arena) - 1, 0);
    int r;

    /* Nothing but the word of the parent starts the program: not the end of the parent either. */
    if (n <= 0)
        _exit(125);
    arena[n] = '\0';
    r = execute(c, argv, preload, arena);
    send(control, &r, sizeof(r), MSG_NOSIGNAL);
    _exit(r == -ENOENT ? 127 : 126);
}

int ub_child_fork(struct ub_child *c, char *const argv[], const char *preload)
{
    int control[2], r;

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, control) != 0)
        return -errno;
    fflush(NULL);
    c->pid = fork();
    if (c->pid == 0) {
        close(control[0]);
        child_main(c, control[1], argv, preload);
    }
    r = -errno;
    close(control[1]);
    if (c->pid < 0) {
        close(control[0]);
        return r;
    }
    c->control = control[0];
    return 0;
}

void ub_child_exec(struct ub_child *c, const char *arena)
{
    send(c->control, arena, strnlen(arena, ARENA_MAX - 1), MSG_NOSIGNAL);
}

void ub_child_cancel(struct ub_child *c)
{
    if (c->control < 0)
        return;
    close(c->control);
    c->control = -1;
    while (waitpid(c->pid, NULL, 0) < 0 && errno == EINTR)
        ;
    c->pid = -1;
}

void ub_child_signals_default(void)
{
    const int keys[] = {SIGINT, SIGQUIT};
    sigset_t set;

    sigemptyset(&set);
    for (uint32_t i = 0; i < UB_ARRAY_LEN(keys); i++) {
        sigaddset(&set, keys[i]);
        sigaction(keys[i], &(struct sigaction){.sa_handler = SIG_DFL}, NULL);
    }
    /* What ended the child may still be pending here: it is not meant for what comes now. */
    while (sigtimedwait(&set, NULL, &(struct timespec){0}) > 0)
        ;
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

void ub_child_imitate(int status)
{
    sigset_t set;
    int sig;

    fflush(NULL);
    if (WIFEXITED(status))
        _exit(WEXITSTATUS(status));
    sig = WTERMSIG(status);
    /* A core dump, if there is one, is the child's; the limit alone does not stop a core_pattern that is a pipe. */
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
    prctl(PR_SET_DUMPABLE, 0);
    sigaction(sig, &(struct sigaction){.sa_handler = SIG_DFL}, NULL);
    kill(getpid(), sig);
    sigemptyset(&set);
    sigaddset(&set, sig);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    _exit(128 + sig); /* pid 1 of a container cannot be killed by itself: what a shell would report */
}
