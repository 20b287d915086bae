/*
 * A callback of libevent is not told its event: the loop is (event_base_get_running_event), and which loop runs in a
 * thread is known by hooking what runs it. An event that stays added (EV_PERSIST on a descriptor) would come at once
 * again while its callback is suspended: it is taken out meanwhile, and added again unless the program has changed its
 * mind. Whoever takes an event out or frees it in another thread is promised that its callback does not run: that one
 * waits.
 *
 * An event lies in the program's memory, and may be gone as soon as its callback has begun: it is touched only while
 * the program has it added. What the program has done to it is followed by hooks.
 *
 * Each loop with something suspended has one event of ours on our timer, which keeps it alive.
 *
 * Longer than most files here: what the program may do to an event while its callback is suspended, and what becomes
 * of it then, is one set of rules about one state.
 */
#include "eventhost.h"

#include "../raw.h"
#include "decide.h"
#include "drive.h"
#include "running.h"

#include <string.h>
#include <sys/time.h>
#include <time.h>

#define TIMEOUT      0x01
#define DESCRIPTOR   0x86 /* EV_READ, EV_WRITE, EV_CLOSED: what it may wait for */
#define PERSIST      0x10
#define EDGE         0x20
#define READ_PERSIST 0x12
#define BEAT_US      50000
#define LEFT_MAX     1024u
#define COUNT_ADDED  4u /* EVENT_BASE_COUNT_ADDED */

enum {
    ID_get_version,
    ID_new,
    ID_get_callback,
    ID_get_fd,
    ID_get_base,
    ID_get_events,
    ID_running,
    ID_pending,
    ID_add,
    ID_remove_timer,
    ID_active,
    ID_del,
    ID_del_block,
    ID_del_noblock,
    ID_free,
    ID_priority_set,
    ID_base_loop,
    ID_base_dispatch,
    ID_loop,
    ID_dispatch,
    ID_base_free,
    ID_base_free_nofinalize,
    ID_num_events,
    ID_foreach,
    IDS,
};
static void *original[IDS][UB_LOOP_COPIES];

/* What a task keeps of its event: flags and kinds, when its time is over (of the day, microseconds; 0: it has none),
 * and how long that is each time. */
enum { OWN_STATE, OWN_UNTIL, OWN_SECONDS, OWN_MICROSECONDS };
#define ADDED     (1ull << 32) /* so the program believes */
#define ACTIVATED (1ull << 33) /* by the program itself */
#define GONE      (1ull << 34) /* freed, or made anew */

static uint64_t ask(uint32_t id, const void *object)
{
    return ((uint64_t(*)(const void *))original[id][0])(object);
}

static int ask_pending(const void *event, short what, struct timeval *ret)
{
    return ((int (*)(const void *, short, struct timeval *))original[ID_pending][0])(event, what, ret);
}

static int add(void *event, const struct timeval *tv)
{
    return ((int (*)(void *, const struct timeval *))original[ID_add][0])(event, tv);
}

static int del(uint32_t id, void *event)
{
    return ((int (*)(void *))original[id][0])(event);
}

/* ---- loops ----------------------------------------------------------------------------------- */

static void on_wake(int fd, short what, void *host)
{
    ub_suspend_wake(host);
}

static bool attach(struct ub_host *h)
{
    void *(*make)(void *, int, short, void (*)(int, short, void *), void *) = original[ID_new][0];

    h->room[0] = (uint64_t)(uintptr_t)make(h->loop, h->inbox.fd, READ_PERSIST, on_wake, h);
    if (!h->room[0])
        return false;
    /* Before all others: what has begun has to end, however busy more important events keep the loop. */
    ((int (*)(void *, int))original[ID_priority_set][0])((void *)h->room[0], 0);
    return true;
}

static void detach(struct ub_host *h)
{
    if (h->room[0])
        ((void (*)(void *))original[ID_free][0])((void *)h->room[0]);
}

static void hold(struct ub_host *h, bool alive)
{
    const struct timeval beat = {.tv_usec = BEAT_US};

    if (alive)
        add((void *)h->room[0], &beat);
    else
        del(ID_del, (void *)h->room[0]);
}

