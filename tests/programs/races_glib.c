/*
 * What happens to suspended callbacks of GLib's sources all at once, or from other threads: races_glib CASE. Prints the
 * same whether its calls are moved or not.
 */
// flags: -I/usr/include/glib-2.0 -I/usr/lib/x86_64-linux-gnu/glib-2.0/include
// libs: -lgio-2.0 -lgobject-2.0 -lglib-2.0
#include <gio/gio.h>
#include <glib-unix.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define VICTIMS 24
#define PUZZLE  0x1234
#define WARM    20 /* turns until a loop is known to be one */

static GMainLoop *loop;
static int p[2], q[2], warm, stop, bad;
static void (*start)(void);

static void rest(int us)
{
    struct timespec ts = {us / 1000000, us % 1000000 * 1000L};

    nanosleep(&ts, NULL);
}

static void put(int fd, const void *what, size_t size)
{
    if (write(fd, what, size) != (ssize_t)size)
        abort();
}

static void get(int fd)
{
    char c;

    if (read(fd, &c, 1) != 1)
        abort();
}

static int on_end(void *arg)
{
    g_main_loop_quit(loop);
    return G_SOURCE_REMOVE;
}

static int on_warm(void *arg)
{
    if (++warm < WARM)
        return G_SOURCE_CONTINUE;
    start();
    return G_SOURCE_REMOVE;
}

/* ---- other threads destroy sources whose callbacks block ------------------------------------------ */

struct victim {
    int puzzle, inside;
};

static GSource *victim[VICTIMS];
static GMutex victims;
static GPollableInputStream *stream;

static void notify(void *data)
{
    struct victim *v = data;

    bad += v->inside != 0; /* its callback still uses it; so it is not freed, or the next look at it would crash */
    v->puzzle = 0;
}

static int on_victim(void *data)
{
    struct victim *v = data;

    bad += v->puzzle != PUZZLE || v->inside++ != 0;
    rest(1500 + rand() % 2000);
    bad += v->puzzle != PUZZLE;
    v->inside--;
    return rand() % 8 != 0;
}

static int on_stream(GObject *object, void *data)
{
    return on_victim(data);
}

static void open_stream(void)
{
    GSocket *s;

    if (socketpair(AF_UNIX, SOCK_STREAM, 0, q))
        abort();
    put(q[1], "a", 1);
    s = g_socket_new_from_fd(q[0], NULL);
    stream = G_POLLABLE_INPUT_STREAM(
        g_io_stream_get_input_stream(G_IO_STREAM(g_socket_connection_factory_create_connection(s))));
}

static GSource *new_source(int kind, struct victim *v)
{
    GSource *s = kind == 0   ? g_timeout_source_new((unsigned)(rand() % 3))
                 : kind == 1 ? g_idle_source_new()
                             : g_pollable_input_stream_create_source(stream, g_cancellable_new());

    g_source_set_callback(s, kind == 2 ? (GSourceFunc)(void (*)(void))on_stream : on_victim, v, notify);
    return s;
}

static void renew(int i)
{
    struct victim *v = calloc(1, sizeof(*v));

    v->puzzle = PUZZLE;
    victim[i] = new_source(rand() % 3, v);
    g_source_attach(victim[i], NULL);
}

static void *destroy(void *arg)
{
    while (!g_atomic_int_get(&stop)) {
        int i = rand() % VICTIMS;

        g_mutex_lock(&victims);
        if (victim[i]) {
            g_source_destroy(victim[i]);
            g_source_unref(victim[i]);
        }
        renew(i);
        g_mutex_unlock(&victims);
        g_usleep((unsigned long)(rand() % 1500));
    }
    return NULL;
}

static void start_destroys(void)
{
    open_stream();
    for (int i = 0; i < 2; i++)
        g_thread_unref(g_thread_new("destroys", destroy, NULL));
    g_timeout_add_full(G_PRIORITY_HIGH, 3000, on_end, NULL, NULL);
}

/* ---- one that waits behind another, while a third waits for all ------------------------------------- */

static GAsyncQueue *queue;
static int popped;

static int on_first(int fd, GIOCondition what, void *arg)
{
    get(p[0]);
    get(p[0]);
    return G_SOURCE_REMOVE;
}

static int on_second(int fd, GIOCondition what, void *arg)
{
    get(p[0]);
    return G_SOURCE_REMOVE;
}

static int on_third(void *arg)
{
    g_async_queue_pop(queue);
    popped = 1;
    return G_SOURCE_REMOVE;
}

static void *feed(void *arg)
{
    g_usleep(300000);
    put(p[1], "b", 1);
    g_async_queue_push(queue, queue);
    g_usleep(300000);
    put(p[1], "c", 1);
    return NULL;
}

static void start_behind(void)
{
    queue = g_async_queue_new();
    put(p[1], "a", 1);
    g_unix_fd_add(p[0], G_IO_IN, on_first, NULL);
    g_unix_fd_add(p[0], G_IO_IN, on_second, NULL);
    g_timeout_add(100, on_third, NULL);
    g_timeout_add(1200, on_end, NULL);
    g_thread_unref(g_thread_new("feeds", feed, NULL));
}

/* ---- an application that ends when it has had nothing to do for a while ------------------------------ */

static int on_work(void *arg)
{
    static int works;

    rest(100000);
    if (++works > 30) {
        puts("it never ends");
        exit(3);
    }
    return G_SOURCE_CONTINUE;
}

static int on_application_warm(void *arg)
{
    return ++warm < WARM;
}

static void on_activate(GApplication *application, void *arg)
{
    g_timeout_add(2, on_application_warm, NULL);
    g_timeout_add(200, on_work, NULL);
    g_application_hold(application);
    g_application_release(application);
}

static void run_application(void)
{
    GApplication *application = g_application_new(NULL, G_APPLICATION_NON_UNIQUE);

    g_application_set_inactivity_timeout(application, 1000);
    g_signal_connect(application, "activate", G_CALLBACK(on_activate), NULL);
    g_application_run(application, 0, NULL);
}

int main(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "behind";

    if (pipe(p))
        abort();
    if (!strcmp(name, "application")) {
        run_application();
        puts("ended");
        return 0;
    }
    start = !strcmp(name, "destroys") ? start_destroys : start_behind;
    loop = g_main_loop_new(NULL, 0);
    g_timeout_add(1, on_warm, NULL);
    g_main_loop_run(loop);
    g_atomic_int_set(&stop, 1);
    printf("bad %d, popped %d\n", bad, popped);
    fflush(stdout);
    _exit(0); /* threads may be anywhere */
}
