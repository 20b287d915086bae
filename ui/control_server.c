/*
 * The watcher's end of the control socket: one thread, poll, a fixed number of
 * clients, each with a bounded queue. Whoever does not ask within seconds, asks
 * for too much, or does not read, is hung up on.
 */
#include "control_peer.h"
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
#define IDLE_NS       10000000000u /* without a whole request, or with unread bytes */
#define FOLDER_MAX    80           /* of the folder's path: a socket's has 107 bytes at most */
#define STALE_S       60           /* a socket that got no name for so long never will */
#define LAST_WORDS_MS 200          /* at the end, for followers to take the last lines */

struct ub_control {
    struct ub_control_options options;
    pthread_mutex_t lock; /* protects all below; nothing is waited for with it held */
    struct ub_control_state state;
    const struct ub_watch *watch;
    struct ub_control_peer client[CLIENTS_MAX];
    bool stopping;

    pthread_t thread;
    bool running;
    int listener, wake;
    char path[sizeof(((struct sockaddr_un *)NULL)->sun_path)];
};

/* ---- the sink: the explaining thread ---------------------------------------- */

static void wake(const struct ub_control *c)
{
    uint64_t one = 1;

    if (c->wake >= 0 && write(c->wake, &one, sizeof(one)) < 0) {
        /* it is full: the thread is awake anyway */
    }
}

static bool is_followed(const struct ub_control *c)
{
    for (int i = 0; i < CLIENTS_MAX; i++)
        if (c->client[i].following)
            return true;
    return false;
}

static void sink_line(void *self, json_t *record)
{
    struct ub_control *c = self;
    char *text = NULL;

    pthread_mutex_lock(&c->lock);
    ub_control_state_line(&c->state, record);
    if (is_followed(c) && !ub_json_is(record, "type", "stack"))
        text = json_dumps(record, JSON_COMPACT);
    for (int i = 0; text != NULL && i < CLIENTS_MAX; i++) {
        struct ub_control_peer *k = &c->client[i];

        if (k->following)
            ub_control_peer_tell(k, &c->state, record, text);
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

static void hang_up(struct ub_control_peer *k)
{
    close(k->fd);
    ub_control_peer_clear(k);
}

/* True: the client stays. */
static bool read_requests(struct ub_control *c, struct ub_control_peer *k)
{
    const struct ub_control_source source = {&c->options, &c->state, c->watch};
    ssize_t n = recv(k->fd, k->request + k->request_len, sizeof(k->request) - k->request_len, MSG_DONTWAIT);

    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
        return false;
    if (n > 0)
        ub_control_peer_got(k, &source, (size_t)n);
    return true;
}

static bool write_queue(struct ub_control_peer *k)
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
        struct ub_control_peer *k = &c->client[i];

        if (k->fd >= 0)
            continue;
        if (ub_control_peer_init(k, fd) < 0)
            break;
        return;
    }
    close(fd);
}

/* It has unread bytes, or half a request, or has said nothing yet. A follower that has read everything may be silent.
 */
static bool owes(const struct ub_control_peer *k)
{
    return k->sent < k->len || k->request_len > 0 || !k->following;
}

static bool serve(struct ub_control *c, struct ub_control_peer *k, short events)
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
        const struct ub_control_peer *k = &c->client[i];

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
    bool stopping = false; /* what interrupts the poll comes back to the loop's condition */

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
                hang_up(&c->client[i]);
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
            hang_up(&c->client[i]);
    if (c->wake >= 0)
        close(c->wake);
    ub_control_state_clear(&c->state);
    pthread_mutex_destroy(&c->lock);
    free(c);
}
