/*
 * One callback of libuv that blocks, beside a timer that ticks each 10 ms: offload_uv CASE [MS]
 *
 * Prints {"case", "result", "errno", "max_gap_ms" of the ticks while it blocked, "inside": ticks while it
 * blocked, "order": what happened in which order}. With OFFLOAD_AFTER=FILE it ticks until that is there. The first cases may be moved; the others must stay.
 */
// libs: -luv
#include "measure.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>
#if defined(LIBEVENT)
#include <event2/event.h>
#include <event2/thread.h>
#elif defined(GLIB)
#include <glib-unix.h>
#include <glib.h>
#elif defined(OTHER_LOOP) /* what includes this has the rest */
static void nested(void);
static void start(void);
static void stop(void);
static void run(void);
#else
#include <uv.h>
#endif

#define TICK_MS 10

#if defined(LIBEVENT)
static struct event_base *loop;
static struct event *ticker, *victim;
#elif defined(GLIB)
static GMainLoop *loop;
#elif !defined(OTHER_LOOP)
static uv_loop_t *loop;
static uv_timer_t ticker, victim;
#endif
static const char *name, *after; /* a file that is waited for */
static uint64_t ms = 200, last_tick, max_gap, begun_ns, ended_ns;
static int ticks, inside, done, pair[2];
static long result;
static int error;
static char order[256];

static void note(const char *what)
{
    strncat(order, what, sizeof(order) - strlen(order) - 1);
}

static void sleep_ms(void)
{
    struct timespec ts = {(time_t)(ms / 1000), (long)(ms % 1000) * 1000000};

    result = nanosleep(&ts, NULL);
}

/* ---- who lets the call end ------------------------------------------------------------- */

static void *later(void *what)
{
    char buf[65536];

    usleep((useconds_t)ms * 1000);
    if (!strcmp(what, "write")) {
        if (write(pair[1], "hello", 5) != 5)
            abort();
    } else if (!strcmp(what, "accept")) {
        for (int i = 0; i < 2; i++)
            accept(pair[0], NULL, NULL);
    } else if (!strcmp(what, "post")) {
        sem_post((sem_t *)pair);
    } else if (!strcmp(what, "drain")) {
        for (long n = 0, all = 0; all < 4 << 20 && (n = read(pair[1], buf, sizeof(buf))) > 0; all += n)
            ;
    }
    return NULL;
}

static void help(const char *what)
{
    pthread_t thread;

    pthread_create(&thread, NULL, later, (void *)what);
    pthread_detach(thread);
}

static pid_t hold_lock(const char *path)
{
    int told[2];
    char c;
    pid_t pid;

    if (pipe(told))
        abort();
    pid = fork();
    if (pid == 0) {
        int fd = open(path, O_RDWR);

        flock(fd, LOCK_EX);
        if (write(told[1], "x", 1) != 1)
            _exit(1);
        usleep((useconds_t)ms * 1000);
        _exit(0);
    }
    if (read(told[0], &c, 1) != 1)
        abort();
    close(told[0]);
    close(told[1]);
    return pid;
}

/* ---- what blocks ------------------------------------------------------------------------- */

static char path[] = "/tmp/unblock-offload-XXXXXX";
static pid_t child;
static int file = -1;

static struct sockaddr_in silent = {.sin_family = AF_INET};

/* A listener whose queue is full: the next connection gets no answer before somebody is accepted. */
static void listen_in_silence(void)
{
    socklen_t len = sizeof(silent);

    silent.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    pair[0] = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(pair[0], (struct sockaddr *)&silent, len) || listen(pair[0], 0) ||
        getsockname(pair[0], (struct sockaddr *)&silent, &len))
        abort();
    pair[1] = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(pair[1], (struct sockaddr *)&silent, len))
        abort();
}

