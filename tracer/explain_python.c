/* The Python side of a stall: its stack, its task, its GIL. */
#include "explain_impl.h"

#include "preamble.h"

#include <string.h>

/* Where no native stack could be had the Python one stands alone. */
bool ub_stall_python_merge(struct ub_explain *x, const struct ub_event *e, struct ub_maps *maps, bool *ret_stack)
{
    if (!e->python || e->python->count == 0)
        return false;
    if (!*ret_stack) {
        ub_frames_clear(&x->named);
        x->named.maps = ub_maps_ref(maps);
        x->named.hash = 0;
        x->named.complete = x->raw.complete = e->python->complete;
        x->raw.count = 0;
        *ret_stack = true;
    }
    return ub_python_merge(&x->named, e->python);
}

void ub_stall_python_gil(struct ub_explain *x, struct ub_stall *s, pid_t pid, const struct ub_python_look *look)
{
    char name[32];

    if (!look)
        return;
    s->gil_held += look->gil == UB_PYTHON_GIL_HELD;
    s->gil_released += look->gil == UB_PYTHON_GIL_RELEASED;
    s->gil_waited += look->gil == UB_PYTHON_GIL_WAITED;
    if (look->gil != UB_PYTHON_GIL_WAITED || !look->holder)
        return;
    json_decref(s->holder);
    s->holder = look->holder_frame.code ? ub_python_place(&look->holder_frame, x->w->redact) : json_object();
    json_object_set_new(s->holder, "tid", json_integer(look->holder));
    ub_preamble_thread_name(pid, look->holder, name, sizeof(name));
    if (*name)
        json_object_set_new(s->holder, "thread", json_string(name));
}

static json_t *gil_json(const struct ub_stall *s)
{
    json_t *o;

    if (s->gil_held + s->gil_released + s->gil_waited == 0)
        return NULL;
    o = json_pack("{s:i, s:i, s:i}", "held", (int)s->gil_held, "released", (int)s->gil_released, "waited",
                  (int)s->gil_waited);
    if (s->holder)
        json_object_set(o, "holder", s->holder);
    return o;
}

/* A loop that was never met in its wait may show in the stack of a stall whose it is. */
void ub_stall_python_loop(struct ub_explain *x, const struct ub_event *e, bool stack)
{
    struct ub_thread_record *t = &x->thread[e->slot];
    const char *loop = stack && e->python && strcmp(t->loop, "turn") == 0 ? ub_python_loop(&x->named) : NULL;

    if (loop)
        t->loop = loop;
}

void ub_stall_python_waiting(struct ub_stall *s, const struct ub_python_look *look)
{
    if (!look || look->count == 0)
        return;
    s->waiting = look->waiting;
    if (!s->request.path[0])
        s->request = look->request;
    if (look->pool.kind && (!s->pool.kind || look->pool.queued >= s->pool.queued))
        s->pool = look->pool;
}

/* A timer that was due while the loop was blocked is served after the end at the earliest. Descriptors may have waited
 * longer. */
static void set_waiting(json_t *line, const struct ub_stall *s, uint64_t end_ns)
{
    json_t *waiting = json_object_get(line, "waiting");
    json_int_t known = json_integer_value(json_object_get(waiting, "delay_ns"));

    if (!waiting &&
        (s->waiting.tasks || s->waiting.timers)) { /* nothing else is known: its wait was not seen to return */
        waiting = json_object();
        json_object_set_new(line, "waiting", waiting);
    }
    if (s->waiting.tasks)
        json_object_set_new(waiting, "tasks", json_integer(s->waiting.tasks));
    if (s->waiting.timers)
        json_object_set_new(waiting, "timers", json_integer(s->waiting.timers));
    if (s->waiting.timers && s->waiting.due_ns < end_ns && (json_int_t)(end_ns - s->waiting.due_ns) > known)
        json_object_set_new(waiting, "delay_ns", json_integer((json_int_t)(end_ns - s->waiting.due_ns)));
    if (s->pool.kind) {
        json_t *pool = json_pack("{s:s, s:i, s:i}", "kind", s->pool.kind, "workers", (int)s->pool.workers, "queued",
                                 (int)s->pool.queued);

        if (s->pool.busy != UB_PYTHON_BUSY_UNKNOWN)
            json_object_set_new(pool, "busy", json_integer(s->pool.busy));
        json_object_set_new(line, "pool", pool);
    }
}

/* A path is the caller's data, a route is the program's. */
static void set_request(json_t *line, const struct ub_stall *s, bool redact)
{
    const struct ub_python_request *r = &s->request;

    if (r->path[0] && (r->is_route || !redact))
        json_object_set_new(line, "request",
                            json_pack("{s:s, s:s}", "method", r->method, r->is_route ? "route" : "path", r->path));
}

void ub_stall_python_set(json_t *line, const struct ub_stall *s, uint64_t end_ns, bool redact)
{
    const char *name = json_string_value(json_object_get(s->task, "name"));
    json_t *gil = gil_json(s);

    set_waiting(line, s, end_ns);
    set_request(line, s, redact);
    if (s->task)
        json_object_set(line, "task", s->task);
    if (name)
        json_object_set_new(json_object_get(line, "callback"), "name", json_string(name));
    if (gil)
        json_object_set_new(line, "gil", gil);
}
