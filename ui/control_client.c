#include "control.h"
#include "json_get.h"

#include "../common/clock.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define LINE_MAX_BYTES ((size_t)8 << 20) /* a status with everything in it is far below */
#define PATIENCE_MS    2000

struct ub_control_client {
    int fd;
    char *buf;
    size_t len, size;
};

int ub_control_connect(const char *path, uid_t owner, struct ub_control_client **ret)
{
    struct timeval patience = {PATIENCE_MS / 1000, 0};
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct ucred peer;
    socklen_t len = sizeof(peer);
    struct ub_control_client *c;
    int fd, r = 0;

    if (strlen(path) >= sizeof(address.sun_path))
        return -ENAMETOOLONG;
    memcpy(address.sun_path, path, strlen(path) + 1);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) != 0 ||
        getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) != 0)
        r = -errno;
    else if (peer.uid != owner)
        r = -EPERM;
    c = r == 0 ? calloc(1, sizeof(*c)) : NULL;
    if (c == NULL) {
        close(fd);
        return r < 0 ? r : -ENOMEM;
    }
    c->fd = fd;
    *ret = c;
    return 0;
}

void ub_control_hang_up(struct ub_control_client *c)
{
    if (c == NULL)
        return;
    close(c->fd);
    free(c->buf);
    free(c);
}

int ub_control_fd(const struct ub_control_client *c)
{
    return c->fd;
}

/* A whole line that has come already. -EAGAIN: none. */
static int take_line(struct ub_control_client *c, json_t **ret)
{
    char *end = c->len > 0 ? memchr(c->buf, '\n', c->len) : NULL;

    if (end == NULL)
        return c->len > LINE_MAX_BYTES ? -EBADMSG : -EAGAIN;
    *ret = json_loadb(c->buf, (size_t)(end - c->buf), 0, NULL);
    c->len -= (size_t)(end + 1 - c->buf);
    memmove(c->buf, end + 1, c->len);
    if (json_is_object(*ret))
        return 0;
    json_decref(*ret);
    *ret = NULL;
    return -EBADMSG;
}

static int receive(struct ub_control_client *c)
{
    ssize_t n;

    if (c->size - c->len < 4096) {
        size_t size = c->size ? c->size * 2 : 65536;
        char *buf = realloc(c->buf, size);

        if (buf == NULL)
            return -ENOMEM;
        c->buf = buf;
        c->size = size;
    }
    n = recv(c->fd, c->buf + c->len, c->size - c->len, MSG_DONTWAIT);
    if (n == 0)
        return -EPIPE;
    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -errno;
    c->len += (size_t)n;
    return 0;
}

int ub_control_next(struct ub_control_client *c, int timeout_ms, json_t **ret)
{
    uint64_t deadline = ub_clock_monotonic_ns() + (uint64_t)(timeout_ms > 0 ? timeout_ms : 0) * 1000000;

    for (;;) {
        struct pollfd p = {.fd = c->fd, .events = POLLIN};
        int left, r = take_line(c, ret);

        if (r != -EAGAIN)
            return r;
        left = timeout_ms < 0 ? -1 : (int)(((int64_t)(deadline - ub_clock_monotonic_ns()) + 999999) / 1000000);
        if (poll(&p, 1, left < 0 && timeout_ms >= 0 ? 0 : left) <= 0)
            return -EAGAIN;
        r = receive(c);
        if (r < 0)
            return r;
    }
}

int ub_control_ask(struct ub_control_client *c, json_t *request, json_t **ret)
{
    char *text = request ? json_dumps(request, JSON_COMPACT) : NULL;
    size_t len = text ? strlen(text) : 0;
    int r = -ENOMEM;

    json_decref(request);
    if (text) {
        text[len] = '\n'; /* in the place of its end */
        r = send(c->fd, text, len + 1, MSG_NOSIGNAL) == (ssize_t)len + 1 ? ub_control_next(c, PATIENCE_MS, ret)
                                                                         : -EPIPE;
    }
    free(text);
    return r == -EAGAIN ? -ETIMEDOUT : r;
}

int ub_control_request(struct ub_control_client *c, const char *name, json_t **ret)
{
    return ub_control_ask(c, json_pack("{s:s}", "request", name), ret);
}

struct wanted {
    pid_t pid;
    struct ub_control_client *client;
};

static bool watches(const json_t *status, pid_t pid)
{
    const json_t *loop;
    size_t i;

    if (ub_json_u64_or(status, "watcher", 0) == (uint64_t)pid || ub_json_u64_or(status, "pid", 0) == (uint64_t)pid)
        return true;
    json_array_foreach (json_object_get(status, "loops"), i, loop) {
        if (ub_json_u64_or(loop, "pid", 0) == (uint64_t)pid)
            return true;
    }
    return false;
}

static bool try_socket(void *self, const char *path, uid_t owner)
{
    struct wanted *w = self;
    struct ub_control_client *c = NULL;
    json_t *status;

    if (ub_control_connect(path, owner, &c) < 0 || c == NULL)
        return true;
    if (ub_control_request(c, "status", &status) == 0) {
        if (watches(status, w->pid))
            w->client = c;
        json_decref(status);
    }
    if (w->client == c)
        return false;
    ub_control_hang_up(c);
    return true;
}

int ub_control_find(pid_t pid, struct ub_control_client **ret)
{
    struct wanted w = {.pid = pid};

    ub_control_each(try_socket, &w);
    *ret = w.client;
    return w.client != NULL ? 0 : -ESRCH;
}
