/*
 * A source whose callback is suspended is switched off, and on again when that is over, as the program has said last:
 * what it says meanwhile is kept until then. So it does not come again, nothing is prepared of it, and its descriptor
 * is not polled: who drops the source may close that.
 *
 * The source is held for as long: it stays valid until its callback returns, and its destroy callback comes after that.
 * One that its own callback has dropped already cannot be held any more; such a callback is not left.
 *
 * sd_event_exit means that nothing but exit sources runs from then on: what is suspended comes to its end before, and
 * nothing is left after it.
 */
#include "sdhost.h"

#include "decide.h"
#include "drive.h"
#include "running.h"

#include <errno.h>
#include <sys/epoll.h>
#include <time.h>

#define BEAT_US    50000
#define BEFORE_ALL INT64_MIN

enum { ONESHOT = -1, OFF, ON }; /* SD_EVENT_ONESHOT ... */

enum {
    ID_loop,
    ID_run,
    ID_default,
    ID_loop_ref,
    ID_loop_unref,
    ID_exit,
    ID_get_exit_code,
    ID_now,
    ID_add_io,
    ID_add_time,
    ID_ref,
    ID_unref,
    ID_disable_unref,
    ID_get_event,
    ID_get_enabled,
    ID_set_enabled,
    ID_get_io_events,
    ID_set_time_relative,
    ID_set_priority,
    ID_set_floating,
    ID_set_destroy_callback,
    ID_get_exit_on_failure,
    IDS,
};
static void *original[IDS][UB_LOOP_COPIES];

/* Of a host: those of our sources that it uses. */
enum { ROOM_SOURCE, ROOM_BEAT };

/* What a task keeps of its source: whether it is on, as far as the program can know; the times of its turn. */
enum { OWN_ENABLED, OWN_NOW };

static const int clocks[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME};

static void *call(uint32_t id, void *object)
{
    return ((void *(*)(void *))original[id][0])(object);
}

static int get_enabled(void *s)
{
    int enabled = OFF;

    ((int (*)(void *, int *))original[ID_get_enabled][0])(s, &enabled);
    return enabled;
}

static int set_enabled(void *s, int enabled)
{
    return ((int (*)(void *, int))original[ID_set_enabled][0])(s, enabled);
}

static int now(void *e, int clock, uint64_t *ret)
{
    return ((int (*)(void *, int, uint64_t *))original[ID_now][0])(e, clock, ret);
}

/* ---- our own sources --------------------------------------------------------------------------- */

static int on_wake(void *s, int fd, uint32_t events, void *host)
{
    ub_suspend_wake(host);
    return 0;
}

static void set_beat(struct ub_host *h, bool on)
{
    void *beat = (void *)h->room[ROOM_BEAT];

    if (on)
        ((int (*)(void *, uint64_t))original[ID_set_time_relative][0])(beat, BEAT_US);
    set_enabled(beat, on ? ONESHOT : OFF);
}

/* Should the program close our descriptor. */
static int on_beat(void *s, uint64_t at, void *host)
{
    struct ub_host *h = host;

    ub_suspend_wake(h);
    set_beat(h, h->held);
    return 0;
}

/* Never: it is there to be destroyed. */
static int on_never(void *s, uint64_t at, void *loop)
{
    return 0;
}

/* The loop goes, and its memory is not given back yet. By now the host may be another loop's. */
static void on_gone(void *loop)
{
    ub_running_gone(loop);
    ub_suspend_gone(loop);
}

/* Off, and the loop's own: it goes with the loop, and holds nothing. */
static void give_to_loop(void *s)
{
    set_enabled(s, OFF);
    ((int (*)(void *, int64_t))original[ID_set_priority][0])(s, BEFORE_ALL);
    ((int (*)(void *, int))original[ID_set_floating][0])(s, 1);
    call(ID_unref, s);
}

static bool attach(struct ub_host *h)
{
    int (*add_io)(void *, void **, int, uint32_t, void *, void *) = original[ID_add_io][0];
    int (*add_time)(void *, void **, int, uint64_t, uint64_t, void *, void *) = original[ID_add_time][0];
    void *source = NULL, *beat = NULL, *end = NULL;

    if (add_io(h->loop, &source, h->inbox.fd, EPOLLIN, (void *)on_wake, h) < 0 ||
        add_time(h->loop, &beat, CLOCK_MONOTONIC, 0, BEAT_US, (void *)on_beat, h) < 0 ||
        add_time(h->loop, &end, CLOCK_MONOTONIC, 0, BEAT_US, (void *)on_never, h->loop) < 0) {
        call(ID_unref, source);
        call(ID_unref, beat);
        return false;
    }
    give_to_loop(source);
    give_to_loop(beat);
    ((int (*)(void *, void *))original[ID_set_destroy_callback][0])(end, (void *)on_gone);
    give_to_loop(end);
    h->room[ROOM_SOURCE] = (uint64_t)(uintptr_t)source;
    h->room[ROOM_BEAT] = (uint64_t)(uintptr_t)beat;
    return true;
}

