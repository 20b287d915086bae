/*
 * A GApplication turns its loop until nobody holds it, or it is told to quit. While something is suspended we hold it;
 * when it is told to quit, what is suspended comes to its end before the application shuts down.
 */
#include "glibhost_impl.h"

#include "locks.h"
#include "running.h"

#include <string.h>

enum { GIO_run, GIO_quit, GIO_hold, GIO_release, GIO_push, GIO_pop, GIO_timeout, GIOS };
static void *original[GIOS][UB_LOOP_COPIES];

static const char *const files[] = {"libgio-2.0.", NULL};

void ub_gio_hold(void *application, bool hold)
{
    if (application)
        ((void (*)(void *))original[hold ? GIO_hold : GIO_release][0])(application);
}

/* To be held and let go would begin its time without work anew, again and again. */
void *ub_gio_application(void)
{
    void *application = ub_running_loop(UB_RUNNING_APPLICATION);

    return application && !((unsigned (*)(void *))original[GIO_timeout][0])(application) ? application : NULL;
}

bool ub_gio_is(const char *module)
{
    const char *slash = strrchr(module, '/');

    return strncmp(slash ? slash + 1 : module, files[0], strlen(files[0])) == 0;
}

static bool usable(void)
{
    return original[GIO_hold][0] && original[GIO_release][0] && original[GIO_timeout][0] && !original[GIO_run][1];
}

static int hook_run(void *application, int argc, char **argv)
{
    void *outer, *quit;
    int r;

    if (!usable())
        return ((int (*)(void *, int, char **))original[GIO_run][0])(application, argc, argv);
    outer = ub_running_set(UB_RUNNING_APPLICATION, application);
    quit = ub_running_set(UB_RUNNING_QUIT, NULL);
    r = ((int (*)(void *, int, char **))original[GIO_run][0])(application, argc, argv);
    ub_glib_drain(ub_glib_call(ID_default, NULL));
    ub_running_set(UB_RUNNING_QUIT, quit);
    ub_running_set(UB_RUNNING_APPLICATION, outer);
    return r;
}

static void hook_quit(void *application)
{
    if (application && ub_running_loop(UB_RUNNING_APPLICATION) == application)
        ub_running_set(UB_RUNNING_QUIT, application);
    ((void (*)(void *))original[GIO_quit][0])(application);
}

/* The thread's, until it is set back. */
static void hook_push(void *cancellable)
{
    ub_locks_enter(original[GIO_push][0], (uintptr_t)__builtin_return_address(0));
    ((void (*)(void *))original[GIO_push][0])(cancellable);
}

static void hook_pop(void *cancellable)
{
    ((void (*)(void *))original[GIO_pop][0])(cancellable);
    ub_locks_leave(original[GIO_push][0]);
}

static const struct ub_loop_hook hooks[] = {
    {"g_application_run", {(void *)hook_run, NULL}, UB_HOOK_OTHERS},
    {"g_application_quit", {(void *)hook_quit, NULL}, UB_HOOK_OTHERS},
    {"g_application_hold", {NULL}, UB_HOOK_OTHERS},
    {"g_application_release", {NULL}, UB_HOOK_OTHERS},
    {"g_cancellable_push_current", {(void *)hook_push, NULL}, UB_HOOK_OTHERS},
    {"g_cancellable_pop_current", {(void *)hook_pop, NULL}, UB_HOOK_OTHERS},
    {"g_application_get_inactivity_timeout", {NULL}, UB_HOOK_OTHERS},
};
_Static_assert(UB_ARRAY_LEN(hooks) == GIOS, "one original a hook");

const struct ub_loop_ops ub_offload_gio = {
    .files = files, .prefix = "g_", .hooks = hooks, .count = GIOS, .originals = original};
