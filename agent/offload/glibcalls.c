/*
 * What the program calls: what runs its loops, and what it asks while a suspended callback of its goes on (who it is,
 * when it began, what is set for its thread).
 */
#include "glibhost_impl.h"

#include "../module.h"
#include "drive.h"
#include "locks.h"
#include "running.h"

void *ub_glib_original[IDS][UB_LOOP_COPIES];

/* A GApplication turns its loop by itself, and returns to nobody in between; what is suspended keeps it from ending. */
static bool is_applications(void *context, uintptr_t ra)
{
    const char *caller;

    if (!ub_gio_application() || context != ub_glib_call(ID_default, NULL))
        return false;
    caller = ub_module_name((void *)ra);
    return caller && ub_gio_is(caller);
}

/* As it begins, and when it has returned. The loop stays ours in between, if it was to be had: else another thread that
 * waits for it might turn it while what is suspended here comes to its end. */
static void *enter(void *context, bool *ret_owned)
{
    if (ub_drive_concerned()) /* a loop inside a callback, and it may be one that is suspended that ends it */
        ub_drive_all();
    ub_glib_call(ID_context_ref, context);
    *ret_owned = ((int (*)(void *))ub_glib_original[ID_acquire][0])(context);
    return ub_running_set(UB_LOOP_GLIB, context);
}

static void leave(void *context, void *outer, bool owned)
{
    ub_glib_drain(context);
    if (owned)
        ((void (*)(void *))ub_glib_original[ID_release][0])(context);
    ub_running_set(UB_LOOP_GLIB, outer);
    ub_glib_call(ID_context_unref, context);
}

static void hook_loop_run(void *loop)
{
    void *context = ((void *(*)(void *))ub_glib_original[ID_loop_context][0])(loop), *outer;
    bool owned;

    outer = enter(context, &owned);
    ((void (*)(void *))ub_glib_original[ID_loop_run][0])(loop);
    leave(context, outer, owned);
}

static int iterate(void *context, int may_block)
{
    return ((int (*)(void *, int))ub_glib_original[ID_iteration][0])(context, may_block);
}

static int hook_iteration(void *given, int may_block)
{
    void *context = given ? given : ub_glib_call(ID_default, NULL), *outer;
    bool owned;
    int r;

    if (is_applications(context, (uintptr_t)__builtin_return_address(0))) {
        outer = ub_running_set(UB_LOOP_GLIB, context);
        r = iterate(context, may_block);
        if (ub_running_loop(UB_RUNNING_QUIT))
            ub_glib_drain(context);
        ub_running_set(UB_LOOP_GLIB, outer);
        return r;
    }
    outer = enter(context, &owned);
    r = iterate(context, may_block);
    leave(context, outer, owned);
    return r;
}

/* The one that the caller's own stack is about, unless a loop runs inside of it; NULL. */
static const struct ub_task *own_task(void)
{
    const struct ub_task *task = ub_glib_task();

    return task && !task->nested_sp ? task : NULL;
}

/* In a resumed callback it is ours that GLib dispatches. */
static void *hook_current_source(void)
{
    const struct ub_task *task = own_task();
    struct source *s = ub_glib_call(ID_current_source, NULL);

    if (task)
        return ub_glib_source(task);
    return s && ub_glib_is_waker(s) ? NULL : s;
}

static int hook_depth(void)
{
    const struct ub_task *task = own_task();
    const struct source *s = ub_glib_call(ID_current_source, NULL);
    int depth = ((int (*)(void))ub_glib_original[ID_depth][0])();

    if (task) /* it began there, with nothing around it */
        return 1;
    return s && ub_glib_is_waker(s) ? depth - 1 : depth;
}

/* The time of the turn: GIO's tasks tell by it whether they are still in the callback that has begun them. */
static int64_t hook_get_time(struct source *s)
{
    const struct ub_task *task = own_task();

    return task && task->left && s->context == task->host->loop ? (int64_t)task->own[OWN_TIME]
                                                                : ub_glib_time(ID_source_get_time, s);
}

/*
 * The thread's default context is a stack: what a callback has set others would find meanwhile, so such a callback is
 * not left. Most often (each GTask's callback is called so) it is what it was already: then nothing is set.
 */
static void hook_push(void *context)
{
    struct ub_task *task = ub_glib_task();
    void *now = ub_glib_call(ID_get_default, NULL);

    if (task && !task->own[OWN_PUSHED] && (context == ub_glib_call(ID_default, NULL) ? NULL : context) == now) {
        task->own[OWN_SHOWN]++;
        return;
    }
    if (task && task->own[OWN_PUSHED]++ == 0)
        ub_locks_enter(ub_glib_original[ID_push][0], (uintptr_t)__builtin_return_address(0));
    ((void (*)(void *))ub_glib_original[ID_push][0])(context);
}

