/*
 * A callback that waits in its place for what an earlier one does after its own blocking call: offload_waits CASE
 *
 * Alone the earlier one is over before the later one begins, and no case ever waits for long. Where the first is moved
 * off the loop and the second is not, it waits for ever unless the first goes on meanwhile. Prints what happened.
 */
// libs: -luv
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <poll.h>
#include <time.h>
#include <unistd.h>
#include <uv.h>

static const char *name;
static uv_timer_t warm, first, second, third;
static int n, fd[2], inside, ready;
static sem_t given, given2, let;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER, other = PTHREAD_MUTEX_INITIALIZER, recursive;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static pthread_rwlock_t rwlock = PTHREAD_RWLOCK_INITIALIZER;
static pthread_barrier_t barrier;
static pthread_t thread;
static pid_t child;

static int is(const char *what)
{
    return !strcmp(name, what);
}

static void say(const char *what)
{
    static char said[512];

    if (what)
        strcat(strcat(said, what), " ");
    else
        puts(said);
}

static __attribute__((noinline)) void rest(int ms) /* one place */
{
    struct timespec ts = {ms / 1000, ms % 1000 * 1000000L};

    nanosleep(&ts, NULL);
}

static void fill(void)
{
    char buf[65536];

    memset(buf, 'x', sizeof(buf));
    while (send(fd[0], buf, sizeof(buf), MSG_DONTWAIT) > 0)
        ;
}

/* ---- the first: blocks, and then does what the second waits for ------------------------------- */

static void on_first(uv_timer_t *t)
{
    static char buf[65536];

    if (is("flagged") && n < 100) { /* once alone: learned */
        n = 100;
        rest(150);
        uv_timer_start(&first, on_first, 10, 0);
        return;
    }
    rest(is("timed") ? 500 : 150);
    if (is("cond") || is("once")) {
        pthread_mutex_lock(&mutex);
        ready = 1;
        pthread_cond_signal(&cond);
        pthread_mutex_unlock(&mutex);
    }
    if (is("mutex") || is("join") || is("rwlock") || is("barrier") || is("semaphore") || is("chain"))
        sem_post(&given);
    if (is("read") || is("poll") || is("select") || is("child") || is("flagged") || is("poll_time"))
        if (write(fd[1], "x", 1) != 1)
            abort();
    if (is("send"))
        while (recv(fd[1], buf, sizeof(buf), MSG_DONTWAIT) > 0)
            ;
    if (is("recursive")) {
        pthread_mutex_lock(&recursive);
        say(inside ? "BOTH INSIDE" : "first inside");
        pthread_mutex_unlock(&recursive);
    }
    if (is("tried")) {
        rest(100);
        say(pthread_mutex_trylock(&recursive) ? "BUSY" : inside ? "BOTH INSIDE" : "first inside");
        pthread_mutex_unlock(&recursive);
    }
    say("first");
}

/* ---- the second: cannot be left, since it has a lock or waits for what nobody moves ----------- */

static void *on_thread(void *what)
{
    if (is("mutex"))
        pthread_mutex_lock(&mutex);
    if (is("rwlock"))
        pthread_rwlock_wrlock(&rwlock);
    sem_post(&let);
    if (is("recursive") || is("tried"))
        usleep(600000);
    else
        sem_wait(&given);
    if (is("mutex"))
        pthread_mutex_unlock(&mutex);
    if (is("rwlock"))
        pthread_rwlock_unlock(&rwlock);
    if (is("barrier"))
        pthread_barrier_wait(&barrier);
    if (is("recursive") || is("tried"))
        sem_post(&given2);
    return NULL;
}

static void wait_locked(sem_t *sem)
{
    pthread_mutex_lock(&other);
    sem_wait(sem);
    pthread_mutex_unlock(&other);
}

