/*
 * The watcher's end of the control socket: one thread, poll, a fixed number of
 * clients, each with a bounded queue. Whoever does not ask within seconds, asks
 * for too much, or does not read, is hung up on.
 *
 * A little long for one file: all of it runs in that thread, on the same clients.
 */
#include "control_impl.h"
#include "json_get.h"

#include "../common/clock.h"

#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define CLIENTS_MAX   16
#define REQUEST_MAX   4096
#define QUEUE_MAX     ((size_t)2 << 20) /* bytes that a client may be behind */
#define IDLE_NS       10000000000u      /* without a whole request, or with unread bytes */
#define FOLDER_MAX    80                /* of the folder's path: a socket's has 107 bytes at most */
#define STALE_S       60                /* a socket that got no name for so long never will */
#define LAST_WORDS_MS 200               /* at the end, for followers to take the last lines */

struct client {
    int fd; /* -1: free */
    bool following;
    bool closing; /* once the queue is empty */
    char request[REQUEST_MAX];
    size_t request_len;
    char *queue; /* owned; bytes [sent, len) are to go */
    size_t sent, len, size;
    uint64_t dropped;  /* lines */
    uint64_t waits_ns; /* since when it owes us something */
    json_t *stacks;    /* ids that it has been told */
};

struct ub_control {
    struct ub_control_options options;
    pthread_mutex_t lock; /* protects all below; nothing is waited for with it held */
    struct ub_control_state state;
    const struct ub_watch *watch;
    struct client client[CLIENTS_MAX];
    uint32_t followers;
    bool stopping;

    pthread_t thread;
    bool running;
    int listener, wake;
    char path[sizeof(((struct sockaddr_un *)NULL)->sun_path)];
};

/* ---- a client's queue ---------------------------------------------------- */

static bool room_for(struct client *k, size_t more)
{
    if (k->sent > 0 && k->size - k->len < more) {
        memmove(k->queue, k->queue + k->sent, k->len - k->sent);
        k->len -= k->sent;
        k->sent = 0;
    }
    if (k->len + more > QUEUE_MAX)
        return false;
    if (k->size - k->len < more) {
        size_t size = (k->len + more) * 2 < QUEUE_MAX ? (k->len + more) * 2 : QUEUE_MAX;
        char *queue = realloc(k->queue, size);

        if (queue == NULL)
            return false;
        k->queue = queue;
        k->size = size;
    }
    return true;
}

/* Whole lines or nothing: what does not fit is counted, and told when there is room again. */
static bool put(struct client *k, const char *text, size_t len)
{
    if (!room_for(k, len + 1)) {
        k->dropped++;
        return false;
    }
    memcpy(k->queue + k->len, text, len);
    k->queue[k->len + len] = '\n';
    if (k->len == k->sent)
        k->waits_ns = ub_clock_monotonic_ns();
    k->len += len + 1;
    return true;
}

static void put_json(struct client *k, json_t *line)
{
    char *text = line != NULL ? json_dumps(line, JSON_COMPACT) : NULL;

    if (text != NULL)
        put(k, text, strlen(text));
    free(text);
    json_decref(line);
}

static void tell_dropped(struct client *k)
{
    uint64_t dropped = k->dropped;
    char text[96];

    if (dropped == 0 || k->len - k->sent > QUEUE_MAX / 2)
        return;
    snprintf(text, sizeof(text), "{\"type\":\"dropped\",\"lines\":%llu}", (unsigned long long)dropped);
    if (put(k, text, strlen(text)))
        k->dropped -= dropped;
}

static void put_stack(const struct ub_control *c, struct client *k, const json_t *id)
{
    const json_t *text;
    char key[32];

    if (!json_is_integer(id))
        return;
    snprintf(key, sizeof(key), "%lld", (long long)json_integer_value(id));
    text = json_object_get(c->state.stacks, key);
    if (text == NULL || json_object_get(k->stacks, key))
        return;
    if (put(k, json_string_value(text), json_string_length(text)))
        json_object_set_new(k->stacks, key, json_true());
}

