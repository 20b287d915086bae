/*
 * A source whose callback is suspended is blocked, as GLib blocks it while it is dispatched: neither prepared nor
 * checked, its descriptors not polled. GLib ends that itself when the dispatch returns, which it does ("keep it") when
 * the callback is left; so the source is blocked anew before GLib looks at it again: in `prepare` of a source of ours,
 * which comes first. When the callback is over the source is unblocked, or destroyed, as it says then. Nothing else of
 * the source is touched meanwhile, so whatever the program does to it or asks of it means what it always does.
 *
 * The source, and the data of its callback, are held for as long: its destroy notify comes after the callback.
 */
#include "glibhost_impl.h"

#include "../raw.h"
#include "decide.h"
#include "running.h"

#define SOURCE_READY_BITS 4 /* G_HOOK_FLAG_USER_SHIFT */
#define CAN_RECURSE       (1u << (SOURCE_READY_BITS + 1))
#define BLOCKED           (1u << (SOURCE_READY_BITS + 2))
#define BEFORE_ALL        INT32_MIN
#define BEAT_US           50000
#define READABLE          1 /* G_IO_IN */
#define SECOND_US         1000000
#define SECOND_EARLY      250000 /* what a timeout in whole seconds may come too early, to come with others */
#define PROBE_TIME        0x123456789abll
#define PROBE_PRIORITY    77

/* Of a host: its source; the tasks whose sources are not blocked yet. */
enum { ROOM_SOURCE, ROOM_FRESH, ROOM_DESCRIPTOR, ROOM_APPLICATION, ROOM_DATA, ROOM_FUNCTIONS };

/* The one of ours in each loop. */
struct waker {
    struct source source;
    struct ub_host *host;
    void *loop; /* the host may be another loop's by the time it is asked */
};

static bool is_destroyed(struct source *s)
{
    return ((int (*)(void *))ub_glib_original[ID_source_is_destroyed][0])(s);
}

static void set_ready_time(struct source *s, int64_t us)
{
    ((void (*)(void *, int64_t))ub_glib_original[ID_source_set_ready_time][0])(s, us);
}

/* ---- sources that are blocked ------------------------------------------------------------------ */

static void each_poll(struct source *s, void (*call)(struct source *s, struct poll_fd *p))
{
    for (struct list *at = s->polls; at; at = at->next)
        call(s, at->data);
    for (struct list *at = s->private->fds; at; at = at->next)
        call(s, at->data);
}

static void add_poll(struct source *s, struct poll_fd *p)
{
    ((void (*)(void *, void *, int))ub_glib_original[ID_add_poll][0])(s->context, p, s->priority);
}

static void remove_poll(struct source *s, struct poll_fd *p)
{
    ((void (*)(void *, void *))ub_glib_original[ID_remove_poll][0])(s->context, p);
}

/*
 * Another thread may destroy it at the same time: whoever comes last takes its descriptors out. Sources inside it are
 * only those that its callback has put there since it began (ub_glib_may_leave); another thread that destroys it then
 * may free them under this walk.
 */
static void block(struct source *s)
{
    __atomic_fetch_or(&s->flags, BLOCKED, __ATOMIC_SEQ_CST);
    each_poll(s, remove_poll);
    for (struct list *at = s->private->children; at; at = at->next)
        block(at->data);
}

static void unblock(struct source *s)
{
    __atomic_fetch_and(&s->flags, ~BLOCKED, __ATOMIC_SEQ_CST);
    each_poll(s, add_poll);
    if (is_destroyed(s))
        each_poll(s, remove_poll);
    for (struct list *at = s->private->children; at; at = at->next)
        unblock(at->data);
}

/* ---- our own source ------------------------------------------------------------------------------ */

static int prepare(struct waker *w, int *timeout)
{
    struct ub_host *h = w->host;
    struct ub_task *task = (struct ub_task *)h->room[ROOM_FRESH];

    *timeout = -1;
    h->room[ROOM_FRESH] = 0;
    if (h->generation != ub_process->generation) /* a forked child's sources are its own */
        return 0;
    for (; task; task = (struct ub_task *)task->own[OWN_NEXT]) {
        if (is_destroyed(ub_glib_source(task)))
            continue;
        block(ub_glib_source(task));
        task->muted = true;
    }
    return 0;
}

