/*
 * The control socket of a watcher (`unblock run`, or the helper of a preloaded
 * program): what `ps`, `top` and their like talk to. The protocol is in
 * ui/README.md "The control socket".
 *
 * The watcher's side is one thread of its own. It never holds the watching
 * thread, and the explaining thread only as long as it takes to copy a line:
 * clients that do not read lose lines, clients that talk nonsense are hung up on.
 */
#ifndef UB_UI_CONTROL_H
#define UB_UI_CONTROL_H

#include "../tracer/watch.h"

#include <limits.h>

/* ---- the watcher's side ------------------------------------------------- */

struct ub_control;

struct ub_control_options {
    const char *mode;            /* "run", "trace", "attach" or "preload" */
    pid_t pid;                   /* of the program's first process */
    const char *recording;       /* its path, NULL: none */
    const char *recording_error; /* why there is none, NULL */
    /* The recording's lines that could not be written so far; NULL. Any thread. */
    uint64_t (*recording_lost)(void *self);
    /* A client of the same user asks the watcher to end. Called from the control thread; NULL: it cannot. */
    void (*detach)(void *self);
    /* One asks for another mode of offload: a word or the path of a file. 0, or -errno with `why` (UB_WHY_MAX bytes).
     * Called from the control thread, while there is a watch; NULL: it cannot. */
    int (*offload)(void *self, const char *mode, char *why);
    void *self;
};

/* Before the watch: its sink is one of the watch's. NULL: out of memory. */
struct ub_control *ub_control_new(const struct ub_control_options *options);
struct ub_sink ub_control_sink(struct ub_control *c);

/* The watch is there: opens the socket and starts the thread. 0 or -errno; without a socket all else works. */
int ub_control_open(struct ub_control *c, const struct ub_watch *watch);

/* The watch is about to stop: it is asked no more. What its sink still gets goes to the followers. */
void ub_control_leave(struct ub_control *c);

/* Ends the thread, removes the socket. NULL is fine. */
void ub_control_free(struct ub_control *c);

/* ---- the client's side --------------------------------------------------- */

struct ub_control_client;

/*
 * Connects to a socket and makes sure that it is what it seems: the peer is of
 * user `owner`. 0; -ECONNREFUSED: its watcher is dead; -EPERM: another's; other -errno.
 */
int ub_control_connect(const char *path, uid_t owner, struct ub_control_client **ret);
void ub_control_hang_up(struct ub_control_client *client);

/* Sends {"request": NAME} and waits for one object (2 s at most). A new reference in *ret; -ETIMEDOUT, -EBADMSG,
 * -EPIPE. */
int ub_control_request(struct ub_control_client *client, const char *name, json_t **ret);

/* The same with a whole request, which is taken. */
int ub_control_ask(struct ub_control_client *client, json_t *request, json_t **ret);

/* The next line after a "follow". -EAGAIN: none within `timeout_ms`; -EPIPE: the watcher has ended. */
int ub_control_next(struct ub_control_client *client, int timeout_ms, json_t **ret);

/* To be polled beside others; ub_control_next when readable. */
int ub_control_fd(const struct ub_control_client *client);

/*
 * Calls `found` for each socket that a watcher may be behind: of this user, and
 * for root of everybody. `found` returns false to stop.
 */
void ub_control_each(bool (*found)(void *self, const char *path, uid_t owner), void *self);

/* Connects to the watcher that watches process `pid` (or is it). -ESRCH: none. */
int ub_control_find(pid_t pid, struct ub_control_client **ret);

/* ---- where the sockets are ------------------------------------------------ */

/*
 * This user's folder: /run/unblock (root), $XDG_RUNTIME_DIR/unblock, else
 * /tmp/unblock-UID; made when missing. 0 or -errno.
 */
int ub_control_folder(char *path, size_t size);

#endif
