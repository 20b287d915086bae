/*
 * A watcher lies in the program's memory, which sets and asks it by macros: nothing is seen of that. And it may be gone
 * as soon as its callback has begun. So it is touched only while it is active: the program must stop it before it does
 * anything else to it, and that is a function, which is hooked.
 *
 * A descriptor's watcher that stays active would come at once again while its callback is suspended: it is stopped
 * meanwhile, but still says that it is active; to stop it then is to say that it is not. Whatever else comes of a
 * watcher meanwhile comes once, when its callback is over, unless it was stopped or started anew.
 *
 * Each loop with something suspended has two watchers of ours, which keep it alive.
 */
#include "evhost.h"

#include "decide.h"
#include "drive.h"
#include "running.h"

#include <string.h>

#define READ          1 /* EV_READ */
#define BEAT_S        0.05
#define HIGHEST       2 /* EV_MAXPRI of the default build */
#define WATCHER_WORDS 8u

enum {
    ID_new,
    ID_run,
    ID_invoke,
    ID_invoke_pending,
    ID_loop_destroy,
    ID_clear_pending,
    ID_feed_event,
    ID_io_start,
    ID_io_stop,
    ID_timer_start,
    ID_timer_stop,
    ID_timer_again,
    ID_periodic_stop,
    ID_periodic_again,
    ID_async_stop,
    ID_signal_stop,
    IDS,
};
static void *original[IDS][UB_LOOP_COPIES];

/* The public structures of the default build (../loops/libev.c): what all begin with, a descriptor's, a timer's. */
struct watcher {
    int active, pending, priority;
    void *data;
    void *cb;
};

struct io {
    struct watcher base;
    void *next;
    int fd, events;
};

struct timer {
    struct watcher base;
    double at, repeat;
};
_Static_assert(sizeof(struct io) <= WATCHER_WORDS * 8 && sizeof(struct timer) <= WATCHER_WORDS * 8, "their room");

/* What a task keeps: whether its watcher is active, as far as the program can know. */
enum { OWN_ACTIVE };

static void call(uint32_t id, void *loop, void *w)
{
    ((void (*)(void *, void *))original[id][0])(loop, w);
}

static bool has_fd(const struct ub_task *task)
{
    return task->shape->kind == UB_CALLBACK_IO;
}

/* ---- our own watchers --------------------------------------------------------------------------- */

static struct io *io_of(struct ub_host *h)
{
    return (struct io *)h->room;
}

static struct timer *beat_of(struct ub_host *h)
{
    return (struct timer *)(h->room + WATCHER_WORDS);
}

static void on_wake(void *loop, struct watcher *w, int events)
{
    ub_suspend_wake(w->data);
}

bool ub_ev_is_waker(const void *callback)
{
    return callback == (const void *)on_wake;
}

static bool attach(struct ub_host *h)
{
    const struct watcher ours = {.priority = HIGHEST, .data = h, .cb = (void *)on_wake};

    *io_of(h) = (struct io){.base = ours, .fd = h->inbox.fd, .events = READ | 0x80 /* EV__IOFDSET */};
    *beat_of(h) = (struct timer){.base = ours};
    return true;
}

/* The second, should the program close our descriptor. */
static void hold(struct ub_host *h, bool alive)
{
    struct timer *beat = beat_of(h);

    if (alive)
        beat->at = beat->repeat = BEAT_S;
    call(alive ? ID_io_start : ID_io_stop, h->loop, io_of(h));
    call(alive ? ID_timer_start : ID_timer_stop, h->loop, beat);
}

/* ---- watchers whose callbacks are suspended ------------------------------------------------------- */

static void begin(struct ub_task *task)
{
    task->own[OWN_ACTIVE] = has_fd(task) && ((struct watcher *)task->key)->active;
}

static void mute(struct ub_task *task)
{
    struct watcher *w = (struct watcher *)task->key;
    int fed;

    if (task->muted || !task->own[OWN_ACTIVE])
        return;
    fed = w->pending ? ((int (*)(void *, void *))original[ID_clear_pending][0])(task->host->loop, w) : 0;
    call(ID_io_stop, task->host->loop, w);
    w->active = 1;
    task->muted = true;
    if (fed) /* by its own callback */
        ((void (*)(void *, void *, int))original[ID_feed_event][0])(task->host->loop, w, fed);
}

