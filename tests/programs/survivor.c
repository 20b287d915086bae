/*
 * A small loop with stalls that says at its end what it has done: for tests that
 * kill and stop it or its watcher at any moment.
 *
 *     survivor TURNS        a turn a millisecond, a stall of 4 ms each tenth turn; "done TURNS"
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <time.h>

int main(int argc, char **argv)
{
    long turns = argc > 1 ? atol(argv[1]) : 100, done = 0;
    int ep = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event;

    for (; done < turns; done++) {
        if (epoll_wait(ep, &event, 1, 1) != 0 &&
            errno != EINTR) /* as SIGSTOP and SIGCONT have it, with or without us */
            return 3;
        if (done % 10 == 9 && nanosleep(&(struct timespec){0, 4000000}, NULL) != 0)
            return 4;
    }
    printf("done %ld\n", done);
    return 0;
}
