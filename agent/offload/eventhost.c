/*
 * Unfinished, and off unless it is asked for (offload_tasks).
 *
 * A callback of libevent is not told its event: the loop is (event_base_get_running_event), and which loop runs in a
 * thread is known by hooking event_base_loop. An event that stays added (EV_PERSIST on a descriptor) would come at once
 * again while its callback is suspended: it is taken out meanwhile, and added again unless the program has changed its
 * mind. Whoever takes an event out or frees it in another thread is promised that its callback does not run: that one
 * waits.
 *
 * Each loop with something suspended has one event of ours on our timer, which keeps it alive.
 */
#include "eventhost.h"

#include "../raw.h"
#include "drive.h"

#include <sys/time.h>
#include <time.h>

#define READ_PERSIST 0x12 /* EV_READ | EV_PERSIST */
#define TIMEOUT      0x01
#define ANYTHING     0x87 /* EV_TIMEOUT, EV_READ, EV_WRITE, EV_CLOSED: what it may wait for */
#define BEAT_US      50000
#define LOOPS_MAX    64u
#define LEFT_MAX     1024u

enum {
    ID_get_version,
    ID_new,
    ID_get_callback,
    ID_running,
    ID_pending,
    ID_add,
    ID_del,
    ID_del_block,
    ID_del_noblock,
    ID_free,
    ID_base_loop,
    ID_base_dispatch,
    ID_base_free,
    IDS,
};
static void *original[IDS][UB_LOOP_COPIES];

/* ---- loops ----------------------------------------------------------------------------------- */

/* Which loop runs in which thread. An entry is its thread's own. */
static struct {
    int32_t tid;
    void *base;
} running[LOOPS_MAX];