/* Should the program close our descriptor. */
static void set_beat(struct waker *w, bool on)
{
    set_ready_time(&w->source, on ? (int64_t)(ub_clock_monotonic_ns() / 1000) + BEAT_US : -1);
}

static int dispatch(struct waker *w, void *callback, void *data)
{
    ub_suspend_wake(w->host);
    set_beat(w, w->host->held);
    return 1;
}

static int no_callback(void *arg)
{
    return 1;
}

/*
 * Of the callback, which we have for this alone: its loop is being destroyed, and its memory not given back yet.
 * `finalize` would come after that, when another thread may have a loop at the same address.
 */
static void on_destroy(void *arg)
{
    const struct waker *w = arg;

    ub_suspend_gone(w->loop);
}

static struct {
    void *prepare, *check, *dispatch, *finalize, *closure[2];
} table = {(void *)prepare, NULL, (void *)dispatch, NULL, {NULL, NULL}};

bool ub_glib_is_waker(const struct source *s)
{
    return s->table == &table;
}

static struct waker *new_waker(struct ub_host *h)
{
    struct waker *w = ((void *(*)(void *, unsigned))ub_glib_original[ID_source_new][0])(&table, sizeof(*w));

    if (w)
        w->host = h;
    return w;
}

static void tell_of_end(struct waker *w)
{
    void (*set)(void *, void *, void *, void *) = ub_glib_original[ID_source_set_callback][0];

    w->loop = w->host->loop;
    set(w, (void *)no_callback, w, (void *)on_destroy);
}

static void *add_fd(struct waker *w, int fd)
{
    return ((void *(*)(void *, int, int))ub_glib_original[ID_source_add_unix_fd][0])(w, fd, READABLE);
}

static void set_priority(struct waker *w, int priority)
{
    ((void (*)(void *, int))ub_glib_original[ID_source_set_priority][0])(w, priority);
}

/* Dispatched in a nested loop, too: what is awaited there may be with a suspended callback. */
static void let_recurse(struct waker *w)
{
    ((void (*)(void *, int))ub_glib_original[ID_source_set_can_recurse][0])(w, true);
}

static bool attach(struct ub_host *h)
{
    struct waker *w = new_waker(h);

    h->room[ROOM_SOURCE] = (uint64_t)(uintptr_t)w;
    h->room[ROOM_FRESH] = h->room[ROOM_APPLICATION] = 0;
    if (!w)
        return false;
    set_priority(w, BEFORE_ALL);
    let_recurse(w);
    tell_of_end(w);
    ((unsigned (*)(void *, void *))ub_glib_original[ID_source_attach][0])(w, h->loop);
    ub_glib_call(ID_source_unref, w);
    return true;
}

/* Whether sources look as we think they do: of two of ours it is known what must be where. */
static bool is_known(void)
{
    struct waker *w = new_waker(NULL), *child = new_waker(NULL);
    struct source *s = &w->source;
    bool known;
    void *tag;

    if (!w || !child)
        return false;
    tag = add_fd(w, 0);
    set_priority(w, PROBE_PRIORITY);
    let_recurse(w);
    set_ready_time(s, PROBE_TIME);
    ((void (*)(void *, void *))ub_glib_original[ID_source_add_child_source][0])(w, child);
    known = s->table == &table && s->refs == 1 && !s->context && s->priority == PROBE_PRIORITY &&
            s->flags & CAN_RECURSE && s->private && s->private->ready_time == PROBE_TIME && s->private->fds &&
            s->private->fds->data == tag && !s->private->fds->next && s->private->children &&
            s->private->children->data == child && !s->private->children->next && child->source.private &&
            child->source.private->parent == s;
    ub_glib_call(ID_source_unref, child);
    ub_glib_call(ID_source_unref, w);
    return known;
}