/* The loop ends when it is told to, not for want of sources. */
static void hold(struct ub_host *h, bool alive)
{
    set_enabled((void *)h->room[ROOM_SOURCE], alive ? ON : OFF);
    set_beat(h, alive);
}

/* ---- sources whose callbacks are suspended ------------------------------------------------------- */

static void mute(struct ub_task *task)
{
    void *s = (void *)task->key;
    int enabled = get_enabled(s);

    if (task->left)
        return;
    call(ID_ref, s);
    for (uint32_t i = 0; i < UB_ARRAY_LEN(clocks); i++)
        now(task->host->loop, clocks[i], &task->own[OWN_NOW + i]);
    /* One that comes once is off already as it is dispatched; what never begins has not come yet. */
    task->own[OWN_ENABLED] = (uint64_t)(task->behind && enabled == OFF ? ONESHOT : enabled);
    set_enabled(s, OFF);
}

static bool any(const struct ub_task *task, const void *which)
{
    return true;
}

static int leave_loop(void *e, int code);

static void back(struct ub_task *task)
{
    void *s = (void *)task->key;
    int r = task->behind ? 0 : (int)task->fiber.result;

    if (r >= 0)
        set_enabled(s, (int)task->own[OWN_ENABLED]);
    else if (((int (*)(void *))original[ID_get_exit_on_failure][0])(s) > 0)
        leave_loop(task->host->loop, r);
    call(ID_unref, s);
}

/* The library looks again whether it is ready. */
static bool is_told_ready(const struct ub_task *task, int fd)
{
    return task->shape->kind == UB_CALLBACK_IO && (int)task->argument[1] == fd;
}

static const struct ub_host_ops ops = {
    .attach = attach, .hold = hold, .mute = mute, .is_told_ready = is_told_ready, .back = back, .back_at_once = true};

/* One copy of the library, of a version that has everything. */
static bool usable(void)
{
    for (uint32_t i = 0; i < IDS; i++) {
        if (!original[i][0] || original[i][1])
            return false;
    }
    return true;
}

/* Edge-triggered descriptors: to watch one anew tells what was told before. */
static bool is_edge(void *s)
{
    int (*get)(void *, uint32_t *) = original[ID_get_io_events][0];
    uint32_t events = 0;

    return get(s, &events) >= 0 && events & EPOLLET;
}

bool ub_sd_may_leave(uint64_t source)
{
    void *s = (void *)source, *e;
    int code;

    if (!ub_offload_moves)
        return true;
    e = usable() ? call(ID_get_event, s) : NULL; /* NULL, too, once it is dropped */
    return e && ub_running_loop(UB_LOOP_SD_EVENT) == e && !is_edge(s) &&
           ((int (*)(void *, int *))original[ID_get_exit_code][0])(e, &code) == -ENODATA;
}

struct ub_host *ub_sd_host(const struct ub_shape *shape, const uint64_t word[UB_FIBER_WORDS], uint64_t *ret_key)
{
    if (shape->library != UB_LOOP_SD_EVENT || !ub_decide_shape_moves(shape) || !ub_sd_may_leave(word[0]))
        return NULL;
    *ret_key = word[0];
    return ub_suspend_host(ub_running_loop(UB_LOOP_SD_EVENT), &ops, true);
}

/* ---- what the program calls --------------------------------------------------------------------- */

#define DEFAULT ((void *)1) /* SD_EVENT_DEFAULT: the thread's own */

/* What is meant; NULL: there is none. */
static void *resolved(void *e)
{
    int (*get)(void **) = original[ID_default][0];

    if (e != DEFAULT)
        return e;
    e = NULL;
    if (get(NULL) > 0 && get(&e) >= 0)
        call(ID_loop_unref, e);
    return e;
}

static struct ub_host *existing_host(void *e)
{
    return ub_suspend_host(e, &ops, false);
}

/* Ours until what is suspended is over: the program may drop its own meanwhile. */
static int hook_loop(void *given)
{
    void *e = resolved(given);
    struct ub_host *h;
    void *outer;
    int r;

    if (ub_drive_concerned()) /* a loop inside a callback, and it may be one that is suspended that ends it */
        ub_drive_all();
    if (!e || !usable())
        return ((int (*)(void *))original[ID_loop][0])(given);
    call(ID_loop_ref, e);
    outer = ub_running_set(UB_LOOP_SD_EVENT, e);
    r = ((int (*)(void *))original[ID_loop][0])(e);
    h = existing_host(e);
    if (h && h->count) /* without us every callback is over when the loop returns */
        ub_suspend_drain(h);
    ub_running_set(UB_LOOP_SD_EVENT, outer);
    call(ID_loop_unref, e);
    return r;
}

