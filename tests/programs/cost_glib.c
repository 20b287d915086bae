/* The cost of a GLib callback: cost.h. */
// flags: -I/usr/include/glib-2.0 -I/usr/lib/x86_64-linux-gnu/glib-2.0/include
// libs: -lglib-2.0
#include "cost.h"

#include <glib.h>

static const char cost_library[] = "glib";

static NOINLINE gboolean on_cost(gpointer data)
{
    cost_work();
    return G_SOURCE_CONTINUE;
}

static void cost_prepare(void)
{
    for (int i = 0; i < CALLBACKS; i++)
        g_idle_add(on_cost, NULL);
}

static void cost_round(void)
{
    g_main_context_iteration(NULL, FALSE);
}