/* The stacks that a line refers to come before it, once a client. */
static void put_stacks_of(const struct ub_control *c, struct client *k, const json_t *record)
{
    const json_t *sample;
    size_t i;

    put_stack(c, k, json_object_get(record, "stack"));
    json_array_foreach (json_object_get(record, "samples"), i, sample) {
        put_stack(c, k, json_object_get(sample, "stack"));
    }
}

/* ---- the sink: the explaining thread ---------------------------------------- */

static void wake(const struct ub_control *c)
{
    uint64_t one = 1;

    if (c->wake >= 0 && write(c->wake, &one, sizeof(one)) < 0) {
        /* it is full: the thread is awake anyway */
    }
}

static void sink_line(void *self, json_t *record)
{
    struct ub_control *c = self;
    char *text = NULL;

    pthread_mutex_lock(&c->lock);
    ub_control_state_line(&c->state, record);
    if (c->followers > 0 && !ub_json_is(record, "type", "stack"))
        text = json_dumps(record, JSON_COMPACT);
    for (int i = 0; text != NULL && i < CLIENTS_MAX; i++) {
        struct client *k = &c->client[i];

        if (k->fd < 0 || !k->following)
            continue;
        tell_dropped(k);
        put_stacks_of(c, k, record);
        put(k, text, strlen(text));
    }
    pthread_mutex_unlock(&c->lock);
    if (text != NULL)
        wake(c);
    free(text);
}

struct ub_sink ub_control_sink(struct ub_control *c)
{
    return (struct ub_sink){.line = sink_line, .self = c};
}

/* ---- requests ------------------------------------------------------------- */

static void hang_up(struct ub_control *c, struct client *k)
{
    if (k->following)
        c->followers--;
    close(k->fd);
    free(k->queue);
    json_decref(k->stacks);
    *k = (struct client){.fd = -1};
}

static void refuse(struct client *k, const char *why)
{
    put_json(k, json_pack("{s:s, s:s}", "type", "error", "text", why));
    k->closing = true;
}

static void follow(struct ub_control *c, struct client *k)
{
    const json_t *slow;
    size_t i;

    if (k->following)
        return;
    k->following = true;
    c->followers++;
    json_array_foreach (c->state.stalls, i, slow) {
        put_stacks_of(c, k, slow);
    }
}

static void answer(struct ub_control *c, struct client *k, const char *text, size_t len)
{
    UB_CLEANUP(ub_json_drop) json_t *request = json_loadb(text, len, 0, NULL);
    const char *name = ub_json_string(request, "request");

    if (name == NULL) {
        refuse(k, "a request is one line: {\"request\":\"status\"}");
    } else if (!strcmp(name, "status") || !strcmp(name, "follow")) {
        put_json(k, ub_control_state_status(&c->state, &c->options, c->watch));
        if (!strcmp(name, "follow"))
            follow(c, k);
    } else if (!strcmp(name, "detach") && c->options.detach != NULL) {
        put_json(k, json_pack("{s:s}", "type", "ok"));
        k->closing = true;
        c->options.detach(c->options.self);
    } else {
        refuse(k, "unknown request: this watcher knows status, follow and detach (a helper only)");
    }
}

/* True: the client stays. */
static bool read_requests(struct ub_control *c, struct client *k)
{
    ssize_t n = recv(k->fd, k->request + k->request_len, REQUEST_MAX - k->request_len, MSG_DONTWAIT);
    char *end;

    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
        return false;
    if (n < 0)
        return true;
    if (k->request_len == 0)
        k->waits_ns = ub_clock_monotonic_ns();
    k->request_len += (size_t)n;
    while (!k->closing && (end = memchr(k->request, '\n', k->request_len)) != NULL) {
        answer(c, k, k->request, (size_t)(end - k->request));
        k->request_len -= (size_t)(end + 1 - k->request);
        memmove(k->request, end + 1, k->request_len);
    }
    if (k->request_len == REQUEST_MAX)
        refuse(k, "the request is too long");
    if (k->closing)
        k->request_len = 0;
    return true;
}

static bool write_queue(struct client *k)
{
    while (k->sent < k->len) {
        ssize_t n = send(k->fd, k->queue + k->sent, k->len - k->sent, MSG_DONTWAIT | MSG_NOSIGNAL);

        if (n < 0)
            return errno == EAGAIN || errno == EINTR;
        k->sent += (size_t)n;
        k->waits_ns = ub_clock_monotonic_ns();
    }
    k->sent = k->len = 0;
    return !k->closing;
}

