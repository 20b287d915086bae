/*
 * libev, 4.x: programs put their callbacks into the watchers themselves (macros),
 * no function sees them. But all of libev's watchers become pending through its
 * own ev_feed_event, which it calls through its PLT: there the thunk takes the
 * callback's place in the watcher, for as long as the program leaves it there.
 *
 * The layout of a watcher is that of libev's default build, which is what
 * distributions ship; programs that bring a libev of their own (EV of Perl) have
 * it linked in, and nothing of it is seen here.
 */
#include "loop.h"

#include "../module.h"
#include "../offload/evhost.h"

/* ev_watcher, and the descriptor of an ev_io behind its list's link. */
struct watcher {
    int active, pending, priority;
    void *data;
    void *cb;
};
#define IO_FD 40
_Static_assert(sizeof(struct watcher) == 32, "ev_watcher of the default build");

static const char *version(void);

#define SHAPE(kind_, ...)                                                                                              \
    {                                                                                                                  \
        .kind = UB_CALLBACK_##kind_, .library = UB_LOOP_LIBEV, .version = version, .object = 1, __VA_ARGS__            \
    }

/* By what libev says of a watcher when it feeds it: EV_READ ... of ev.h. */
static const struct {
    uint32_t events;
    struct ub_shape shape;
} shapes[] = {
    {0x3, SHAPE(IO, .fd = UB_FD_MEMBER, .fd_at = IO_FD)},
    {0x100 | 0x200, SHAPE(TIMER)}, /* EV_TIMER, EV_PERIODIC */
    {0x400, SHAPE(SIGNAL)},
    {0x800, SHAPE(CHILD)},
    {0x1000, SHAPE(FS_POLL)}, /* EV_STAT */
    {0x2000, SHAPE(IDLE)},
    {0x4000, SHAPE(PREPARE)},
    {0x8000, SHAPE(CHECK)},
    {0x80000, SHAPE(ASYNC)},
    {UINT32_MAX, SHAPE(CALLBACK)}, /* fork, cleanup, custom */
};

enum { ID_probe, ID_feed, ID_feed_own, ID_major, ID_minor, IDS };
static void *original[IDS][UB_LOOP_COPIES];

/* `own`: libev says what it is. The program may say anything of any watcher: that tells nothing. */
static void feed(uint32_t copy, bool own, void *loop, struct watcher *w, int events)
{
    void (*call)(void *, struct watcher *, int) = original[own ? ID_feed_own : ID_feed][copy];
    uint32_t i = own ? 0 : UB_ARRAY_LEN(shapes) - 1;

    while (!(shapes[i].events & (uint32_t)events) && i + 1 < UB_ARRAY_LEN(shapes))
        i++;
    if (w && w->cb && !ub_ev_is_waker(w->cb)) {
        void *thunk = ub_thunk(w->cb, &shapes[i].shape);

        if (thunk != w->cb)
            w->cb = thunk;
    }
    call(loop, w, events);
}

static void hook0_feed(void *loop, struct watcher *w, int events)
{
    feed(0, false, loop, w, events);
}

static void hook0_feed_own(void *loop, struct watcher *w, int events)
{
    feed(0, true, loop, w, events);
}

static void hook1_feed(void *loop, struct watcher *w, int events)
{
    feed(1, false, loop, w, events);
}

static void hook1_feed_own(void *loop, struct watcher *w, int events)
{
    feed(1, true, loop, w, events);
}

static const struct ub_loop_hook hooks[] = {
    {"ev_loop_new", {NULL}, UB_HOOK_OTHERS}, /* only there where each function takes the loop */
    {"ev_feed_event", {(void *)hook0_feed, (void *)hook1_feed}, UB_HOOK_OTHERS},
    {"ev_feed_event", {(void *)hook0_feed_own, (void *)hook1_feed_own}, UB_HOOK_OWN},
    {"ev_version_major", {NULL}, UB_HOOK_OTHERS},
    {"ev_version_minor", {NULL}, UB_HOOK_OTHERS},
};
_Static_assert(UB_ARRAY_LEN(hooks) == IDS, "one original a hook");

static const char *version(void)
{
    static char text[8];
    int (*major)(void) = original[ID_major][0];
    int (*minor)(void) = original[ID_minor][0];

    if (!major || !minor)
        return NULL;
    text[0] = (char)('0' + major() % 10);
    text[1] = '.';
    text[2] = (char)('0' + minor() / 10 % 10);
    text[3] = (char)('0' + minor() % 10);
    return text;
}

static const char *const files[] = {"libev.", NULL};

const struct ub_loop_ops ub_loop_libev = {
    .files = files, .prefix = "ev_", .hooks = hooks, .count = IDS, .originals = original};
