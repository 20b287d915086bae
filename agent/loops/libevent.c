/*
 * libevent, 2.x: events, listeners, bufferevents, evbuffers, evhttp, evdns: the
 * functions that take a callback, and those that give one back or look for it.
 * What libevent registers for itself (its libraries among each other, too) is
 * not hooked: a bufferevent's callback is named, the event beneath it is not.
 */
#include "loop.h"

static const char *version(void);

#define SHAPE(name, kind_, ...)                                                                                        \
    static const struct ub_shape name = {                                                                              \
        .kind = UB_CALLBACK_##kind_, .library = UB_LOOP_LIBEVENT, .version = version, __VA_ARGS__}
SHAPE(io, IO, .object = 2, .fd = UB_FD_ARGUMENT, .fd_at = 0);
SHAPE(timer, TIMER, .object = 2);
SHAPE(signal, SIGNAL, .object = 2);
SHAPE(listening, LISTENER, .fd = UB_FD_ARGUMENT, .fd_at = 1);
SHAPE(trouble, LISTENER);
SHAPE(buffered, BUFFEREVENT);
SHAPE(evbuffer, EVBUFFER);
SHAPE(http, CALLBACK); /* a request or connection of evhttp */
SHAPE(dns, DNS);

/* A signal, a timer, or an event on a descriptor (EV_TIMEOUT 1, EV_READ 2, EV_WRITE 4, EV_SIGNAL 8). */
static void *event(void *cb, int fd, int events)
{
    return ub_thunk(cb, events & 8 ? &signal : fd < 0 ? &timer : &io);
}

/* clang-format off */
#define FUNCTIONS(X) \
    X(const char *, event_get_version, (void), ()) \
    X(void *, event_new, (void *base, int fd, short what, void *cb, void *arg), (base, fd, what, event(cb, fd, what), arg)) \
    X(int, event_assign, (void *ev, void *base, int fd, short what, void *cb, void *arg), (ev, base, fd, what, event(cb, fd, what), arg)) \
    X(void, event_set, (void *ev, int fd, short what, void *cb, void *arg), (ev, fd, what, event(cb, fd, what), arg)) \
    X(int, event_once, (int fd, short what, void *cb, void *arg, void *tv), (fd, what, event(cb, fd, what), arg, tv)) \
    X(int, event_base_once, (void *base, int fd, short what, void *cb, void *arg, void *tv), (base, fd, what, event(cb, fd, what), arg, tv)) \
    X(void *, evconnlistener_new, (void *base, void *cb, void *arg, unsigned flags, int backlog, int fd), (base, ub_thunk(cb, &listening), arg, flags, backlog, fd)) \
    X(void *, evconnlistener_new_bind, (void *base, void *cb, void *arg, unsigned flags, int backlog, void *address, int size), (base, ub_thunk(cb, &listening), arg, flags, backlog, address, size)) \
    X(void, evconnlistener_set_cb, (void *l, void *cb, void *arg), (l, ub_thunk(cb, &listening), arg)) \
    X(void, evconnlistener_set_error_cb, (void *l, void *cb), (l, ub_thunk(cb, &trouble))) \
    X(void, bufferevent_setcb, (void *b, void *r, void *w, void *e, void *arg), (b, ub_thunk(r, &buffered), ub_thunk(w, &buffered), ub_thunk(e, &buffered), arg)) \
    X(void *, bufferevent_new, (int fd, void *r, void *w, void *e, void *arg), (fd, ub_thunk(r, &buffered), ub_thunk(w, &buffered), ub_thunk(e, &buffered), arg)) \
    X(void *, evbuffer_add_cb, (void *b, void *cb, void *arg), (b, ub_thunk(cb, &evbuffer), arg)) \
    X(int, evbuffer_remove_cb, (void *b, void *cb, void *arg), (b, ub_thunk(cb, &evbuffer), arg)) \
    X(int, evhttp_set_cb, (void *h, void *path, void *cb, void *arg), (h, path, ub_thunk(cb, &http), arg)) \
    X(void, evhttp_set_gencb, (void *h, void *cb, void *arg), (h, ub_thunk(cb, &http), arg)) \
    X(void *, evhttp_request_new, (void *cb, void *arg), (ub_thunk(cb, &http), arg)) \
    X(void, evhttp_request_set_chunked_cb, (void *r, void *cb), (r, ub_thunk(cb, &http))) \
    X(void, evhttp_request_set_header_cb, (void *r, void *cb), (r, ub_thunk(cb, &http))) \
    X(void, evhttp_request_set_error_cb, (void *r, void *cb), (r, ub_thunk(cb, &http))) \
    X(void, evhttp_request_set_on_complete_cb, (void *r, void *cb, void *arg), (r, ub_thunk(cb, &http), arg)) \
    X(void, evhttp_connection_set_closecb, (void *c, void *cb, void *arg), (c, ub_thunk(cb, &http), arg)) \
    X(void, evhttp_send_reply_chunk_with_cb, (void *r, void *b, void *cb, void *arg), (r, b, ub_thunk(cb, &http), arg)) \
    X(void *, evdns_base_resolve_ipv4, (void *b, void *name, int flags, void *cb, void *arg), (b, name, flags, ub_thunk(cb, &dns), arg)) \
    X(void *, evdns_base_resolve_ipv6, (void *b, void *name, int flags, void *cb, void *arg), (b, name, flags, ub_thunk(cb, &dns), arg)) \
    X(void *, evdns_base_resolve_reverse, (void *b, void *in, int flags, void *cb, void *arg), (b, in, flags, ub_thunk(cb, &dns), arg)) \
    X(void *, evdns_base_resolve_reverse_ipv6, (void *b, void *in, int flags, void *cb, void *arg), (b, in, flags, ub_thunk(cb, &dns), arg)) \
    X(void *, evdns_getaddrinfo, (void *b, void *node, void *service, void *hints, void *cb, void *arg), (b, node, service, hints, ub_thunk(cb, &dns), arg)) \
    X(void *, evdns_add_server_port_with_base, (void *base, int fd, int flags, void *cb, void *arg), (base, fd, flags, ub_thunk(cb, &dns), arg))

/* What gives callbacks back: the program gets its own. */
#define GETTERS(X) \
    X(void *, event_get_callback, (void *ev), ub_thunk_original(CALL(ev))) \
    X(void, event_get_assignment, (void *ev, void *base, void *fd, void *what, void **cb, void *arg), (CALL(ev, base, fd, what, cb, arg), own(cb))) \
    X(void, bufferevent_getcb, (void *b, void **r, void **w, void **e, void *arg), (CALL(b, r, w, e, arg), own(r), own(w), own(e)))

enum { FUNCTIONS(UB_LOOP_ID) GETTERS(UB_LOOP_ID) IDS };
static void *original[IDS][UB_LOOP_COPIES];

static void own(void **cb)
{
    if (cb)
        *cb = ub_thunk_original(*cb);
}

FUNCTIONS(UB_LOOP_HOOK_0)
FUNCTIONS(UB_LOOP_HOOK_1)

#define GETTER(copy, type, name, params, body) \
    static type hook##copy##_##name params { type (*call) params = original[ID_##name][copy]; return body; }
#define CALL(...) call(__VA_ARGS__)
#define GETTER_0(type, name, params, body) GETTER(0, type, name, params, body)
#define GETTER_1(type, name, params, body) GETTER(1, type, name, params, body)
GETTERS(GETTER_0)
GETTERS(GETTER_1)

static const struct ub_loop_hook hooks[] = {
    FUNCTIONS(UB_LOOP_ROW)
    GETTERS(UB_LOOP_ROW)
};
_Static_assert(UB_ARRAY_LEN(hooks) == IDS, "one original a hook");
/* clang-format on */

static const char *version(void)
{
    const char *(*call)(void) = original[ID_event_get_version][0];

    return call ? call() : NULL;
}

static const char *const files[] = {"libevent-", "libevent_", NULL};

const struct ub_loop_ops ub_loop_libevent = {
    .files = files, .prefix = "", .hooks = hooks, .count = IDS, .originals = original};
