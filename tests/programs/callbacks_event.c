/* Each stall of the list in a libevent callback of each kind. callbacks_event TRUTH [STALLS [ROUNDS [SEED]]] */
// libs: -levent
#include "stalls.h"

#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/dns.h>
#include <event2/dns_struct.h>
#include <event2/event.h>
#include <event2/http.h>
#include <event2/listener.h>

static struct event_base *base;
static struct stalls *s;
static struct sockaddr_in address;
static struct bufferevent *left, *right;
static struct evbuffer *buffer;
static struct evdns_base *dns;
static struct sockaddr_in http_address;
static int io_pipe[2], once_pipe[2], client = -1;

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

static NOINLINE void on_once(evutil_socket_t fd, short what, void *arg)
{
    stalls_here(s, "on_once");
}

static NOINLINE void on_once_fd(evutil_socket_t fd, short what, void *arg)
{
    char c;

    stalls_here(s, "on_once_fd");
    if (read(fd, &c, 1) != 1)
        die("once pipe");
}

/* A name server of our own, and what asks it. */
static NOINLINE void on_query(struct evdns_server_request *query, void *arg)
{
    ev_uint32_t answer = htonl(INADDR_LOOPBACK);

    stalls_here(s, "on_query");
    evdns_server_request_add_a_reply(query, query->questions[0]->name, 1, &answer, 60);
    evdns_server_request_respond(query, 0);
}

static NOINLINE void on_reply(int result, char type, int count, int ttl, void *addresses, void *arg)
{
    if (result != DNS_ERR_NONE || count != 1)
        die("dns");
    stalls_here(s, "on_reply");
}

static NOINLINE void on_request(struct evhttp_request *request, void *arg)
{
    stalls_here(s, "callback");
    evhttp_send_reply(request, 200, "OK", NULL);
}

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

static void kick_once(struct stalls *s_)
{
    struct timeval now = {0};

    event_base_once(base, -1, EV_TIMEOUT, on_once, NULL, &now);
}

static void kick_once_fd(struct stalls *s_)
{
    event_base_once(base, once_pipe[0], EV_READ, on_once_fd, NULL, NULL);
    if (write(once_pipe[1], "x", 1) != 1)
        die("once pipe");
}

static void kick_dns(struct stalls *s_)
{
    evdns_base_resolve_ipv4(dns, "a.test", DNS_QUERY_NO_SEARCH, on_reply, NULL);
}

static void kick_http(struct stalls *s_)
{
    static const char request[] = "GET / HTTP/1.0\r\n\r\n";

    if (client >= 0)
        close(client);
    client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(client, (struct sockaddr *)&http_address, sizeof(http_address)) ||
        write(client, request, sizeof(request) - 1) < 0)
        die("http");
}

static const struct stalls_kind kinds[] = {
    {"timer", "on_tick", NULL},
    {"timer", "on_once", kick_once},
    {"io", "on_once_fd", kick_once_fd},
    {"dns", "on_query", kick_dns},
    {"dns", "on_reply", kick_dns},
    {"callback", "on_request", kick_http},
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

static void serve_names(void)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof(at);
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (bind(fd, (struct sockaddr *)&at, size) || getsockname(fd, (struct sockaddr *)&at, &size))
        die("name server");
    evdns_add_server_port_with_base(base, fd, 0, on_query, NULL);
    dns = evdns_base_new(base, EVDNS_BASE_DISABLE_WHEN_INACTIVE);
    if (!dns || evdns_base_nameserver_sockaddr_add(dns, (struct sockaddr *)&at, size, 0))
        die("resolver");
}

static void serve_http(void)
{
    struct evhttp *http = evhttp_new(base);
    struct evhttp_bound_socket *bound = evhttp_bind_socket_with_handle(http, "127.0.0.1", 0);
    socklen_t size = sizeof(http_address);

    if (!bound || getsockname(evhttp_bound_socket_get_fd(bound), (struct sockaddr *)&http_address, &size))
        die("http server");
    evhttp_set_gencb(http, on_request, NULL);
}

int main(int argc, char **argv)
{
    struct timeval tick = {.tv_usec = STALLS_TICK_NS / 1000};
    struct evconnlistener *listener;
    int sockets[2];
    struct event *timer, *io;
    socklen_t size = sizeof(address);

    s = stalls_new(argc, argv);
    stalls_kinds(s, kinds, sizeof(kinds) / sizeof(kinds[0]));
    base = event_base_new();
    if (pipe2(io_pipe, O_CLOEXEC | O_NONBLOCK) || pipe2(once_pipe, O_CLOEXEC | O_NONBLOCK) ||
        evutil_socketpair(AF_UNIX, SOCK_STREAM, 0, sockets))
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
    for (int i = 0; i < 2; i++)
        evutil_make_socket_nonblocking(sockets[i]);
    left = bufferevent_socket_new(base, sockets[0], 0);
    right = bufferevent_socket_new(base, sockets[1], 0);
    bufferevent_setcb(right, on_data, NULL, NULL, NULL);
    bufferevent_enable(right, EV_READ);
    bufferevent_enable(left, EV_WRITE);
    buffer = evbuffer_new();
    evbuffer_add_cb(buffer, on_change, NULL);
    serve_names();
    serve_http();
    event_base_dispatch(base);
    /* Looked for by function and argument: it must be found. */
    if (evbuffer_remove_cb(buffer, on_change, NULL) != 0)
        die("evbuffer_remove_cb");
    return 0;
}
