#include "metrics.h"
#include "export.h"
#include "options.h"
#include "say.h"
#include "write_all.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define INTERVAL_MS  10000
#define REQUEST_MAX  8192
#define PATIENCE_S   2 /* for a client to say what it wants, and to take it */
#define CONTENT_TYPE "text/plain; version=0.0.4; charset=utf-8"

struct ub_metrics {
    pthread_mutex_t lock; /* protects `model`; taken by the explaining thread for each line, nothing is taken inside */
    struct ub_model *model;
    pthread_t thread;
    int stop;     /* eventfd */
    int listener; /* -1: a file */
    char *path;   /* of the file, or of the unix socket */
    bool failed;  /* the file could not be written: told once */
};

/* ---- what is told --------------------------------------------------------- */

static char *render(struct ub_metrics *x, size_t *ret_len)
{
    char *text = NULL;
    FILE *out = open_memstream(&text, ret_len);
    struct ub_export_job job = {.m = x->model};

    if (!out)
        return NULL;
    pthread_mutex_lock(&x->lock);
    ub_export_prometheus.write(out, &job);
    pthread_mutex_unlock(&x->lock);
    if (fclose(out) == 0)
        return text;
    free(text);
    return NULL;
}

/* Whole or not at all: a collector that reads meanwhile sees the old one. */
static int write_file(struct ub_metrics *x)
{
    char temporary[4096];
    size_t len;
    char *text = render(x, &len);
    int fd, r = -ENOMEM;

    if (!text)
        return r;
    snprintf(temporary, sizeof(temporary), "%.4000s.%d.tmp", x->path, (int)getpid());
    fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
    r = fd < 0 ? -errno : ub_write_all(fd, text, len, true, NULL);
    if (fd >= 0 && close(fd) < 0 && r == 0)
        r = -errno;
    if (r == 0 && rename(temporary, x->path) < 0)
        r = -errno;
    if (r < 0 && fd >= 0)
        unlink(temporary);
    free(text);
    return r;
}

static void update_file(struct ub_metrics *x)
{
    int r = write_file(x);

    if (r < 0 && !x->failed)
        ub_say("run", "--metrics %s: %s", x->path, strerror(-r));
    x->failed = r < 0;
}

/* ---- HTTP ------------------------------------------------------------------- */

static void send_all(int fd, const char *bytes, size_t len)
{
    while (len > 0) {
        ssize_t n = send(fd, bytes, len, MSG_NOSIGNAL);

        if (n <= 0 && errno != EINTR)
            return;
        if (n > 0) {
            bytes += n;
            len -= (size_t)n;
        }
    }
}

static void answer(int fd, const char *status, const char *type, const char *body, size_t len)
{
    char head[256];
    int n = snprintf(head, sizeof(head),
                     "HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n", status,
                     type, len);

    send_all(fd, head, (size_t)n);
    send_all(fd, body, len);
}

/* Up to the empty line; what comes behind it does not matter. */
static bool read_request(int fd, char *buf)
{
    size_t len = 0;

    while (len < REQUEST_MAX - 1) {
        ssize_t n = recv(fd, buf + len, REQUEST_MAX - 1 - len, 0);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        len += (size_t)n;
        buf[len] = 0;
        if (strstr(buf, "\r\n\r\n") || strstr(buf, "\n\n"))
            return true;
    }
    return false;
}

/*
 * A page of another site must not read this through a name that it makes
 * resolve to 127.0.0.1: the name asked for has to be the machine itself.
 */
static bool is_own_host(const char *request)
{
    static const char *const names[] = {"localhost", "127.", "[::1]"};
    const char *host = strcasestr(request, "\nHost:");
    size_t i;

    if (!host)
        return true;
    host += strlen("\nHost:");
    host += strspn(host, " \t");
    for (i = 0; i < UB_ARRAY_LEN(names); i++)
        if (strncasecmp(host, names[i], strlen(names[i])) == 0)
            return true;
    return false;
}

static void serve(struct ub_metrics *x, int fd)
{
    static const char hint[] = "unblock: see /metrics\n";
    char request[REQUEST_MAX];
    char *text;
    size_t len;

    if (!read_request(fd, request))
        return;
    if (strncmp(request, "GET ", 4) != 0) {
        answer(fd, "405 Method Not Allowed", "text/plain", "", 0);
    } else if (!is_own_host(request)) {
        answer(fd, "403 Forbidden", "text/plain", "", 0);
    } else if (strncmp(request + 4, "/metrics", 8) != 0 || !strchr(" ?", request[12])) {
        answer(fd, "404 Not Found", "text/plain", hint, strlen(hint));
    } else {
        text = render(x, &len);
        if (text)
            answer(fd, "200 OK", CONTENT_TYPE, text, len);
        free(text);
    }
}

static void accept_one(struct ub_metrics *x)
{
    const struct timeval patience = {.tv_sec = PATIENCE_S};
    int fd = accept4(x->listener, NULL, NULL, SOCK_CLOEXEC);

    if (fd < 0)
        return;
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
    serve(x, fd);
    close(fd);
}

/* ---- the thread ------------------------------------------------------------- */

static void *work(void *self)
{
    struct ub_metrics *x = self;
    struct pollfd p[2] = {{.fd = x->stop, .events = POLLIN}, {.fd = x->listener, .events = POLLIN}};

    for (;;) {
        int n = poll(p, 2, x->listener < 0 ? INTERVAL_MS : -1);

        if (n < 0 && errno != EINTR)
            return NULL;
        if (n > 0 && p[0].revents)
            return NULL;
        if (x->listener < 0)
            update_file(x);
        else if (n > 0 && p[1].revents)
            accept_one(x);
    }
}

