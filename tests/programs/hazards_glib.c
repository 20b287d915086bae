/*
 * What may happen to a GLib source while its callback is suspended: hazards_glib CASE. Prints what happened, in order.
 * Each case says the same whether its calls are moved or not, unless the test says otherwise.
 *
 * Longer than most files here: a case is some lines, and they share the source that it happens to.
 */
// flags: -I/usr/include/glib-2.0 -I/usr/lib/x86_64-linux-gnu/glib-2.0/include
// libs: -lgio-2.0 -lgobject-2.0 -lglib-2.0
#include <gio/gio.h>
#include <glib-unix.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static GMainLoop *loop;
static GSource *victim;
static const char *name;
static int warm, p[2], q[2], fired, inside, done;
static unsigned id;
static char said[1024];
static GMutex saying;

static int is(const char *what)
{
    return !strcmp(name, what);
}

static void say(const char *what)
{
    g_mutex_lock(&saying);
    strcat(strcat(said, what), " ");
    g_mutex_unlock(&saying);
}

static void rest(int ms)
{
    struct timespec ts = {ms / 1000, ms % 1000 * 1000000L};

    nanosleep(&ts, NULL);
}

/* Nothing may turn meanwhile. */
static void rest_quietly(int ms)
{
    struct rusage before, after;
    long us;

    getrusage(RUSAGE_SELF, &before);
    rest(ms);
    getrusage(RUSAGE_SELF, &after);
    us = (after.ru_utime.tv_sec - before.ru_utime.tv_sec + after.ru_stime.tv_sec - before.ru_stime.tv_sec) * 1000000 +
         after.ru_utime.tv_usec - before.ru_utime.tv_usec + after.ru_stime.tv_usec - before.ru_stime.tv_usec;
    if (us > ms * 250)
        say("SPINS");
}

static int64_t now_ms(void)
{
    return g_get_monotonic_time() / 1000;
}

static void in(int ms, GSourceFunc call)
{
    g_timeout_add((unsigned)ms, call, NULL);
}

static void put(int fd, const char *what)
{
    if (write(fd, what, strlen(what)) != (ssize_t)strlen(what))
        abort();
}

static void get(int fd)
{
    char c;

    if (read(fd, &c, 1) != 1)
        abort();
}

/* The victim: a source of its own, so that it can be asked about. */
static void add(GSource *s, void *call, GDestroyNotify notify)
{
    victim = s;
    g_source_set_callback(s, (GSourceFunc)call, &victim, notify);
    id = g_source_attach(s, NULL);
}

static void add_fd(void *call, GDestroyNotify notify)
{
    add(g_unix_fd_source_new(p[0], G_IO_IN), call, notify);
}

static int on_end(void *arg)
{
    say("end");
    g_main_loop_quit(loop);
    return G_SOURCE_REMOVE;
}

static void notify(void *arg)
{
    char text[64];

    snprintf(text, sizeof(text), "notify%s", inside && !is("behind_removed") ? " TOO EARLY" : "");
    say(text);
    snprintf(text, sizeof(text), "depth%d%s", g_main_depth(), g_main_current_source() ? " SOURCE" : "");
    if (is("return"))
        say(text);
}

/* ---- a source and its life --------------------------------------------------------------------- */

/* Three bytes, one each time: it has to come again, one at a time, until they are read. */
static int on_rearm(int fd, GIOCondition what, void *arg)
{
    if (inside++)
        say("INSIDE ITSELF");
    rest_quietly(100);
    get(fd);
    inside--;
    if (++fired < 3)
        return G_SOURCE_CONTINUE;
    say("three");
    g_main_loop_quit(loop);
    return G_SOURCE_REMOVE;
}

/* Its descriptor stays ready. */
static int on_kept(int fd, GIOCondition what, void *arg)
{
    fired++;
    inside++;
    rest(150);
    inside--;
    say("over");
    return G_SOURCE_CONTINUE;
}

static int on_remove(void *arg)
{
    if (!g_source_remove(id))
        say("NOT THERE");
    return G_SOURCE_REMOVE;
}

static int on_count(void *arg)
{
    say(fired == 1 ? "once" : "AGAIN");
    g_main_loop_quit(loop);
    return G_SOURCE_REMOVE;
}

