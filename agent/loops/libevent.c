/*
 * libevent, 2.x: events, listeners, bufferevents, evbuffers, evhttp, evdns: the
 * functions that take a callback, and those that give one back or look for it.
 * What libevent registers for itself (its libraries among each other, too) is
 * not hooked: a bufferevent's callback is named, the event beneath it is not.
 */
#include "existing.h"
#include "loop.h"

#include "../module.h"
#include "../offload/eventhost.h"

#include <string.h>

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
SHAPE(once_io, IO, .object = 2, .fd = UB_FD_ARGUMENT, .fd_at = 0, .special = UB_SHAPE_ONCE);
SHAPE(once_timer, TIMER, .object = 2, .special = UB_SHAPE_ONCE);
SHAPE(request, CALLBACK, .special = UB_SHAPE_REQUEST); /* of a client of evhttp's, to be answered */
SHAPE(http, CALLBACK);                                 /* a request or connection of evhttp */
SHAPE(dns, DNS);

/* A signal, a timer, or an event on a descriptor (EV_TIMEOUT 1, EV_READ 2, EV_WRITE 4, EV_SIGNAL 8). */
static void *event_thunk(void *cb, int fd, int events)
{
    return ub_thunk(cb, events & 8 ? &signal : fd < 0 ? &timer : &io);
}

static void *once_thunk(void *cb, int fd, int events)
{
    return ub_thunk(cb, events & 8 ? &signal : fd < 0 ? &once_timer : &once_io);
}

/* An event is made (again) in the program's own memory. */
static void *assigned(void *ev, void *cb, int fd, int events)
{
    ub_event_assigned(ev);
    return event_thunk(cb, fd, events);
}

/* clang-format off */
#define FUNCTIONS(X) \
    X(const char *, event_get_version, (void), ()) \
    X(void *, event_new, (void *base, int fd, short what, void *cb, void *arg), (base, fd, what, event_thunk(cb, fd, what), arg)) \
    X(int, event_assign, (void *ev, void *base, int fd, short what, void *cb, void *arg), (ev, base, fd, what, assigned(ev, cb, fd, what), arg)) \
    X(void, event_set, (void *ev, int fd, short what, void *cb, void *arg), (ev, fd, what, assigned(ev, cb, fd, what), arg)) \
    X(int, event_once, (int fd, short what, void *cb, void *arg, void *tv), (fd, what, once_thunk(cb, fd, what), arg, tv)) \
    X(int, event_base_once, (void *base, int fd, short what, void *cb, void *arg, void *tv), (base, fd, what, once_thunk(cb, fd, what), arg, tv)) \
    X(void *, evconnlistener_new, (void *base, void *cb, void *arg, unsigned flags, int backlog, int fd), (base, ub_thunk(cb, &listening), arg, flags, backlog, fd)) \
    X(void *, evconnlistener_new_bind, (void *base, void *cb, void *arg, unsigned flags, int backlog, void *address, int size), (base, ub_thunk(cb, &listening), arg, flags, backlog, address, size)) \
    X(void, evconnlistener_set_cb, (void *l, void *cb, void *arg), (l, ub_thunk(cb, &listening), arg)) \
    X(void, evconnlistener_set_error_cb, (void *l, void *cb), (l, ub_thunk(cb, &trouble))) \
    X(void, bufferevent_setcb, (void *b, void *r, void *w, void *e, void *arg), (b, ub_thunk(r, &buffered), ub_thunk(w, &buffered), ub_thunk(e, &buffered), arg)) \
    X(void *, bufferevent_new, (int fd, void *r, void *w, void *e, void *arg), (fd, ub_thunk(r, &buffered), ub_thunk(w, &buffered), ub_thunk(e, &buffered), arg)) \
    X(void *, evbuffer_add_cb, (void *b, void *cb, void *arg), (b, ub_thunk(cb, &evbuffer), arg)) \
    X(int, evhttp_set_cb, (void *h, void *path, void *cb, void *arg), (h, path, ub_thunk(cb, &request), arg)) \
    X(void, evhttp_set_gencb, (void *h, void *cb, void *arg), (h, ub_thunk(cb, &request), arg)) \
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

