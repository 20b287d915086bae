/*
 * Callbacks that are not returned from, or not where they were called:
 * callbacks_leave HOW. Prints {"callbacks": N}. Between them one callback, on_stall(), blocks for 60 ms.
 *
 *   longjmp   out of the callback and of the loop, which is run again
 *   cancel    pthread_cancel of a thread in its loop's callback, again and again
 *   nested    a loop run inside a callback, then a stall in the callback itself
 *   fork      a child forked in a callback goes on with the loop, as does the parent
 *   many      more callback functions than there are thunks (5000, made in memory)
 *   read      a program that reads its handle's callback and calls it
 */
// libs: -levent -levent_pthreads
#include "measure.h"

#include <pthread.h>
#include <stdbool.h>

#include <event2/event.h>
#include <event2/event_struct.h>
#include <event2/thread.h>
#include <setjmp.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>

static struct event_base *base;
static uint64_t callbacks;
static jmp_buf out;
static bool stall;

static NOINLINE void on_stall(void)
{
    sleep_ns(60000000);
    __asm__ volatile("");
}

static NOINLINE void on_jump(evutil_socket_t fd, short what, void *arg)
{
    callbacks++;
    if (stall && callbacks == 50)
        on_stall();
    longjmp(out, 1);
}

static NOINLINE void on_count(evutil_socket_t fd, short what, void *arg)
{
    if (++callbacks == 60)
        on_stall();
    if (callbacks >= 100)
        event_base_loopbreak(base);
}

static struct event *every_ms(struct event_base *b, event_callback_fn f)
{
    struct timeval ms = {.tv_usec = 1000};
    struct event *e = event_new(b, -1, EV_PERSIST, f, NULL);

    event_add(e, &ms);
    return e;
}

static void jump(void)
{
    every_ms(base, on_jump);
    stall = true;
    while (callbacks < 100) {
        if (setjmp(out) == 0)
            event_base_dispatch(base);
        else /* the base thinks that it still runs */
            base = event_base_new(), every_ms(base, on_jump);
    }
}

static NOINLINE void on_wait(evutil_socket_t fd, short what, void *arg)
{
    if (__atomic_add_fetch((int *)arg, 1, __ATOMIC_RELAXED) > 12)
        sleep_ns(10000000000); /* a cancellation point */
}

static void *loop_thread(void *count)
{
    struct event_base *b = event_base_new();
    struct event *e = event_new(b, -1, EV_PERSIST, on_wait, count);
    struct timeval ms = {.tv_usec = 1000};

    event_add(e, &ms);
    event_base_dispatch(b);
    return NULL;
}

static void cancel(void)
{
    for (int i = 0; i < 10; i++) {
        int count = 0;
        pthread_t t;

        pthread_create(&t, NULL, loop_thread, &count);
        while (__atomic_load_n(&count, __ATOMIC_RELAXED) <= 12)
            sleep_ns(100000);
        sleep_ns(1000000);
        pthread_cancel(t);
        pthread_join(t, NULL);
        callbacks += (uint64_t)count;
    }
    every_ms(base, on_count);
    callbacks = 0;
    event_base_dispatch(base);
}

static struct event_base *inner;

static NOINLINE void on_inner(evutil_socket_t fd, short what, void *arg)
{
    callbacks++;
    event_base_loopbreak(inner);
}

static NOINLINE void on_outer(evutil_socket_t fd, short what, void *arg)
{
    event_base_loop(inner, 0);
    if (callbacks == 50)
        on_stall();
    if (callbacks >= 100)
        event_base_loopbreak(base);
}

static void nested(void)
{
    inner = event_base_new();
    every_ms(inner, on_inner);
    every_ms(base, on_outer);
    event_base_dispatch(base);
}

static NOINLINE void on_fork(evutil_socket_t fd, short what, void *arg)
{
    static pid_t child;
    int status;

    if (++callbacks == 30) {
        child = fork();
        if (child == 0)
            event_reinit(base);
    }
    if (callbacks == 60)
        on_stall();
    if (callbacks >= 100) {
        if (child == 0)
            _exit(7);
        if (waitpid(child, &status, 0) != child || WEXITSTATUS(status) != 7)
            exit(3);
        event_base_loopbreak(base);
    }
}

static void many(void)
{
    enum { MANY = 5000, SIZE = 16 };
    /* add $1, (%rdi counter is far): each is `ret`, at an address of its own */
    uint8_t *code = mmap(NULL, MANY * SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct timeval now = {0};

    memset(code, 0xc3, MANY * SIZE);
    mprotect(code, MANY * SIZE, PROT_READ | PROT_EXEC);
    for (int i = 0; i < MANY; i++) {
        event_callback_fn f;
        void *at = code + i * SIZE;

        memcpy(&f, &at, sizeof(f));
        event_base_once(base, -1, EV_TIMEOUT, f, NULL, &now);
    }
    every_ms(base, on_count);
    event_base_dispatch(base);
}

static void read_back(void)
{
    struct event *e = event_new(base, -1, EV_PERSIST, on_count, NULL);
    event_callback_fn seen = NULL;

    e->ev_evcallback.evcb_cb_union.evcb_callback(-1, 0, NULL); /* as it stands in the structure */
    event_get_assignment(e, NULL, NULL, NULL, &seen, NULL);
    if (callbacks != 1 || seen != on_count || event_get_callback(e) != on_count)
        exit(2);
    every_ms(base, on_count);
    event_base_dispatch(base);
}

int main(int argc, char **argv)
{
    const char *how = argc > 1 ? argv[1] : "";

    evthread_use_pthreads();
    base = event_base_new();
    if (!strcmp(how, "longjmp"))
        jump();
    else if (!strcmp(how, "cancel"))
        cancel();
    else if (!strcmp(how, "nested"))
        nested();
    else if (!strcmp(how, "fork"))
        every_ms(base, on_fork), event_base_dispatch(base);
    else if (!strcmp(how, "many"))
        many();
    else if (!strcmp(how, "read"))
        read_back();
    else
        return 99;
    printf("{\"callbacks\": %llu}\n", (unsigned long long)callbacks);
    return 0;
}
