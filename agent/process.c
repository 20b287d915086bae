/*
 * The arena, the process page and slots. Everything here runs once a process
 * or once a thread, in the constructor or on a thread's first wait.
 *
 * Longer than most files here: starting, forking, attaching and leaving are one state machine of the page.
 */
#include "process.h"

#include "arena.h"
#include "module.h"
#include "often.h"
#include "offload/decide.h"
#include "offload/locks.h"
#include "offload/pool.h"
#include "offload/pysteps.h"
#include "patch.h"
#include "raw.h"
#include "real.h"
#include "sample.h"
#include "tree.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <linux/futex.h>
#include <linux/membarrier.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/single_threaded.h>
#include <sys/stat.h>

#define HAND_OVER_NS 2000000000u /* an injector that has not come until then is gone */

static struct ub_process unwatched;

/* After leaving: like it, but what it points to can be written to by whoever was in the middle of something. */
static struct ub_process dormant;

UB_OFTEN struct ub_process *ub_process = &unwatched;

__thread struct ub_thread ub_thread __attribute__((aligned(UB_CACHE_LINE))); /* one line, not two */

/* Ordinary memory: survives fork, and tells the child what to start again with. */
static struct {
    struct ub_arena *arena; /* NULL: nobody watches yet */
    bool tree;              /* LD_PRELOAD alone: the first loop finds a watcher, or starts one */
    pid_t watcher;
    uint32_t generation;
    uint32_t quiet;
} inherited;

/* Whether /proc/self/status shows a seccomp filter; true as well when it cannot be read. */
static bool seccomp_filtered(void)
{
    static const char key[] = "\nSeccomp:\t";
    char text[4096] = "";
    long fd = ub_raw4(SYS_openat, AT_FDCWD, "/proc/self/status", O_RDONLY | O_CLOEXEC, 0);
    long len;

    if (fd < 0)
        return true;
    len = ub_raw3(SYS_read, fd, text, sizeof(text) - 1);
    ub_raw1(SYS_close, fd);
    for (long i = 0; i + (long)sizeof(key) <= len; i++) {
        size_t k = 0;

        while (k < sizeof(key) - 1 && text[i + (long)k] == key[k])
            k++;
        if (k == sizeof(key) - 1)
            return text[i + (long)k] != '0';
    }
    return true;
}

/* The old image of this process (before exec) can no longer say that its turns are over. */
static void release_slots_of(struct ub_arena *arena, int32_t pid)
{
    uint32_t high = ub_load_relaxed(&arena->h.slots_high);

    for (uint32_t i = 0; i < high && i < UB_SLOT_MAX; i++) {
        struct ub_slot *slot = &arena->slot[i];
        uint32_t live = UB_SLOT_LIVE;

        if (slot->pid == pid)
            __atomic_compare_exchange_n(&slot->state, &live, UB_SLOT_RELEASED, false, __ATOMIC_ACQ_REL,
                                        __ATOMIC_RELAXED);
    }
    for (uint32_t i = 0; i < UB_UV_POOL_MAX && i < ub_load_relaxed(&arena->h.uv_pools_high); i++) {
        uint32_t live = UB_UV_POOL_LIVE;

        if (arena->uv_pool[i].pid == pid)
            __atomic_compare_exchange_n(&arena->uv_pool[i].state, &live, UB_UV_POOL_RELEASED, false, __ATOMIC_ACQ_REL,
                                        __ATOMIC_RELAXED);
    }
}