/* Before the loop runs. */
static void prepare_case(void)
{
    if ((!strcmp(name, "pipe_read") || !strcmp(name, "signal")) && pipe(pair))
        abort();
    if ((!strcmp(name, "recv") || !strcmp(name, "send")) && socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
        abort();
    if (!strcmp(name, "flock"))
        file = mkstemp(path);
    if (!strcmp(name, "fsync")) {
        file = mkstemp(path);
        if (write(file, "dirty", 5) != 5)
            abort();
    }
    if (!strcmp(name, "connect"))
        listen_in_silence();
    if (!strcmp(name, "sem_wait"))
        sem_init((sem_t *)pair, 0, 0);
}

static void on_handler(int sig)
{
    sleep_ms();
}

static ucontext_t here, there;

static void on_context(void)
{
    sleep_ms();
}

#if defined(LIBEVENT)
static void on_inner(int fd, short what, void *own)
{
    sleep_ms();
    event_base_loopbreak(own);
}

static void nested(void)
{
    struct event_base *own = event_base_new();
    struct timeval tv = {0, 1000};

    event_base_once(own, -1, EV_TIMEOUT, on_inner, own, &tv);
    event_base_dispatch(own);
    event_base_free(own);
}
#elif defined(GLIB)
static int on_inner(void *own)
{
    sleep_ms();
    g_main_loop_quit(own);
    return G_SOURCE_REMOVE;
}

static void nested(void)
{
    GMainLoop *own = g_main_loop_new(NULL, FALSE);

    g_timeout_add(1, on_inner, own);
    g_main_loop_run(own);
    g_main_loop_unref(own);
}
#elif !defined(OTHER_LOOP)
static void on_inner(uv_timer_t *t)
{
    sleep_ms();
    uv_stop(t->loop);
}

static void nested(void)
{
    uv_loop_t own;
    uv_timer_t t;

    uv_loop_init(&own);
    uv_timer_init(&own, &t);
    uv_timer_start(&t, on_inner, 1, 0);
    uv_run(&own, UV_RUN_DEFAULT);
}
#endif

static void context(void)
{
    static char stack[1 << 16];

    getcontext(&there);
    there.uc_stack.ss_sp = stack;
    there.uc_stack.ss_size = sizeof(stack);
    there.uc_link = &here;
    makecontext(&there, on_context, 0);
    swapcontext(&here, &there);
}

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_rwlock_t rwlock = PTHREAD_RWLOCK_INITIALIZER;

static NOINLINE void take_the_lock(void)
{
    pthread_mutex_lock(&mutex);
    __asm__ volatile("" ::: "memory");
}

static NOINLINE void block(void)
{
    char buf[16] = "";

    errno = 0;
    if (!strcmp(name, "nanosleep")) {
        sleep_ms();
    } else if (!strcmp(name, "unlocked")) { /* a lock that is free again keeps nothing */
        take_the_lock();
        pthread_mutex_unlock(&mutex);
        sleep_ms();
    } else if (!strcmp(name, "pipe_read") || !strcmp(name, "recv") || !strcmp(name, "signal")) {
        help("write");
        result = name[0] != 'r' ? read(pair[0], buf, sizeof(buf)) : recv(pair[0], buf, sizeof(buf), 0);
        note(buf);
    } else if (!strcmp(name, "send")) {
        char *much = malloc(4 << 20);

        help("drain");
        result = send(pair[0], memset(much, 'x', 4 << 20), 4 << 20, 0);
        free(much);
    } else if (!strcmp(name, "flock")) {
        child = hold_lock(path);
        result = flock(file, LOCK_EX);
    } else if (!strcmp(name, "waitpid")) {
        int status = 0;

        child = fork();
        if (child == 0) {
            usleep((useconds_t)ms * 1000);
            _exit(7);
        }
        result = waitpid(child, &status, 0) == child ? WEXITSTATUS(status) : -1;
    } else if (!strcmp(name, "fsync")) {
        result = fsync(file);
    } else if (!strcmp(name, "getaddrinfo")) {
        struct addrinfo *list = NULL;

        result = getaddrinfo("localhost", "80", NULL, &list);
        note(list ? " some" : " none");
        freeaddrinfo(list);
    } else if (!strcmp(name, "connect")) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);

        help("accept");
        result = connect(fd, (struct sockaddr *)&silent, sizeof(silent));
    } else if (!strcmp(name, "sem_wait")) {
        help("post");
        result = sem_wait((sem_t *)pair);
    } else if (!strcmp(name, "locked")) {
        take_the_lock();
        sleep_ms();
        pthread_mutex_unlock(&mutex);
    } else if (!strcmp(name, "rwlocked")) {
        pthread_rwlock_rdlock(&rwlock);
        sleep_ms();
        pthread_rwlock_unlock(&rwlock);
    } else if (!strcmp(name, "handler")) {
        signal(SIGUSR1, on_handler);
        raise(SIGUSR1);
    } else if (!strcmp(name, "nested")) {
        nested();
    } else if (!strcmp(name, "context")) {
        context();
#ifdef GLIB
    } else if (!strcmp(name, "pushed")) { /* the thread's own, until it is set back */
        GMainContext *own = g_main_context_new();

        g_main_context_push_thread_default(own);
        sleep_ms();
        g_main_context_pop_thread_default(own);
        g_main_context_unref(own);
#endif
    } else { /* prepare, close: the callback is another */
        sleep_ms();
    }
    error = errno;
}

