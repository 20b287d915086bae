/*
 * libuv, 1.x: every function that takes a callback. What it calls of its own is
 * not hooked (its GOT is left alone). Descriptors are read out of the handles
 * (uv_layout.h). Alloc callbacks are not timed: they count as the loop's. What
 * goes to the pool of threads is counted (uv_pool.h).
 */
#include "existing.h"
#include "loop.h"
#include "uv_pool.h"
#include "uv_layout.h"

#include "../offload/decide.h"
#include "../offload/suspend.h"

static const char *version(void);

#define SHAPE(name, kind_, ...)                                                                                        \
    static const struct ub_shape name = {                                                                              \
        .kind = UB_CALLBACK_##kind_, .library = UB_LOOP_LIBUV, .version = version, __VA_ARGS__}
SHAPE(timer, TIMER);
SHAPE(prepare, PREPARE);
SHAPE(check, CHECK);
SHAPE(idle, IDLE);
SHAPE(async, ASYNC);
SHAPE(poll, IO, .fd = UB_FD_MEMBER, .fd_at = UB_UV_POLL_FD);
SHAPE(signal, SIGNAL);
SHAPE(reading, READ, .fd = UB_FD_MEMBER, .fd_at = UB_UV_STREAM_FD);
SHAPE(writing, WRITE);
SHAPE(connecting, CONNECT);
SHAPE(listening, LISTENER, .fd = UB_FD_MEMBER, .fd_at = UB_UV_STREAM_FD);
SHAPE(receiving, UDP, .fd = UB_FD_MEMBER, .fd_at = UB_UV_UDP_FD);
SHAPE(sending, UDP);
SHAPE(process, PROCESS);
SHAPE(fs, FS, .before = ub_uv_pool_done);
SHAPE(fs_event, FS_EVENT);
SHAPE(fs_poll, FS_POLL);
SHAPE(dns, DNS, .before = ub_uv_pool_slow_done);
SHAPE(work, WORK, .before = ub_uv_pool_done);
SHAPE(closing, CLOSE);

/* A handle of which a callback may be due that was put off. */
static void *touched(void *h)
{
    if (ub_unlikely(ub_offload_mode > UB_OFFLOAD_DRY_RUN))
        ub_suspend_touched(h);
    return h;
}

/* The first member of uv_process_options_t; the rest is handed on as it is. */
struct process_options {
    void *exit_cb;
    uint64_t rest[UB_UV_PROCESS_OPTIONS_WORDS - 1];
};

/* clang-format off */
#define FUNCTIONS(X) \
    X(const char *, uv_version_string, (void), ()) \
    X(int, uv_timer_start, (void *h, void *cb, uint64_t timeout, uint64_t repeat), (touched(h), ub_thunk(cb, &timer), timeout, repeat)) \
    X(int, uv_prepare_start, (void *h, void *cb), (h, ub_thunk(cb, &prepare))) \
    X(int, uv_check_start, (void *h, void *cb), (h, ub_thunk(cb, &check))) \
    X(int, uv_idle_start, (void *h, void *cb), (h, ub_thunk(cb, &idle))) \
    X(int, uv_async_init, (void *loop, void *h, void *cb), (loop, h, ub_thunk(cb, &async))) \
    X(int, uv_poll_start, (void *h, int events, void *cb), (h, events, ub_thunk(cb, &poll))) \
    X(int, uv_signal_start, (void *h, void *cb, int sig), (h, ub_thunk(cb, &signal), sig)) \
    X(int, uv_signal_start_oneshot, (void *h, void *cb, int sig), (h, ub_thunk(cb, &signal), sig)) \
    X(int, uv_read_start, (void *h, void *alloc, void *cb), (h, alloc, ub_thunk(cb, &reading))) \
    X(int, uv_write, (void *req, void *h, void *bufs, unsigned n, void *cb), (req, h, bufs, n, ub_thunk(cb, &writing))) \
    X(int, uv_write2, (void *req, void *h, void *bufs, unsigned n, void *send, void *cb), (req, h, bufs, n, send, ub_thunk(cb, &writing))) \
    X(int, uv_shutdown, (void *req, void *h, void *cb), (req, h, ub_thunk(cb, &writing))) \
    X(int, uv_listen, (void *h, int backlog, void *cb), (h, backlog, ub_thunk(cb, &listening))) \
    X(int, uv_tcp_connect, (void *req, void *h, void *address, void *cb), (req, h, address, ub_thunk(cb, &connecting))) \
    X(void, uv_pipe_connect, (void *req, void *h, void *name, void *cb), (req, h, name, ub_thunk(cb, &connecting))) \
    X(int, uv_udp_send, (void *req, void *h, void *bufs, unsigned n, void *address, void *cb), (req, h, bufs, n, address, ub_thunk(cb, &sending))) \
    X(int, uv_udp_recv_start, (void *h, void *alloc, void *cb), (h, alloc, ub_thunk(cb, &receiving))) \
    X(void, uv_close, (void *h, void *cb), (touched(h), ub_thunk(cb, &closing))) \
    X(int, uv_tcp_close_reset, (void *h, void *cb), (h, ub_thunk(cb, &closing))) \
    X(int, uv_fs_event_start, (void *h, void *cb, void *path, unsigned flags), (h, ub_thunk(cb, &fs_event), path, flags)) \
    X(int, uv_fs_poll_start, (void *h, void *cb, void *path, unsigned interval), (h, ub_thunk(cb, &fs_poll), path, interval))

/* What a thread of the pool does. Without a callback libuv does it at once; uv_queue_work takes the work itself as `cb`. */
#define POOLED(X) \
    X(int, uv_queue_work, (void *loop, void *req, void *cb, void *after), (loop, req, cb, ub_thunk(after, &work)), false) \
    X(int, uv_random, (void *loop, void *req, void *buf, size_t size, unsigned flags, void *cb), (loop, req, buf, size, flags, ub_thunk(cb, &work)), false) \
    X(int, uv_getaddrinfo, (void *loop, void *req, void *cb, void *node, void *service, void *hints), (loop, req, ub_thunk(cb, &dns), node, service, hints), true) \
    X(int, uv_getnameinfo, (void *loop, void *req, void *cb, void *address, int flags), (loop, req, ub_thunk(cb, &dns), address, flags), true) \
    X(int, uv_fs_close, (void *loop, void *req, int x, void *cb), (loop, req, x, ub_thunk(cb, &fs)), false) \
    X(int, uv_fs_open, (void *loop, void *req, void *x, int y, int z, void *cb), (loop, req, x, y, z, ub_thunk(cb, &fs)), false) \
    X(int, uv_fs_read, (void *loop, void *req, int x, void *y, unsigned z, int64_t u, void *cb), (loop, req, x, y, z, u, ub_thunk(cb, &fs)), false) \
    X(int, uv_fs_unlink, (void *loop, void *req, void *x, void *cb), (loop, req, x, ub_thunk(cb, &fs)), false) \
    X(int, uv_fs_write, (void *loop, void *req, int x, void *y, unsigned z, int64_t u, void *cb), (loop, req, x, y, z, u, ub_thunk(cb, &fs)), false) \
    X(int, uv_fs_copyfile, (void *loop, void *req, void *x, void *y, int z, void *cb), (loop, req, x, y, z, ub_thunk(cb, &fs)), false) \
    X(int, uv_fs_mkdir, (void *loop, void *req, void *x, int y, void *cb), (loop, req, x, y, ub_thunk(cb, &fs)), false) \
    X(int, uv_fs_mkdtemp, (void *loop, void *req, void *x, void *cb), (loop, req, x, ub_thunk(cb, &fs)), false) \
    X(int, uv_fs_mkstemp, (void *loop, void *req, void *x, void *cb), (loop, req, x, ub_thunk(cb, &fs)), false) \
    X(int, uv_fs_rmdir, (void *loop, void *req, void *x, void *cb), (loop, req, x, ub_thunk(cb, &fs)), false) \
    X(int, uv_fs_scandir, (void *loop, void *req, void *x, int y, void *cb), (loop, req, x, y, ub_thunk(cb, &fs)), false) \
    X(int, uv_fs_opendir, (void *loop, void *req, void *x, void *cb), (loop, req, x, ub_thunk(cb, &fs)), false) \
    X(int, uv_fs_readdir, (void *loop, void *req, void *x, void *cb), (loop, req, x, ub_thunk(cb, &fs)), false) \
    X(int, uv_fs_closedir, (void *loop, void *req, void *x, void *cb), (loop, req, x, ub_thunk(cb, &fs)), false) \
    X(int, uv_fs_stat, (void *loop, void *req, void *x, void *cb), (loop, req, x, ub_thunk(cb, &fs)), false) \
    X(int, uv_fs_fstat, (void *loop, void *req, int x, void *cb), (loop, req, x, ub_thunk(cb, &fs)), false) \
    X(int, uv_fs_rename, (void *loop, void *req, void *x, void *y, void *cb), (loop, req, x, y, ub_thunk(cb, &fs)), false) \
    X(int, uv_fs_fsync, (void *loop, void *req, int x, void *cb), (loop, req, x, ub_thunk(cb, &fs)), false) \
    X(int, uv_fs_fdatasync, (void *loop, void *req, int x, void *cb), (loop, req, x, ub_thunk(cb, &fs)), false) \
    X(int, uv_fs_ftruncate, (void *loop, void *req, int x, int64_t y, void *cb), (loop, req, x, y, ub_thunk(cb, &fs)), false) \
    X(int, uv_fs_sendfile, (void *loop, void *req, int x, int y, int64_t z, size_t u, void *cb), (loop, req, x, y, z, u, ub_thunk(cb, &fs)), false) \
    X(int, uv_fs_access, (void *loop, void *req, void *x, int y, void *cb), (loop, req, x, y, ub_thunk(cb, &fs)), false) \
    X(int, uv_fs_chmod, (void *loop, void *req, void *x, int y, void *cb), (loop, req, x, y, ub_thunk(cb, &fs)), false) \
    X(int, uv_fs_utime, (void *loop, void *req, void *x, double y, double z, void *cb), (loop, req, x, y, z, ub_thunk(cb, &fs)), false) \
    X(int, uv_fs_futime, (void *loop, void *req, int x, double y, double z, void *cb), (loop, req, x, y, z, ub_thunk(cb, &fs)), false) \
    X(int, uv_fs_lutime, (void *loop, void *req, void *x, double y, double z, void *cb), (loop, req, x, y, z, ub_thunk(cb, &fs)), false) \
    X(int, uv_fs_lstat, (void *loop, void *req, void *x, void *cb), (loop, req, x, ub_thunk(cb, &fs)), false) \
    X(int, uv_fs_link, (void *loop, void *req, void *x, void *y, void *cb), (loop, req, x, y, ub_thunk(cb, &fs)), false) \
    X(int, uv_fs_symlink, (void *loop, void *req, void *x, void *y, int z, void *cb), (loop, req, x, y, z, ub_thunk(cb, &fs)), false) \
    X(int, uv_fs_readlink, (void *loop, void *req, void *x, void *cb), (loop, req, x, ub_thunk(cb, &fs)), false) \
    X(int, uv_fs_realpath, (void *loop, void *req, void *x, void *cb), (loop, req, x, ub_thunk(cb, &fs)), false) \
    X(int, uv_fs_fchmod, (void *loop, void *req, int x, int y, void *cb), (loop, req, x, y, ub_thunk(cb, &fs)), false) \
    X(int, uv_fs_chown, (void *loop, void *req, void *x, unsigned y, unsigned z, void *cb), (loop, req, x, y, z, ub_thunk(cb, &fs)), false) \
    X(int, uv_fs_fchown, (void *loop, void *req, int x, unsigned y, unsigned z, void *cb), (loop, req, x, y, z, ub_thunk(cb, &fs)), false) \
    X(int, uv_fs_lchown, (void *loop, void *req, void *x, unsigned y, unsigned z, void *cb), (loop, req, x, y, z, ub_thunk(cb, &fs)), false) \
    X(int, uv_fs_statfs, (void *loop, void *req, void *x, void *cb), (loop, req, x, ub_thunk(cb, &fs)), false)

#define POOL_ID(type, name, params, args, slow) ID_##name,
enum { FUNCTIONS(UB_LOOP_ID) POOLED(POOL_ID) ID_uv_spawn, ID_uv_async_send, ID_uv_walk, ID_uv_backend_fd, ID_uv_handle_get_type, IDS };
static void *original[IDS][UB_LOOP_COPIES];

FUNCTIONS(UB_LOOP_HOOK_0)
FUNCTIONS(UB_LOOP_HOOK_1)

#define POOL_HOOK(copy, type, name, params, args, slow) \
    static type hook##copy##_##name params \
    { \
        bool counted_ = cb && ub_uv_pool_submit(copy, slow); \
        type ret_ = ((type(*) params)original[ID_##name][copy])args; \
        if (counted_ && ret_ < 0) \
            ub_uv_pool_refused(copy, slow); \
        return ret_; \
    }
#define POOL_HOOK_0(type, name, params, args, slow) POOL_HOOK(0, type, name, params, args, slow)
#define POOL_HOOK_1(type, name, params, args, slow) POOL_HOOK(1, type, name, params, args, slow)
#define POOL_ROW(type, name, params, args, slow) {#name, {(void *)hook0_##name, (void *)hook1_##name}, UB_HOOK_OTHERS},
POOLED(POOL_HOOK_0)
POOLED(POOL_HOOK_1)

/* A thread of the pool has ended something: no other call of libuv's own leads here. */
static int hook0_uv_async_send(void *h)
{
    ub_uv_pool_end(0);
    return ((int (*)(void *))original[ID_uv_async_send][0])(h);
}

static int hook1_uv_async_send(void *h)
{
    ub_uv_pool_end(1);
    return ((int (*)(void *))original[ID_uv_async_send][1])(h);
}

static int spawn(uint32_t copy, void *loop, void *h, const struct process_options *options)
{
    int (*call)(void *, void *, const struct process_options *) = original[ID_uv_spawn][copy];
    struct process_options own;

    if (!options || !options->exit_cb)
        return call(loop, h, options);
    own = *options;
    own.exit_cb = ub_thunk(own.exit_cb, &process);
    return call(loop, h, &own);
}

static int hook0_uv_spawn(void *loop, void *h, const struct process_options *options)
{
    return spawn(0, loop, h, options);
}

static int hook1_uv_spawn(void *loop, void *h, const struct process_options *options)
{
    return spawn(1, loop, h, options);
}

static const struct ub_loop_hook hooks[] = {
    FUNCTIONS(UB_LOOP_ROW)
    POOLED(POOL_ROW)
    {"uv_spawn", {(void *)hook0_uv_spawn, (void *)hook1_uv_spawn}, UB_HOOK_OTHERS},
    {"uv_async_send", {(void *)hook0_uv_async_send, (void *)hook1_uv_async_send}, UB_HOOK_OWN},
    {"uv_walk", {NULL}, UB_HOOK_OTHERS},
    {"uv_backend_fd", {NULL}, UB_HOOK_OTHERS},
    {"uv_handle_get_type", {NULL}, UB_HOOK_OTHERS},
};
_Static_assert(UB_ARRAY_LEN(hooks) == IDS, "one original a hook");
/* clang-format on */

static const char *version(void)
{
    const char *(*call)(void) = original[ID_uv_version_string][0];

    return call ? call() : NULL;
}

/* ---- handles that were there before us ------------------------------------------- */

/* By uv_handle_type. A handle has one callback beside that of its closing, streams two. */
static const struct {
    uint16_t at;
    const struct ub_shape *shape;
} handle_callback[] = {
    [1] = {UB_UV_HANDLE_CB, &async},
    [2] = {UB_UV_HANDLE_CB, &check},
    [3] = {UB_UV_FS_EVENT_CB, &fs_event},
    [6] = {UB_UV_HANDLE_CB, &idle},
    [7] = {UB_UV_STREAM_READ_CB, &reading} /* pipe */,
    [8] = {UB_UV_HANDLE_CB, &poll},
    [9] = {UB_UV_HANDLE_CB, &prepare},
    [10] = {UB_UV_HANDLE_CB, &process},
    [12] = {UB_UV_STREAM_READ_CB, &reading} /* tcp */,
    [13] = {UB_UV_HANDLE_CB, &timer},
    [14] = {UB_UV_STREAM_READ_CB, &reading} /* tty */,
    [15] = {UB_UV_UDP_RECV_CB, &receiving},
    [16] = {UB_UV_HANDLE_CB, &signal},
};
#define HANDLE_FS_POLL 4

static void wrap(uint64_t at, const struct ub_shape *shape)
{
    void **cb = (void **)(uintptr_t)at, *function = ub_load_relaxed(cb);

    if (function && !ub_existing_is_librarys((uintptr_t)function))
        ub_store_relaxed(cb, ub_thunk(function, shape));
}

static void wrap_handle(void *handle, void *type)
{
    uint64_t h = (uintptr_t)handle, context;
    int kind = ((int (*)(const void *))type)(handle);

    wrap(h + UB_UV_HANDLE_CLOSE_CB, &closing);
    if (kind == HANDLE_FS_POLL && ub_existing_read(h + UB_UV_FS_POLL_CONTEXT, &context, sizeof(context)) && context)
        wrap(context + UB_UV_FS_POLL_CB, &fs_poll);
    if (kind <= 0 || (size_t)kind >= UB_ARRAY_LEN(handle_callback) || !handle_callback[kind].shape)
        return;
    wrap(h + handle_callback[kind].at, handle_callback[kind].shape);
    if (handle_callback[kind].shape == &reading)
        wrap(h + UB_UV_STREAM_LISTEN, &listening);
}

/* A list of handles that leads back to the loop it begins in, and the descriptor that is waited on. */
static bool is_loop(uint64_t at, int epfd)
{
    uint64_t list[2], back[2], of;
    int32_t fd;

    return epfd >= 0 && ub_existing_read(at + UB_UV_LOOP_FD, &fd, sizeof(fd)) && fd == epfd &&
           ub_existing_read(at + UB_UV_LOOP_HANDLES, list, sizeof(list)) &&
           list[0] != at + UB_UV_LOOP_HANDLES /* no handle: nothing to do */ &&
           ub_existing_read(list[0], back, sizeof(back)) && back[1] == at + UB_UV_LOOP_HANDLES &&
           ub_existing_read(list[0] - UB_UV_HANDLE_LIST + UB_UV_HANDLE_LOOP, &of, sizeof(of)) && of == at;
}

static bool adopt(uint32_t copy, uint64_t at, int epfd)
{
    void (*walk)(void *, void (*)(void *, void *), void *) = original[ID_uv_walk][copy];
    int (*backend_fd)(const void *) = original[ID_uv_backend_fd][copy];
    void *type = original[ID_uv_handle_get_type][copy];

    if (!walk || !backend_fd || !type || !is_loop(at, epfd) || backend_fd((void *)(uintptr_t)at) != epfd)
        return false;
    walk((void *)(uintptr_t)at, wrap_handle, type);
    return true;
}

static const char *const files[] = {"libuv.", NULL};

const struct ub_loop_ops ub_loop_uv = {
    .files = files, .prefix = "uv_", .hooks = hooks, .count = IDS, .originals = original, .adopt = adopt};