/* It says itself that it is not to come again. */
static int on_return(int fd, GIOCondition what, void *arg)
{
    fired++;
    inside++;
    rest(80);
    inside--;
    say("over");
    return G_SOURCE_REMOVE;
}

/* Destroyed by itself after the call, and kept by what it returns. */
static int on_own(int fd, GIOCondition what, void *arg)
{
    fired++;
    inside++;
    rest(80);
    g_source_destroy(victim);
    inside--;
    say(g_source_is_destroyed(victim) ? "destroyed" : "NOT DESTROYED");
    return G_SOURCE_CONTINUE;
}

static void *destroyer(void *arg)
{
    g_usleep(60000);
    g_source_destroy(victim);
    g_source_unref(victim);
    return NULL;
}

/* Another callback takes its place while it is suspended; its data stays until it is over. */
static int on_other(int fd, GIOCondition what, void *arg)
{
    say("other");
    g_main_loop_quit(loop);
    return G_SOURCE_REMOVE;
}

static int on_replace(void *arg)
{
    g_source_set_callback(victim, (GSourceFunc)on_other, NULL, NULL);
    return G_SOURCE_REMOVE;
}

/* ---- kinds of sources ------------------------------------------------------------------------------ */

/* It is always ready: suspended it must not turn the loop. */
static int on_idle(void *arg)
{
    rest_quietly(200);
    if (++fired == 2)
        on_end(NULL);
    return fired < 2;
}

static int on_idle_by_data(void *arg)
{
    rest(150);
    say("over");
    return G_SOURCE_CONTINUE;
}

static int on_by_data(void *arg)
{
    say(g_idle_remove_by_data(&victim) ? "found" : "NOT FOUND");
    return G_SOURCE_REMOVE;
}

/* A timeout's time counts from when its callback began, not from when it was resumed. */
static int64_t ended;

static int on_timeout(void *arg)
{
    if (fired++ == 0) {
        rest(is("seconds") ? 1400 : 600);
        ended = now_ms();
        return G_SOURCE_CONTINUE;
    }
    say(now_ms() - ended < (is("seconds") ? 700 : 250) ? "soon" : "LATE");
    g_main_loop_quit(loop);
    return G_SOURCE_REMOVE;
}

/* The program's own kind: nobody asks it anything while its callback runs. */
static int prepare(GSource *s, int *timeout)
{
    *timeout = 10;
    if (inside)
        say("PREPARED");
    return fired < 2;
}

static int check(GSource *s)
{
    if (inside)
        say("CHECKED");
    return fired < 2;
}

static int dispatch(GSource *s, GSourceFunc call, void *data)
{
    inside++;
    rest(80);
    inside--;
    say(fired++ ? "second" : "first");
    if (fired == 2)
        g_main_loop_quit(loop);
    return G_SOURCE_CONTINUE;
}

static GSourceFuncs own = {prepare, check, dispatch, NULL};

/* Its last reference goes while its callback is suspended. */
static int dispatch_once(GSource *s, GSourceFunc call, void *data)
{
    fired = 2;
    inside++;
    rest(150);
    inside--;
    say("over");
    return G_SOURCE_CONTINUE;
}

static void finalize(GSource *s)
{
    say(inside ? "FINALIZED TOO EARLY" : "finalized");
}

static GSourceFuncs mortal = {prepare, check, dispatch_once, finalize};

static int on_last(void *arg)
{
    g_source_destroy(victim);
    g_source_unref(victim);
    return G_SOURCE_REMOVE;
}

/* With a source inside it, whose descriptor is its own. */
static int on_parent(GObject *stream, void *arg)
{
    char c;

    if (inside++)
        say("INSIDE ITSELF");
    rest_quietly(150);
    if (g_pollable_input_stream_read_nonblocking(G_POLLABLE_INPUT_STREAM(stream), &c, 1, NULL, NULL) != 1)
        say("NOTHING");
    inside--;
    if (++fired < 3)
        return G_SOURCE_CONTINUE;
    say("three");
    g_main_loop_quit(loop);
    return G_SOURCE_REMOVE;
}

/* ---- who and when it is -------------------------------------------------------------------------------- */

