/* Each stall of the list in a GLib source of each kind. callbacks_glib TRUTH [STALLS [ROUNDS [SEED]]] */
// flags: -I/usr/include/glib-2.0 -I/usr/lib/x86_64-linux-gnu/glib-2.0/include
// libs: -lgio-2.0 -lgobject-2.0 -lglib-2.0
#include "stalls.h"

#include <gio/gio.h>
#include <glib-unix.h>
#include <glib.h>

static GMainLoop *loop;
static struct stalls *s;
static int io_pipe[2], fd_pipe[2], sockets[2];
static bool source_due;

static void drain(int fd)
{
    char c;

    if (read(fd, &c, 1) != 1)
        die("pipe");
}

static void fill(int fd)
{
    if (write(fd, "x", 1) != 1)
        die("pipe");
}

static NOINLINE gboolean on_idle(gpointer data)
{
    stalls_here(s, "idle");
    return G_SOURCE_REMOVE;
}

static NOINLINE gboolean on_channel(GIOChannel *channel, GIOCondition condition, gpointer data)
{
    drain(io_pipe[0]);
    stalls_here(s, "io");
    return G_SOURCE_CONTINUE;
}

static NOINLINE gboolean on_fd(gint fd, GIOCondition condition, gpointer data)
{
    drain(fd);
    stalls_here(s, "on_fd");
    return G_SOURCE_CONTINUE;
}

/* A source of GIO's. */
static NOINLINE gboolean on_socket(GSocket *socket, GIOCondition condition, gpointer data)
{
    drain(g_socket_get_fd(socket));
    stalls_here(s, "on_socket");
    return G_SOURCE_CONTINUE;
}

static NOINLINE gboolean on_signal(gpointer data)
{
    stalls_here(s, "signal");
    return G_SOURCE_CONTINUE;
}

static NOINLINE void on_child(GPid pid, gint status, gpointer data)
{
    stalls_here(s, "child");
}

/* A source of the program's own, with a constant table of functions and no callback. */
static gboolean is_due(GSource *source)
{
    return source_due;
}

static gboolean prepare_own(GSource *source, gint *timeout)
{
    *timeout = -1;
    return source_due;
}

static NOINLINE gboolean dispatch_own(GSource *source, GSourceFunc callback, gpointer data)
{
    source_due = false;
    stalls_here(s, "source");
    return G_SOURCE_CONTINUE;
}

static GSourceFuncs own_funcs = {prepare_own, is_due, dispatch_own, NULL, NULL, NULL};

/*
 * What a piece of work of GIO's ends with. A thread of its pool does it, and an idle source of GIO's own, whose
 * function is GIO's, brings the end: the program's function is known by its frame, which therefore must not be gone.
 */
static NOINLINE void on_done(GObject *object, GAsyncResult *result, gpointer data)
{
    GFileInfo *info = g_file_query_info_finish(G_FILE(object), result, NULL);

    if (!info)
        die("g_file_query_info");
    g_object_unref(info);
    stalls_here(s, "on_done");
    __asm__ volatile("");
}

static void kick_file(struct stalls *s_)
{
    static GFile *file;

    if (!file)
        file = g_file_new_for_path("/");
    g_file_query_info_async(file, "standard::type", G_FILE_QUERY_INFO_NONE, G_PRIORITY_DEFAULT, NULL, on_done, NULL);
}

static void kick_idle(struct stalls *s_)
{
    g_idle_add(on_idle, NULL);
}

static void kick_channel(struct stalls *s_)
{
    fill(io_pipe[1]);
}

static void kick_fd(struct stalls *s_)
{
    fill(fd_pipe[1]);
}

static void kick_socket(struct stalls *s_)
{
    fill(sockets[1]);
}

static void kick_signal(struct stalls *s_)
{
    kill(getpid(), SIGHUP);
}

static void kick_child(struct stalls *s_)
{
    pid_t pid = fork();

    if (pid == 0)
        _exit(0);
    g_child_watch_add(pid, on_child, NULL);
}

static void kick_own(struct stalls *s_)
{
    source_due = true;
}

static const struct stalls_kind kinds[] = {
    {"timer", "on_tick", NULL},         {"idle", "on_idle", kick_idle},
    {"io", "on_channel", kick_channel}, {"signal", "on_signal", kick_signal},
    {"child", "on_child", kick_child},  {"source", "dispatch_own", kick_own},
    {"io", "on_fd", kick_fd},           {"source", "on_socket", kick_socket},
    {"idle", "on_done", kick_file},
};

static NOINLINE gboolean on_tick(gpointer data)
{
    if (!stalls_tick(s))
        return G_SOURCE_CONTINUE;
    g_main_loop_quit(loop);
    return G_SOURCE_REMOVE;
}

int main(int argc, char **argv)
{
    GSource *own, *socket_source;

    s = stalls_new(argc, argv);
    stalls_kinds(s, kinds, sizeof(kinds) / sizeof(kinds[0]));
    if (pipe2(io_pipe, O_CLOEXEC | O_NONBLOCK) || pipe2(fd_pipe, O_CLOEXEC | O_NONBLOCK) ||
        socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets))
        die("pipes");
    loop = g_main_loop_new(NULL, FALSE);
    g_timeout_add(2, on_tick, NULL);
    g_io_add_watch(g_io_channel_unix_new(io_pipe[0]), G_IO_IN, on_channel, NULL);
    g_unix_signal_add(SIGHUP, on_signal, NULL);
    g_unix_fd_add(fd_pipe[0], G_IO_IN, on_fd, NULL);
    socket_source = g_socket_create_source(g_socket_new_from_fd(sockets[0], NULL), G_IO_IN, NULL);
    g_source_set_callback(socket_source, G_SOURCE_FUNC(on_socket), NULL, NULL);
    g_source_attach(socket_source, NULL);
    own = g_source_new(&own_funcs, sizeof(GSource));
    g_source_set_name(own, "the program's own");
    g_source_attach(own, NULL);
    g_main_loop_run(loop);
    return 0;
}