static void start_again(struct ub_task *task)
{
    struct watcher *w = (struct watcher *)task->key;

    w->active = 0;
    call(ID_io_start, task->host->loop, w);
}

/*
 * Started anew meanwhile, and ready: whether it still is when this callback is over is seen then. (What is told of one
 * that is not active, or by the program, is told once, and put off.)
 */
static bool again(struct ub_task *task, const struct ub_shape *shape, const uint64_t word[UB_FIBER_WORDS])
{
    if (shape->kind == UB_CALLBACK_IO)
        mute(task);
    return shape->kind == UB_CALLBACK_IO && task->muted;
}

static bool is_told_ready(const struct ub_task *task, int fd)
{
    return has_fd(task) && task->own[OWN_ACTIVE] && ((const struct io *)task->key)->fd == fd;
}

static void back(struct ub_task *task)
{
    if (task->muted)
        start_again(task);
}

/* As libev would read it now. Who frees a watcher of which something is due has to stop it before. */
static void due(struct ub_pending *p)
{
    p->function = (uint64_t)(uintptr_t)ub_thunk_original(((struct watcher *)p->key)->cb);
}

static const struct ub_host_ops ops = {.attach = attach,
                                       .hold = hold,
                                       .begin = begin,
                                       .mute = mute,
                                       .again = again,
                                       .is_told_ready = is_told_ready,
                                       .back = back,
                                       .orphan = back,
                                       .orphan_at_fork = true,
                                       .due = due};

/* One copy of the library, with everything. */
static bool usable(void)
{
    for (uint32_t i = 0; i < IDS; i++) {
        if (!original[i][0] || original[i][1])
            return false;
    }
    return true;
}

bool ub_ev_may_leave(void)
{
    return !ub_offload_moves || ub_running_loop(UB_LOOP_LIBEV);
}

struct ub_host *ub_ev_host(const struct ub_shape *shape, const uint64_t word[UB_FIBER_WORDS], uint64_t *ret_key)
{
    void *loop = (void *)word[0];
    const struct ub_task *earlier;

    if (shape->library != UB_LOOP_LIBEV || ub_running_loop(UB_LOOP_LIBEV) != loop)
        return NULL;
    earlier = ub_suspend_find((void *)word[1]); /* whatever comes of its watcher comes after it */
    if (earlier && earlier->host->ops == &ops && earlier->host->loop == loop) {
        *ret_key = word[1];
        return earlier->host;
    }
    if (!ub_decide_shape_moves(shape) || !usable())
        return NULL;
    *ret_key = word[1];
    return ub_suspend_host(loop, &ops, true);
}

/* ---- what the program calls --------------------------------------------------------------------- */

static int hook_run(void *loop, int flags)
{
    struct ub_host *h;
    void *outer;
    int r;

    if (ub_drive_concerned()) /* a loop inside a callback, and it may be one that is suspended that ends it */
        ub_drive_all();
    outer = ub_running_set(UB_LOOP_LIBEV, loop);
    r = ((int (*)(void *, int))original[ID_run][0])(loop, flags);
    h = ub_suspend_host(loop, &ops, false);
    if (h && h->count) /* without us every callback is over when the loop returns */
        ub_suspend_drain(h);
    ub_running_set(UB_LOOP_LIBEV, outer);
    return r;
}

static bool is_of(const struct ub_task *task, const void *w)
{
    return !w || task->key == (uint64_t)(uintptr_t)w;
}

/* The program calls back by itself, and relies on it that this is over when it returns: nothing is left meanwhile. `w`:
 * whose callback; NULL: all. */
static void *enter_own(void *loop, const void *w)
{
    const struct ub_host *h = ub_suspend_host(loop, &ops, false);

    if (h && h->count)
        ub_drive_until_over(h, is_of, w);
    return ub_running_set(UB_LOOP_LIBEV, NULL);
}

static void hook_invoke(void *loop, void *w, int events)
{
    void *outer = enter_own(loop, w);

    ((void (*)(void *, void *, int))original[ID_invoke][0])(loop, w, events);
    ub_running_set(UB_LOOP_LIBEV, outer);
}