/* ---- the thread ------------------------------------------------------------ */

static bool is_welcome(int fd)
{
    struct ucred peer;
    socklen_t len = sizeof(peer);

    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) == 0 && (peer.uid == 0 || peer.uid == geteuid());
}

static void admit(struct ub_control *c)
{
    int fd = accept4(c->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

    if (fd < 0)
        return;
    for (int i = 0; is_welcome(fd) && i < CLIENTS_MAX; i++) {
        struct client *k = &c->client[i];

        if (k->fd >= 0)
            continue;
        *k = (struct client){.fd = fd, .waits_ns = ub_clock_monotonic_ns(), .stacks = json_object()};
        return;
    }
    close(fd);
}

/* It has unread bytes, or half a request, or has said nothing yet. A follower that has read everything may be silent.
 */
static bool owes(const struct client *k)
{
    return k->sent < k->len || k->request_len > 0 || !k->following;
}

static bool serve(struct ub_control *c, struct client *k, short events)
{
    if ((events & (POLLIN | POLLHUP | POLLERR)) && !k->closing && !read_requests(c, k))
        return false;
    if (!write_queue(k))
        return false;
    return !owes(k) || ub_clock_monotonic_ns() - k->waits_ns < IDLE_NS;
}

/* The descriptors to poll; at index i + 2 that of client i. Returns the timeout. */
static int prepare(struct ub_control *c, struct pollfd *p)
{
    int timeout_ms = -1;

    p[0] = (struct pollfd){.fd = c->listener, .events = POLLIN};
    p[1] = (struct pollfd){.fd = c->wake, .events = POLLIN};
    for (int i = 0; i < CLIENTS_MAX; i++) {
        const struct client *k = &c->client[i];

        p[i + 2] = (struct pollfd){.fd = k->fd, .events = POLLIN};
        if (k->sent < k->len)
            p[i + 2].events |= POLLOUT;
        if (k->fd >= 0 && owes(k))
            timeout_ms = 1000;
    }
    return timeout_ms;
}

static void *control_main(void *self)
{
    struct ub_control *c = self;
    struct pollfd p[CLIENTS_MAX + 2];
    uint64_t count;
    bool stopping;

    do {
        int timeout_ms;

        pthread_mutex_lock(&c->lock);
        timeout_ms = prepare(c, p);
        pthread_mutex_unlock(&c->lock);
        if (poll(p, CLIENTS_MAX + 2, timeout_ms) < 0)
            continue;
        if (p[1].revents && read(c->wake, &count, sizeof(count)) < 0)
            continue;
        pthread_mutex_lock(&c->lock);
        for (int i = 0; i < CLIENTS_MAX; i++)
            if (c->client[i].fd >= 0 && c->client[i].fd == p[i + 2].fd && !serve(c, &c->client[i], p[i + 2].revents))
                hang_up(c, &c->client[i]);
        if (p[0].revents)
            admit(c);
        stopping = c->stopping;
        pthread_mutex_unlock(&c->lock);
    } while (!stopping);
    return NULL;
}

/* ---- the socket -------------------------------------------------------------- */

static void address_of(const char *path, struct sockaddr_un *ret)
{
    *ret = (struct sockaddr_un){.sun_family = AF_UNIX};
    memccpy(ret->sun_path, path, '\0', sizeof(ret->sun_path) - 1);
}

/* Who is asked tells whether it lives; a pid may be another container's. */
static bool is_stale(const char *path)
{
    struct sockaddr_un address;
    struct stat st;
    bool stale;
    int fd;

    if (strstr(path, ".new") != NULL)
        return stat(path, &st) == 0 && time(NULL) - st.st_mtime > STALE_S;
    address_of(path, &address);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    stale = fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof(address)) != 0 && errno == ECONNREFUSED;
    if (fd >= 0)
        close(fd);
    return stale;
}

