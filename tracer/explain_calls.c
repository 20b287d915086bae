/*
 * The recording's `calls`: the blocking calls that the thread itself has timed.
 */
#include "explain_impl.h"
#include "fdinfo.h"
#include "line.h"
#include "syscalls.h"
#include "timed_calls.h"

#include <stdlib.h>
#include <string.h>

/* By now the number may mean another file; then only what it was a link to is told. */
static void set_descriptor(json_t *o, const struct ub_event *e, const struct ub_timed_call *call)
{
    char link[UB_CALLS_TEXT + 1], path[UB_FD_TEXT_MAX];
    int fd = ub_timed_call_fd(call, link);
    char *now;

    if (fd < 0)
        return;
    json_object_set_new(o, "fd", json_integer(fd));
    if (!link[0])
        return;
    now = ub_fd_link(e->pid, fd);
    if (now && strncmp(now, link, UB_CALLS_TEXT) == 0 && ub_fd_describe(e->pid, fd, path, sizeof(path)) == 0) {
        json_object_set_new(o, "fd_path", json_string(path));
    } else {
        struct ub_line line;

        ub_line_begin(&line, path, sizeof(path));
        ub_line_escape(&line, link, strlen(link), 0);
        json_object_set_new(o, "fd_path", json_string(path));
    }
    free(now);
}

static json_t *call_json(const struct ub_explain *x, const struct ub_event *e, const struct ub_timed_call *call)
{
    char name[UB_SYSCALL_NAME_MAX], args[UB_SYSCALL_ARGS_MAX];
    const char *function = ub_timed_call_name(call->id);
    json_t *o;

    if (!function || call->count == 0)
        return NULL;
    o = json_pack("{s:s, s:s, s:I}", "name", ub_syscall_name(ub_timed_call_syscall(call->id), name), "via", function,
                  "duration_ns", (json_int_t)ub_ticks_span_to_ns(call->total));
    if (call->count > 1) {
        json_object_set_new(o, "count", json_integer(call->count));
        json_object_set_new(o, "max_ns", json_integer((json_int_t)ub_ticks_span_to_ns(call->longest)));
    }
    if (x->w->redact)
        return o;
    ub_timed_call_format(call, args, sizeof(args));
    json_object_set_new(o, "args", json_string(args));
    set_descriptor(o, e, call);
    return o;
}

static int longer_first(const void *a, const void *b)
{
    const struct ub_timed_call *x = a, *y = b;

    return x->total < y->total ? 1 : x->total > y->total ? -1 : 0;
}

json_t *ub_calls_json(struct ub_explain *x, const struct ub_event *e, uint64_t *ret_ns)
{
    json_t *list;

    *ret_ns = 0;
    if (!e->calls)
        return NULL;
    list = json_array();
    qsort(e->calls->call, e->calls->count, sizeof(e->calls->call[0]), longer_first);
    for (uint32_t i = 0; i < e->calls->count; i++) {
        json_t *o = call_json(x, e, &e->calls->call[i]);

        if (!o)
            continue;
        *ret_ns += ub_ticks_span_to_ns(e->calls->call[i].total);
        json_array_append_new(list, o);
    }
    *ret_ns += ub_ticks_span_to_ns(e->calls->others_total);
    if (json_array_size(list) > 0)
        return list;
    json_decref(list);
    return NULL;
}