/* A single turn, which returns when its callback is over: nothing is left in it. */
static int hook_run(void *e, uint64_t timeout)
{
    if (ub_drive_concerned())
        ub_drive_all();
    return ((int (*)(void *, uint64_t))original[ID_run][0])(e, timeout);
}

static int leave_loop(void *e, int code)
{
    const struct ub_host *h = existing_host(resolved(e));

    if (h && h->count)
        ub_drive_until_over(h, any, NULL);
    return ((int (*)(void *, int))original[ID_exit][0])(e, code);
}

/* The source's callback that is suspended, or goes on; NULL. */
static struct ub_task *task_of(const void *s)
{
    struct ub_task *task = ub_suspend_find(s);

    return task && task->host->ops == &ops && task->left ? task : NULL;
}

static int hook_set_enabled(void *s, int enabled)
{
    struct ub_task *task = task_of(s);

    if (!task || enabled < ONESHOT || enabled > ON)
        return set_enabled(s, enabled);
    task->own[OWN_ENABLED] = (uint64_t)enabled;
    return 0;
}

static int hook_get_enabled(void *s, int *ret)
{
    const struct ub_task *task = task_of(s);

    if (!task)
        return ((int (*)(void *, int *))original[ID_get_enabled][0])(s, ret);
    if (ret)
        *ret = (int)task->own[OWN_ENABLED];
    return task->own[OWN_ENABLED] != OFF;
}

static void *hook_disable_unref(void *s)
{
    if (s)
        hook_set_enabled(s, OFF);
    return call(ID_unref, s);
}

/* The time of the turn in which it began: timers are set by it. */
static int hook_now(void *e, int clock, uint64_t *ret)
{
    const struct ub_task *task = ub_suspend_current();

    if (task && task->left && task->host->ops == &ops && task->host->loop == resolved(e) && ret) {
        for (uint32_t i = 0; i < UB_ARRAY_LEN(clocks); i++) {
            if (clocks[i] == clock) {
                *ret = task->own[OWN_NOW + i];
                return 0;
            }
        }
    }
    return now(e, clock, ret);
}

/* clang-format off */
static const struct ub_loop_hook hooks[] = {
    {"sd_event_loop", {(void *)hook_loop, NULL}, UB_HOOK_OTHERS},
    {"sd_event_run", {(void *)hook_run, NULL}, UB_HOOK_OTHERS},
    {"sd_event_default", {NULL}, UB_HOOK_OTHERS},
    {"sd_event_ref", {NULL}, UB_HOOK_OTHERS},
    {"sd_event_unref", {NULL}, UB_HOOK_OTHERS},
    {"sd_event_exit", {(void *)leave_loop, NULL}, UB_HOOK_ALL},
    {"sd_event_get_exit_code", {NULL}, UB_HOOK_OTHERS},
    {"sd_event_now", {(void *)hook_now, NULL}, UB_HOOK_ALL},
    {"sd_event_add_io", {NULL}, UB_HOOK_OTHERS},
    {"sd_event_add_time", {NULL}, UB_HOOK_OTHERS},
    {"sd_event_source_ref", {NULL}, UB_HOOK_OTHERS},
    {"sd_event_source_unref", {NULL}, UB_HOOK_OTHERS},
    {"sd_event_source_disable_unref", {(void *)hook_disable_unref, NULL}, UB_HOOK_OTHERS},
    {"sd_event_source_get_event", {NULL}, UB_HOOK_OTHERS},
    {"sd_event_source_get_enabled", {(void *)hook_get_enabled, NULL}, UB_HOOK_OTHERS},
    {"sd_event_source_set_enabled", {(void *)hook_set_enabled, NULL}, UB_HOOK_OTHERS},
    {"sd_event_source_get_io_events", {NULL}, UB_HOOK_OTHERS},
    {"sd_event_source_set_time_relative", {NULL}, UB_HOOK_OTHERS},
    {"sd_event_source_set_priority", {NULL}, UB_HOOK_OTHERS},
    {"sd_event_source_set_floating", {NULL}, UB_HOOK_OTHERS},
    {"sd_event_source_set_destroy_callback", {NULL}, UB_HOOK_OTHERS},
    {"sd_event_source_get_exit_on_failure", {NULL}, UB_HOOK_OTHERS},
};
_Static_assert(UB_ARRAY_LEN(hooks) == IDS, "one original a hook");
/* clang-format on */

static const char *const files[] = {"libsystemd.", "libsystemd-shared-", NULL};

const struct ub_loop_ops ub_offload_sd = {
    .files = files, .prefix = "sd_event_", .hooks = hooks, .count = IDS, .originals = original};
