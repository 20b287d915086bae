/*
 * Between glibhost.c (what becomes of a source), glibcalls.c (what the program calls) and giohost.c.
 */
#ifndef UB_AGENT_GLIBHOST_IMPL_H
#define UB_AGENT_GLIBHOST_IMPL_H

#include "glibhost.h"

/* ---- GLib's functions (glibcalls.c) ---- */

enum ub_glib_function {
    ID_source_new,
    ID_source_attach,
    ID_source_ref,
    ID_source_unref,
    ID_source_destroy,
    ID_source_is_destroyed,
    ID_source_set_callback,
    ID_source_set_priority,
    ID_source_set_can_recurse,
    ID_source_add_unix_fd,
    ID_source_remove_unix_fd,
    ID_source_add_child_source,
    ID_source_set_ready_time,
    ID_source_get_ready_time,
    ID_source_get_time,
    ID_add_poll,
    ID_remove_poll,
    ID_acquire,
    ID_release,
    ID_context_ref,
    ID_context_unref,
    ID_default,
    ID_loop_context,
    ID_loop_run,
    ID_iteration,
    ID_current_source,
    ID_depth,
    ID_push,
    ID_pop,
    ID_get_default,
    ID_ref_default,
    ID_queue_pop,
    IDS,
};
extern void *ub_glib_original[IDS][UB_LOOP_COPIES];

/* Of one argument, or none, that is a pointer; and a result that is one, or none. */
static inline void *ub_glib_call(uint32_t id, void *object)
{
    return ((void *(*)(void *))ub_glib_original[id][0])(object);
}

static inline int64_t ub_glib_time(uint32_t id, void *source)
{
    return ((int64_t(*)(void *))ub_glib_original[id][0])(source);
}

/* ---- sources ---- */

struct list {
    void *data;
    struct list *next;
};

struct poll_fd {
    int32_t fd;
    uint16_t events, got;
};

struct source;
struct callback_functions {
    void (*ref)(void *data);
    void (*unref)(void *data);
    void (*get)(void *data, struct source *s, void **ret_function, void **ret_argument);
};

/* Public, and part of GLib's ABI, but for `private`: that is looked at before it is believed (is_known). */
struct source {
    void *data;
    struct callback_functions *functions;
    void *table;
    uint32_t refs;
    void *context;
    int32_t priority;
    uint32_t flags;
    uint32_t id;
    struct list *polls;
    void *prev, *next;
    char *name;
    struct {
        struct list *children;
        struct source *parent;
        int64_t ready_time;
        struct list *fds;
    } * private;
};

/* What a task keeps of its source: the data of its callback, the time of the turn in which it began, the next of those
 * that are to be blocked anew; and of its thread: the default context, and how often the callback has set that, really
 * and for show. */
enum { OWN_DATA, OWN_FUNCTIONS, OWN_TIME, OWN_NEXT, OWN_DEFAULT, OWN_PUSHED, OWN_SHOWN };

static inline struct source *ub_glib_source(const struct ub_task *task)
{
    return (struct source *)task->key;
}

/* Whether it is one of ours. */
bool ub_glib_is_waker(const struct source *s);

/* The callback on whose own stack the caller is, if it is one of a source's; NULL. */
struct ub_task *ub_glib_task(void);

/* What is suspended in the loop comes to its end: without us every callback is over when the loop returns. */
void ub_glib_drain(void *context);

/* ---- applications (giohost.c) ---- */

/* What a GApplication runs ends when nobody holds it. NULL: there is none. */
void ub_gio_hold(void *application, bool hold);

/* The one that this thread runs and whose loop is not drained after each turn; NULL. */
void *ub_gio_application(void);

/* By a module's file name. */
bool ub_gio_is(const char *module);

#endif
