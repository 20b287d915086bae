/*
 * offload_uv.c on GLib: the same cases, "io", "channel", "idle", "signal" and "child": other kinds of sources; "pushed"
 * and "recurse", which must stay.
 */
// flags: -I/usr/include/glib-2.0 -I/usr/lib/x86_64-linux-gnu/glib-2.0/include
// libs: -lglib-2.0
#define GLIB 1
#include "offload_uv.c"