/* Also of ev_set_invoke_pending_cb. */
static void hook_invoke_pending(void *loop)
{
    void *outer = enter_own(loop, NULL);

    ((void (*)(void *))original[ID_invoke_pending][0])(loop);
    ub_running_set(UB_LOOP_LIBEV, outer);
}

static void hook_loop_destroy(void *loop)
{
    ub_suspend_gone(loop);
    ub_running_gone(loop);
    ((void (*)(void *))original[ID_loop_destroy][0])(loop);
}

static struct ub_task *task_of(const void *w)
{
    struct ub_task *task = ub_suspend_find(w);

    return task && task->host->ops == &ops ? task : NULL;
}

/* It is as it says: what we have stopped is not active. */
static void hook_io_stop(void *loop, struct watcher *w)
{
    struct ub_task *task = task_of(w);

    if (task && task->muted)
        w->active = 0;
    ub_suspend_touched(w);
    if (task)
        task->own[OWN_ACTIVE] = false;
    call(ID_io_stop, loop, w);
}

static void hook_io_start(void *loop, struct watcher *w)
{
    struct ub_task *task = task_of(w);

    call(ID_io_start, loop, w); /* nothing, if it says that it is active */
    if (task)
        task->own[OWN_ACTIVE] = true;
}

static int hook_clear_pending(void *loop, struct watcher *w)
{
    struct ub_task *task = task_of(w);
    bool muted = task && task->muted;

    ub_suspend_touched(w);
    if (task)
        task->muted = muted;
    return ((int (*)(void *, void *))original[ID_clear_pending][0])(loop, w);
}

/* What is due of it is no longer. */
#define TOUCHING(name)                                                                                                 \
    static void hook_##name(void *loop, void *w)                                                                       \
    {                                                                                                                  \
        ub_suspend_touched(w);                                                                                         \
        call(ID_##name, loop, w);                                                                                      \
    }
TOUCHING(timer_stop)
TOUCHING(timer_again)
TOUCHING(periodic_stop)
TOUCHING(periodic_again)
TOUCHING(async_stop)
TOUCHING(signal_stop)

/* clang-format off */
static const struct ub_loop_hook hooks[] = {
    {"ev_loop_new", {NULL}, UB_HOOK_OTHERS}, /* only there where each function takes the loop */
    {"ev_run", {(void *)hook_run, NULL}, UB_HOOK_OTHERS},
    {"ev_invoke", {(void *)hook_invoke, NULL}, UB_HOOK_OTHERS},
    {"ev_invoke_pending", {(void *)hook_invoke_pending, NULL}, UB_HOOK_OTHERS},
    {"ev_loop_destroy", {(void *)hook_loop_destroy, NULL}, UB_HOOK_OTHERS},
    {"ev_clear_pending", {(void *)hook_clear_pending, NULL}, UB_HOOK_OTHERS},
    {"ev_feed_event", {NULL}, UB_HOOK_OTHERS},
    {"ev_io_start", {(void *)hook_io_start, NULL}, UB_HOOK_ALL},
    {"ev_io_stop", {(void *)hook_io_stop, NULL}, UB_HOOK_ALL}, /* ev_once stops what it then frees */
    {"ev_timer_start", {NULL}, UB_HOOK_OTHERS},
    {"ev_timer_stop", {(void *)hook_timer_stop, NULL}, UB_HOOK_OTHERS},
    {"ev_timer_again", {(void *)hook_timer_again, NULL}, UB_HOOK_OTHERS},
    {"ev_periodic_stop", {(void *)hook_periodic_stop, NULL}, UB_HOOK_OTHERS},
    {"ev_periodic_again", {(void *)hook_periodic_again, NULL}, UB_HOOK_OTHERS},
    {"ev_async_stop", {(void *)hook_async_stop, NULL}, UB_HOOK_OTHERS},
    {"ev_signal_stop", {(void *)hook_signal_stop, NULL}, UB_HOOK_OTHERS},
};
_Static_assert(UB_ARRAY_LEN(hooks) == IDS, "one original a hook");
/* clang-format on */

static const char *const files[] = {"libev.", NULL};

const struct ub_loop_ops ub_offload_ev = {
    .files = files, .prefix = "ev_", .hooks = hooks, .count = IDS, .originals = original};
