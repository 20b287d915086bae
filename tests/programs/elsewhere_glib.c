/* elsewhere.h on GLib. */
// libs: -lglib-2.0
// flags: -I/usr/include/glib-2.0 -I/usr/lib/x86_64-linux-gnu/glib-2.0/include
#include "elsewhere.h"

#include <glib.h>

static GMainLoop *main_loop;

static int on_timer(void *n)
{
    if (!turn(n))
        return G_SOURCE_CONTINUE;
    g_main_loop_quit(main_loop);
    return G_SOURCE_REMOVE;
}

static void *run_loop(void)
{
    GMainContext *context = g_main_context_new();
    GSource *source = g_timeout_source_new(1);
    int n = 0;

    main_loop = g_main_loop_new(context, FALSE);
    g_source_set_callback(source, on_timer, &n, NULL);
    g_source_attach(source, context);
    g_main_loop_run(main_loop);
    g_main_loop_unref(main_loop);
    g_source_unref(source);
    return context;
}

static void end_loop(void *context)
{
    g_main_context_unref(context);
}
