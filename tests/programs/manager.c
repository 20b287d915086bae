/*
 * A process manager as strict as they come: it loops (so that a helper is
 * started beside it), counts SIGCHLD, and collects whatever child there is.
 *
 *     manager CHILDREN      prints what it saw; the same with and without a helper
 */
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile sig_atomic_t sigchld;

static void on_sigchld(int sig)
{
    (void)sig;
    sigchld++;
}

static void turn(int ep, int turns)
{
    struct epoll_event event;

    for (int i = 0; i < turns; i++) {
        if (epoll_wait(ep, &event, 1, 2) < 0 && errno != EINTR)
            exit(3);
    }
}

int main(int argc, char **argv)
{
    int children = argc > 1 ? atoi(argv[1]) : 5, ended = 0, strangers = 0, ep = epoll_create1(EPOLL_CLOEXEC);
    struct sigaction act = {.sa_handler = on_sigchld};
    pid_t child[64] = {0};
    siginfo_t info;

    sigaction(SIGCHLD, &act, NULL);
    turn(ep, 40); /* a helper is there by now */
    ended = waitpid(-1, NULL, WNOHANG);
    printf("before any child: sigchld %d, waitpid %d errno %s\n", (int)sigchld, ended,
           errno == ECHILD ? "ECHILD" : "other");
    ended = 0;
    fflush(stdout);
    for (int i = 0; i < children; i++) {
        child[i] = fork();
        if (child[i] == 0) {
            turn(epoll_create1(EPOLL_CLOEXEC), 20 + 5 * i);
            _exit(i);
        }
    }
    for (;;) {
        memset(&info, 0, sizeof(info));
        if (waitid(P_ALL, 0, &info, WEXITED) == 0) {
            bool mine = false;

            for (int i = 0; i < children; i++)
                mine = mine || child[i] == info.si_pid;
            ended += mine;
            strangers += !mine;
        } else if (errno != EINTR) {
            break;
        }
    }
    printf("ended %d, strangers %d, last error %s, sigchld seen %s\n", ended, strangers,
           errno == ECHILD ? "ECHILD" : "other", sigchld >= 1 && sigchld <= children ? "yes" : "no");
    return 0;
}
