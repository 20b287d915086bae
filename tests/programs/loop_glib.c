/* The stalls of stalls.h in a GLib timeout source. loop_glib TRUTH [STALLS [ROUNDS [SEED]]] */
// flags: -I/usr/include/glib-2.0 -I/usr/lib/x86_64-linux-gnu/glib-2.0/include
// libs: -lglib-2.0
#include "stalls.h"

#include <glib.h>

static GMainLoop *loop;

static NOINLINE gboolean on_tick(gpointer s)
{
    if (!stalls_tick(s))
        return G_SOURCE_CONTINUE;
    g_main_loop_quit(loop);
    return G_SOURCE_REMOVE;
}

int main(int argc, char **argv)
{
    struct stalls *s = stalls_new(argc, argv);

    loop = g_main_loop_new(NULL, FALSE);
    g_timeout_add(2, on_tick, s);
    g_main_loop_run(loop);
    return 0;
}