static void on_second(uv_timer_t *t)
{
    struct pollfd p = {.fd = fd[0], .events = POLLIN};
    struct timespec until;
    char buf[8];
    fd_set set;

    if (is("cond")) {
        pthread_mutex_lock(&mutex);
        while (!ready)
            pthread_cond_wait(&cond, &mutex);
        pthread_mutex_unlock(&mutex);
    }
    if (is("once")) { /* as it should not be written */
        pthread_mutex_lock(&mutex);
        if (!ready)
            pthread_cond_wait(&cond, &mutex);
        say(ready ? "ready" : "WOKEN FOR NOTHING");
        pthread_mutex_unlock(&mutex);
    }
    if (is("timed")) {
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec += 1;
        pthread_mutex_lock(&mutex);
        say(pthread_cond_timedwait(&cond, &mutex, &until) == ETIMEDOUT ? "timed out" : "NOT TIMED OUT");
        pthread_mutex_unlock(&mutex);
    }
    if (is("mutex")) {
        pthread_mutex_lock(&mutex);
        pthread_mutex_unlock(&mutex);
    }
    if (is("rwlock")) {
        pthread_rwlock_rdlock(&rwlock);
        pthread_rwlock_unlock(&rwlock);
    }
    if (is("join"))
        pthread_join(thread, NULL);
    if (is("barrier"))
        pthread_barrier_wait(&barrier);
    if (is("semaphore"))
        wait_locked(&given);
    if (is("read") || is("flagged")) {
        if (is("read"))
            pthread_mutex_lock(&other);
        say(read(fd[0], buf, 1) == 1 ? "read" : "NOT READ");
        if (is("read"))
            pthread_mutex_unlock(&other);
    }
    if (is("send")) {
        static char much[1000];

        pthread_mutex_lock(&other);
        say(send(fd[0], much, sizeof(much), 0) == sizeof(much) ? "sent" : "NOT SENT");
        pthread_mutex_unlock(&other);
    }
    if (is("poll"))
        say(poll(&p, 1, -1) == 1 ? "polled" : "NOT POLLED");
    if (is("poll_time")) { /* two: not one that a thread could be given */
        struct pollfd two[2] = {p, {.fd = -1}};

        say(poll(two, 2, 100000) == 1 ? "polled" : "NOT POLLED");
    }
    if (is("select")) {
        FD_ZERO(&set);
        FD_SET(fd[0], &set);
        say(select(fd[0] + 1, &set, NULL, NULL, NULL) == 1 ? "selected" : "NOT SELECTED");
    }
    if (is("child")) {
        int status = -1;

        pthread_mutex_lock(&other);
        waitpid(child, &status, 0);
        pthread_mutex_unlock(&other);
        say(WIFEXITED(status) && WEXITSTATUS(status) == 7 ? "child" : "NO CHILD");
    }
    if (is("chain")) {
        rest(50);
        wait_locked(&given);
        sem_post(&given2);
    }
    if (is("recursive") || is("tried")) {
        pthread_mutex_lock(&recursive);
        inside = 1;
        wait_locked(&given2);
        inside = 0;
        pthread_mutex_unlock(&recursive);
    }
    say("second");
}

static void on_third(uv_timer_t *t)
{
    wait_locked(&given2);
    say("third");
}

static void on_warm(uv_timer_t *t)
{
    if (++n < 15)
        return;
    uv_timer_stop(t);
    uv_timer_start(&first, on_first, 1, 0);
    uv_timer_start(&second, on_second, is("flagged") ? 250 : 30, 0);
    if (is("chain"))
        uv_timer_start(&third, on_third, 40, 0);
}

int main(int argc, char **argv)
{
    pthread_mutexattr_t attr;
    uv_loop_t *loop = uv_default_loop();

    name = argc > 1 ? argv[1] : "cond";
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&recursive, &attr);
    pthread_barrier_init(&barrier, NULL, 2);
    sem_init(&given, 0, 0);
    sem_init(&given2, 0, 0);
    sem_init(&let, 0, 0);
    if (is("send") ? socketpair(AF_UNIX, SOCK_STREAM, 0, fd) : pipe(fd))
        abort();
    if (is("send"))
        fill();
    if (is("child") && (child = fork()) == 0) {
        char c;

        _exit(read(fd[0], &c, 1) == 1 ? 7 : 8);
    }
    if (is("mutex") || is("join") || is("rwlock") || is("barrier") || is("recursive") || is("tried")) {
        pthread_create(&thread, NULL, on_thread, NULL);
        sem_wait(&let);
    }
    uv_timer_init(loop, &warm);
    uv_timer_init(loop, &first);
    uv_timer_init(loop, &second);
    uv_timer_init(loop, &third);
    uv_timer_start(&warm, on_warm, 2, 2);
    uv_run(loop, UV_RUN_DEFAULT);
    say(NULL);
    return 0;
}
