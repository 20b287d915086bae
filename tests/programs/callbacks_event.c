/* Each stall of the list in a libevent callback of each kind. callbacks_event TRUTH [STALLS [ROUNDS [SEED]]] */
// libs: -levent
#include "stalls.h"

#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/listener.h>

static struct event_base *base;
static struct stalls *s;
static struct sockaddr_in address;
static struct bufferevent *left, *right;
static struct evbuffer *buffer;
static int io_pipe[2];

static NOINLINE void on_io(evutil_socket_t fd, short what, void *arg)
{
    char c;

    stalls_here(s, "io");
    if (read(fd, &c, 1) != 1)
        die("io pipe");
}

static NOINLINE void on_signal(evutil_socket_t sig, short what, void *arg)
{
    stalls_here(s, "signal");
}

static NOINLINE void on_data(struct bufferevent *b, void *arg)
{
    evbuffer_drain(bufferevent_get_input(b), 100);
    stalls_here(s, "bufferevent");
}

static NOINLINE void on_change(struct evbuffer *b, const struct evbuffer_cb_info *info, void *arg)
{
    stalls_here(s, "evbuffer");
}

static NOINLINE void on_accept(struct evconnlistener *l, evutil_socket_t fd, struct sockaddr *a, int len, void *arg)
{
    stalls_here(s, "listener");
    close(fd);
}

/* Once, on a descriptor that is ready. */
static void kick_io(struct stalls *s_)
{
    if (write(io_pipe[1], "x", 1) != 1)
        die("io pipe");
}

static void kick_signal(struct stalls *s_)
{
    kill(getpid(), SIGHUP);
}

static void kick_data(struct stalls *s_)
{
    bufferevent_write(left, "x", 1);
}

/* Its callback runs inside the ticker's. */
static void kick_change(struct stalls *s_)
{
    evbuffer_add(buffer, "x", 1);
}

static void kick_accept(struct stalls *s_)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (connect(fd, (struct sockaddr *)&address, sizeof(address)))
        die("connect");
    close(fd);
}

static const struct stalls_kind kinds[] = {
    {"timer", "on_tick", NULL},
    {"io", "on_io", kick_io},
    {"signal", "on_signal", kick_signal},
    {"listener", "on_accept", kick_accept},
    {"bufferevent", "on_data", kick_data},
    {"evbuffer", "on_change", kick_change},
};

static NOINLINE void on_tick(evutil_socket_t fd, short what, void *arg)
{
    if (stalls_tick(s))
        event_base_loopbreak(base);
}

int main(int argc, char **argv)
{
    struct timeval tick = {.tv_usec = STALLS_TICK_NS / 1000};
    struct evconnlistener *listener;
    struct bufferevent *pair[2];
    struct event *timer, *io;
    socklen_t size = sizeof(address);

    s = stalls_new(argc, argv);
    stalls_kinds(s, kinds, sizeof(kinds) / sizeof(kinds[0]));
    base = event_base_new();
    if (pipe2(io_pipe, O_CLOEXEC | O_NONBLOCK) || bufferevent_pair_new(base, 0, pair))
        die("pipes");
    timer = event_new(base, -1, EV_PERSIST, on_tick, NULL);
    if (event_get_callback(timer) != on_tick) /* a program may well compare */
        die("event_get_callback");
    event_add(timer, &tick);
    io = event_new(base, io_pipe[0], EV_READ | EV_PERSIST, on_io, NULL);
    event_add(io, NULL);
    event_add(evsignal_new(base, SIGHUP, on_signal, NULL), NULL);
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    listener = evconnlistener_new_bind(base, on_accept, NULL, LEV_OPT_CLOSE_ON_FREE | LEV_OPT_CLOSE_ON_EXEC, 16,
                                       (struct sockaddr *)&address, sizeof(address));
    getsockname(evconnlistener_get_fd(listener), (struct sockaddr *)&address, &size);
    left = pair[0];
    right = pair[1];
    bufferevent_setcb(right, on_data, NULL, NULL, NULL);
    bufferevent_enable(right, EV_READ);
    bufferevent_enable(left, EV_WRITE);
    buffer = evbuffer_new();
    evbuffer_add_cb(buffer, on_change, NULL);
    event_base_dispatch(base);
    /* Looked for by function and argument: it must be found. */
    if (evbuffer_remove_cb(buffer, on_change, NULL) != 0)
        die("evbuffer_remove_cb");
    return 0;
}
