#include "tree.h"

#include "../common/tree.h"
#include "alone.h"
#include "helper.h"
#include "raw.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#define DISABLED   "/run/unblock/disabled"
#define STARTS_MAX 4u           /* a helper that was killed is replaced so often, for processes that come later, */
#define SOON_NS    60000000000u /* if each lived no longer than this */
#define TRIES_MAX  4u

static struct ub_tree *tree;
static bool filter; /* a seccomp filter was there before us */

struct ub_tree *ub_tree(void)
{
    return tree;
}

static bool is_disabled(void)
{
    return ub_raw4(SYS_faccessat, AT_FDCWD, DISABLED, 0 /* F_OK */, 0) == 0;
}

/*
 * Under a filter only memory is used, nothing is looked up: mmap let the loader
 * work. Whoever names the helper there (UNBLOCK_HELPER) says that the filter
 * lets it be started.
 */
bool ub_tree_prepare(char *const *environment, bool filtered)
{
    long at;

    if (!filtered && is_disabled())
        return false;
    at = ub_raw6(SYS_mmap, 0, UB_TREE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (at < 0 && at > -4096)
        return false;
    tree = (struct ub_tree *)at;
    tree->version = UB_TREE_VERSION;
    tree->root = (int32_t)ub_raw0(SYS_getpid);
    ub_store_release(&tree->magic, UB_TREE_MAGIC);
    ub_helper_prepare(environment);
    filter = filtered;
    if (filtered && !ub_helper_variable("UNBLOCK_HELPER")) {
        tree->reason = UB_TREE_SECCOMP;
        tree->state = UB_TREE_OFF;
        return false;
    }
    return true;
}

/* Whether the process that would inherit the helper is itself a preloaded program. */
static bool init_is_preloaded(void)
{
    static const char key[] = "/libunblock.so";
    size_t matched = 0;
    char text[1024];
    long fd = ub_raw4(SYS_openat, AT_FDCWD, "/proc/1/maps", O_RDONLY | O_CLOEXEC, 0), n;

    if (fd < 0)
        return false;
    while (matched < sizeof(key) - 1 && (n = ub_raw3(SYS_read, fd, text, sizeof(text))) > 0) {
        for (long i = 0; i < n && matched < sizeof(key) - 1; i++)
            matched = text[i] == key[matched] ? matched + 1 : text[i] == key[0];
    }
    ub_raw1(SYS_close, fd);
    return matched == sizeof(key) - 1;
}

/* Why an orphan would come back to a program that may look at whatever it waits for. */
static enum ub_tree_reason who_adopts(void)
{
    int subreaper = 0;

    if (ub_raw0(SYS_getpid) == 1)
        return UB_TREE_PID1;
    if (ub_raw6(SYS_prctl, PR_GET_CHILD_SUBREAPER, (long)&subreaper, 0, 0, 0, 0) == 0 && subreaper)
        return UB_TREE_SUBREAPER;
    return init_is_preloaded() ? UB_TREE_INIT : UB_TREE_NO_REASON;
}

static void give_up(enum ub_tree_reason reason, int error)
{
    tree->reason = reason;
    tree->error = -error;
    ub_store_release(&tree->state, UB_TREE_OFF);
}

/* No watcher, but the agents can still write down what is over. */
static struct ub_arena *go_alone(enum ub_tree_reason reason, int error)
{
    struct ub_arena *arena = ub_alone_prepare() ? ub_alone_arena() : NULL;

    give_up(reason, error);
    if (arena)
        ub_store_release(&tree->state, UB_TREE_ALONE);
    return arena;
}

/* Too little of something: it may be there later. */
static void give_up_for_now(int error)
{
    if (++tree->tries >= TRIES_MAX)
        give_up(UB_TREE_RESOURCES, error);
    else
        ub_store_release(&tree->state, UB_TREE_IDLE);
}

/* A helper with a new arena; its address is for those that are to join it. */
static int launch(struct ub_arena **ret, pid_t *ret_watcher, char *address, bool *ret_exec)
{
    struct ub_arena *arena;
    uint64_t inode;
    int fd, r = ub_arena_create(&arena, &fd, &inode);

    *ret_exec = false;
    if (r < 0)
        return r;
    arena->h.root_pid = tree->root;
    r = ub_helper_start(fd, inode, ret_watcher, ret_exec);
    ub_raw1(SYS_close, fd);
    if (r < 0) {
        ub_arena_unmap(arena);
        return r;
    }
    ub_arena_address(address, *ret_watcher, UB_HELPER_FD, inode);
    *ret = arena;
    return 0;
}

/* State STARTING is ours. */
static struct ub_arena *start(pid_t *ret_watcher)
{
    enum ub_tree_reason reason = who_adopts();
    struct ub_arena *arena = NULL;
    bool exec_failed;
    int r;

    if (reason != UB_TREE_NO_REASON)
        return go_alone(reason, 0);
    r = launch(&arena, ret_watcher, tree->address, &exec_failed);
    if (r == 0) {
        tree->helper = *ret_watcher;
        tree->starts = ub_clock_monotonic_ns() - tree->started_ns < SOON_NS ? tree->starts + 1 : 1;
        tree->started_ns = ub_clock_monotonic_ns();
        ub_store_release(&tree->state, UB_TREE_READY);
    } else if (exec_failed) {
        arena = go_alone(UB_TREE_EXEC, r);
    } else {
        give_up_for_now(r);
    }
    return arena;
}

/*
 * The tree's helper is another user's: this process has changed its user since,
 * and gets a helper of its own, as do those that it forks from now on.
 */
static struct ub_arena *start_own(pid_t *ret_watcher)
{
    char address[UB_TREE_ADDRESS_MAX];
    struct ub_arena *arena = NULL;
    bool exec_failed;

    if (who_adopts() == UB_TREE_NO_REASON)
        launch(&arena, ret_watcher, address, &exec_failed);
    return arena;
}

/* The next helper is ours to start. `starter` is the one that was at it, in state STARTING. */
static bool claim(uint32_t state, int32_t starter)
{
    int32_t self = (int32_t)ub_raw0(SYS_getpid);

    if (state == UB_TREE_STARTING)
        return __atomic_compare_exchange_n(&tree->starter, &starter, self, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
    if (!__atomic_compare_exchange_n(&tree->state, &state, UB_TREE_STARTING, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
        return false;
    ub_store_release(&tree->starter, self);
    return true;
}

static bool is_gone(int32_t pid)
{
    return pid > 0 && ub_raw2(SYS_kill, pid, 0) == -ESRCH;
}

struct ub_arena *ub_tree_join(pid_t *ret_watcher, bool *ret_never)
{
    uint32_t state = ub_load_acquire(&tree->state);
    struct ub_arena *arena = NULL;
    int r;

    *ret_never = false;
    switch (state) {
    case UB_TREE_READY:
        r = ub_arena_map(tree->address, &arena, ret_watcher);
        if (r == 0)
            return arena;
        if (r != -ENOENT) {
            arena = r == -EACCES ? start_own(ret_watcher) : NULL;
            *ret_never = !arena;
            return arena;
        }
        if (tree->starts >= STARTS_MAX && ub_clock_monotonic_ns() - tree->started_ns < SOON_NS) {
            give_up(UB_TREE_DIED, 0);
            break;
        }
        if (claim(state, 0))
            arena = start(ret_watcher);
        break;
    case UB_TREE_IDLE:
        if (claim(state, 0))
            arena = start(ret_watcher);
        break;
    case UB_TREE_STARTING: {
        int32_t starter = ub_load_acquire(&tree->starter);

        if (is_gone(starter) && claim(state, starter))
            arena = start(ret_watcher);
        break;
    }
    case UB_TREE_ALONE:
        arena = ub_alone_prepare() ? ub_alone_arena() : NULL;
        *ret_never = !arena;
        return arena;
    default:
        break;
    }
    *ret_never = ub_load_acquire(&tree->state) == UB_TREE_OFF;
    return arena;
}
