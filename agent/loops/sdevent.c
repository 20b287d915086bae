/*
 * sd-event (libsystemd, and libsystemd-shared of systemd's own programs): the
 * functions that make a source. Sources of sd-bus and the like are libsystemd's
 * own, what runs in them counts as the loop's.
 */
#include "loop.h"

static const char *name(uint64_t source);

#define SHAPE(name_, kind_, ...)                                                                                       \
    static const struct ub_shape name_ = {                                                                             \
        .kind = UB_CALLBACK_##kind_, .library = UB_LOOP_SD_EVENT, .name = name, __VA_ARGS__}
SHAPE(io, IO, .fd = UB_FD_ARGUMENT, .fd_at = 1);
SHAPE(timer, TIMER);
SHAPE(signal, SIGNAL);
SHAPE(child, CHILD);
SHAPE(inotify, INOTIFY);
SHAPE(defer, DEFER);
SHAPE(post, POST);
SHAPE(leaving, EXIT);
SHAPE(prepare, PREPARE);

/* clang-format off */
#define FUNCTIONS(X) \
    X(int, sd_event_add_io, (void *e, void *s, int fd, uint32_t events, void *cb, void *data), (e, s, fd, events, ub_thunk(cb, &io), data)) \
    X(int, sd_event_add_time, (void *e, void *s, int clock, uint64_t at, uint64_t accuracy, void *cb, void *data), (e, s, clock, at, accuracy, ub_thunk(cb, &timer), data)) \
    X(int, sd_event_add_time_relative, (void *e, void *s, int clock, uint64_t in, uint64_t accuracy, void *cb, void *data), (e, s, clock, in, accuracy, ub_thunk(cb, &timer), data)) \
    X(int, sd_event_add_signal, (void *e, void *s, int sig, void *cb, void *data), (e, s, sig, ub_thunk(cb, &signal), data)) \
    X(int, sd_event_add_child, (void *e, void *s, int pid, int options, void *cb, void *data), (e, s, pid, options, ub_thunk(cb, &child), data)) \
    X(int, sd_event_add_child_pidfd, (void *e, void *s, int fd, int options, void *cb, void *data), (e, s, fd, options, ub_thunk(cb, &child), data)) \
    X(int, sd_event_add_inotify, (void *e, void *s, void *path, uint32_t mask, void *cb, void *data), (e, s, path, mask, ub_thunk(cb, &inotify), data)) \
    X(int, sd_event_add_inotify_fd, (void *e, void *s, int fd, uint32_t mask, void *cb, void *data), (e, s, fd, mask, ub_thunk(cb, &inotify), data)) \
    X(int, sd_event_add_defer, (void *e, void *s, void *cb, void *data), (e, s, ub_thunk(cb, &defer), data)) \
    X(int, sd_event_add_post, (void *e, void *s, void *cb, void *data), (e, s, ub_thunk(cb, &post), data)) \
    X(int, sd_event_add_exit, (void *e, void *s, void *cb, void *data), (e, s, ub_thunk(cb, &leaving), data)) \
    X(int, sd_event_source_set_prepare, (void *s, void *cb), (s, ub_thunk(cb, &prepare)))

enum { FUNCTIONS(UB_LOOP_ID) ID_description, IDS };
static void *original[IDS][UB_LOOP_COPIES];

FUNCTIONS(UB_LOOP_HOOK_0)
FUNCTIONS(UB_LOOP_HOOK_1)

static const struct ub_loop_hook hooks[] = {
    FUNCTIONS(UB_LOOP_ROW)
    {"sd_event_source_get_description", {NULL}, UB_HOOK_OTHERS},
};
_Static_assert(UB_ARRAY_LEN(hooks) == IDS, "one original a hook");
/* clang-format on */

/* With two copies it is not known whose the source is. */
static const char *name(uint64_t source)
{
    int (*call)(uint64_t, const char **) = original[ID_description][0];
    const char *text = NULL;

    return call && !original[ID_description][1] && call(source, &text) >= 0 ? text : NULL;
}

static const char *const files[] = {"libsystemd.", "libsystemd-shared-", NULL};

const struct ub_loop_ops ub_loop_sd_event = {
    .files = files, .prefix = "sd_event_", .hooks = hooks, .count = IDS, .originals = original};