static void **running_in(int32_t tid, bool make)
{
    for (uint32_t i = 0; i < LOOPS_MAX; i++) {
        int32_t nobody = 0;

        if (ub_load_relaxed(&running[i].tid) == tid)
            return &running[i].base;
        if (make &&
            __atomic_compare_exchange_n(&running[i].tid, &nobody, tid, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
            return &running[i].base;
    }
    return NULL;
}

static void leave_entry(void **base)
{
    for (uint32_t i = 0; i < LOOPS_MAX; i++) {
        if (&running[i].base == base)
            ub_store_relaxed(&running[i].tid, 0);
    }
}

static void on_wake(int fd, short what, void *host)
{
    ub_suspend_wake(host);
}

static bool attach(struct ub_host *h)
{
    void *(*make)(void *, int, short, void (*)(int, short, void *), void *) = original[ID_new][0];

    h->room[0] = (uint64_t)(uintptr_t)make(h->loop, h->inbox.fd, READ_PERSIST, on_wake, h);
    return h->room[0] != 0;
}

static int add(void *event, const struct timeval *tv)
{
    return ((int (*)(void *, const struct timeval *))original[ID_add][0])(event, tv);
}

static int del(uint32_t id, void *event)
{
    return ((int (*)(void *))original[id][0])(event);
}

static void hold(struct ub_host *h, bool alive)
{
    const struct timeval beat = {.tv_usec = BEAT_US};

    if (alive)
        add((void *)h->room[0], &beat);
    else
        del(ID_del, (void *)h->room[0]);
}

/* ---- events whose callbacks are suspended ------------------------------------------------------- */

static struct {
    uint64_t event;   /* 0: free */
    int32_t tid, pid; /* a forked child has none of them */
} left[LEFT_MAX];

static bool is_left(uint64_t event, int32_t but)
{
    for (uint32_t i = 0; i < LEFT_MAX; i++) {
        if (ub_load_acquire(&left[i].event) == event && ub_load_relaxed(&left[i].tid) != but)
            return ub_load_relaxed(&left[i].pid) == (int32_t)ub_raw0(SYS_getpid);
    }
    return false;
}

static bool mute(struct ub_host *h, uint64_t key, bool first)
{
    void *event = (void *)key;
    int waits = ((int (*)(void *, short, struct timeval *))original[ID_pending][0])(event, ANYTHING & ~TIMEOUT, NULL);

    for (uint32_t i = 0; first && i < LEFT_MAX; i++) {
        if (!left[i].event) {
            ub_store_relaxed(&left[i].tid, (int32_t)ub_raw0(SYS_gettid));
            ub_store_relaxed(&left[i].pid, (int32_t)ub_raw0(SYS_getpid));
            ub_store_release(&left[i].event, key);
            break;
        }
    }
    if (!waits)
        return false;
    del(ID_del, event);
    return true;
}

static void back(struct ub_host *h, uint64_t key, bool muted, bool freed)
{
    for (uint32_t i = 0; i < LEFT_MAX; i++) {
        if (left[i].event == key) {
            ub_store_release(&left[i].event, 0);
            break;
        }
    }
    if (freed)
        ((void (*)(void *))original[ID_free][0])((void *)key);
    else if (muted)
        add((void *)key, NULL);
}

static const struct ub_host_ops ops = {.attach = attach, .hold = hold, .mute = mute, .back = back};

/* One copy, with all that is needed. */
static bool usable(void)
{
    for (uint32_t i = 0; i < IDS; i++) {
        if (!original[i][0] || original[i][1])
            return false;
    }
    return true;
}

struct ub_host *ub_event_host(const struct ub_shape *shape, uint64_t function, uint64_t *ret_key)
{
    void **base, *event;

    if (shape->library != UB_LOOP_LIBEVENT || (shape->kind != UB_CALLBACK_TIMER && shape->kind != UB_CALLBACK_IO) ||
        !usable() || !ub_process->arena->h.offload_tasks)
        return NULL;
    base = running_in(ub_thread.slot->tid, false);
    event = base && *base ? ((void *(*)(void *))original[ID_running][0])(*base) : NULL;
    /* One of libevent's own (event_base_once), which is gone when this callback returns? */
    if (!event ||
        (uint64_t)(uintptr_t)ub_thunk_original(((void *(*)(void *))original[ID_get_callback][0])(event)) != function)
        return NULL;
    /* What waits for a descriptor, but not for ever, would lose its time when it is taken out. */
    if (shape->kind == UB_CALLBACK_IO &&
        ((int (*)(void *, short, struct timeval *))original[ID_pending][0])(event, TIMEOUT, NULL))
        return NULL;
    *ret_key = (uint64_t)(uintptr_t)event;
    return ub_suspend_host(*base, &ops, true);
}

/* ---- what the program calls ------------------------------------------------------------------- */

static int run(void *base, int flags)
{
    void **own = running_in((int32_t)ub_raw0(SYS_gettid), true), *outer = own ? *own : NULL;
    struct ub_host *h;
    int r;

    if (ub_drive_concerned()) /* a loop inside a callback, and it may be one that is suspended that ends it */
        ub_drive_all();
    if (own)
        *own = base;
    r = ((int (*)(void *, int))original[ID_base_loop][0])(base, flags);
    h = ub_suspend_host(base, &ops, false);
    if (h && h->count) /* without us every callback is over when the loop returns */
        ub_suspend_drain(h);
    if (own && !(*own = outer))
        leave_entry(own);
    return r;
}

static int hook_base_loop(void *base, int flags)
{
    return run(base, flags);
}

static int hook_base_dispatch(void *base)
{
    return run(base, 0);
}

static void hook_base_free(void *base)
{
    struct ub_host *h = ub_suspend_host(base, &ops, false);

    if (h) {
        ((void (*)(void *))original[ID_free][0])((void *)h->room[0]);
        ub_suspend_forget(h);
    }
    ((void (*)(void *))original[ID_base_free][0])(base);
}

/* The caller is promised that the callback does not run. */
static void wait_for_others(void *event)
{
    const struct timespec moment = {.tv_nsec = 1000000};

    while (is_left((uint64_t)(uintptr_t)event, (int32_t)ub_raw0(SYS_gettid)))
        ub_raw2(SYS_nanosleep, &moment, 0);
}

static int hook_del(void *event)
{
    ub_suspend_touched(event);
    wait_for_others(event);
    return del(ID_del, event);
}

static int hook_del_block(void *event)
{
    ub_suspend_touched(event);
    wait_for_others(event);
    return del(ID_del_block, event);
}

static int hook_del_noblock(void *event)
{
    ub_suspend_touched(event);
    return del(ID_del_noblock, event);
}

static int hook_add(void *event, const struct timeval *tv)
{
    if (ub_suspend_is_muted(event)) {
        if (!tv)
            return 0; /* so it is, as far as the program can know */
        ub_suspend_touched(event);
    }
    return add(event, tv);
}

static void hook_free(void *event)
{
    ub_suspend_touched(event);
    if (ub_suspend_free_later(event)) {
        del(ID_del, event);
        return;
    }
    wait_for_others(event);
    ((void (*)(void *))original[ID_free][0])(event);
}

/* clang-format off */
static const struct ub_loop_hook hooks[] = {
    {"event_get_version", {NULL}, UB_HOOK_OTHERS},
    {"event_new", {NULL}, UB_HOOK_OTHERS},
    {"event_get_callback", {NULL}, UB_HOOK_OTHERS},
    {"event_base_get_running_event", {NULL}, UB_HOOK_OTHERS},
    {"event_pending", {NULL}, UB_HOOK_OTHERS},
    {"event_add", {(void *)hook_add, NULL}, UB_HOOK_OTHERS},
    {"event_del", {(void *)hook_del, NULL}, UB_HOOK_OTHERS},
    {"event_del_block", {(void *)hook_del_block, NULL}, UB_HOOK_OTHERS},
    {"event_del_noblock", {(void *)hook_del_noblock, NULL}, UB_HOOK_OTHERS},
    {"event_free", {(void *)hook_free, NULL}, UB_HOOK_OTHERS},
    {"event_base_loop", {(void *)hook_base_loop, NULL}, UB_HOOK_OTHERS},
    {"event_base_dispatch", {(void *)hook_base_dispatch, NULL}, UB_HOOK_OTHERS},
    {"event_base_free", {(void *)hook_base_free, NULL}, UB_HOOK_OTHERS},
};
_Static_assert(UB_ARRAY_LEN(hooks) == IDS, "one original a hook");
/* clang-format on */

static const char *const files[] = {"libevent-", "libevent_core-", NULL};

const struct ub_loop_ops ub_offload_event = {
    .files = files, .prefix = "event_", .hooks = hooks, .count = IDS, .originals = original};
