#include "dispatchers.h"

#include <errno.h>
#include <string.h>

struct module_class {
    const char *prefix;
    enum ub_role role;
    const char *loop;
    bool libc;
};

static const struct module_class modules[] = {
    {"libc.so", UB_ROLE_LIBRARY, NULL, true},
    {"libc-2", UB_ROLE_LIBRARY, NULL, true},
    {"libpthread", UB_ROLE_LIBRARY, NULL, true},
    {"librt.", UB_ROLE_LIBRARY, NULL, true},
    {"ld-linux", UB_ROLE_LIBRARY, NULL, true},
    {"ld-2", UB_ROLE_LIBRARY, NULL, true},
    {"[vdso]", UB_ROLE_LIBRARY, NULL, true},
    {"libunblock", UB_ROLE_LIBRARY, NULL, true}, /* our hook of a wait call stands where libc's would */
    {"libm.so", UB_ROLE_LIBRARY, NULL, false},
    {"libdl", UB_ROLE_LIBRARY, NULL, false},
    {"libresolv", UB_ROLE_LIBRARY, NULL, false},
    {"libnss_", UB_ROLE_LIBRARY, NULL, false},
    {"libffi.", UB_ROLE_LIBRARY, NULL, false},
    {"libstdc++", UB_ROLE_LIBRARY, NULL, false},
    {"libgcc_s", UB_ROLE_LIBRARY, NULL, false},
    {"libjemalloc", UB_ROLE_LIBRARY, NULL, false},
    {"libtcmalloc", UB_ROLE_LIBRARY, NULL, false},
    {"libcrypto.", UB_ROLE_LIBRARY, NULL, false},
    {"libssl.", UB_ROLE_LIBRARY, NULL, false},
    {"libgnutls.", UB_ROLE_LIBRARY, NULL, false},
    {"libgcrypt.", UB_ROLE_LIBRARY, NULL, false},
    {"libz.", UB_ROLE_LIBRARY, NULL, false},
    {"libzstd.", UB_ROLE_LIBRARY, NULL, false},
    {"liblzma.", UB_ROLE_LIBRARY, NULL, false},
    {"libbz2.", UB_ROLE_LIBRARY, NULL, false},
    {"libpcre", UB_ROLE_LIBRARY, NULL, false},
    {"libsqlite3.", UB_ROLE_LIBRARY, NULL, false},
    {"libuv.", UB_ROLE_LOOP, "libuv", false},
    {"libevent", UB_ROLE_LOOP, "libevent", false},
    {"libev.", UB_ROLE_LOOP, "libev", false},
    {"libglib-2", UB_ROLE_LOOP, "glib", false},
    {"libgio-2", UB_ROLE_LOOP, "glib", false},
    {"libgobject-2", UB_ROLE_LOOP, "glib", false},
    {"libsystemd", UB_ROLE_LOOP, "sd-event", false},
    {"libpython", UB_ROLE_RUNTIME, NULL, false},
    {"python3", UB_ROLE_RUNTIME, NULL, false},
    {"libnode", UB_ROLE_RUNTIME, NULL, false},
};

/* Functions of loops that are linked into the program, and of programs with a loop of their own. */
static const struct {
    const char *function;
    bool prefix;
    enum ub_role role;
} functions[] = {
    {"uv_run", false, UB_ROLE_LOOP},
    {"uv__", true, UB_ROLE_LOOP},
    {"event_base_loop", false, UB_ROLE_LOOP},
    {"event_base_dispatch", false, UB_ROLE_LOOP},
    {"event_process_active", true, UB_ROLE_LOOP},
    {"ev_run", false, UB_ROLE_LOOP},
    {"ev_invoke_pending", false, UB_ROLE_LOOP},
    {"g_main_", true, UB_ROLE_LOOP},
    {"aeMain", false, UB_ROLE_LOOP},
    {"aeProcessEvents", false, UB_ROLE_LOOP},
    {"connSocketEventHandler", false, UB_ROLE_LOOP},
    {"callHandler", false, UB_ROLE_LOOP},
    {"ngx_process_events_and_timers", false, UB_ROLE_LOOP},
    {"ngx_epoll_process_events", false, UB_ROLE_LOOP},
    {"ngx_event_process_posted", false, UB_ROLE_LOOP},
    {"ngx_event_expire_timers", false, UB_ROLE_LOOP},
    {"ngx_worker_process_cycle", false, UB_ROLE_LOOP},
    {"run_poll_loop", false, UB_ROLE_LOOP},
    {"process_runnable_tasks", false, UB_ROLE_LOOP},
    {"run_tasks_from_lists", false, UB_ROLE_LOOP},
    {"main", false, UB_ROLE_LOOP},
    {"_start", false, UB_ROLE_LIBRARY},
    {"v8::", true, UB_ROLE_RUNTIME},
    {"node::", true, UB_ROLE_RUNTIME},
    {"non-virtual thunk to node::", true, UB_ROLE_RUNTIME},
    {"llhttp_", true, UB_ROLE_RUNTIME},
    {"Builtins_", true, UB_ROLE_RUNTIME},
    {"_Py", true, UB_ROLE_RUNTIME},
};

