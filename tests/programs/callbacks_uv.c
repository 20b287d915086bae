/* Each stall of the list in a libuv callback of each kind. callbacks_uv TRUTH [STALLS [ROUNDS [SEED]]] */
// libs: -luv
#include "stalls.h"

#include <uv.h>

static uv_loop_t *loop;
static struct stalls *s;
static struct sockaddr_in tcp_address, udp_address;
static char watched[512];

#define CALLBACK(name, kind, ...)                                                                                      \
    static NOINLINE void name(__VA_ARGS__)                                                                             \
    {                                                                                                                  \
        stalls_here(s, kind);
#define END }

static void on_alloc(uv_handle_t *h, size_t size, uv_buf_t *buf)
{
    static char bytes[64];

    *buf = uv_buf_init(bytes, sizeof(bytes));
}

static uv_idle_t idle;
static uv_prepare_t prepare;
static uv_check_t check;
static uv_async_t async;
static uv_poll_t poller;
static uv_signal_t sig;
static uv_pipe_t reader, writer;
static uv_tcp_t server, *closing;
static uv_udp_t udp;
static uv_fs_event_t fs_event;
static uv_fs_poll_t fs_poll;
static int poll_pipe[2];

CALLBACK(on_idle, "idle", uv_idle_t *h) uv_idle_stop(h);
END CALLBACK(on_prepare, "prepare", uv_prepare_t *h) uv_prepare_stop(h);
END CALLBACK(on_check, "check", uv_check_t *h) uv_check_stop(h);
END CALLBACK(on_async, "async", uv_async_t *h) END CALLBACK(on_signal, "signal", uv_signal_t *h, int n) END
    CALLBACK(on_read, "read", uv_stream_t *h, ssize_t n, const uv_buf_t *buf) END
    CALLBACK(on_write, "write", uv_write_t *r, int status) END
    CALLBACK(on_udp, "udp", uv_udp_t *h, ssize_t n, const uv_buf_t *b, const struct sockaddr *a, unsigned f) END
    CALLBACK(on_fs, "fs", uv_fs_t *r) uv_fs_req_cleanup(r);
END CALLBACK(on_fs_event, "fs_event", uv_fs_event_t *h, const char *name, int events, int status) END
    CALLBACK(on_fs_poll, "fs_poll", uv_fs_poll_t *h, int status, const uv_stat_t *a, const uv_stat_t *b) END
    CALLBACK(on_dns, "dns", uv_getaddrinfo_t *r, int status, struct addrinfo *res) uv_freeaddrinfo(res);
END CALLBACK(on_work_done, "work", uv_work_t *r, int status) END CALLBACK(on_close, "close", uv_handle_t *h) END

    static void on_gone(uv_handle_t *h)
{
    free(h);
}

CALLBACK(on_exit_of, "process", uv_process_t *p, int64_t status, int signal) uv_close((uv_handle_t *)p, NULL);
END

    static NOINLINE void
    on_poll(uv_poll_t *h, int status, int events)
{
    char c;

    stalls_here(s, "io");
    if (read(poll_pipe[0], &c, 1) != 1)
        die("poll pipe");
}

static NOINLINE void on_connection(uv_stream_t *h, int status)
{
    uv_tcp_t *peer = malloc(sizeof(*peer));

    stalls_here(s, "listener");
    uv_tcp_init(loop, peer);
    uv_accept(h, (uv_stream_t *)peer);
    uv_close((uv_handle_t *)peer, on_gone);
}

static NOINLINE void on_connect(uv_connect_t *r, int status)
{
    stalls_here(s, "connect");
    uv_close((uv_handle_t *)r->handle, on_gone);
    free(r);
}

static void work(uv_work_t *r)
{
}

static void kick_idle(struct stalls *s_)
{
    uv_idle_start(&idle, on_idle);
}
static void kick_prepare(struct stalls *s_)
{
    uv_prepare_start(&prepare, on_prepare);
}
static void kick_check(struct stalls *s_)
{
    uv_check_start(&check, on_check);
}
static void kick_async(struct stalls *s_)
{
    uv_async_send(&async);
}
static void kick_signal(struct stalls *s_)
{
    kill(getpid(), SIGHUP);
}

static void kick_poll(struct stalls *s_)
{
    if (write(poll_pipe[1], "x", 1) != 1)
        die("poll pipe");
}

/* Read as well as written: whose turn it is not stays quiet. */
static void kick_write(struct stalls *s_)
{
    static uv_write_t req;
    uv_buf_t buf = uv_buf_init((char *)"x", 1);

    uv_write(&req, (uv_stream_t *)&writer, &buf, 1, on_write);
}

static void kick_connect(struct stalls *s_)
{
    uv_connect_t *req = malloc(sizeof(*req));
    uv_tcp_t *tcp = malloc(sizeof(*tcp));

    uv_tcp_init(loop, tcp);
    uv_tcp_connect(req, tcp, (struct sockaddr *)&tcp_address, on_connect);
}

static void kick_udp(struct stalls *s_)
{
    uv_buf_t buf = uv_buf_init((char *)"x", 1);

    uv_udp_try_send(&udp, &buf, 1, (struct sockaddr *)&udp_address);
}

static void kick_fs(struct stalls *s_)
{
    static uv_fs_t req;

    uv_fs_stat(loop, &req, "/", on_fs);
}

static void kick_file(struct stalls *s_)
{
    FILE *f = fopen(watched, "ae");

    fputs("x", f);
    fclose(f);
}

static void kick_dns(struct stalls *s_)
{
    static uv_getaddrinfo_t req;
    struct addrinfo hints = {.ai_flags = AI_NUMERICHOST};

    uv_getaddrinfo(loop, &req, on_dns, "127.0.0.1", NULL, &hints);
}

static void kick_work(struct stalls *s_)
{
    static uv_work_t req;

    uv_queue_work(loop, &req, work, on_work_done);
}

static void kick_close(struct stalls *s_)
{
    static uv_timer_t timer;

    uv_timer_init(loop, &timer);
    uv_close((uv_handle_t *)&timer, on_close);
}

static void kick_process(struct stalls *s_)
{
    static uv_process_t process;
    char *args[] = {(char *)"true", NULL};
    uv_process_options_t options = {.exit_cb = on_exit_of, .file = "true", .args = args};

    if (uv_spawn(loop, &process, &options) < 0)
        die("uv_spawn");
}

static const struct stalls_kind kinds[] = {
    {"timer", "on_timer", NULL},
    {"idle", "on_idle", kick_idle},
    {"prepare", "on_prepare", kick_prepare},
    {"check", "on_check", kick_check},
    {"async", "on_async", kick_async},
    {"io", "on_poll", kick_poll},
    {"signal", "on_signal", kick_signal},
    {"read", "on_read", kick_write},
    {"write", "on_write", kick_write},
    {"listener", "on_connection", kick_connect},
    {"connect", "on_connect", kick_connect},
    {"udp", "on_udp", kick_udp},
    {"fs", "on_fs", kick_fs},
    {"fs_event", "on_fs_event", kick_file},
    {"fs_poll", "on_fs_poll", kick_file},
    {"dns", "on_dns", kick_dns},
    {"work", "on_work_done", kick_work},
    {"close", "on_close", kick_close},
    {"process", "on_exit_of", kick_process},
};

static NOINLINE void on_timer(uv_timer_t *timer)
{
    if (stalls_tick(s))
        uv_stop(timer->loop);
}

int main(int argc, char **argv)
{
    uv_timer_t timer;
    int fds[2], size = sizeof(struct sockaddr_in);

    s = stalls_new(argc, argv);
    stalls_kinds(s, kinds, sizeof(kinds) / sizeof(kinds[0]));
    loop = uv_default_loop();
    if (pipe2(poll_pipe, O_CLOEXEC | O_NONBLOCK) ||
        uv_socketpair(SOCK_STREAM, 0, fds, UV_NONBLOCK_PIPE, UV_NONBLOCK_PIPE))
        die("pipes");
    uv_idle_init(loop, &idle);
    uv_prepare_init(loop, &prepare);
    uv_check_init(loop, &check);
    uv_async_init(loop, &async, on_async);
    uv_poll_init(loop, &poller, poll_pipe[0]);
    uv_poll_start(&poller, UV_READABLE, on_poll);
    uv_signal_init(loop, &sig);
    uv_signal_start(&sig, on_signal, SIGHUP);
    uv_pipe_init(loop, &reader, 0);
    uv_pipe_open(&reader, fds[0]);
    uv_read_start((uv_stream_t *)&reader, on_alloc, on_read);
    uv_pipe_init(loop, &writer, 0);
    uv_pipe_open(&writer, fds[1]);
    uv_ip4_addr("127.0.0.1", 0, &tcp_address);
    udp_address = tcp_address;
    uv_tcp_init(loop, &server);
    uv_tcp_bind(&server, (struct sockaddr *)&tcp_address, 0);
    uv_listen((uv_stream_t *)&server, 16, on_connection);
    uv_tcp_getsockname(&server, (struct sockaddr *)&tcp_address, &size);
    uv_udp_init(loop, &udp);
    uv_udp_bind(&udp, (struct sockaddr *)&udp_address, 0);
    size = sizeof(udp_address);
    uv_udp_getsockname(&udp, (struct sockaddr *)&udp_address, &size);
    uv_udp_recv_start(&udp, on_alloc, on_udp);
    snprintf(watched, sizeof(watched), "%s/watched", s->dir);
    kick_file(s);
    uv_fs_event_init(loop, &fs_event);
    uv_fs_event_start(&fs_event, on_fs_event, watched, 0);
    uv_fs_poll_init(loop, &fs_poll);
    uv_fs_poll_start(&fs_poll, on_fs_poll, watched, 10);
    (void)closing;
    uv_timer_init(loop, &timer);
    uv_timer_start(&timer, on_timer, 2, 2);
    uv_run(loop, UV_RUN_DEFAULT);
    return 0;
}