static int on_current(int fd, GIOCondition what, void *arg)
{
    char text[64];

    rest(100);
    say(g_main_current_source() == victim ? "current" : "OTHER");
    snprintf(text, sizeof(text), "%d %s", g_main_depth(),
             g_main_context_find_source_by_id(NULL, id) == victim ? "found" : "NOT FOUND");
    say(text);
    return G_SOURCE_REMOVE;
}

static void on_task(GObject *object, GAsyncResult *result, void *arg)
{
    say(inside ? "INSIDE" : "task");
    g_main_loop_quit(loop);
}

/* Begun and ended by the same callback: its callback comes later, as its callers expect. */
static int on_begin_task(void *arg)
{
    GTask *task = g_task_new(NULL, NULL, on_task, NULL);

    inside++;
    rest(100);
    g_task_return_boolean(task, TRUE);
    inside--;
    g_object_unref(task);
    say("begun");
    return G_SOURCE_REMOVE;
}

static void work(GTask *task, void *object, void *data, GCancellable *cancellable)
{
    g_usleep(20000);
    g_task_return_int(task, 7);
}

static void on_work(GObject *object, GAsyncResult *result, void *arg)
{
    rest(100);
    say(g_task_propagate_int(G_TASK(result), NULL) == 7 ? "seven" : "LOST");
    g_main_loop_quit(loop);
}

static int on_start_work(void *arg)
{
    GTask *task = g_task_new(NULL, NULL, on_work, NULL);

    g_task_run_in_thread(task, work);
    g_object_unref(task);
    return G_SOURCE_REMOVE;
}

/* ---- loops --------------------------------------------------------------------------------------------- */

static int on_quit(void *arg)
{
    g_main_loop_quit(loop);
    return G_SOURCE_REMOVE;
}

static int on_once(int fd, GIOCondition what, void *arg)
{
    rest(120);
    fired++;
    return G_SOURCE_REMOVE;
}

/* A loop inside a callback, until an earlier one has ended; and until one that began after it was left first has. */
static int on_first(void *arg)
{
    rest(100);
    done = 1;
    return G_SOURCE_REMOVE;
}

static int on_inner(void *arg)
{
    while (!done)
        g_main_context_iteration(NULL, TRUE);
    say("inner");
    g_main_loop_quit(loop);
    return G_SOURCE_REMOVE;
}

static int on_never(void *l)
{
    if (!done)
        say("NEVER");
    g_main_loop_quit(l);
    return G_SOURCE_REMOVE;
}

static GMainLoop *inner_loop;

static int on_outer(void *arg)
{
    rest(100);
    inner_loop = g_main_loop_new(NULL, FALSE);
    if (done)
        g_timeout_add(1, on_never, inner_loop);
    else
        g_timeout_add(1500, on_never, inner_loop);
    g_main_loop_run(inner_loop);
    say("younger");
    g_main_loop_quit(loop);
    return G_SOURCE_REMOVE;
}

static int on_younger(void *arg)
{
    rest(250);
    done = 1;
    if (inner_loop)
        g_main_loop_quit(inner_loop);
    return G_SOURCE_REMOVE;
}

/* The same descriptor: another source of it fires only when what waits for it has had what came. */
static int on_second(int fd, GIOCondition what, void *arg)
{
    say(inside ? "TWO AT ONCE" : "ready");
    get(fd);
    g_main_loop_quit(loop);
    return G_SOURCE_REMOVE;
}

static int on_direct(void *arg)
{
    char *much = calloc(1, 1 << 20);

    inside++;
    if (send(q[0], much, 1 << 20, 0) != 1 << 20)
        abort();
    inside--;
    free(much);
    say("sent");
    return G_SOURCE_REMOVE;
}

static void *reader(void *arg)
{
    char buf[65536];
    ssize_t n;

    g_usleep(50000);
    put(q[1], "x");
    g_usleep(150000);
    for (ssize_t all = 0; all < 1 << 20 && (n = read(q[1], buf, sizeof(buf))) > 0;)
        all += n;
    return NULL;
}

/* More important sources keep the loop busy. */
static int on_busy(void *arg)
{
    rest(1);
    if (++fired < 400)
        return G_SOURCE_CONTINUE;
    done = 1;
    return G_SOURCE_REMOVE;
}

static int on_meek(void *arg)
{
    g_idle_add_full(G_PRIORITY_HIGH, on_busy, NULL, NULL);
    rest(100);
    say(done ? "AFTER" : "before");
    return G_SOURCE_REMOVE;
}

