/*
 * Loops that one thread makes and runs, in which a callback blocks, and another thread destroys: elsewhere_LIBRARY HOW
 *
 * `ended`: each loop has a thread of its own, which has ended by then, and whose place among the watched ones another
 * one has. `there`: one thread runs them all, and is still there. Prints how many descriptors are open after a quarter
 * of the loops and after all, what the library has allocated and not freed, where it says so, and how much address
 * space is taken after each quarter: what is left of each loop grows in each, a place more for a thread (if the last
 * one's end was not noticed in time: and a stack for its callbacks) only once.
 */
#ifndef ELSEWHERE_H
#define ELSEWHERE_H

#include "measure.h"

#include <dirent.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdbool.h>

#define WARM  20 /* turns until a loop is known to be one */
#define LOOPS 24
#define PARTS 4
#define KEPT  2 /* loops that there are at a time: the next one is elsewhere in memory */

/* Of a callback; true: it was the last one. */
static int turn(void *count)
{
    int *n = count;

    if (++*n > WARM)
        sleep_ns(3000000);
    return *n == WARM + 3;
}

/* The library's side: makes a loop and runs it to its end; destroys it. */
static void *run_loop(void);
static void end_loop(void *loop);

static int allocated; /* pieces of memory */
static void *made[LOOPS];
static sem_t wanted, ready;

static void *run_one(void *i)
{
    made[(long)i] = run_loop();
    return NULL;
}

static void *run_all(void *arg)
{
    for (long i = 0;; i++) {
        while (sem_wait(&wanted))
            ;
        run_one((void *)i);
        sem_post(&ready);
    }
    return arg;
}

static int descriptors(void)
{
    DIR *dir = opendir("/proc/self/fd");
    int n = 0;

    while (readdir(dir))
        n++;
    closedir(dir);
    return n;
}

/* Address space, in pages: maps that lie side by side are one. */
static int pages(void)
{
    FILE *f = fopen("/proc/self/statm", "r");
    int n = 0;

    if (fscanf(f, "%d", &n) != 1)
        abort();
    fclose(f);
    return n;
}

static void run_somewhere(bool there, long i)
{
    pthread_t thread;

    if (there) {
        sem_post(&wanted);
        while (sem_wait(&ready))
            ;
        return;
    }
    pthread_create(&thread, NULL, run_one, (void *)i);
    pthread_join(thread, NULL);
    sleep_ns(20000000); /* its end is noticed */
}

int main(int argc, char **argv)
{
    bool there = !strcmp(argv[1], "there");
    int taken[PARTS + 1] = {0}, early[2] = {0};
    pthread_t thread;

    sem_init(&wanted, 0, 0);
    sem_init(&ready, 0, 0);
    if (there)
        pthread_create(&thread, NULL, run_all, NULL);
    for (long i = 0; i < LOOPS; i++) {
        if (i % (LOOPS / PARTS) == 0)
            taken[i / (LOOPS / PARTS)] = pages();
        if (i == LOOPS / PARTS) {
            early[0] = descriptors();
            early[1] = allocated;
        }
        run_somewhere(there, i);
        if (i >= KEPT)
            end_loop(made[i - KEPT]);
    }
    taken[PARTS] = pages();
    printf("{\"descriptors\": [%d, %d], \"allocated\": [%d, %d], \"pages\": [%d, %d, %d, %d]}\n", early[0],
           descriptors(), early[1], allocated, taken[1], taken[2], taken[3], taken[4]);
    fflush(stdout);
    _exit(0); /* the thread is still there */
}

#endif
