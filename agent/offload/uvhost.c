/*
 * Each loop with something suspended gets two handles of ours, flagged as libuv flags its own:
 * uv_walk does not show them, uv_loop_close does not mind them. A poll handle on our timer, which
 * also keeps the loop alive while something is suspended, and only then; and a timer as a
 * heartbeat, should the program close our descriptor.
 */
#include "uvhost.h"

#include "../loops/uv_layout.h"
#include "drive.h"

#define HANDLE_INTERNAL 0x10u /* UV_HANDLE_INTERNAL, since 1.19 */
#define VERSION_LEAST   0x011400
#define BEAT_MS         50u
#define READABLE        1
#define EBUSY_UV        (-16)
#define TIMER_WORDS     32u /* of struct ub_host's room, behind the poll handle */

enum {
    ID_version,
    ID_poll_init,
    ID_poll_start,
    ID_timer_init,
    ID_timer_start,
    ID_timer_stop,
    ID_timer_again,
    ID_ref,
    ID_unref,
    ID_run,
    ID_loop_close,
    ID_loop_delete,
    IDS,
};
static void *original[IDS][UB_LOOP_COPIES];

static void *poll_of(struct ub_host *h)
{
    return h->room;
}

static void *timer_of(struct ub_host *h)
{
    return h->room + TIMER_WORDS;
}

/* Its first member is the program's: here ours. */
static void on_poll(void **handle, int status, int events)
{
    ub_suspend_wake(*handle);
}

static void on_beat(void **handle)
{
    ub_suspend_wake(*handle);
}

static void make_internal(struct ub_host *h, void *handle)
{
    *(void **)handle = h;
    *(uint32_t *)((char *)handle + UB_UV_HANDLE_FLAGS) |= HANDLE_INTERNAL;
    ((void (*)(void *))original[ID_unref][0])(handle);
}

static bool attach(struct ub_host *h)
{
    if (((int (*)(void *, void *, int))original[ID_poll_init][0])(h->loop, poll_of(h), h->inbox.fd) != 0)
        return false;
    ((int (*)(void *, void *))original[ID_timer_init][0])(h->loop, timer_of(h));
    make_internal(h, poll_of(h));
    make_internal(h, timer_of(h));
    return ((int (*)(void *, int, void *))original[ID_poll_start][0])(poll_of(h), READABLE, (void *)on_poll) == 0;
}

static void hold(struct ub_host *h, bool alive)
{
    if (alive) {
        ((void (*)(void *))original[ID_ref][0])(poll_of(h));
        ((int (*)(void *, void *, uint64_t, uint64_t))original[ID_timer_start][0])(timer_of(h), (void *)on_beat,
                                                                                   BEAT_MS, BEAT_MS);
    } else {
        ((void (*)(void *))original[ID_unref][0])(poll_of(h));
        ((int (*)(void *))original[ID_timer_stop][0])(timer_of(h));
    }
}

static const struct ub_host_ops ops = {.attach = attach, .hold = hold};

/* One copy of the library, of a version that is known: with two it could not be told whose a handle is. */
static bool usable(void)
{
    static int known; /* 0: not asked yet */
    unsigned (*version)(void) = original[ID_version][0];

    if (!known)
        known = version && version() >= VERSION_LEAST && version() >> 16 == 1 ? 1 : -1;
    return known > 0 && !original[ID_version][1];
}

struct ub_host *ub_uv_host(const struct ub_shape *shape, const uint64_t word[UB_FIBER_WORDS], uint64_t *ret_key)
{
    uint64_t object = word[shape->object];
    uint32_t at;

    if (shape->library != UB_LOOP_LIBUV || !usable())
        return NULL;
    switch (shape->kind) {
    case UB_CALLBACK_TIMER:
    case UB_CALLBACK_ASYNC:
    case UB_CALLBACK_PROCESS:
    case UB_CALLBACK_CLOSE:
        at = UB_UV_HANDLE_LOOP;
        break;
    case UB_CALLBACK_FS:
        at = UB_UV_FS_LOOP;
        break;
    case UB_CALLBACK_WORK:
    case UB_CALLBACK_DNS:
        at = UB_UV_WORK_LOOP;
        break;
    default:
        return NULL;
    }
    *ret_key = object;
    return ub_suspend_host(*(void **)(object + at), &ops, shape->kind != UB_CALLBACK_CLOSE);
}

/* ---- what the program calls ------------------------------------------------------------------ */

static int hook_timer_stop(void *handle)
{
    ub_suspend_touched(handle);
    return ((int (*)(void *))original[ID_timer_stop][0])(handle);
}

static int hook_timer_again(void *handle)
{
    ub_suspend_touched(handle);
    return ((int (*)(void *))original[ID_timer_again][0])(handle);
}

/* Without us every callback is over when the loop returns: so it is with us. */
static int hook_run(void *loop, int mode)
{
    struct ub_host *h;
    int r;

    if (ub_drive_concerned()) /* a loop inside a callback, and it may be one that is suspended that ends it */
        ub_drive_all();
    r = ((int (*)(void *, int))original[ID_run][0])(loop, mode);
    h = ub_suspend_host(loop, &ops, false);
    if (h && h->count)
        ub_suspend_drain(h);
    return r;
}

static int hook_loop_close(void *loop)
{
    const struct ub_host *h = ub_suspend_host(loop, &ops, false);
    int r;

    if (h && h->count)
        return EBUSY_UV;
    r = ((int (*)(void *))original[ID_loop_close][0])(loop);
    if (r == 0)
        ub_suspend_gone(loop);
    return r;
}

/* Of uv_loop_new: it closes the loop itself. Not while something is in it, which libuv does not take. */
static void hook_loop_delete(void *loop)
{
    ub_suspend_gone(loop);
    ((void (*)(void *))original[ID_loop_delete][0])(loop);
}

static const struct ub_loop_hook hooks[] = {
    {"uv_version", {NULL}, false},
    {"uv_poll_init", {NULL}, false},
    {"uv_poll_start", {NULL}, false},
    {"uv_timer_init", {NULL}, false},
    {"uv_timer_start", {NULL}, false},
    {"uv_timer_stop", {(void *)hook_timer_stop, NULL}, false},
    {"uv_timer_again", {(void *)hook_timer_again, NULL}, false},
    {"uv_ref", {NULL}, false},
    {"uv_unref", {NULL}, false},
    {"uv_run", {(void *)hook_run, NULL}, false},
    {"uv_loop_close", {(void *)hook_loop_close, NULL}, false},
    {"uv_loop_delete", {(void *)hook_loop_delete, NULL}, false},
};
_Static_assert(UB_ARRAY_LEN(hooks) == IDS, "one original a hook");

static const char *const files[] = {"libuv.", NULL};

const struct ub_loop_ops ub_offload_uv = {
    .files = files, .prefix = "uv_", .hooks = hooks, .count = IDS, .originals = original};