/* ---- threads, processes -------------------------------------------------------------------------------- */

static int on_in_thread(void *arg)
{
    g_usleep(150000);
    say(g_main_context_get_thread_default() == g_source_get_context(g_main_current_source()) ? "own" : "OTHER");
    g_main_loop_quit(arg);
    return G_SOURCE_REMOVE;
}

static void *looping(void *arg)
{
    GMainContext *mine = g_main_context_new();
    GMainLoop *l = g_main_loop_new(mine, FALSE);
    GSource *s;

    g_main_context_push_thread_default(mine);
    for (int i = 0; i < 15; i++) {
        g_main_context_wakeup(mine);
        g_main_context_iteration(mine, TRUE);
    }
    s = g_timeout_source_new(1);
    g_source_set_callback(s, on_in_thread, l, NULL);
    g_source_attach(s, mine);
    g_source_unref(s);
    g_main_loop_run(l);
    g_main_context_pop_thread_default(mine);
    g_main_loop_unref(l);
    g_main_context_unref(mine);
    return NULL;
}

static int on_attached(void *arg)
{
    say(inside ? "meanwhile" : "after");
    return G_SOURCE_REMOVE;
}

static void *attacher(void *arg)
{
    g_usleep(50000);
    g_idle_add(on_attached, NULL);
    return NULL;
}

static int on_inside(void *arg)
{
    inside++;
    rest(200);
    inside--;
    return G_SOURCE_REMOVE;
}

/* What is waited for in a queue of GLib's is put there by what is suspended. */
static GAsyncQueue *queue;

static int on_push(void *arg)
{
    rest(100);
    g_async_queue_push(queue, queue);
    return G_SOURCE_REMOVE;
}

static int on_push_own(void *arg)
{
    rest(100);
    say(g_main_context_get_thread_default() ? "ANOTHER'S" : "default");
    g_async_queue_push(queue, queue);
    return G_SOURCE_REMOVE;
}

static int on_pop(void *arg)
{
    GMainContext *another = is("default") ? g_main_context_new() : NULL;

    if (another)
        g_main_context_push_thread_default(another);
    say(g_async_queue_pop(queue) == queue ? "popped" : "WRONG");
    if (another) {
        g_main_context_pop_thread_default(another);
        g_main_context_unref(another);
    }
    g_main_loop_quit(loop);
    return G_SOURCE_REMOVE;
}

/* It is over above another callback that waits for it; what comes of that comes before the other goes on. */
static int on_driven(void *arg)
{
    inside++;
    rest(150);
    g_async_queue_push(queue, queue);
    inside--;
    say("over");
    return G_SOURCE_REMOVE;
}

static void on_driven_gone(void *arg)
{
    say(g_main_current_source() || g_main_depth() ? "IN A CALLBACK" : "gone");
}

static int on_drives(void *arg)
{
    int status;
    pid_t pid;

    rest(60);
    g_async_queue_pop(queue);
    say(g_source_is_destroyed(victim) ? "popped" : "NOT DESTROYED");
    g_source_unref(victim);
    pid = fork(); /* there, too, is no such source any more */
    if (pid == 0) {
        g_usleep(60000);
        g_main_context_iteration(NULL, FALSE);
        _exit(7);
    }
    while (waitpid(pid, &status, 0) < 0)
        ;
    say(WIFEXITED(status) ? "child" : "CRASHED");
    in(20, on_end);
    return G_SOURCE_REMOVE;
}

/* One that never began, since another one waits for its descriptor: its end is told as it comes. */
static int on_never_begun(int fd, GIOCondition what, void *arg)
{
    say("BEGUN");
    return G_SOURCE_REMOVE;
}

static int on_remove_behind(void *arg)
{
    g_source_destroy(victim);
    say("removed");
    return G_SOURCE_REMOVE;
}

/* A forked child goes on with the loop: its sources are there, and not their suspended callbacks. */
static int child;

static int on_forked(int fd, GIOCondition what, void *arg)
{
    if (child)
        _exit(7);
    if (fired++)
        return G_SOURCE_CONTINUE;
    rest(150);
    say("kept");
    return G_SOURCE_CONTINUE;
}