/* What gives callbacks back: the program gets its own. What looks for one: it may be from before or after our coming. */
#define GETTERS(X) \
    X(int, evbuffer_remove_cb, (void *b, void *cb, void *arg), CALL(b, ub_thunk(cb, &evbuffer), arg) == 0 ? 0 : CALL(b, cb, arg)) \
    X(void *, event_get_callback, (void *ev), ub_thunk_original(CALL(ev))) \
    X(void, event_get_assignment, (void *ev, void *base, void *fd, void *what, void **cb, void *arg), (CALL(ev, base, fd, what, cb, arg), own(cb))) \
    X(void, bufferevent_getcb, (void *b, void **r, void **w, void **e, void *arg), (CALL(b, r, w, e, arg), own(r), own(w), own(e)))

enum { FUNCTIONS(UB_LOOP_ID) GETTERS(UB_LOOP_ID) ID_foreach, ID_events, ID_arg, ID_size, IDS };
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
#define GETTER_ROW(type, name, params, body) {#name, {(void *)hook0_##name, (void *)hook1_##name}, UB_HOOK_STAYS},
#define GETTER_0(type, name, params, body) GETTER(0, type, name, params, body)
#define GETTER_1(type, name, params, body) GETTER(1, type, name, params, body)
GETTERS(GETTER_0)
GETTERS(GETTER_1)

static const struct ub_loop_hook hooks[] = {
    FUNCTIONS(UB_LOOP_ROW)
    GETTERS(GETTER_ROW)
    {"event_base_foreach_event", {NULL}, UB_HOOK_OTHERS},
    {"event_get_events", {NULL}, UB_HOOK_OTHERS},
    {"event_get_callback_arg", {NULL}, UB_HOOK_OTHERS},
    {"event_get_struct_event_size", {NULL}, UB_HOOK_OTHERS},
};
_Static_assert(UB_ARRAY_LEN(hooks) == IDS, "one original a hook");
/* clang-format on */

static const char *version(void)
{
    const char *(*call)(void) = original[ID_event_get_version][0];

    return call ? call() : NULL;
}

/* ---- events that were there before us --------------------------------------------- */

/*
 * Of struct event (2.0 and 2.1), compared with what its getters say before anything is written; of an event_base that
 * uses epoll; of a listener and a bufferevent on a socket, which contain their events.
 */
#define EVENT_CB        24
#define EVENT_ARG       32
#define EVENT_FD        56
#define BASE_STATE      8
#define EPOLL_FD        12
#define LISTENER_CB     16
#define LISTENER_ERROR  24
#define LISTENER_MAX    256
#define BUFFEREVENT_OPS 8
#define BUFFEREVENT_EV  16

#define BUFFEREVENTS 64u

struct adoption {
    uint32_t copy, count;
    uint64_t base;
    void *bufferevent[BUFFEREVENTS];
};

static void wrap(uint64_t at, const struct ub_shape *shape)
{
    void **cb = (void **)(uintptr_t)at, *function = ub_load_relaxed(cb);

    if (function && ub_module_name(function) && !ub_existing_is_librarys((uintptr_t)function))
        ub_store_relaxed(cb, ub_thunk(function, shape));
}

static bool is_bufferevent(const struct adoption *a, uint64_t ev, uint64_t arg)
{
    size_t (*size)(void) = original[ID_size][a->copy];
    uint64_t word[2];

    return size && (ev == arg + BUFFEREVENT_EV || ev == arg + BUFFEREVENT_EV + size()) &&
           ub_existing_read(arg, word, sizeof(word)) && word[0] == a->base && ub_existing_is_librarys(word[1]);
}

