/*
 * Callbacks of libuv that block, one after the other, beside a timer that ticks each 10 ms: offload_uv CASE[,CASE...]
 * [MS [IDLE]]
 *
 * Prints of each {"case", "result", "errno", "max_gap_ms" of the ticks while it blocked, "inside": ticks while it
 * blocked, "order": what happened in which order}; with IDLE, so many ticks before the first case, also the us between
 * ticks, "idle_us" of those and "gaps_us" while it blocked. With OFFLOAD_AFTER=FILE it
 * ticks until that is there. The cases of offload_cases.h may be moved; the others must stay.
 */
// libs: -luv
#include "offload_cases.h"

#include <signal.h>
#include <sys/un.h>
#include <ucontext.h>
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
static uint64_t last_tick, max_gap, begun_ns, ended_ns;
static int ticks, inside, done, error, entered;

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
    errno = 0;
    if (block_in_call()) {
        /* it may be moved */
    } else if (is("unlocked")) { /* a lock that is free again keeps nothing */
        take_the_lock();
        pthread_mutex_unlock(&mutex);
        sleep_ms();
    } else if (is("locked")) {
        take_the_lock();
        sleep_ms();
        pthread_mutex_unlock(&mutex);
    } else if (is("rwlocked")) {
        pthread_rwlock_rdlock(&rwlock);
        sleep_ms();
        pthread_rwlock_unlock(&rwlock);
    } else if (is("handler")) {
        signal(SIGUSR1, on_handler);
        raise(SIGUSR1);
    } else if (is("nested")) {
        nested();
    } else if (is("context")) {
        context();
#ifdef GLIB
    } else if (is("pushed")) { /* the thread's own, until it is set back */
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
    char c;

    if (entered++)
        note("AGAIN ");
    if (fd >= 0) {
        event_del(victim);
        if (is("persist"))
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

    if (is("io") || is("persist")) {
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

    if (is("io") || is("channel")) {
        if (pipe(ready) || write(ready[1], "x", 1) != 1)
            abort();
        if (name[0] == 'i')
            g_unix_fd_add(ready[0], G_IO_IN, on_ready, NULL);
        else
            g_io_add_watch(g_io_channel_unix_new(ready[0]), G_IO_IN, on_channel, NULL);
    } else if (is("idle")) {
        g_idle_add(on_victim, NULL);
    } else if (is("signal")) {
        g_unix_signal_add(SIGUSR2, on_victim, NULL);
        raise(SIGUSR2);
    } else if (is("child")) {
        pid = fork();
        if (pid == 0)
            _exit(0);
        g_child_watch_add(pid, on_child, NULL);
    } else if (is("recurse")) {
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

    if (is("prepare")) {
        uv_prepare_init(loop, &preparer);
        uv_prepare_start(&preparer, on_prepare);
    } else if (is("close")) {
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

/* ---- the ticker ----------------------------------------------------------------------------- */

#define WARM  20 /* ticks until the loop is known, and after a case */
#define PAUSE 5  /* between two cases */

/* us between two ticks: before anything blocks; from the beginning of a case to two ticks after its end. */
struct gaps {
    unsigned us[4096];
    size_t n;
};

static struct gaps idle, beside;
static int idle_ticks, start_at = WARM;
static char *more_cases;
static const char *after; /* a file that is waited for */

static void measured(struct gaps *g, uint64_t gap_ns)
{
    if (g->n < sizeof(g->us) / sizeof(*g->us))
        g->us[g->n++] = (unsigned)(gap_ns / 1000);
}

static void say_gaps(const char *what, const struct gaps *g)
{
    printf(", \"%s\": [", what);
    for (size_t i = 0; i < g->n; i++)
        printf("%s%u", i ? ", " : "", g->us[i]);
    printf("]");
}

static void report(void)
{
    printf("{\"case\": \"%s\", \"result\": %ld, \"errno\": %d, \"max_gap_ms\": %.1f, \"inside\": %d, \"order\": \"%s\"",
           name, result, error, (double)max_gap / 1e6, inside, order);
    if (idle_ticks) {
        say_gaps("idle_us", &idle); /* those of the first case */
        say_gaps("gaps_us", &beside);
    }
    printf("}\n");
}

static int next_case(void)
{
    name = strtok_r(more_cases, ",", &more_cases);
    if (!name)
        return 0;
    begun_ns = ended_ns = max_gap = 0;
    done = inside = entered = error = 0;
    result = 0;
    order[0] = 0;
    idle.n = beside.n = 0;
    prepare_case();
    return 1;
}

/* A lock, over many ticks: as long as there is AFTER.lock. */
static void hold_while_there(void)
{
    static pthread_mutex_t other = PTHREAD_MUTEX_INITIALIZER;
    static int held;
    char path[4096];
    int there;

    snprintf(path, sizeof(path), "%s.lock", after);
    there = access(path, F_OK) == 0;
    if (there && !held)
        pthread_mutex_lock(&other);
    else if (!there && held)
        pthread_mutex_unlock(&other);
    held = there;
}

static void tick(void)
{
    uint64_t now = now_ns();

    if (begun_ns && !ended_ns) {
        if (inside++ == 0)
            note("tick ");
    }
    if (begun_ns && !(ended_ns && done && ticks > done + 1)) {
        if (now - last_tick > max_gap)
            max_gap = now - last_tick;
        measured(&beside, now - last_tick);
    } else if (ticks > WARM && ticks < WARM + idle_ticks) {
        measured(&idle, now - last_tick);
    }
    last_tick = now;
    if (after)
        hold_while_there();
    if (++ticks == WARM && after && access(after, F_OK) != 0)
        ticks = 0;
    if (ticks == start_at)
        start();
    if (!done || ticks <= done + (idle_ticks ? PAUSE : WARM))
        return;
    report();
    clean_up();
    if (next_case())
        start_at = ticks + PAUSE;
    else
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
    more_cases = argc > 1 ? argv[1] : (char[]){"nanosleep"};
    if (argc > 2)
        ms = strtoull(argv[2], NULL, 10);
    after = getenv("OFFLOAD_AFTER");
    idle_ticks = argc > 3 ? atoi(argv[3]) : 0;
    start_at += idle_ticks;
    next_case();
    run();
    return 0;
}