static int on_give_up(void *arg)
{
    if (child)
        _exit(8);
    g_main_loop_quit(loop);
    return G_SOURCE_REMOVE;
}

static int on_fork(void *arg)
{
    int status;
    pid_t pid = fork();

    if (pid == 0) {
        child = 1;
        return G_SOURCE_REMOVE;
    }
    while (waitpid(pid, &status, 0) < 0)
        ;
    say(WEXITSTATUS(status) == 7 ? "there" : "NOT THERE");
    g_source_destroy(victim);
    return G_SOURCE_REMOVE;
}

/* Not over by then, where others have the CPUs, either. */
static int on_long(void *arg)
{
    rest(700);
    return G_SOURCE_REMOVE;
}

static int on_exit_now(void *arg)
{
    puts("exit");
    exit(3);
}

/* ---- an application ------------------------------------------------------------------------------------- */

static GApplication *application;

static int on_app_call(void *arg)
{
    inside++;
    rest(150);
    inside--;
    say("over");
    return G_SOURCE_REMOVE;
}

static int on_app_release(void *arg)
{
    say(inside ? "meanwhile" : "after");
    if (is("app_quit"))
        g_application_quit(application);
    else
        g_application_release(application);
    return G_SOURCE_REMOVE;
}

static int on_app_warm(void *arg)
{
    if (++warm < 20)
        return G_SOURCE_CONTINUE;
    in(1, on_app_call);
    in(60, on_app_release);
    return G_SOURCE_REMOVE;
}

static void on_activate(GApplication *app, void *arg)
{
    g_application_hold(app);
    g_timeout_add(2, on_app_warm, NULL);
}

static void on_shutdown(GApplication *app, void *arg)
{
    say(inside ? "TOO EARLY" : "shutdown");
}

static void run_application(void)
{
    application = g_application_new(NULL, G_APPLICATION_NON_UNIQUE);
    g_signal_connect(application, "activate", G_CALLBACK(on_activate), NULL);
    g_signal_connect(application, "shutdown", G_CALLBACK(on_shutdown), NULL);
    g_application_run(application, 0, NULL);
    g_object_unref(application);
}

/* ---- a loop turned by hand -------------------------------------------------------------------------------- */

static void turn_by_hand(void)
{
    GMainContext *all = g_main_context_default();
    GPollFD fds[16];
    int priority, timeout, n;

    if (!g_main_context_acquire(all))
        abort();
    while (!done) {
        g_main_context_prepare(all, &priority);
        n = g_main_context_query(all, priority, &timeout, fds, 16);
        g_poll(fds, (unsigned)n, timeout);
        g_main_context_check(all, priority, fds, n);
        g_main_context_dispatch(all);
    }
    g_main_context_release(all);
}

static int on_by_hand(void *arg)
{
    if (++warm < 20)
        return G_SOURCE_CONTINUE;
    rest(100);
    say("by hand");
    done = 1;
    return G_SOURCE_REMOVE;
}

/* ---- all of them ------------------------------------------------------------------------------------------- */