static bool is_listener(uint64_t ev, uint64_t arg)
{
    uint64_t ops;

    return ev > arg && ev - arg < LISTENER_MAX && ub_existing_read(arg, &ops, sizeof(ops)) &&
           ub_existing_is_librarys(ops);
}

/* libevent holds the base's lock: whoever frees one of these waits for it (evconnlistener_free takes its event out). */
static int wrap_event(const void *base, const void *event, void *data)
{
    void *(*get_callback)(const void *), *(*get_arg)(const void *);
    short (*get_events)(const void *);
    struct adoption *a = data;
    uint64_t ev = (uintptr_t)event, arg, word[2];
    void *cb;

    get_callback = original[ID_event_get_callback][a->copy];
    get_arg = original[ID_arg][a->copy];
    get_events = original[ID_events][a->copy];
    cb = get_callback(event);
    arg = (uintptr_t)get_arg(event);
    memcpy(word, (const char *)event + EVENT_CB, sizeof(word));
    if (word[0] != (uintptr_t)cb || word[1] != arg)
        return -1; /* not as we know it */
    if (!ub_existing_is_librarys((uintptr_t)cb)) {
        int32_t fd = *(const int32_t *)((const char *)event + EVENT_FD);

        if (cb)
            ub_store_relaxed((void **)(uintptr_t)(ev + EVENT_CB), event_thunk(cb, fd, get_events(event)));
    } else if (is_bufferevent(a, ev, arg)) {
        if (a->count < BUFFEREVENTS && (a->count == 0 || a->bufferevent[a->count - 1] != (void *)(uintptr_t)arg))
            a->bufferevent[a->count++] = (void *)(uintptr_t)arg;
    } else if (is_listener(ev, arg)) {
        wrap(arg + LISTENER_CB, &listening);
        wrap(arg + LISTENER_ERROR, &trouble);
    }
    return 0;
}

static void *own_thunk(void *cb)
{
    return cb && !ub_existing_is_librarys((uintptr_t)cb) ? ub_thunk(cb, &buffered) : cb;
}

/* Without the base's lock, which is taken after theirs. They are freed by this thread alone, through its loop. */
static void wrap_bufferevents(const struct adoption *a)
{
    void (*get)(void *, void **, void **, void **, void **) = original[ID_bufferevent_getcb][a->copy];
    void (*set)(void *, void *, void *, void *, void *) = original[ID_bufferevent_setcb][a->copy];
    void *r, *w, *e, *arg;

    for (uint32_t i = 0; get && set && i < a->count; i++) {
        get(a->bufferevent[i], &r, &w, &e, &arg);
        set(a->bufferevent[i], own_thunk(r), own_thunk(w), own_thunk(e), arg);
    }
}

/* Its functions are libevent's own, and its state begins with that of the epoll backend. */
static bool is_base(uint64_t at, int epfd)
{
    uint64_t word[2];
    int32_t fd;

    return epfd >= 0 && ub_existing_read(at, word, sizeof(word)) && ub_existing_is_librarys(word[0]) &&
           ub_existing_read(word[BASE_STATE / 8] + EPOLL_FD, &fd, sizeof(fd)) && fd == epfd;
}

static bool adopt(uint32_t copy, uint64_t at, int epfd)
{
    int (*each)(void *, int (*)(const void *, const void *, void *), void *) = original[ID_foreach][copy];
    struct adoption a = {.copy = copy, .base = at};

    if (!each || !original[ID_event_get_callback][copy] || !original[ID_arg][copy] || !original[ID_events][copy] ||
        !is_base(at, epfd))
        return false;
    each((void *)(uintptr_t)at, wrap_event, &a);
    wrap_bufferevents(&a);
    return true;
}

static const char *const files[] = {"libevent-", "libevent_", NULL};

const struct ub_loop_ops ub_loop_libevent = {
    .files = files, .prefix = "", .hooks = hooks, .count = IDS, .originals = original, .adopt = adopt};
