/*
 * Requests of evhttp's clients. A program may answer one whenever it likes: to the library a callback that is suspended
 * is one that has not answered yet. But until it is over nothing may come of the connection, as nothing would come
 * without us: were its client gone, the request would lose its connection; were the answer sent, it would be freed. So
 * the connection neither reads nor writes meanwhile, and has no time limit.
 */
#include "eventhost.h"

#include "drive.h"

#define READ_AND_WRITE 0x06

enum {
    ID_get_connection,
    ID_connection_base,
    ID_connection_bufferevent,
    ID_connection_free,
    ID_free,
    IDS,
};
static void *original[IDS][UB_LOOP_COPIES];

/* Of bufferevents, which may be in another file. */
enum { BUF_incref, BUF_decref, BUF_enable, BUF_disable, BUF_enabled, BUFS };
static void *buf[BUFS][UB_LOOP_COPIES];

/* What a task keeps. */
enum { OWN_CONNECTION, OWN_BUFFEREVENT, OWN_MUTED };

static uint64_t ask(uint32_t id, uint64_t object)
{
    return ((uint64_t(*)(uint64_t))original[id][0])(object);
}

bool ub_evhttp_usable(void)
{
    for (uint32_t i = 0; i < IDS; i++) {
        if (!original[i][0])
            return false;
    }
    for (uint32_t i = 0; i < BUFS; i++) {
        if (!buf[i][0])
            return false;
    }
    return true;
}

void *ub_evhttp_base(uint64_t request)
{
    uint64_t connection = ask(ID_get_connection, request);

    return connection ? (void *)(uintptr_t)ask(ID_connection_base, connection) : NULL;
}

void ub_evhttp_begin(struct ub_task *task)
{
    task->own[OWN_CONNECTION] = ask(ID_get_connection, task->key);
    task->own[OWN_BUFFEREVENT] = ask(ID_connection_bufferevent, task->own[OWN_CONNECTION]);
    task->own[OWN_MUTED] = 0;
}

void ub_evhttp_mute(struct ub_task *task)
{
    void *b = (void *)(uintptr_t)task->own[OWN_BUFFEREVENT];
    short enabled;

    if (!b) /* the callback itself has freed it */
        return;
    if (!task->muted)
        ((void (*)(void *))buf[BUF_incref][0])(b);
    task->muted = true;
    enabled = ((short (*)(void *))buf[BUF_enabled][0])(b)&READ_AND_WRITE;
    task->own[OWN_MUTED] |= (uint64_t)enabled; /* an answer may have been given since the last time */
    ((int (*)(void *, short))buf[BUF_disable][0])(b, enabled);
}

void ub_evhttp_back(struct ub_task *task)
{
    void *b = (void *)(uintptr_t)task->own[OWN_BUFFEREVENT];

    if (!task->muted)
        return;
    if (task->own[OWN_CONNECTION])
        ((int (*)(void *, short))buf[BUF_enable][0])(b, (short)task->own[OWN_MUTED]);
    ((int (*)(void *))buf[BUF_decref][0])(b);
}

/* ---- what the program calls -------------------------------------------------------------------- */

static bool is_of_connection(const struct ub_task *task, const void *connection)
{
    return task->shape->special == UB_SHAPE_REQUEST &&
           (!connection || task->own[OWN_CONNECTION] == (uint64_t)(uintptr_t)connection);
}

/* Those that use it come to their ends first; the caller's own knows what it does. */
static void before_free(const void *connection)
{
    void *base = ub_drive_concerned() ? ub_event_base() : NULL;
    struct ub_host *h = base ? ub_event_existing_host(base) : NULL;
    struct ub_task *self = ub_suspend_current();

    if (h)
        ub_drive_until_over(h, is_of_connection, connection);
    if (self && is_of_connection(self, connection)) {
        self->own[OWN_CONNECTION] = 0;
        if (!self->muted)
            self->own[OWN_BUFFEREVENT] = 0;
    }
}

static void hook_connection_free(void *connection)
{
    before_free(connection);
    ((void (*)(void *))original[ID_connection_free][0])(connection);
}

static void hook_free(void *http)
{
    before_free(NULL);
    ((void (*)(void *))original[ID_free][0])(http);
}

static const struct ub_loop_hook hooks[] = {
    {"evhttp_request_get_connection", {NULL}, UB_HOOK_OTHERS},
    {"evhttp_connection_get_base", {NULL}, UB_HOOK_OTHERS},
    {"evhttp_connection_get_bufferevent", {NULL}, UB_HOOK_OTHERS},
    {"evhttp_connection_free", {(void *)hook_connection_free, NULL}, UB_HOOK_OTHERS},
    {"evhttp_free", {(void *)hook_free, NULL}, UB_HOOK_OTHERS},
};
_Static_assert(UB_ARRAY_LEN(hooks) == IDS, "one original a hook");

static const struct ub_loop_hook buf_hooks[] = {
    {"bufferevent_incref", {NULL}, UB_HOOK_OTHERS},      {"bufferevent_decref", {NULL}, UB_HOOK_OTHERS},
    {"bufferevent_enable", {NULL}, UB_HOOK_OTHERS},      {"bufferevent_disable", {NULL}, UB_HOOK_OTHERS},
    {"bufferevent_get_enabled", {NULL}, UB_HOOK_OTHERS},
};
_Static_assert(UB_ARRAY_LEN(buf_hooks) == BUFS, "one original a hook");

static const char *const files[] = {"libevent-", "libevent_extra-", NULL};
static const char *const buf_files[] = {"libevent-", "libevent_core-", NULL};

const struct ub_loop_ops ub_offload_evhttp = {
    .files = files, .prefix = "evhttp_", .hooks = hooks, .count = IDS, .originals = original};
const struct ub_loop_ops ub_offload_bufferevent = {
    .files = buf_files, .prefix = "bufferevent_", .hooks = buf_hooks, .count = BUFS, .originals = buf};