/* ---- callbacks ------------------------------------------------------------------------------ */

static void on_block(void)
{
    begun_ns = now_ns();
    note("begin ");
    block();
    note(" end");
    ended_ns = now_ns();
    done = ticks;
}

#if defined(LIBEVENT)
static int ready[2];

/* Its descriptor stays ready: it would come again and again, while it is suspended. */
static void on_event(int fd, short what, void *arg)
{
    static int entered;
    char c;

    if (entered++)
        note("AGAIN ");
    if (fd >= 0) {
        event_del(victim);
        if (!strcmp(name, "persist"))
            event_add(victim, NULL);
    }
    on_block();
    if (fd >= 0 && read(fd, &c, 1) != 1)
        abort();
    if (fd >= 0 && what != EV_READ)
        note(" WRONG");
    entered = 0;
}

static void start(void)
{
    struct timeval soon = {0, 1000};

    if (!strcmp(name, "io") || !strcmp(name, "persist")) {
        if (pipe(ready) || write(ready[1], "x", 1) != 1)
            abort();
        victim = event_new(loop, ready[0], EV_READ | EV_PERSIST, on_event, NULL);
        event_add(victim, NULL);
        return;
    }
    victim = event_new(loop, -1, 0, on_event, NULL);
    event_add(victim, &soon);
}

static void stop(void)
{
    event_base_loopbreak(loop);
}
#elif defined(GLIB)
static int ready[2];

static int on_victim(void *arg)
{
    on_block();
    return G_SOURCE_REMOVE;
}

/* Its descriptor stays ready: it would come again and again, while it is suspended. */
static int on_ready(int fd, GIOCondition what, void *arg)
{
    static int entered;
    char c;

    if (entered++)
        note("AGAIN ");
    on_block();
    if (read(fd, &c, 1) != 1)
        abort();
    if (what != G_IO_IN)
        note(" WRONG");
    entered = 0;
    return G_SOURCE_REMOVE;
}

static int on_channel(GIOChannel *channel, GIOCondition what, void *arg)
{
    return on_ready(g_io_channel_unix_get_fd(channel), what, arg);
}

static void on_child(GPid pid, int status, void *arg)
{
    on_block();
}