/* One copy of the library, of a version that has everything: with two it could not be told whose a source is. */
static bool usable(void)
{
    static int known; /* 0: not asked yet */
    bool all = true;

    if (!ub_load_relaxed(&known)) {
        for (uint32_t i = 0; i < IDS; i++)
            all = all && ub_glib_original[i][0];
        ub_store_relaxed(&known, all && is_known() ? 1 : -1);
    }
    return known > 0 && !ub_glib_original[ID_source_new][1];
}

/* ---- callbacks --------------------------------------------------------------------------------------- */

bool ub_glib_may_leave(uint64_t source)
{
    const struct source *s = (const struct source *)(uintptr_t)source;

    /* Those inside it may be destroyed by another thread while we look at them. */
    if (s->flags & CAN_RECURSE || s->priority == BEFORE_ALL || (s->private && s->private->children))
        return false;
    return !ub_offload_moves || ub_running_loop(UB_LOOP_GLIB) == s->context;
}

static const struct ub_host_ops ops;

/* What GLib holds while it dispatches. False: another thread has just destroyed the source, or set another callback. */
static bool find_callback(const struct source *s, const uint64_t word[UB_FIBER_WORDS], struct ub_host *h)
{
    struct callback_functions *functions = ub_load_acquire(&s->functions);
    void *data = ub_load_acquire(&s->data), *function = NULL, *argument = NULL;

    if (functions) {
        if (!data)
            return false;
        functions->get(data, (struct source *)s, &function, &argument);
    }
    h->room[ROOM_DATA] = (uint64_t)(uintptr_t)data;
    h->room[ROOM_FUNCTIONS] = (uint64_t)(uintptr_t)functions;
    return (uint64_t)(uintptr_t)function == word[1] && (uint64_t)(uintptr_t)argument == word[2];
}

struct ub_host *ub_glib_host(const struct ub_shape *shape, const uint64_t word[UB_FIBER_WORDS], uint64_t *ret_key)
{
    const struct source *s = (const struct source *)word[0];
    struct ub_host *h;

    if (shape->library != UB_LOOP_GLIB || !ub_decide_shape_moves(shape) || !usable() || !ub_glib_may_leave(word[0]) ||
        !(s->flags & BLOCKED) || s->private->parent)
        return NULL;
    *ret_key = word[0];
    h = ub_suspend_host(s->context, &ops, true);
    return h && find_callback(s, word, h) ? h : NULL;
}

static void begin(struct ub_task *task)
{
    task->own[OWN_DATA] = task->host->room[ROOM_DATA];
    task->own[OWN_FUNCTIONS] = task->host->room[ROOM_FUNCTIONS];
    task->own[OWN_DEFAULT] = (uint64_t)(uintptr_t)ub_glib_call(ID_get_default, NULL);
    task->own[OWN_PUSHED] = task->own[OWN_SHOWN] = 0;
}

static void mute(struct ub_task *task)
{
    struct callback_functions *functions = (struct callback_functions *)task->own[OWN_FUNCTIONS];

    if (task->left)
        return;
    ub_glib_call(ID_source_ref, ub_glib_source(task));
    if (functions && !task->behind) /* it never begins, and needs no data */
        functions->ref((void *)task->own[OWN_DATA]);
    task->own[OWN_TIME] = (uint64_t)ub_glib_time(ID_source_get_time, ub_glib_source(task));
    task->own[OWN_NEXT] = task->host->room[ROOM_FRESH];
    task->host->room[ROOM_FRESH] = (uint64_t)(uintptr_t)task;
}

static void forget_fresh(struct ub_task *task)
{
    uint64_t *at = &task->host->room[ROOM_FRESH];

    while (*at && *at != (uint64_t)(uintptr_t)task)
        at = &((struct ub_task *)*at)->own[OWN_NEXT];
    if (*at)
        *at = task->own[OWN_NEXT];
}