/* The page that a fork wipes. False: the kernel (before 4.14) cannot, so a child would share its parent's slot. */
static bool map_page(struct ub_process **ret)
{
    long at = ub_raw6(SYS_mmap, 0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (at < 0 && at > -4096)
        return false;
    if (ub_raw3(SYS_madvise, at, 4096, MADV_WIPEONFORK) < 0) {
        ub_raw2(SYS_munmap, at, 4096);
        return false;
    }
    *ret = (struct ub_process *)at;
    return true;
}

/* 2 us while the process has one thread, 10 ms later: so only there (in the constructor, in a forked child). */
static void register_barrier(struct ub_process *page)
{
    if (page->quiet)
        return;
    page->barrier = ub_raw3(SYS_membarrier, MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED, 0, 0) == 0;
}

/* Where only ancestors may read a process (Yama), a helper is none, unlike `unblock run`. */
static void admit_helper(const struct ub_process *page)
{
    if (inherited.arena && inherited.arena->h.mode == UB_ARENA_HELPER && inherited.watcher > 0 && !page->quiet)
        ub_raw6(SYS_prctl, PR_SET_PTRACER, inherited.watcher, 0, 0, 0, 0);
}

static void fill_page(struct ub_process *page, bool single_threaded)
{
    page->arena = inherited.arena;
    page->clock = inherited.arena ? inherited.arena->h.clock : 0;
    page->quiet = inherited.quiet;
    page->pid = (int32_t)ub_raw0(SYS_getpid);
    page->sampler = page->barrier = 0;
    if (single_threaded)
        register_barrier(page);
    admit_helper(page);
    page->callbacks = inherited.generation | (ub_offload_mode > UB_OFFLOAD_DRY_RUN ? UB_CALLBACKS_MAY_MOVE : 0);
    ub_store_release(&page->generation, inherited.generation);
}

static const char *variable(char **environment, const char *name)
{
    size_t len = strlen(name);

    for (; environment && *environment; environment++) {
        if (strncmp(*environment, name, len) == 0 && (*environment)[len] == '=')
            return *environment + len + 1;
    }
    return NULL;
}

/* `unblock` watches others: its own loops are nobody's business. */
static bool is_unblock(const char *program)
{
    const char *slash = program ? strrchr(program, '/') : NULL;

    return program && strcmp(slash ? slash + 1 : program, "unblock") == 0;
}

/* True: somebody watches, or will once there is a loop. */
static bool find_watcher(const char *address, char **environment)
{
    if (address && ub_arena_map(address, &inherited.arena, &inherited.watcher) == 0) {
        __atomic_fetch_add(&inherited.arena->h.images, 1, __ATOMIC_RELAXED);
        release_slots_of(inherited.arena, (int32_t)ub_raw0(SYS_getpid));
        return true;
    }
    /* A run that is over is over, even if it left processes behind; a helper may be followed by another. */
    if (address && !ub_arena_is_helpers(address))
        return false;
    inherited.tree = ub_tree_prepare(environment, inherited.quiet != UB_QUIET_NOT);
    return inherited.tree;
}

bool ub_process_has_its_own(const void *function)
{
    const char *name = ub_module_name(function);
    const ElfW(Sym) *symbol = NULL;
    Dl_info info;

    if (!name || name[0] != '\0')
        return false;
    /* A program that is not position-independent and keeps a pointer to libc's has an entry of its own for that. */
    return dladdr1(function, &info, (void **)&symbol, RTLD_DL_SYMENT) && symbol && symbol->st_shndx != SHN_UNDEF;
}

/*
 * ThreadSanitizer is linked into the program: it stands in for most of libc's functions, strlen and its like too, and
 * is set up after us (those of us who are initialized first come before even preinit_array), so that none of them
 * works yet. Of the sanitizers it alone has this pair; AddressSanitizer's functions work from the first call on. Calls
 * no function but the loader's.
 */
static bool has_thread_sanitizer(void)
{
    return ub_process_has_its_own((const void *)strlen) && ub_process_has_its_own((const void *)pthread_spin_lock);
}

/*
 * With UNBLOCK=0 nothing is done at all. Linked with -z initfirst we come before
 * libc's own constructor, where getenv() does not work yet; glibc hands over the
 * environment.
 */
__attribute__((constructor)) static void start(int argc, char **argv, char **environment)
{
    const char *off;
    struct ub_process *page;

    if (has_thread_sanitizer())
        return;
    off = variable(environment, "UNBLOCK");
    if (ub_module_is_injected((const void *)start))
        return; /* attach.c has the word */
    ub_real_resolve();
    ub_sample_main_stack(argv);
    if ((off && off[0] == '0' && off[1] == '\0') || (argc > 0 && is_unblock(argv[0])))
        return;
    inherited.quiet = seccomp_filtered() ? UB_QUIET_INHERITED : UB_QUIET_NOT;
    if (inherited.quiet)
        ub_arena_map_whole();
    if (!find_watcher(variable(environment, "UNBLOCK_ARENA"), environment) || !map_page(&page))
        return;
    inherited.generation = 1;
    off = variable(environment, "UNBLOCK_CALLBACKS");
    off = off && off[0] == '0' && off[1] == '\0' ? off : NULL;
    ub_pool_limit_to(variable(environment, "UNBLOCK_POOL"));
    if (inherited.arena)
        ub_pool_tell(&inherited.arena->h.pool);
    if (!off)
        ub_offload_start(inherited.arena ? inherited.arena->h.offload : UB_OFFLOAD_OFF,
                         inherited.arena && inherited.arena->h.python_wanted);
    fill_page(page, true);
    ub_process = page;
    if (!off)
        ub_patch_start();
}

static uint32_t slot_flags(const struct ub_process *page)
{
    return (page->sampler ? UB_SLOT_SAMPLER : 0) | (page->barrier ? UB_SLOT_BARRIER : 0);
}

/* 0; -EBUSY: it is somebody's; -ENOMEM: no slot can be had at all. */
static int try_take(struct ub_arena *arena, uint32_t index, const struct ub_process *page, struct ub_thread *t)
{
    struct ub_slot *slot = &arena->slot[index];
    struct ub_slot_cold *cold;
    uint32_t expected = UB_SLOT_FREE;
    uint32_t high;

    if (ub_load_relaxed(&slot->state) != UB_SLOT_FREE ||
        !__atomic_compare_exchange_n(&slot->state, &expected, UB_SLOT_TAKING, false, __ATOMIC_ACQUIRE,
                                     __ATOMIC_RELAXED))
        return -EBUSY;
    ub_store_relaxed(&slot->start, 0);
    slot->turns = slot->busy = slot->max = slot->site = 0;
    slot->ready = 0;
    slot->epfd = -1;
    slot->flags = slot_flags(page);
    slot->pid = page->pid;
    slot->tid = (int32_t)ub_raw0(SYS_gettid);
    cold = ub_arena_cold(arena, index);
    if (!cold) {
        ub_store_release(&slot->state, UB_SLOT_FREE);
        return -ENOMEM;
    }
    t->slot = slot;
    t->cold = cold;
    memset(&cold->spans, 0, offsetof(struct ub_spans, histogram)); /* those are cleared when one is taken */
    ub_store_release(&slot->state, UB_SLOT_LIVE);
    high = ub_load_relaxed(&arena->h.slots_high);
    while (high < index + 1 && !__atomic_compare_exchange_n(&arena->h.slots_high, &high, index + 1, false,
                                                            __ATOMIC_RELEASE, __ATOMIC_RELAXED))
        ;
    return 0;
}

static void free_slots_of_the_dead(struct ub_arena *arena)
{
    for (uint32_t i = 0; i < UB_SLOT_MAX; i++) {
        uint32_t live = UB_SLOT_LIVE;

        if (ub_raw2(SYS_kill, arena->slot[i].pid, 0) == -ESRCH)
            __atomic_compare_exchange_n(&arena->slot[i].state, &live, UB_SLOT_FREE, false, __ATOMIC_ACQ_REL,
                                        __ATOMIC_RELAXED);
    }
}

static bool take_slot(const struct ub_process *page, struct ub_thread *t)
{
    struct ub_arena *arena = page->arena;

    for (int round = 0; round < 2; round++) {
        int r = -EBUSY;

        for (uint32_t i = 0; i < UB_SLOT_MAX && r == -EBUSY; i++)
            r = try_take(arena, i, page, t);
        if (r == 0)
            return true;
        if (r == -ENOMEM || arena->h.mode != UB_ARENA_ALONE)
            break;
        free_slots_of_the_dead(arena); /* with a watcher that is its work */
    }
    __atomic_fetch_add(&arena->h.no_slot, 1, __ATOMIC_RELAXED);
    return false;
}

/* The first process of a new PID namespace: its numbers would be others' to the watcher. */
static bool is_elsewhere(void)
{
    if (!inherited.arena || ub_raw0(SYS_getpid) != 1 || inherited.arena->h.pid_namespace == ub_arena_pid_namespace())
        return false;
    __atomic_fetch_add(&inherited.arena->h.elsewhere, 1, __ATOMIC_RELAXED);
    return true;
}

/* In a forked child the page is zero again; the first thread to come by fills it. */
static void reenter_after_fork(struct ub_process *page)
{
    static uint32_t entering;
    uint32_t idle = 0;

    if (!__atomic_compare_exchange_n(&entering, &idle, 1, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
        return; /* another thread is at it: this one is watched from its next wait on */
    if (is_elsewhere())
        inherited.arena = NULL;
    else if (ub_load_relaxed(&page->generation) == 0 && inherited.quiet != UB_QUIET_STRICT) {
        inherited.generation++;
        fill_page(page, true);
    }
    ub_store_release(&entering, 0);
}

/* What is put back some at a time, each at another wait of a loop, so that none is kept long. */
static struct {
    struct ub_arena *arena; /* NULL: nothing is */
    bool begun;
    pid_t pid; /* whose leaving the watcher waits for: not a child's that was forked meanwhile */
} leaving;

static uint64_t piece_ends(void)
{
    return ub_clock_monotonic_ns() + UB_ATTACH_PIECE_NS;
}

bool ub_process_wake(void)
{
    struct ub_process *page = ub_process;

    if (ub_unlikely(page == &dormant) && ub_load_acquire(&leaving.arena))
        ub_process_leave(piece_ends());
    if (page == &unwatched || page == &dormant || (!inherited.arena && !inherited.tree))
        return false;
    if (inherited.arena && ub_load_relaxed(&inherited.arena->h.closed)) {
        ub_process_leave(piece_ends());
        return false;
    }
    if (ub_load_acquire(&page->generation) == 0)
        reenter_after_fork(page);
    return ub_load_acquire(&page->generation) != 0;
}

/*
 * The first loop of a process that nobody watches yet. `joining` holds the pid of the process that is at it: in a
 * child forked meanwhile by another thread it means nothing.
 */
static bool join_tree(struct ub_process *page)
{
    static int32_t joining;
    int32_t at_it = ub_load_relaxed(&joining);
    struct ub_arena *arena;
    bool never = false;

    if (at_it == page->pid ||
        !__atomic_compare_exchange_n(&joining, &at_it, page->pid, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
        return false;
    if (!page->arena) {
        arena = ub_tree_join(&inherited.watcher, &never);
        if (arena) {
            inherited.arena = arena;
            page->clock = arena->h.clock;
            admit_helper(page);
            ub_store_release(&page->arena, arena);
        } else if (never) {
            ub_store_release(&ub_process, &unwatched);
        }
    }
    ub_store_release(&joining, 0);
    return ub_process->arena != NULL;
}

bool ub_process_enter(struct ub_thread *t)
{
    struct ub_process *page = ub_process;

    if (page->quiet == UB_QUIET_STRICT || (!ub_load_acquire(&page->arena) && !join_tree(page)) ||
        ub_load_relaxed(&page->arena->h.closed))
        return false;
    if (!page->quiet)
        page->sampler = ub_sample_install();
    return take_slot(page, t);
}

uint32_t ub_process_quiet(void)
{
    return inherited.quiet;
}

void ub_process_count_image(uint32_t image)
{
    if (inherited.arena && image < UB_ARRAY_LEN(inherited.arena->h.not_entered))
        __atomic_fetch_add(&inherited.arena->h.not_entered[image], 1, __ATOMIC_RELAXED);
}

void ub_process_ring(void)
{
    struct ub_process *page = ub_process;
    struct ub_arena *arena = page->arena;

    if (!arena || ub_process_hands_over())
        return;
    if (ub_unlikely(ub_load_relaxed(&arena->h.closed)) && ub_process_leave(piece_ends()) >= 0)
        return;
    __atomic_fetch_add(&arena->h.doorbell, 1, __ATOMIC_RELEASE);
    if (page->quiet) /* and leave the flag to those who can wake the watcher; it does not sleep deeply beside us */
        return;
    /* Whoever clears the flag rings: a watcher that was killed asleep costs one system call, not one a turn. */
    ub_store_relaxed(&arena->h.asleep, 0);
    ub_raw3(SYS_futex, &arena->h.doorbell, FUTEX_WAKE, 1);
}

static void clear_flags_of_own_slots(uint32_t flags)
{
    struct ub_arena *arena = ub_process->arena;

    for (uint32_t i = 0; arena && i < UB_SLOT_MAX && i < ub_load_relaxed(&arena->h.slots_high); i++) {
        if (arena->slot[i].pid == ub_process->pid)
            __atomic_fetch_and(&arena->slot[i].flags, ~flags, __ATOMIC_RELAXED);
    }
}

void ub_process_hush(void)
{
    struct ub_process *page = ub_process;

    inherited.quiet = UB_QUIET_STRICT; /* also where nothing is watched yet: a forked child before its first wait */
    if (!page->generation || page->quiet == UB_QUIET_STRICT)
        return;
    if (page->quiet == UB_QUIET_NOT)
        ub_sample_uninstall(); /* returning from the handler is a system call, too */
    page->sampler = page->barrier = 0;
    clear_flags_of_own_slots(UB_SLOT_BARRIER | UB_SLOT_SAMPLER);
    ub_process_ring(); /* the last one: the watcher must not sleep deeply from now on */
    ub_store_release(&page->quiet, UB_QUIET_STRICT);
}

void ub_process_lose_sampler(void)
{
    if (!ub_process->generation)
        return;
    ub_process->sampler = 0;
    clear_flags_of_own_slots(UB_SLOT_SAMPLER);
}

/*
 * The arena's descriptor, after attaching: open until the injector has taken the arena, which the program does not
 * wait for (it would for milliseconds where the CPUs are busy). Then the next wait call closes it; and leaves,
 * if nobody has come.
 */
static struct {
    int32_t fd; /* one more than the descriptor; 0: none is open */
    uint64_t inode, until_ns;
} handing;

/* The program may have closed it, and opened another under its number. */
static void close_handed(int fd)
{
    struct stat st = {0};

    if (ub_raw2(SYS_fstat, fd, &st) == 0 && st.st_ino == handing.inode)
        ub_raw1(SYS_close, fd);
}

static bool is_vforked(void)
{
    int32_t pid = ub_process->pid; /* 0: a forked child, which has descriptors and memory of its own */

    return pid && pid != (int32_t)ub_raw0(SYS_getpid);
}

bool ub_process_hands_over(void)
{
    int32_t fd = ub_load_acquire(&handing.fd);
    struct ub_arena *arena = inherited.arena;
    bool taken;

    if (ub_likely(!fd))
        return false;
    taken = arena && ub_load_relaxed(&arena->h.watcher_pid) > 0;
    if ((!taken && ub_clock_monotonic_ns() < handing.until_ns) || is_vforked())
        return true;
    if (__atomic_compare_exchange_n(&handing.fd, &fd, 0, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) {
        close_handed(fd - 1);
        if (!taken && arena)
            ub_store_relaxed(&arena->h.closed, 1);
    }
    return false;
}

/* One at a time, and only one comes at a time: the others pass by. */
static bool take_turn(uint32_t *busy)
{
    uint32_t idle = 0;

    return __atomic_compare_exchange_n(busy, &idle, 1, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
}

static uint32_t coming_or_going;

/* True: nothing is left to do. */
static bool leave_some(uint64_t until_ns)
{
    struct ub_arena *arena = leaving.arena;
    bool first = !leaving.begun;

    if (!arena)
        return true;
    if (inherited.quiet != UB_QUIET_NOT) { /* a filter has come meanwhile: no system call any more */
        leaving.arena = NULL;
        return true;
    }
    leaving.begun = true;
    if (!ub_patch_detach(first, until_ns))
        return false;
    if (leaving.pid == (pid_t)ub_raw0(SYS_getpid)) {
        __atomic_fetch_add(&arena->h.left, 1, __ATOMIC_RELEASE);
        ub_raw3(SYS_futex, &arena->h.left, FUTEX_WAKE, 1);
    }
    ub_arena_leave(arena);
    leaving.arena = NULL;
    return true;
}

static void go_dormant(struct ub_arena *arena)
{
    bool quiet = inherited.quiet != UB_QUIET_NOT;

    if (!quiet)
        ub_sample_uninstall();
    /* The page stays as it is: threads that have looked at it go on with it for a moment. */
    dormant.arena = arena;
    dormant.quiet = inherited.quiet;
    dormant.pid = (int32_t)ub_raw0(SYS_getpid);
    ub_store_release(&ub_process, &dormant);
    inherited.arena = NULL;
    inherited.tree = false;
    leaving.begun = false;
    leaving.pid = dormant.pid;
    ub_store_release(&leaving.arena, quiet ? NULL : arena);
}

int ub_process_leave(uint64_t until_ns)
{
    struct ub_arena *arena = inherited.arena;
    bool done;

    if (ub_offload_mode > UB_OFFLOAD_DRY_RUN || !take_turn(&coming_or_going))
        return -EAGAIN; /* work that was moved elsewhere has to come back */
    if (handing.fd && !is_vforked()) {
        close_handed(handing.fd - 1);
        handing.fd = 0;
    }
    if (ub_process != &unwatched && ub_process != &dormant && arena)
        go_dormant(arena);
    done = leave_some(until_ns);
    ub_store_release(&coming_or_going, 0);
    return done ? 0 : UB_ATTACH_MORE;
}

/* Nobody watches any more, or whoever wanted to was killed before it could. */
static bool is_abandoned(const struct ub_arena *arena, const struct ub_attach *a)
{
    int32_t watcher = ub_load_relaxed(&arena->h.watcher_pid);
    uint64_t ns = arena->h.watcher_namespace;

    if (ub_load_relaxed(&arena->h.closed) || watcher <= 0)
        return true;
    if (ns && ns != ub_arena_pid_namespace()) /* its number says nothing to us; the injector has looked */
        return a->watcher_gone;
    return ub_raw2(SYS_kill, watcher, 0) == -ESRCH;
}

static void hand_over(const struct ub_attach *a, struct ub_arena *arena)
{
    handing.inode = a->arena_inode;
    handing.until_ns = ub_clock_monotonic_ns() + HAND_OVER_NS;
    ub_store_release(&handing.fd, a->arena_fd + 1);
    arena->h.asleep = 1; /* a turn comes by to close it */
}

static struct ub_process *attached_page; /* of those that were attached to before, too; NULL: none so far */

int ub_process_attach(struct ub_attach *a, bool injected, uint64_t until_ns)
{
    struct ub_process *page = attached_page;
    struct ub_arena *arena;
    int r = 0;

    if (inherited.quiet != UB_QUIET_NOT || seccomp_filtered())
        return -EPERM;
    if (inherited.arena) {
        a->watcher = inherited.arena->h.watcher_pid;
        if (!is_abandoned(inherited.arena, a))
            return -EBUSY;
        ub_process_leave(UINT64_MAX);
    }
    if (!take_turn(&coming_or_going))
        return -EAGAIN;
    if (!leave_some(UINT64_MAX)) { /* what is not put back yet: slots and the arena's place are wanted afresh */
        ub_store_release(&coming_or_going, 0);
        return -EAGAIN; /* another thread hooks just now */
    }
    if (ub_process != &unwatched && ub_process != &dormant)
        page = ub_process; /* preloaded, and nobody has come so far */
    if (!page && !map_page(&page))
        r = -ENOSYS;
    attached_page = page;
    if (r == 0)
        r = a->join_inode ? ub_arena_join(a->join_name, &a->arena_fd, a->join_inode, &arena)
                          : ub_arena_create(&arena, &a->arena_fd, &a->arena_inode);
    if (r == 0) {
        if (!a->join_inode)
            hand_over(a, arena);
        inherited.arena = arena;
        inherited.tree = false;
        inherited.watcher = 0;
        inherited.generation++;
        ub_offload_attach((uint32_t)a->offload);
        fill_page(page, __libc_single_threaded);
        r = ub_patch_attach(injected, until_ns) ? 0 : UB_ATTACH_MORE;
        ub_store_release(&ub_process, page);
        ub_pysteps_attach(a->python_objects);
    }
    ub_store_release(&coming_or_going, 0);
    return r;
}

int ub_process_forget(void)
{
    int r = 0;

    if (!take_turn(&coming_or_going))
        return -EAGAIN;
    if ((ub_process != &dormant && ub_process != &unwatched) || inherited.arena) {
        r = UB_ATTACH_KEPT_WATCHED;
    } else if (leaving.arena || handing.fd) {
        r = UB_ATTACH_KEPT_LEAVING;
    } else {
        if (attached_page)
            ub_raw2(SYS_munmap, attached_page, 4096);
        attached_page = NULL;
        dormant.arena = NULL;
        ub_locks_forget();
        ub_arena_forget();
    }
    ub_store_release(&coming_or_going, 0);
    return r;
}
