/* What the programs of hazards (hazards_sd.c, hazards_ev.c) share: a case's name, what has happened, in order. */
#ifndef HAZARDS_H
#define HAZARDS_H

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define WARM 15 /* turns before a case begins: by then the loop is known */

static const char *name;
static int p[2], q[2], fired, inside;
static char said[1024];
static pthread_mutex_t saying = PTHREAD_MUTEX_INITIALIZER;

static inline int is(const char *what)
{
    return !strcmp(name, what);
}

static inline void say(const char *what)
{
    pthread_mutex_lock(&saying);
    strcat(strcat(said, what), " ");
    pthread_mutex_unlock(&saying);
}

static inline void rest(int ms)
{
    struct timespec ts = {ms / 1000, ms % 1000 * 1000000L};

    nanosleep(&ts, NULL);
}

static inline void put(int fd, const char *what)
{
    if (write(fd, what, strlen(what)) != (ssize_t)strlen(what))
        abort();
}

static inline void get(int fd)
{
    char c;

    if (read(fd, &c, 1) != 1)
        abort();
}

#define MUCH (4 << 20)

/* Takes its time to be sent, while something else is there to be read. */
static inline void send_much(void)
{
    char *much = calloc(1, MUCH);

    if (send(q[0], much, MUCH, 0) != MUCH)
        abort();
    free(much);
}

/* Its other side. */
static inline void *peer(void *arg)
{
    char buf[65536];
    long n;

    usleep(50000);
    put(q[1], "x");
    usleep(200000);
    for (long all = 0; all < MUCH && (n = read(q[1], buf, sizeof(buf))) > 0; all += n)
        ;
    return NULL;
}

#define ROUNDS 16

/* Each takes less than a heartbeat (50 ms). */
static inline void ask_and_wait(void)
{
    for (int i = 0; i < ROUNDS; i++) {
        put(q[0], "?");
        get(q[0]);
    }
}

/* Who is asked. */
static inline void *answerer(void *arg)
{
    for (int i = 0; i < ROUNDS; i++) {
        get(q[1]);
        usleep(20000);
        put(q[1], "!");
    }
    return arg;
}

static inline void enter(void)
{
    if (inside++)
        say("INSIDE ITSELF");
}

static inline long cpu_us(void)
{
    struct rusage r;

    getrusage(RUSAGE_SELF, &r);
    return (r.ru_utime.tv_sec + r.ru_stime.tv_sec) * 1000000 + r.ru_utime.tv_usec + r.ru_stime.tv_usec;
}

/* Nothing may turn meanwhile. */
static inline void rest_quietly(int ms)
{
    long before = cpu_us();

    rest(ms);
    if (cpu_us() - before > ms * 250)
        say("SPINS");
}

#endif