/* A timeout that stays begins anew when its callback returns, counted from its turn's time: that was another one. */
static void set_back(struct source *s, int64_t begun)
{
    int64_t now = ub_glib_time(ID_source_get_time, s), next = ub_glib_time(ID_source_get_ready_time, s);
    int64_t interval = *(const uint32_t *)(s + 1), whole;

    if (next - now == interval * 1000) {
        set_ready_time(s, begun + interval * 1000);
        return;
    }
    /* In whole seconds (older versions keep them as milliseconds): moved to meet with others. */
    whole = interval * SECOND_US;
    if (next - now <= whole - SECOND_EARLY || next - now > whole - SECOND_EARLY + SECOND_US)
        whole = interval * 1000;
    if (next - now > whole - SECOND_EARLY && next - now <= whole - SECOND_EARLY + SECOND_US)
        set_ready_time(s, next - (next - begun - whole + SECOND_EARLY - 1) / SECOND_US * SECOND_US);
}

static void back(struct ub_task *task)
{
    struct callback_functions *functions = (struct callback_functions *)task->own[OWN_FUNCTIONS];
    struct source *s = ub_glib_source(task);

    forget_fresh(task);
    if (functions && !task->behind)
        functions->unref((void *)task->own[OWN_DATA]);
    if (!is_destroyed(s)) {
        if (task->muted)
            unblock(s);
        if (task->behind) /* it never began */
            ;
        else if (!(int)task->fiber.result)
            ub_glib_call(ID_source_destroy, s);
        else if (task->shape->kind == UB_CALLBACK_TIMER)
            set_back(s, (int64_t)task->own[OWN_TIME]);
    }
    ub_glib_call(ID_source_unref, s);
}

/* It cannot be dispatched meanwhile; if the program has seen to it that it is, it will be again. */
static bool again(struct ub_task *task, const struct ub_shape *shape, const uint64_t word[UB_FIBER_WORDS])
{
    return true;
}

static bool has_fd(const struct source *s, int fd)
{
    for (const struct list *at = s->polls; at; at = at->next) {
        if (((struct poll_fd *)at->data)->fd == fd)
            return true;
    }
    for (const struct list *at = s->private->fds; at; at = at->next) {
        if (((struct poll_fd *)at->data)->fd == fd)
            return true;
    }
    for (const struct list *at = s->private->children; at; at = at->next) {
        if (has_fd(at->data, fd))
            return true;
    }
    return false;
}

static bool is_told_ready(const struct ub_task *task, int fd)
{
    return has_fd(ub_glib_source(task), fd);
}

/* In a forked child the source is as it was before its callback was suspended. */
static void orphan(struct ub_task *task)
{
    if (task->muted && !is_destroyed(ub_glib_source(task)))
        unblock(ub_glib_source(task));
}

/* A GLib loop ends when it is told to, not for want of sources; but a GApplication's does. */
static void hold(struct ub_host *h, bool alive)
{
    struct waker *w = (struct waker *)h->room[ROOM_SOURCE];

    if (alive) {
        h->room[ROOM_DESCRIPTOR] = (uint64_t)(uintptr_t)add_fd(w, h->inbox.fd);
        h->room[ROOM_APPLICATION] = (uint64_t)(uintptr_t)ub_gio_application();
    } else {
        ((void (*)(void *, void *))ub_glib_original[ID_source_remove_unix_fd][0])(w, (void *)h->room[ROOM_DESCRIPTOR]);
    }
    set_beat(w, alive);
    ub_gio_hold((void *)h->room[ROOM_APPLICATION], alive);
}

static const struct ub_host_ops ops = {.attach = attach,
                                       .hold = hold,
                                       .begin = begin,
                                       .mute = mute,
                                       .again = again,
                                       .is_told_ready = is_told_ready,
                                       .back = back,
                                       .orphan = orphan,
                                       .back_at_once = true,
                                       .keep = 1};

struct ub_task *ub_glib_task(void)
{
    struct ub_task *task = ub_suspend_current();

    return task && task->host->ops == &ops ? task : NULL;
}

/* Whoever ran the loop owned it then. */
void ub_glib_drain(void *context)
{
    struct ub_host *h = ub_suspend_host(context, &ops, false);
    bool owned;

    if (!h || !h->count)
        return;
    owned = ((int (*)(void *))ub_glib_original[ID_acquire][0])(context);
    ub_suspend_drain(h);
    if (owned)
        ((void (*)(void *))ub_glib_original[ID_release][0])(context);
}
