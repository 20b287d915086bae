/*
 * Calls that a signal handler would disturb: eintr SECONDS
 * A loop whose callbacks mix short calls of every kind that returns EINTR even
 * with SA_RESTART (or a short count) with short computing, so that a sampler
 * keeps hitting the borders between the two. Nobody sends this program a signal
 * of his own: every EINTR and every short count is the sampler's doing.
 * Prints {"calls": n, "interrupted": n, "short": n, "early": n, "which": "name what, ..."};
 * early: a call with a time-out came back before it.
 */
#include "measure.h"

#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/syscall.h>

static struct {
    unsigned long calls, interrupted, short_counts, early;
    char which[2000]; /* "name what, " for each */
} seen;

static struct {
    int pipe[2], tcp[2], ep, ring, message, semaphores;
    sem_t sem;
    pthread_t reader;
} env;

#define WAIT_NS 60000

static void check(const char *name, bool good, uint64_t start, uint64_t least_ns)
{
    int error = errno;
    const char *what;
    size_t len = strlen(seen.which);

    seen.calls++;
    if (!good && error == EINTR) {
        seen.interrupted++;
        what = "EINTR";
    } else if (!good) {
        seen.short_counts++;
        what = "short";
    } else if (now_ns() - start < least_ns) {
        seen.early++;
        what = "early";
    } else {
        return;
    }
    if (len + 64 < sizeof(seen.which))
        snprintf(seen.which + len, 64, "%s%s %s", len ? ", " : "", name, what);
}

#define TRY(name, least_ns, good)                                                                                      \
    do {                                                                                                               \
        uint64_t start_ = now_ns();                                                                                    \
        errno = 0;                                                                                                     \
        check(name, good, start_, least_ns);                                                                           \
    } while (0)

static void one_call(unsigned which)
{
    struct timespec wait = {.tv_nsec = WAIT_NS}, until;
    struct timeval tv = {.tv_usec = WAIT_NS / 1000};
    struct pollfd p = {.fd = env.pipe[0], .events = POLLIN};
    struct epoll_event ev;
    struct {
        long type;
        char text[8];
    } message;
    struct sembuf down = {.sem_op = -1};
    static char block[1 << 18];
    sigset_t set;
    uint32_t word = 0;
    char c;

    switch (which % 17) {
    case 0:
        TRY("nanosleep", WAIT_NS, nanosleep(&wait, NULL) == 0);
        break;
    case 1:
        TRY("clock_nanosleep", WAIT_NS, (errno = clock_nanosleep(CLOCK_MONOTONIC, 0, &wait, NULL)) == 0);
        break;
    case 2:
        TRY("usleep", WAIT_NS, usleep(WAIT_NS / 1000) == 0);
        break;
    case 3:
        TRY("poll", 1000000, poll(&p, 1, 1) == 0);
        break;
    case 4:
        TRY("ppoll", WAIT_NS, ppoll(&p, 1, &wait, NULL) == 0);
        break;
    case 5:
        TRY("select", WAIT_NS, select(0, NULL, NULL, NULL, &tv) == 0);
        break;
    case 6:
        TRY("pselect", WAIT_NS, pselect(0, NULL, NULL, NULL, &wait, NULL) == 0);
        break;
    case 7:
        TRY("epoll_wait", 1000000, epoll_wait(env.ep, &ev, 1, 1) == 0);
        break;
    case 8:
        TRY("epoll_pwait2", WAIT_NS, epoll_pwait2(env.ep, &ev, 1, &wait, NULL) == 0);
        break;
    case 9:
        TRY("recv", 0, recv(env.tcp[0], &c, 1, 0) == -1 && errno == EAGAIN);
        break; /* SO_RCVTIMEO */
    case 10:
        TRY("futex", WAIT_NS, syscall(SYS_futex, &word, FUTEX_WAIT, 0, &wait, NULL, 0) == -1 && errno == ETIMEDOUT);
        break;
    case 11:
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += WAIT_NS;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        TRY("sem_timedwait", 0, sem_timedwait(&env.sem, &until) == -1 && errno == ETIMEDOUT);
        break;
    case 12:
        TRY("msgrcv", 0, msgrcv(env.message, &message, sizeof(message.text), 0, IPC_NOWAIT) == -1 && errno == ENOMSG);
        break;
    case 13:
        TRY("semtimedop", WAIT_NS, semtimedop(env.semaphores, &down, 1, &wait) == -1 && errno == EAGAIN);
        break;
    case 14:
        sigemptyset(&set);
        sigaddset(&set, SIGUSR2);
        TRY("sigtimedwait", WAIT_NS, sigtimedwait(&set, NULL, &wait) == -1 && errno == EAGAIN);
        break;
    case 15:
        TRY("send", 0, send(env.tcp[1], block, sizeof(block), MSG_NOSIGNAL) == sizeof(block));
        break;
    case 16:
        TRY("write", 0, write(env.pipe[1], block, 64) == 64 && read(env.pipe[0], block, 64) == 64);
        break;
    }
}

/* Drains what "send" sends, at its own pace. */
static void *drain(void *fd)
{
    static char block[32768];

    while (recv((int)(intptr_t)fd, block, sizeof(block), 0) > 0)
        ;
    return NULL;
}

static NOINLINE void on_event(unsigned seed, uint64_t ns)
{
    uint64_t end = now_ns() + ns;

    while (now_ns() < end) {
        spin_until(now_ns() + rand_r(&seed) % 80000);
        one_call((unsigned)rand_r(&seed));
    }
}

int main(int argc, char **argv)
{
    uint64_t end = now_ns() + (argc > 1 ? strtoull(argv[1], NULL, 10) : 3) * 1000000000u;
    struct timeval timeout = {.tv_usec = 1000};
    struct sockaddr_in address;
    struct epoll_event ev = {.events = EPOLLIN};
    int listener = loopback_socket(SOCK_STREAM, &address), drained, ready = eventfd(1, EFD_CLOEXEC);
    int ep = epoll_create1(EPOLL_CLOEXEC);
    sigset_t set;

    env.ep = epoll_create1(EPOLL_CLOEXEC);
    env.message = msgget(IPC_PRIVATE, 0600);
    env.semaphores = semget(IPC_PRIVATE, 1, 0600);
    sem_init(&env.sem, 0, 0);
    env.tcp[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    env.tcp[1] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (pipe2(env.pipe, O_CLOEXEC) || connect(env.tcp[0], (struct sockaddr *)&address, sizeof(address)) ||
        accept(listener, NULL, NULL) < 0 || connect(env.tcp[1], (struct sockaddr *)&address, sizeof(address)))
        die("sockets");
    drained = accept(listener, NULL, NULL);
    setsockopt(env.tcp[0], SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    pthread_create(&env.reader, NULL, drain, (void *)(intptr_t)drained);

    epoll_ctl(ep, EPOLL_CTL_ADD, ready, &ev);
    for (unsigned turn = 0; now_ns() < end; turn++) {
        if (epoll_wait(ep, &ev, 1, -1) != 1)
            die("epoll_wait");
        on_event(turn, turn < 20 ? 100000 : 14000000);
    }
    if (env.message >= 0)
        msgctl(env.message, IPC_RMID, NULL);
    if (env.semaphores >= 0)
        semctl(env.semaphores, 0, IPC_RMID);
    printf("{\"calls\": %lu, \"interrupted\": %lu, \"short\": %lu, \"early\": %lu, \"which\": \"%s\"}\n", seen.calls,
           seen.interrupted, seen.short_counts, seen.early, seen.which);
    return 0;
}