/* ---- where ------------------------------------------------------------------ */

static int listen_on(const struct sockaddr *address, socklen_t len)
{
    int fd = socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;

    if (fd < 0)
        return -errno;
    if (address->sa_family != AF_UNIX)
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (bind(fd, address, len) == 0 && listen(fd, 16) == 0)
        return fd;
    one = -errno;
    close(fd);
    return one;
}

/* A socket that an earlier run left behind is replaced; one that somebody serves is not. */
static int listen_unix(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct stat st;
    mode_t mask;
    int fd;

    if (strlen(path) >= sizeof(address.sun_path))
        return -ENAMETOOLONG;
    memcpy(address.sun_path, path, strlen(path) + 1);
    if (stat(path, &st) == 0 && S_ISSOCK(st.st_mode)) {
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0 && errno == ECONNREFUSED)
            unlink(path);
        if (fd >= 0)
            close(fd);
    }
    mask = umask(077);
    fd = listen_on((struct sockaddr *)&address, sizeof(address));
    umask(mask);
    return fd;
}

/* "HOST:PORT" with HOST "", "localhost" or a loopback address; 0: it is none. */
static bool parse_port(const char *where, struct sockaddr_storage *ret, socklen_t *ret_len, bool *ret_loopback)
{
    struct sockaddr_in *v4 = (struct sockaddr_in *)ret;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)ret;
    const char *colon = strrchr(where, ':');
    char host[64], *end;
    unsigned long port;

    if (!colon || strchr(where, '/') || colon[1] < '0' || colon[1] > '9' || colon - where >= (long)sizeof(host))
        return false;
    port = strtoul(colon + 1, &end, 10);
    if (*end || port == 0 || port > 65535)
        return false;
    snprintf(host, sizeof(host), "%.*s", (int)(colon - where), where);
    memset(ret, 0, sizeof(*ret));
    if (strcmp(host, "[::1]") == 0) {
        *v6 = (struct sockaddr_in6){
            .sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port), .sin6_addr = in6addr_loopback};
        *ret_len = sizeof(*v6);
        *ret_loopback = true;
        return true;
    }
    if (*host == 0 || strcmp(host, "localhost") == 0)
        snprintf(host, sizeof(host), "127.0.0.1");
    *v4 = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    *ret_len = sizeof(*v4);
    *ret_loopback = inet_pton(AF_INET, host, &v4->sin_addr) == 1 && strncmp(host, "127.", 4) == 0;
    return true;
}

static int open_place(struct ub_metrics *x, const char *where, char *why)
{
    struct sockaddr_storage address;
    struct stat st;
    bool loopback = false;
    socklen_t len;
    int r;

    x->listener = -1;
    if (strncmp(where, "unix:", 5) == 0) {
        x->path = strdup(where + 5);
        r = x->listener = x->path ? listen_unix(x->path) : -ENOMEM;
    } else if (parse_port(where, &address, &len, &loopback)) {
        if (!loopback) {
            snprintf(why, UB_WHY_MAX,
                     "--metrics %.64s: only loopback addresses are served, as there is no password: use 127.0.0.1",
                     where);
            return -EINVAL;
        }
        r = x->listener = listen_on((struct sockaddr *)&address, len);
    } else if (stat(where, &st) == 0 && !S_ISREG(st.st_mode)) { /* the renaming would put a file in its place */
        snprintf(why, UB_WHY_MAX, "--metrics %.200s: is no regular file: choose another path", where);
        return -EINVAL;
    } else {
        x->path = strdup(where);
        r = x->path ? write_file(x) : -ENOMEM;
    }
    if (r < 0)
        snprintf(why, UB_WHY_MAX, "--metrics %.200s: %s", where, strerror(-r));
    return r < 0 ? r : 0;
}

/* ---- from outside ------------------------------------------------------------ */

static void feed(void *self, json_t *record)
{
    struct ub_metrics *x = self;

    pthread_mutex_lock(&x->lock);
    ub_model_line(x->model, record);
    pthread_mutex_unlock(&x->lock);
}

struct ub_sink ub_metrics_sink(struct ub_metrics *x)
{
    return (struct ub_sink){.line = feed, .self = x};
}

static void metrics_free(struct ub_metrics *x)
{
    if (x->listener >= 0) {
        close(x->listener);
        if (x->path)
            unlink(x->path);
    }
    if (x->stop >= 0)
        close(x->stop);
    pthread_mutex_destroy(&x->lock);
    free(x->path);
    free(x);
}

int ub_metrics_start(const char *where, struct ub_model *model, struct ub_metrics **ret, char *why)
{
    struct ub_metrics *x = calloc(1, sizeof(*x));
    sigset_t all, old;
    int r;

    if (!x)
        return -ENOMEM;
    x->model = model;
    pthread_mutex_init(&x->lock, NULL);
    x->stop = eventfd(0, EFD_CLOEXEC);
    r = open_place(x, where, why);
    if (r == 0) {
        sigfillset(&all); /* signals are for the main thread */
        pthread_sigmask(SIG_SETMASK, &all, &old);
        r = -pthread_create(&x->thread, NULL, work, x);
        pthread_sigmask(SIG_SETMASK, &old, NULL);
        if (r < 0)
            snprintf(why, UB_WHY_MAX, "--metrics: %s", strerror(-r));
    }
    if (r < 0)
        metrics_free(x);
    else
        *ret = x;
    return r;
}

void ub_metrics_stop(struct ub_metrics *x)
{
    if (!x)
        return;
    eventfd_write(x->stop, 1);
    pthread_join(x->thread, NULL);
    if (x->listener < 0)
        update_file(x);
    metrics_free(x);
}