static void start(void)
{
    if (is("rearm")) {
        put(p[1], "abc");
        add_fd(on_rearm, NULL);
    } else if (is("removed") || is("thread_destroys") || is("replaced")) {
        put(p[1], "a");
        add_fd(on_kept, notify);
        if (is("thread_destroys"))
            g_thread_unref(g_thread_new("destroyer", destroyer, NULL));
        else
            in(50, is("replaced") ? on_replace : on_remove);
        if (!is("replaced"))
            in(400, on_count);
    } else if (is("return") || is("own")) {
        put(p[1], "a");
        add_fd(is("own") ? (void *)on_own : (void *)on_return, notify);
        in(300, on_count);
    } else if (is("idle")) {
        g_idle_add(on_idle, NULL);
    } else if (is("by_data")) {
        g_idle_add(on_idle_by_data, &victim);
        in(50, on_by_data);
        in(300, on_end);
    } else if (is("timeout")) {
        g_timeout_add(400, on_timeout, NULL);
    } else if (is("seconds")) {
        g_timeout_add_seconds(1, on_timeout, NULL);
    } else if (is("custom")) {
        victim = g_source_new(&own, sizeof(*victim));
        g_source_attach(victim, NULL);
    } else if (is("finalized")) {
        g_source_attach(victim = g_source_new(&mortal, sizeof(*victim)), NULL);
        in(50, on_last);
        in(300, on_end);
    } else if (is("parent")) {
        GSocket *s;

        if (socketpair(AF_UNIX, SOCK_STREAM, 0, q))
            abort();
        put(q[1], "abc");
        s = g_socket_new_from_fd(q[0], NULL);
        add(g_pollable_input_stream_create_source(G_POLLABLE_INPUT_STREAM(g_io_stream_get_input_stream(
                                                      G_IO_STREAM(g_socket_connection_factory_create_connection(s)))),
                                                  g_cancellable_new()),
            on_parent, NULL);
    } else if (is("current")) {
        put(p[1], "a");
        add_fd(on_current, NULL);
        in(300, on_end);
    } else if (is("task")) {
        g_idle_add(on_begin_task, NULL);
    } else if (is("work")) {
        g_idle_add(on_start_work, NULL);
    } else if (is("quit") || is("iteration")) {
        put(p[1], "a");
        add_fd(on_once, NULL);
        if (is("quit"))
            in(30, on_quit);
    } else if (is("inner")) {
        in(1, on_first);
        in(20, on_inner);
    } else if (is("younger")) {
        in(1, on_outer);
        in(40, on_younger);
    } else if (is("direct")) {
        if (socketpair(AF_UNIX, SOCK_STREAM, 0, q))
            abort();
        g_unix_fd_add(q[0], G_IO_IN, on_second, NULL);
        in(1, on_direct);
        g_thread_unref(g_thread_new("reader", reader, NULL));
    } else if (is("priority")) {
        in(800, on_end);
        in(1, on_meek);
    } else if (is("threads")) {
        GThread *thread[3];

        for (int i = 0; i < 3; i++)
            thread[i] = g_thread_new("looping", looping, NULL);
        for (int i = 0; i < 3; i++)
            g_thread_join(thread[i]);
        g_main_loop_quit(loop);
    } else if (is("attached")) {
        in(1, on_inside);
        g_thread_unref(g_thread_new("attacher", attacher, NULL));
        in(400, on_end);
    } else if (is("queue") || is("default")) {
        queue = g_async_queue_new();
        in(1, is("default") ? on_push_own : on_push);
        in(20, on_pop);
    } else if (is("driven")) {
        g_log_set_always_fatal(G_LOG_LEVEL_CRITICAL);
        queue = g_async_queue_new();
        add(g_timeout_source_new(1), on_driven, on_driven_gone);
        in(20, on_drives);
    } else if (is("behind_removed")) {
        if (socketpair(AF_UNIX, SOCK_STREAM, 0, q))
            abort();
        add(g_unix_fd_source_new(q[0], G_IO_IN), on_never_begun, notify);
        in(1, on_direct);
        in(120, on_remove_behind);
        in(400, on_end);
        g_thread_unref(g_thread_new("reader", reader, NULL));
    } else if (is("fork_loop")) {
        put(p[1], "a");
        add_fd(on_forked, NULL);
        in(40, on_fork);
        in(1200, on_give_up);
    } else if (is("exit")) {
        in(1, on_long);
        in(60, on_exit_now);
    } else {
        abort();
    }
}

static int on_warm(void *arg)
{
    if (++warm < 20)
        return G_SOURCE_CONTINUE;
    start();
    return G_SOURCE_REMOVE;
}

int main(int argc, char **argv)
{
    name = argv[1];
    if (pipe(p))
        abort();
    if (!strncmp(name, "app", 3)) {
        run_application();
    } else if (is("by_hand")) {
        g_timeout_add(2, on_by_hand, NULL);
        turn_by_hand();
    } else {
        loop = g_main_loop_new(NULL, FALSE);
        g_timeout_add(2, on_warm, NULL);
        if (is("iteration")) {
            while (warm < 20)
                g_main_context_iteration(NULL, TRUE);
            for (int before = fired; fired == before;) {
                g_main_context_iteration(NULL, TRUE);
                if (fired == before)
                    say("NOT OVER");
            }
            say("over");
        } else {
            g_main_loop_run(loop);
        }
        if (is("quit"))
            say(fired ? "over" : "NOT OVER");
    }
    puts(said);
    return 0;
}