static void hook_pop(void *context)
{
    struct ub_task *task = ub_glib_task();

    if (task && !task->own[OWN_PUSHED] && task->own[OWN_SHOWN]) {
        task->own[OWN_SHOWN]--;
        return;
    }
    ((void (*)(void *))ub_glib_original[ID_pop][0])(context);
    if (task && task->own[OWN_PUSHED] && --task->own[OWN_PUSHED] == 0)
        ub_locks_leave(ub_glib_original[ID_push][0]);
}

/* Resumed above another callback, which may have set it. */
static void *hook_get_default(void)
{
    const struct ub_task *task = own_task();

    return task && task->left && !task->own[OWN_PUSHED] ? (void *)task->own[OWN_DEFAULT]
                                                        : ub_glib_call(ID_get_default, NULL);
}

static void *hook_ref_default(void)
{
    void *context = hook_get_default();

    return ub_glib_call(ID_context_ref, context ? context : ub_glib_call(ID_default, NULL));
}

/* Waits inside of GLib, where nothing can be asked. */
static void *hook_queue_pop(void *queue)
{
    if (ub_drive_concerned())
        ub_drive_all();
    return ((void *(*)(void *))ub_glib_original[ID_queue_pop][0])(queue);
}

/* clang-format off */
static const struct ub_loop_hook hooks[] = {
    {"g_source_new", {NULL}, UB_HOOK_OTHERS},
    {"g_source_attach", {NULL}, UB_HOOK_OTHERS},
    {"g_source_ref", {NULL}, UB_HOOK_OTHERS},
    {"g_source_unref", {NULL}, UB_HOOK_OTHERS},
    {"g_source_destroy", {NULL}, UB_HOOK_OTHERS},
    {"g_source_is_destroyed", {NULL}, UB_HOOK_OTHERS},
    {"g_source_set_callback", {NULL}, UB_HOOK_OTHERS},
    {"g_source_set_priority", {NULL}, UB_HOOK_OTHERS},
    {"g_source_set_can_recurse", {NULL}, UB_HOOK_OTHERS},
    {"g_source_add_unix_fd", {NULL}, UB_HOOK_OTHERS},
    {"g_source_remove_unix_fd", {NULL}, UB_HOOK_OTHERS},
    {"g_source_add_child_source", {NULL}, UB_HOOK_OTHERS},
    {"g_source_set_ready_time", {NULL}, UB_HOOK_OTHERS},
    {"g_source_get_ready_time", {NULL}, UB_HOOK_OTHERS},
    {"g_source_get_time", {(void *)hook_get_time, NULL}, UB_HOOK_OTHERS},
    {"g_main_context_add_poll", {NULL}, UB_HOOK_OTHERS},
    {"g_main_context_remove_poll", {NULL}, UB_HOOK_OTHERS},
    {"g_main_context_acquire", {NULL}, UB_HOOK_OTHERS},
    {"g_main_context_release", {NULL}, UB_HOOK_OTHERS},
    {"g_main_context_ref", {NULL}, UB_HOOK_OTHERS},
    {"g_main_context_unref", {NULL}, UB_HOOK_OTHERS},
    {"g_main_context_default", {NULL}, UB_HOOK_OTHERS},
    {"g_main_loop_get_context", {NULL}, UB_HOOK_OTHERS},
    {"g_main_loop_run", {(void *)hook_loop_run, NULL}, UB_HOOK_OTHERS},
    {"g_main_context_iteration", {(void *)hook_iteration, NULL}, UB_HOOK_OTHERS},
    {"g_main_current_source", {(void *)hook_current_source, NULL}, UB_HOOK_OTHERS},
    {"g_main_depth", {(void *)hook_depth, NULL}, UB_HOOK_OTHERS},
    {"g_main_context_push_thread_default", {(void *)hook_push, NULL}, UB_HOOK_OTHERS},
    {"g_main_context_pop_thread_default", {(void *)hook_pop, NULL}, UB_HOOK_OTHERS},
    {"g_main_context_get_thread_default", {(void *)hook_get_default, NULL}, UB_HOOK_OTHERS},
    {"g_main_context_ref_thread_default", {(void *)hook_ref_default, NULL}, UB_HOOK_OTHERS},
    {"g_async_queue_pop", {(void *)hook_queue_pop, NULL}, UB_HOOK_OTHERS},
};
_Static_assert(UB_ARRAY_LEN(hooks) == IDS, "one original a hook");
/* clang-format on */

static const char *const files[] = {"libglib-2.0.", NULL};

const struct ub_loop_ops ub_offload_glib = {
    .files = files, .prefix = "g_", .hooks = hooks, .count = IDS, .originals = ub_glib_original};