/*
 * libc's own functions where it is linked into the program (static, musl): those that wait, and what they
 * go through. By exact names, and only of the program's own file.
 */
static const char *const static_libc[] = {
    "__lll_lock_wait",
    "__lll_lock_wait_private",
    "__lll_lock_wake",
    "__lll_lock_wake_private",
    "__pthread_mutex_unlock",
    "__pthread_mutex_unlock_usercnt",
    "pthread_mutex_unlock",
    "___pthread_mutex_unlock",
    "sem_post",
    "__new_sem_post",
    "pthread_cond_signal",
    "___pthread_cond_signal",
    "__wake",
    "__private_wake",
    "__pthread_mutex_lock",
    "pthread_mutex_lock",
    "___pthread_mutex_lock",
    "__pthread_mutex_lock_full",
    "__pthread_cond_wait",
    "pthread_cond_wait",
    "___pthread_cond_wait",
    "pthread_cond_timedwait",
    "__pthread_cond_timedwait",
    "___pthread_cond_timedwait",
    "pthread_rwlock_rdlock",
    "pthread_rwlock_wrlock",
    "__pthread_rwlock_rdlock",
    "__pthread_rwlock_wrlock",
    "sem_wait",
    "__new_sem_wait",
    "__new_sem_wait_slow64",
    "__futex_abstimed_wait_common",
    "__futex_abstimed_wait_common64",
    "__futex_abstimed_wait_cancelable64",
    "futex_wait",
    "__futex_wait",
    "__timedwait",
    "__timedwait_cp",
    "__wait",
    "pthread_mutex_timedlock",
    "__pthread_mutex_timedlock",
    "__clock_nanosleep",
    "clock_nanosleep",
    "__nanosleep",
    "nanosleep",
    "usleep",
    "sleep",
    "__sleep",
    "fsync",
    "fdatasync",
    "__libc_fsync",
    "__fsync",
    "read",
    "__read",
    "__libc_read",
    "write",
    "__write",
    "__libc_write",
    "poll",
    "__poll",
    "__libc_poll",
    "select",
    "__select",
    "epoll_wait",
    "epoll_pwait",
    "flock",
    "__flock",
    "waitpid",
    "__waitpid",
    "wait4",
    "__wait4",
    "recv",
    "__recv",
    "recvfrom",
    "send",
    "connect",
    "__connect",
    "accept",
    "openat",
    "open",
    "__libc_open64",
    "open64",
    "__syscall_cancel",
    "__internal_syscall_cancel",
    "__syscall_cp",
    "__syscall_cp_c",
    "__syscall_cp_asm",
    "__cp_end",
    "__cp_begin",
    "__cp_cancel",
};

static bool is_static_libc(const char *function)
{
    for (size_t i = 0; i < UB_ARRAY_LEN(static_libc); i++) {
        if (strcmp(function, static_libc[i]) == 0)
            return true;
    }
    return false;
}

static const struct module_class *module_class(const char *module)
{
    for (size_t i = 0; i < UB_ARRAY_LEN(modules); i++) {
        if (strncmp(module, modules[i].prefix, strlen(modules[i].prefix)) == 0)
            return &modules[i];
    }
    return NULL;
}

static bool function_matches(size_t i, const char *function)
{
    if (functions[i].prefix)
        return strncmp(function, functions[i].function, strlen(functions[i].function)) == 0;
    return strcmp(function, functions[i].function) == 0;
}

/* The linker's stub for a call of another library's function: in the program's file, but nobody wrote it. */
static bool is_stub(const char *function)
{
    size_t len = strlen(function);

    return len > 4 && strcmp(function + len - 4, "@plt") == 0;
}