/* Watchers that were killed leave their sockets. */
static void remove_stale(const char *folder)
{
    const struct dirent *entry;
    DIR *dir = opendir(folder);

    while (dir != NULL && (entry = readdir(dir)) != NULL) {
        char path[sizeof(((struct sockaddr_un *)NULL)->sun_path)];
        const char *dot = strrchr(entry->d_name, '.');

        if (dot == NULL || (strcmp(dot, ".sock") != 0 && strcmp(dot, ".new") != 0) ||
            (size_t)snprintf(path, sizeof(path), "%.*s/%s", FOLDER_MAX, folder, entry->d_name) >= sizeof(path))
            continue;
        if (is_stale(path))
            unlink(path);
    }
    if (dir != NULL)
        closedir(dir);
}

/* It gets its name only when it answers, so that a name that does not answer is stale. */
static int open_socket(struct ub_control *c)
{
    char folder[FOLDER_MAX + 1], hidden[sizeof(c->path)];
    struct sockaddr_un address;
    int r = ub_control_folder(folder, sizeof(folder));

    if (r < 0)
        return r;
    remove_stale(folder);
    snprintf(c->path, sizeof(c->path), "%.*s/%d.sock", FOLDER_MAX, folder, (int)getpid());
    snprintf(hidden, sizeof(hidden), "%.*s/%d.new", FOLDER_MAX, folder, (int)getpid());
    address_of(hidden, &address);
    c->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (c->listener < 0)
        return -errno;
    unlink(hidden);
    if (bind(c->listener, (struct sockaddr *)&address, sizeof(address)) != 0 || listen(c->listener, CLIENTS_MAX) != 0 ||
        chmod(hidden, 0600) != 0 || rename(hidden, c->path) != 0) {
        r = -errno;
        unlink(hidden);
        close(c->listener);
        c->listener = -1;
    }
    return r;
}

struct ub_control *ub_control_new(const struct ub_control_options *options)
{
    struct ub_control *c = calloc(1, sizeof(*c));

    if (c == NULL)
        return NULL;
    c->options = *options;
    c->listener = c->wake = -1;
    for (int i = 0; i < CLIENTS_MAX; i++)
        c->client[i].fd = -1;
    pthread_mutex_init(&c->lock, NULL);
    if (ub_control_state_init(&c->state) == 0)
        return c;
    ub_control_free(c);
    return NULL;
}

static int start_thread(struct ub_control *c)
{
    sigset_t all, saved;
    int r;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &saved);
    r = pthread_create(&c->thread, NULL, control_main, c);
    pthread_sigmask(SIG_SETMASK, &saved, NULL);
    return -r;
}

int ub_control_open(struct ub_control *c, const struct ub_watch *watch)
{
    int r;

    pthread_mutex_lock(&c->lock);
    c->watch = watch;
    pthread_mutex_unlock(&c->lock);
    r = open_socket(c);
    if (r < 0)
        return r;
    c->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    r = c->wake < 0 ? -errno : start_thread(c);
    c->running = r == 0;
    return r;
}

void ub_control_leave(struct ub_control *c)
{
    if (c == NULL)
        return;
    pthread_mutex_lock(&c->lock);
    c->watch = NULL;
    pthread_mutex_unlock(&c->lock);
}

static bool all_told(struct ub_control *c)
{
    bool told = true;

    pthread_mutex_lock(&c->lock);
    for (int i = 0; i < CLIENTS_MAX; i++)
        told &= c->client[i].sent == c->client[i].len;
    pthread_mutex_unlock(&c->lock);
    return told;
}

void ub_control_free(struct ub_control *c)
{
    if (c == NULL)
        return;
    if (c->running) {
        for (int ms = 0; ms < LAST_WORDS_MS && !all_told(c); ms++)
            usleep(1000);
        pthread_mutex_lock(&c->lock);
        c->stopping = true;
        pthread_mutex_unlock(&c->lock);
        wake(c);
        pthread_join(c->thread, NULL);
    }
    if (c->listener >= 0) {
        unlink(c->path);
        close(c->listener);
    }
    for (int i = 0; i < CLIENTS_MAX; i++)
        if (c->client[i].fd >= 0)
            hang_up(c, &c->client[i]);
    if (c->wake >= 0)
        close(c->wake);
    ub_control_state_clear(&c->state);
    pthread_mutex_destroy(&c->lock);
    free(c);
}