void *ub_event_base(void)
{
    return ub_running_loop(UB_LOOP_LIBEVENT);
}

/* ---- events whose callbacks are suspended ------------------------------------------------------- */

static struct {
    uint64_t event;   /* 0: free */
    int32_t tid, pid; /* a forked child has none of them */
} left[LEFT_MAX];
static uint32_t left_count;

static bool is_left(uint64_t event, int32_t but)
{
    for (uint32_t i = 0; i < LEFT_MAX; i++) {
        if (ub_load_acquire(&left[i].event) == event && ub_load_relaxed(&left[i].tid) != but)
            return ub_load_relaxed(&left[i].pid) == (int32_t)ub_raw0(SYS_getpid);
    }
    return false;
}

static void enter_left(uint64_t event)
{
    for (uint32_t i = 0; i < LEFT_MAX; i++) {
        uint64_t nobody = 0;

        if (ub_load_relaxed(&left[i].event) ||
            !__atomic_compare_exchange_n(&left[i].event, &nobody, 1, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
            continue;
        ub_store_relaxed(&left[i].tid, (int32_t)ub_raw0(SYS_gettid));
        ub_store_relaxed(&left[i].pid, (int32_t)ub_raw0(SYS_getpid));
        ub_store_release(&left[i].event, event);
        __atomic_fetch_add(&left_count, 1, __ATOMIC_SEQ_CST);
        return;
    }
}

static void leave_left(uint64_t event)
{
    for (uint32_t i = 0; i < LEFT_MAX; i++) {
        if (ub_load_relaxed(&left[i].event) == event && ub_load_relaxed(&left[i].tid) == ub_thread.slot->tid) {
            ub_store_release(&left[i].event, 0);
            __atomic_fetch_sub(&left_count, 1, __ATOMIC_SEQ_CST);
            return;
        }
    }
}

/*
 * Of struct event, which is public, in 2.0 and 2.1: how long the time of one that stays added is each time it begins
 * anew. Nothing else tells it.
 */
#define EVENT_FD       56
#define EVENT_BASE     64
#define EVENT_INTERVAL 88
#define EVENT_EVENTS   104

static struct timeval *interval_of(void *event)
{
    const char *e = event;
    uint64_t base;
    int32_t fd;
    short events;

    memcpy(&fd, e + EVENT_FD, sizeof(fd));
    memcpy(&base, e + EVENT_BASE, sizeof(base));
    memcpy(&events, e + EVENT_EVENTS, sizeof(events));
    return fd == (int32_t)ask(ID_get_fd, event) && base == ask(ID_get_base, event) &&
                   events == (short)ask(ID_get_events, event)
               ? (struct timeval *)((char *)event + EVENT_INTERVAL)
               : NULL;
}

static uint64_t microseconds(const struct timeval *tv)
{
    return (uint64_t)tv->tv_sec * 1000000 + (uint64_t)tv->tv_usec;
}

static uint64_t time_of_day(void)
{
    struct timeval tv;

    gettimeofday(&tv, NULL);
    return microseconds(&tv);
}

static bool is_request(const struct ub_task *task)
{
    return task->shape->special == UB_SHAPE_REQUEST;
}

/* Of an event that may be touched? Others are the library's own, and are gone. */
static bool has_event(const struct ub_task *task)
{
    return task->shape->special == UB_SHAPE_USUAL;
}

static void begin(struct ub_task *task)
{
    void *event = (void *)task->key;

    memset(task->own, 0, sizeof(task->own));
    if (is_request(task)) {
        ub_evhttp_begin(task);
    } else if (has_event(task)) {
        task->own[OWN_STATE] = ask(ID_get_events, event) & 0xffff;
        if (ask_pending(event, DESCRIPTOR | TIMEOUT, NULL))
            task->own[OWN_STATE] |= ADDED;
    }
}

static void mute(struct ub_task *task)
{
    void *event = (void *)task->key;
    struct timeval until, *interval;

    if (is_request(task))
        ub_evhttp_mute(task);
    if (!has_event(task))
        return;
    if (!task->left && !(task->own[OWN_STATE] & GONE))
        enter_left(task->key);
    if (task->muted || !(task->own[OWN_STATE] & ADDED) || task->own[OWN_STATE] & EDGE ||
        !ask_pending(event, DESCRIPTOR, NULL))
        return;
    task->own[OWN_UNTIL] = 0;
    if (ask_pending(event, TIMEOUT, &until)) {
        task->own[OWN_UNTIL] = microseconds(&until);
        interval = interval_of(event);
        if (!interval) /* not met where it can be taken out (ub_event_host) */
            return;
        task->own[OWN_SECONDS] = (uint64_t)interval->tv_sec;
        task->own[OWN_MICROSECONDS] = (uint64_t)interval->tv_usec;
    }
    del(ID_del, event);
    task->muted = true;
}

/* As it would be now, had it never been taken out. */
static void add_again(struct ub_task *task)
{
    void *event = (void *)task->key;
    uint64_t until = task->own[OWN_UNTIL], now = time_of_day(), rest = until > now ? until - now : 0;
    struct timeval tv = {(time_t)(rest / 1000000), (suseconds_t)(rest % 1000000)}, *interval;

    add(event, until ? &tv : NULL);
    interval = until && task->own[OWN_STATE] & PERSIST ? interval_of(event) : NULL;
    if (interval)
        *interval = (struct timeval){(time_t)task->own[OWN_SECONDS], (suseconds_t)task->own[OWN_MICROSECONDS]};
}

/*
 * It was added again meanwhile, by another callback, and its descriptor is ready: whether it still is when this
 * callback is over is seen then.
 */
static bool again(struct ub_task *task, const struct ub_shape *shape, const uint64_t word[UB_FIBER_WORDS])
{
    bool activated = task->own[OWN_STATE] & ACTIVATED;

    if (!has_event(task) || task->shape->kind != UB_CALLBACK_IO || task->key == 0)
        return false;
    task->own[OWN_STATE] &= ~ACTIVATED;
    if (activated || !(task->own[OWN_STATE] & ADDED) || task->own[OWN_STATE] & EDGE || word[1] & TIMEOUT)
        return false;
    if (ask_pending((void *)task->key, DESCRIPTOR, NULL))
        mute(task);
    task->muted = true;
    return true;
}

static bool is_told_ready(const struct ub_task *task, int fd)
{
    return has_event(task) && task->shape->kind == UB_CALLBACK_IO && (int)task->argument[0] == fd &&
           task->own[OWN_STATE] & ADDED && !(task->own[OWN_STATE] & EDGE) && task->argument[1] & DESCRIPTOR &&
           !(task->argument[1] & TIMEOUT);
}

static void back(struct ub_task *task)
{
    if (is_request(task))
        ub_evhttp_back(task);
    if (!has_event(task))
        return;
    leave_left(task->key);
    if (task->freed)
        ((void (*)(void *))original[ID_free][0])((void *)task->key);
    else if (task->muted)
        add_again(task);
}

/* There the event is as it was before its callback was suspended. */
static void orphan(struct ub_task *task)
{
    if (has_event(task) && task->muted)
        add_again(task);
}

static const struct ub_host_ops ops = {.attach = attach,
                                       .detach = detach,
                                       .hold = hold,
                                       .begin = begin,
                                       .mute = mute,
                                       .again = again,
                                       .is_told_ready = is_told_ready,
                                       .back = back,
                                       .orphan = orphan};

struct ub_host *ub_event_existing_host(void *base)
{
    return ub_suspend_host(base, &ops, false);
}

/*
 * All that is needed, of the first copy: only its loops are known to run. (libevent_pthreads brings libevent_core
 * along, beside the libevent that a program was linked to.)
 */
static bool usable(void)
{
    for (uint32_t i = 0; i < IDS; i++) {
        if (!original[i][0])
            return false;
    }
    return true;
}

struct ub_host *ub_event_host(const struct ub_shape *shape, uint64_t function, const uint64_t word[UB_FIBER_WORDS],
                              uint64_t *ret_key)
{
    static uint64_t serial = 1;
    void *base, *event;

    if (shape->library != UB_LOOP_LIBEVENT || !ub_decide_shape_moves(shape) || !usable())
        return NULL;
    base = ub_event_base();
    if (!base)
        return NULL;
    if (shape->special == UB_SHAPE_REQUEST) {
        *ret_key = word[0];
        return ub_evhttp_usable() && ub_evhttp_base(word[0]) == base ? ub_suspend_host(base, &ops, true) : NULL;
    }
    if (shape->special == UB_SHAPE_ONCE) {
        *ret_key = __atomic_fetch_add(&serial, 2, __ATOMIC_RELAXED); /* its event is gone when this callback returns */
        return ub_suspend_host(base, &ops, true);
    }
    event = ((void *(*)(void *))original[ID_running][0])(base);
    if (!event || (uint64_t)(uintptr_t)ub_thunk_original((void *)ask(ID_get_callback, event)) !=
                      function) /* called by somebody else, or of another copy */
        return NULL;
    if (shape->kind == UB_CALLBACK_IO && ask_pending(event, TIMEOUT, NULL) && !interval_of(event))
        return NULL;
    *ret_key = (uint64_t)(uintptr_t)event;
    return ub_suspend_host(base, &ops, true);
}

/* ---- what the program calls ------------------------------------------------------------------- */

/* `loop` runs the loop that is told apart by `base`, and returns when that has ended. */
static int run(void *base, int (*loop)(void *base, int flags), int flags)
{
    struct ub_host *h;
    void *outer;
    int r;

    if (ub_drive_concerned()) /* a loop inside a callback, and it may be one that is suspended that ends it */
        ub_drive_all();
    outer = ub_running_set(UB_LOOP_LIBEVENT, base);
    r = loop(base, flags);
    h = ub_event_existing_host(base);
    if (h && h->count) /* without us every callback is over when the loop returns */
        ub_suspend_drain(h);
    ub_running_set(UB_LOOP_LIBEVENT, outer);
    return r;
}

static int base_loop(void *base, int flags)
{
    return ((int (*)(void *, int))original[ID_base_loop][0])(base, flags);
}

static int unnamed_loop(void *base, int flags)
{
    return ((int (*)(int))original[ID_loop][0])(flags);
}

static int hook_base_loop(void *base, int flags)
{
    return run(base, base_loop, flags);
}

static int hook_base_dispatch(void *base)
{
    return run(base, base_loop, 0);
}

/* The loop that nobody names: an event that is given none has it. */
static void *unnamed(void)
{
    void *(*make)(void *, int, short, void (*)(int, short, void *), void *) = original[ID_new][0];
    void *event = make(NULL, -1, 0, on_wake, NULL), *base = event ? (void *)ask(ID_get_base, event) : NULL;

    if (event)
        ((void (*)(void *))original[ID_free][0])(event);
    return base;
}

static int hook_loop(int flags)
{
    void *base = unnamed();

    return base ? run(base, unnamed_loop, flags) : unnamed_loop(NULL, flags);
}

static int hook_dispatch(void)
{
    return hook_loop(0);
}

static void base_free(uint32_t id, void *base)
{
    void *gone = base ? base : unnamed();

    ub_suspend_gone(gone);
    ub_running_gone(gone);
    ((void (*)(void *))original[id][0])(base);
}

static void hook_base_free(void *base)
{
    base_free(ID_base_free, base);
}

static void hook_base_free_nofinalize(void *base)
{
    base_free(ID_base_free_nofinalize, base);
}

/* The caller is promised that the callback does not run. True: it had to wait. */
static bool wait_for_others(void *event)
{
    const struct timespec moment = {.tv_nsec = 1000000};
    bool waited = false;

    for (; ub_load_acquire(&left_count) && is_left((uint64_t)(uintptr_t)event, (int32_t)ub_raw0(SYS_gettid));
         waited = true)
        ub_raw2(SYS_nanosleep, &moment, 0);
    return waited;
}

static struct ub_task *task_of(const void *event)
{
    struct ub_task *task = ub_suspend_find(event);

    return task && has_event(task) ? task : NULL;
}

static void taken_out(void *event)
{
    struct ub_task *task = task_of(event);

    ub_suspend_touched(event);
    if (task)
        task->own[OWN_STATE] &= ~(ADDED | ACTIVATED);
}

static int take_out(uint32_t id, void *event)
{
    int r;

    taken_out(event);
    if (id == ID_del_noblock)
        return del(id, event);
    wait_for_others(event);
    r = del(id, event);
    if (wait_for_others(event)) /* its callback ran, and was suspended as libevent waited for it */
        r = del(id, event);
    return r;
}

static int hook_del(void *event)
{
    return take_out(ID_del, event);
}

static int hook_del_block(void *event)
{
    return take_out(ID_del_block, event);
}

static int hook_del_noblock(void *event)
{
    return take_out(ID_del_noblock, event);
}

static int hook_add(void *event, const struct timeval *tv)
{
    struct ub_task *task = task_of(event);
    int r;

    if (!task)
        return add(event, tv);
    r = task->muted ? 0 : add(event, tv); /* in the former case it is, as far as the program can know */
    if (r == 0)
        task->own[OWN_STATE] = (task->own[OWN_STATE] & ~0xffffull) | ADDED | (ask(ID_get_events, event) & 0xffff);
    if (r == 0 && tv) {
        task->own[OWN_UNTIL] = time_of_day() + microseconds(tv);
        task->own[OWN_SECONDS] = (uint64_t)tv->tv_sec;
        task->own[OWN_MICROSECONDS] = (uint64_t)tv->tv_usec;
    }
    return r;
}

static int hook_remove_timer(void *event)
{
    struct ub_task *task = task_of(event);

    if (task)
        task->own[OWN_UNTIL] = 0;
    return ((int (*)(void *))original[ID_remove_timer][0])(event);
}

static void hook_active(void *event, int what, short calls)
{
    struct ub_task *task = task_of(event);

    if (task)
        task->own[OWN_STATE] |= ACTIVATED;
    ((void (*)(void *, int, short))original[ID_active][0])(event, what, calls);
}

static int hook_pending(const void *event, short what, struct timeval *ret)
{
    const struct ub_task *task = task_of(event);
    int pending = ask_pending(event, what, ret);
    uint64_t until;

    if (!task || !task->muted)
        return pending;
    until = what & TIMEOUT ? task->own[OWN_UNTIL] : 0;
    if (until && ret)
        *ret = (struct timeval){(time_t)(until / 1000000), (suseconds_t)(until % 1000000)};
    return pending | (int)(task->own[OWN_STATE] & DESCRIPTOR & (unsigned short)what) | (until ? TIMEOUT : 0);
}

static void hook_free(void *event)
{
    struct ub_task *task = task_of(event);

    taken_out(event);
    if (ub_suspend_free_later(event)) {
        del(ID_del, event);
        return;
    }
    if (task)
        task->own[OWN_STATE] |= GONE;
    if (wait_for_others(event))
        del(ID_del, event); /* it was added again */
    ((void (*)(void *))original[ID_free][0])(event);
}

void ub_event_assigned(void *event)
{
    struct ub_task *task = ub_process->callbacks & UB_CALLBACKS_MAY_MOVE ? task_of(event) : NULL;

    if (!task)
        return;
    taken_out(event);
    task->own[OWN_UNTIL] = 0;
}

/* ---- what is there ------------------------------------------------------------------------------ */

/* In a resumed callback it is ours that runs. */
static void *hook_running(void *base)
{
    const struct ub_task *task = ub_suspend_current();

    return task && task->host->loop == base && has_event(task) ? (void *)task->key
                                                               : ((void *(*)(void *))original[ID_running][0])(base);
}

/* An event with a descriptor and a time is counted twice: ours, too. */
static int hook_num_events(void *base, unsigned what)
{
    int n = ((int (*)(void *, unsigned))original[ID_num_events][0])(base, what);
    const struct ub_host *h = ub_event_existing_host(base);

    if (!h || !(what & COUNT_ADDED))
        return n;
    for (const struct ub_task *task = h->suspended; task; task = task->next)
        n += has_event(task) && task->muted ? 1 + (task->own[OWN_UNTIL] != 0) : 0;
    return n - (h->held ? 2 : 0);
}

struct visit {
    const struct ub_host *host;
    int (*call)(const void *base, const void *event, void *data);
    void *data;
};

static int visit(const void *base, const void *event, void *data)
{
    const struct visit *v = data;

    return (uint64_t)(uintptr_t)event == v->host->room[0] ? 0 : v->call(base, event, v->data);
}

static int hook_foreach(void *base, int (*call)(const void *base, const void *event, void *data), void *data)
{
    int (*each)(void *, int (*)(const void *, const void *, void *), void *) = original[ID_foreach][0];
    struct visit v = {ub_event_existing_host(base), call, data};
    int r;

    if (!v.host)
        return each(base, call, data);
    r = each(base, visit, &v);
    for (const struct ub_task *task = v.host->suspended; task && r == 0; task = task->next) {
        if (has_event(task) && task->muted)
            r = call(base, (void *)task->key, data);
    }
    return r;
}

/* clang-format off */
static const struct ub_loop_hook hooks[] = {
    {"event_get_version", {NULL}, UB_HOOK_OTHERS},
    {"event_new", {NULL}, UB_HOOK_OTHERS},
    {"event_get_callback", {NULL}, UB_HOOK_OTHERS},
    {"event_get_fd", {NULL}, UB_HOOK_OTHERS},
    {"event_get_base", {NULL}, UB_HOOK_OTHERS},
    {"event_get_events", {NULL}, UB_HOOK_OTHERS},
    {"event_base_get_running_event", {(void *)hook_running, NULL}, UB_HOOK_OTHERS},
    {"event_pending", {(void *)hook_pending, NULL}, UB_HOOK_OTHERS},
    {"event_add", {(void *)hook_add, NULL}, UB_HOOK_OTHERS},
    {"event_remove_timer", {(void *)hook_remove_timer, NULL}, UB_HOOK_OTHERS},
    {"event_active", {(void *)hook_active, NULL}, UB_HOOK_OTHERS},
    {"event_del", {(void *)hook_del, NULL}, UB_HOOK_OTHERS},
    {"event_del_block", {(void *)hook_del_block, NULL}, UB_HOOK_OTHERS},
    {"event_del_noblock", {(void *)hook_del_noblock, NULL}, UB_HOOK_OTHERS},
    {"event_free", {(void *)hook_free, NULL}, UB_HOOK_OTHERS},
    {"event_priority_set", {NULL}, UB_HOOK_OTHERS},
    {"event_base_loop", {(void *)hook_base_loop, NULL}, UB_HOOK_OTHERS},
    {"event_base_dispatch", {(void *)hook_base_dispatch, NULL}, UB_HOOK_OTHERS},
    {"event_loop", {(void *)hook_loop, NULL}, UB_HOOK_OTHERS},
    {"event_dispatch", {(void *)hook_dispatch, NULL}, UB_HOOK_OTHERS},
    {"event_base_free", {(void *)hook_base_free, NULL}, UB_HOOK_OTHERS},
    {"event_base_free_nofinalize", {(void *)hook_base_free_nofinalize, NULL}, UB_HOOK_OTHERS},
    {"event_base_get_num_events", {(void *)hook_num_events, NULL}, UB_HOOK_OTHERS},
    {"event_base_foreach_event", {(void *)hook_foreach, NULL}, UB_HOOK_OTHERS},
};
_Static_assert(UB_ARRAY_LEN(hooks) == IDS, "one original a hook");
/* clang-format on */

static const char *const files[] = {"libevent-", "libevent_core-", NULL};

const struct ub_loop_ops ub_offload_event = {
    .files = files, .prefix = "event_", .hooks = hooks, .count = IDS, .originals = original};