static void start(void)
{
    pid_t pid;

    if (!strcmp(name, "io") || !strcmp(name, "channel")) {
        if (pipe(ready) || write(ready[1], "x", 1) != 1)
            abort();
        if (name[0] == 'i')
            g_unix_fd_add(ready[0], G_IO_IN, on_ready, NULL);
        else
            g_io_add_watch(g_io_channel_unix_new(ready[0]), G_IO_IN, on_channel, NULL);
    } else if (!strcmp(name, "idle")) {
        g_idle_add(on_victim, NULL);
    } else if (!strcmp(name, "signal")) {
        g_unix_signal_add(SIGUSR2, on_victim, NULL);
        raise(SIGUSR2);
    } else if (!strcmp(name, "child")) {
        pid = fork();
        if (pid == 0)
            _exit(0);
        g_child_watch_add(pid, on_child, NULL);
    } else if (!strcmp(name, "recurse")) {
        GSource *s = g_timeout_source_new(1);

        g_source_set_can_recurse(s, TRUE);
        g_source_set_callback(s, on_victim, NULL, NULL);
        g_source_attach(s, NULL);
    } else {
        g_timeout_add(1, on_victim, NULL);
    }
}

static void stop(void)
{
    g_main_loop_quit(loop);
}
#elif !defined(OTHER_LOOP)
static void on_timer(uv_timer_t *t)
{
    on_block();
}

static void on_prepare(uv_prepare_t *p)
{
    uv_prepare_stop(p);
    on_block();
}

static void on_close(uv_handle_t *h)
{
    on_block();
}

static void start(void)
{
    static uv_prepare_t preparer;
    static uv_idle_t closed;

    if (!strcmp(name, "prepare")) {
        uv_prepare_init(loop, &preparer);
        uv_prepare_start(&preparer, on_prepare);
    } else if (!strcmp(name, "close")) {
        uv_idle_init(loop, &closed);
        uv_close((uv_handle_t *)&closed, on_close);
    } else {
        uv_timer_start(&victim, on_timer, 1, 0);
    }
}

static void stop(void)
{
    uv_stop(loop);
}
#endif

static void tick(void)
{
    uint64_t now = now_ns();

    if (begun_ns && !ended_ns) {
        if (inside++ == 0)
            note("tick ");
    }
    if (begun_ns && !(ended_ns && done && ticks > done + 1) && now - last_tick > max_gap)
        max_gap = now - last_tick;
    last_tick = now;
    if (++ticks == 20 && after && access(after, F_OK) != 0)
        ticks = 0;
    if (ticks == 20)
        start();
    if (done && ticks > done + 20)
        stop();
}

#if defined(LIBEVENT)
static void on_tick(int fd, short what, void *arg)
{
    tick();
}

static void run(void)
{
    struct timeval each = {0, TICK_MS * 1000};

    evthread_use_pthreads();
    loop = event_base_new();
    ticker = event_new(loop, -1, EV_PERSIST, on_tick, NULL);
    event_add(ticker, &each);
    event_base_dispatch(loop);
    event_free(ticker);
    event_free(victim);
    event_base_free(loop);
}
#elif defined(GLIB)
static int on_tick(void *arg)
{
    tick();
    return G_SOURCE_CONTINUE;
}

static void run(void)
{
    loop = g_main_loop_new(NULL, FALSE);
    g_timeout_add(TICK_MS, on_tick, NULL);
    g_main_loop_run(loop);
    g_main_loop_unref(loop);
}
#elif !defined(OTHER_LOOP)
static void on_tick(uv_timer_t *t)
{
    tick();
}

static void run(void)
{
    loop = uv_default_loop();
    uv_timer_init(loop, &ticker);
    uv_timer_init(loop, &victim);
    uv_timer_start(&ticker, on_tick, TICK_MS, TICK_MS);
    uv_run(loop, UV_RUN_DEFAULT);
}
#endif

int main(int argc, char **argv)
{
    name = argc > 1 ? argv[1] : "nanosleep";
    if (argc > 2)
        ms = strtoull(argv[2], NULL, 10);
    after = getenv("OFFLOAD_AFTER");
    prepare_case();
    run();
    if (child)
        waitpid(child, NULL, 0);
    if (file >= 0)
        unlink(path);
    printf(
        "{\"case\": \"%s\", \"result\": %ld, \"errno\": %d, \"max_gap_ms\": %.1f, \"inside\": %d, \"order\": \"%s\"}\n",
        name, result, error, (double)max_gap / 1e6, inside, order);
    return 0;
}