enum ub_role ub_dispatchers_role(const char *module, const char *function, bool *ret_libc)
{
    const struct module_class *class = module_class(module);

    *ret_libc = class && class->libc;
    if (class)
        return class->role;
    if (function && is_stub(function))
        return UB_ROLE_LIBRARY;
    if (function && is_static_libc(function)) {
        *ret_libc = true;
        return UB_ROLE_LIBRARY;
    }
    for (size_t i = 0; function && i < UB_ARRAY_LEN(functions); i++) {
        if (function_matches(i, function))
            return functions[i].role;
    }
    return UB_ROLE_USER;
}

enum ub_role ub_dispatchers_path_role(const char *path)
{
    if (strstr(path, "-packages/uvloop/"))
        return UB_ROLE_LOOP;
    if (strstr(path, "/site-packages/") || strstr(path, "/dist-packages/") || strstr(path, "/lib-dynload/"))
        return UB_ROLE_LIBRARY;
    return UB_ROLE_USER;
}

const char *ub_dispatchers_loop(const struct ub_named_stack *s)
{
    for (uint32_t i = 0; i < s->count; i++) {
        const struct ub_map *map = s->frame[i].map;
        const struct module_class *class = map && map->elf ? module_class(map->elf->basename) : NULL;

        if (class && class->loop)
            return class->loop;
    }
    return "turn";
}

/*
 * Both stacks end in the same frames: same return address, same position. The
 * first frame, seen from outside, that stands in the same place but has come to
 * another point of its code is the one that called the wait then and the
 * callback now: the dispatcher. Returns how many outer physical frames are the
 * loop's, 0 when the stacks share nothing.
 */
static uint32_t shared_frames(const struct ub_stack *stall, const struct ub_stack *loop)
{
    uint32_t shared = 0;

    if (!loop || !loop->complete || !stall->complete)
        return 0;
    while (shared < stall->count && shared < loop->count) {
        const struct ub_frame *a = &stall->frame[stall->count - 1 - shared];
        const struct ub_frame *b = &loop->frame[loop->count - 1 - shared];

        if (a->cfa != b->cfa)
            break;
        shared++;
        if (a->pc != b->pc)
            break;
    }
    return shared;
}

/* Up to the frame at `boundary`, or without one (UINT64_MAX) up to the first frame of a known loop. */
static int outermost_user(const struct ub_named_stack *stall, uint64_t boundary)
{
    int outermost = -ENOENT, named = -ENOENT;

    for (uint32_t i = 0; i < stall->count; i++) {
        const struct ub_named_frame *f = &stall->frame[i];

        /* Inlined functions of the dispatcher's own frame may be the callback: only the function itself is the loop. */
        if (f->cfa == boundary && !f->symbol.inlined)
            break;
        if (f->role == UB_ROLE_LOOP && outermost >= 0 && boundary == UINT64_MAX)
            break;
        if (f->role != UB_ROLE_USER)
            continue;
        outermost = (int)i;
        if (f->symbol.function && !f->symbol.nearest)
            named = (int)i;
    }
    return named >= 0 ? named : outermost;
}

int ub_dispatchers_callback(const struct ub_named_stack *stall, const struct ub_stack *stall_raw,
                            const struct ub_stack *loop)
{
    uint32_t shared = shared_frames(stall_raw, loop);

    return outermost_user(stall, shared ? stall_raw->frame[stall_raw->count - shared].cfa : UINT64_MAX);
}

int ub_dispatchers_callback_by_site(const struct ub_named_stack *stall, uint64_t site)
{
    struct ub_symbol symbol[UB_INLINES_MAX];
    uint32_t n = site && stall->maps ? ub_symbols_resolve(stall->maps, site - 1, symbol, UB_INLINES_MAX) : 0;
    uint64_t start;

    if (n == 0 || !symbol[n - 1].function)
        return -ENOENT;
    start = site - 1 - symbol[n - 1].offset;
    for (uint32_t i = stall->count; i-- > 0;) {
        const struct ub_named_frame *f = &stall->frame[i];
        uint64_t begins = f->pc - f->symbol.offset;

        /* The offset is that of the call, the pc often that of the instruction after it. */
        if (!f->symbol.inlined && f->symbol.function && (begins == start || begins == start + 1))
            return i > 0 ? outermost_user(stall, f->cfa) : -ENOENT;
    }
    return -ENOENT;
}
