/*
 * Longer than most files here: what a task goes through from its callback's beginning to its
 * end changes its state together, and is read together. The calls that it makes are in leave.c, their order in order.c.
 */
#include "suspend_impl.h"

#include "../raw.h"
#include "../patch.h"
#include "decide.h"
#include "eventhost.h"
#include "evhost.h"
#include "glibhost.h"
#include "order.h"
#include "sdhost.h"
#include "uvhost.h"

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#define MEASURE_ROUNDS 256u
#define EXIT_NS        5000000000ull /* at most so long for what is being sent as the program ends */

static struct mine *mine_of[UB_SLOT_MAX];

void *ub_suspend_map(size_t size)
{
    long at =
        ub_raw6(SYS_mmap, 0, (long)size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    return at < 0 && at > -4096 ? NULL : (void *)at;
}

static void begin(struct mine *m, int32_t tid)
{
    m->fibers.size = ub_fiber_stack_size();
    if (ub_runtime_exceptions)
        m->exceptions = ub_runtime_exceptions();
    m->tid = tid;
    m->slot = ub_thread.slot;
}

/*
 * The slot was another thread's, which has ended: its free stacks are this one's now, if they are large enough. What it
 * left suspended is lost with it.
 */
static struct mine *take_over(struct mine *m, int32_t tid)
{
    size_t size = m->fibers.size;

    for (uint32_t i = 0; i < UB_HOSTS_MAX; i++) {
        if (m->host[i] && m->host[i]->loop)
            ub_suspend_lose(&m->host[i]);
    }
    m->current = NULL;
    m->suspended = 0;
    begin(m, tid);
    if (m->fibers.size > size)
        m->fibers.free = NULL; /* new ones are made, the others are lost */
    else
        m->fibers.size = size;
    return m;
}

static void see_forks(void);

UB_HOT struct mine *ub_suspend_mine(bool make)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    const struct ub_thread *t = &ub_thread;
    struct mine *m;
    uint32_t index;

    if (!t->slot || t->generation != ub_process->generation)
        return NULL;
    index = (uint32_t)(t->slot - ub_process->arena->slot);
    m = mine_of[index];
    if (m && m->tid == t->slot->tid && m->generation == t->generation)
        return m;
    if (!make)
        return NULL;
    if (m && m->generation == t->generation)
        return take_over(m, t->slot->tid);
    m = ub_suspend_map(sizeof(*m)); /* in a forked child: what is there is its parent's */
    if (!m)
        return NULL;
    pthread_once(&once, see_forks);
    m->generation = t->generation;
    m->fibers.head = sizeof(struct ub_task);
    begin(m, t->slot->tid);
    ub_store_release(&mine_of[index], m);
    return m;
}

struct mine *ub_suspend_mine_at(uint32_t slot)
{
    struct mine *m = ub_load_acquire(&mine_of[slot]);

    return m && m->generation == ub_process->generation ? m : NULL;
}

static uint64_t now_ns(void)
{
    return ub_clock_monotonic_ns();
}

/* ---- forks ----------------------------------------------------------------------------- */

/* In a forked child: of its parent's thread that forked. Nothing else there leads to what that has suspended. */
static struct mine *parents;

static void orphan(struct ub_host *h);

static void in_child(void)
{
    const struct ub_thread *t = &ub_thread;

    for (uint32_t i = 0; t->slot && i < UB_SLOT_MAX; i++) {
        if (mine_of[i] && mine_of[i]->slot == t->slot && mine_of[i]->generation == t->generation)
            parents = mine_of[i];
    }
    for (uint32_t i = 0; parents && i < UB_HOSTS_MAX; i++) {
        struct ub_host *h = parents->host[i];

        if (h && h->loop && h->ops->orphan_at_fork && h->generation != ub_process->generation)
            orphan(h);
    }
}

static void see_forks(void)
{
    pthread_atfork(NULL, NULL, in_child);
}

/* ---- tasks --------------------------------------------------------------------------------- */

static struct ub_task *suspended_task(const struct ub_host *h, uint64_t key)
{
    struct ub_task *task = h->suspended;

    while (task && task->key != key)
        task = task->next;
    return task;
}

/* Last of its host's. */
static void put_in(struct mine *m, struct ub_task *task)
{
    struct ub_host *h = task->host;
    struct ub_task **end = &h->suspended;

    while (*end)
        end = &(*end)->next;
    task->next = NULL;
    *end = task;
    m->suspended++;
    h->count++;
    if (!h->held)
        h->ops->hold(h, true);
    h->held = true;
}

static void take_out(struct mine *m, struct ub_task *task)
{
    struct ub_task **at = &task->host->suspended;

    while (*at != task)
        at = &(*at)->next;
    *at = task->next;
    m->suspended--;
    task->host->count--;
}

static void drop_pending(struct ub_host *h, uint64_t key)
{
    uint32_t kept = 0;

    for (uint32_t i = 0; i < h->pendings; i++) {
        if (h->pending[i].key != key)
            h->pending[kept++] = h->pending[i];
    }
    h->pendings = kept;
}

/* The suspended one of a handle, of whatever loop of this thread. */
static struct ub_task *task_of_handle(const void *handle)
{
    struct mine *m = ub_suspend_mine(false);
    struct ub_task *task = NULL;

    for (uint32_t i = 0; m && m->suspended && !task && i < UB_HOSTS_MAX; i++) {
        if (m->host[i] && m->host[i]->loop && m->host[i]->count)
            task = suspended_task(m->host[i], (uint64_t)(uintptr_t)handle);
    }
    return task;
}

/* In a forked child the program may free a handle before the loop wakes. */
static void leave_orphan_alone(uint64_t key)
{
    for (uint32_t i = 0; parents && i < UB_HOSTS_MAX; i++) {
        const struct ub_host *h = parents->host[i];

        if (!h || !h->loop || h->generation == ub_process->generation)
            continue;
        for (struct ub_task *task = h->suspended; task; task = task->next) {
            if (task->key == key)
                task->muted = false;
        }
    }
}

void ub_suspend_touched(void *handle)
{
    struct mine *m = ub_suspend_mine(false);
    struct ub_task *task = task_of_handle(handle);

    if (task)
        task->muted = false;
    for (task = m ? m->current : NULL; task; task = task->outer) {
        if (task->key == (uint64_t)(uintptr_t)handle)
            task->muted = false;
    }
    for (uint32_t i = 0; m && i < UB_HOSTS_MAX; i++) {
        if (m->host[i] && m->host[i]->pendings)
            drop_pending(m->host[i], (uint64_t)(uintptr_t)handle);
    }
    leave_orphan_alone((uint64_t)(uintptr_t)handle);
}

struct ub_task *ub_suspend_find(const void *handle)
{
    const struct mine *m = ub_suspend_mine(false);
    struct ub_task *task = m && m->suspended ? task_of_handle(handle) : NULL;

    for (struct ub_task *t = m ? m->current : NULL; !task && t; t = t->outer)
        task = t->key == (uint64_t)(uintptr_t)handle ? t : NULL;
    return task;
}

struct ub_task *ub_suspend_current(void)
{
    const struct mine *m = ub_suspend_mine(false);

    return m ? ub_suspend_task(m, (uintptr_t)__builtin_frame_address(0)) : NULL;
}

bool ub_suspend_free_later(void *handle)
{
    struct ub_task *task = task_of_handle(handle);

    if (task)
        task->freed = true;
    return task != NULL;
}

static void count(struct mine *m, uint64_t function, const struct ub_shape *shape)
{
    ub_beside_ran(&m->beside, m->suspended > 0, function, shape->kind, shape->library);
}

static uint64_t call_directly(struct ub_thread *t, uint64_t function, const struct ub_shape *shape, const uint64_t *w)
{
    uintptr_t sp = (uintptr_t)__builtin_frame_address(0);
    bool timed = t->start && t->generation == ub_process->generation && ub_span_begin(t, sp, function, shape, w);
    struct mine *m = ub_suspend_mine(false);
    uint64_t ret;

    if (m)
        count(m, function, shape);
    ret = ((ub_fiber_function *)function)(w[0], w[1], w[2], w[3], w[4], w[5]);

    if (timed)
        ub_span_end(t, sp, shape);
    return ret;
}

/* Until it is suspended or over. True: over. */
static __attribute__((noinline)) bool run(struct mine *m, struct ub_task *task)
{
    struct ub_thread *t = &ub_thread;
    struct ub_host *h = task->host;
    uintptr_t sp = (uintptr_t)__builtin_frame_address(0);
    struct ub_task *outer = m->current;
    bool timed = t->start && t->generation == ub_process->generation &&
                 ub_span_begin(t, sp, task->function, task->shape, task->argument);
    enum ub_fiber_state state;

    if (task->left)
        ub_beside_returns(&m->beside, &task->beside);
    count(m, task->function, task->shape);
    m->current = task;
    task->outer = outer;
    state = ub_fiber_resume(&task->fiber, m->exceptions);
    m->current = outer;
    if (timed)
        ub_span_end(t, sp, task->shape);
    if (state != UB_FIBER_SUSPENDED)
        return true;
    put_in(m, task);
    if (h->ops->mute)
        h->ops->mute(task);
    task->left = true;
    ub_order_start(h);
    ub_suspend_arm(h);
    return false;
}

/* What the program does there is not the callback's that waits below. The handle may be gone then, and be another's. */
static void back_above(struct mine *m, struct ub_task *task)
{
    struct ub_task *waits = m->current;
    uintptr_t outer = waits ? waits->nested_sp : 0;

    if (waits && !outer)
        waits->nested_sp = (uintptr_t)__builtin_frame_address(0);
    task->host->ops->back(task);
    if (waits)
        waits->nested_sp = outer;
    task->left = task->muted = false; /* `finish` has nothing to give back */
    task->key = 0;
}

void ub_suspend_run_here(struct mine *m, struct ub_task *task)
{
    take_out(m, task);
    if (!run(m, task))
        return;
    if (task->host->ops->back_at_once)
        back_above(m, task);
    task->over = task->done = true;
    put_in(m, task);
    ub_suspend_arm(task->host);
}

static bool start(struct mine *m, struct ub_host *h, uint64_t key, uint64_t function, const struct ub_shape *shape,
                  const uint64_t word[UB_FIBER_WORDS], uint64_t *ret);

/* The callback is over: what came for its handle meanwhile is next. */
static void finish(struct mine *m, struct ub_task *task)
{
    struct ub_host *h = task->host;
    struct ub_task copy = {.key = task->key, .held_close = task->held_close, .shape = task->shape};
    uint64_t ret, word[UB_FIBER_WORDS] = {task->key};

    if (task->left && h->ops->back)
        h->ops->back(task);
    for (struct ub_task *other = h->suspended; other; other = other->next) {
        if (other->behind == task)
            other->over = other->done = true;
    }
    ub_fiber_give(&m->fibers, &task->fiber);
    if (copy.held_close) {
        static const struct ub_shape closing = {.kind = UB_CALLBACK_CLOSE, .library = UB_LOOP_LIBUV};

        drop_pending(h, copy.key);
        call_directly(&ub_thread, copy.held_close, &closing, word);
        return;
    }
    for (uint32_t i = 0; i < h->pendings && !suspended_task(h, copy.key); i++) {
        struct ub_pending p = h->pending[i];

        if (p.key != copy.key)
            continue;
        h->pendings--;
        for (uint32_t k = i; k < h->pendings; k++)
            h->pending[k] = h->pending[k + 1];
        if (h->ops->due)
            h->ops->due(&p);
        i = UINT32_MAX; /* from the start again: the callback may change all of it */
        if (!start(m, h, p.key, p.function, p.shape, p.argument, &ret))
            call_directly(&ub_thread, p.function, p.shape, p.argument);
    }
}

/* Those that are not what `sp` is on were left by a longjmp or an exception: nobody told us then. */
static void abandon(struct mine *m, uintptr_t sp)
{
    struct ub_task *task = m->current, *outer;

    for (; task && !ub_fiber_contains(&task->fiber, sp); task = outer) {
        outer = task->outer;
        m->current = outer;
        if (task->fiber.state == UB_FIBER_RUNNING)
            ub_fiber_tell_left(&task->fiber);
        if (m->exceptions && task->fiber.state == UB_FIBER_RUNNING)
            *m->exceptions = task->fiber.callers;
        finish(m, task);
    }
}

/* Behind one of the same handle. False: no room. Timers and asyncs that fire again have fired once; so have libevent's
 * events and libev's watchers, with all that they were told. */
static bool put_off(struct ub_host *h, uint64_t key, uint64_t function, const struct ub_shape *shape,
                    const uint64_t word[UB_FIBER_WORDS])
{
    struct ub_pending *p;

    for (uint32_t i = 0; i < h->pendings; i++) {
        p = &h->pending[i];
        if (p->key == key && shape->library == UB_LOOP_LIBEVENT && shape->special == UB_SHAPE_USUAL)
            p->argument[1] |= word[1];
        else if (p->key == key && shape->library == UB_LOOP_LIBEV)
            p->argument[2] |= word[2];
        else if (p->key != key || (shape->kind != UB_CALLBACK_TIMER && shape->kind != UB_CALLBACK_ASYNC))
            continue;
        return true;
    }
    if (h->pendings == UB_HOST_PENDING)
        return false;
    p = &h->pending[h->pendings++];
    *p = (struct ub_pending){.key = key, .function = function, .shape = shape};
    for (uint32_t i = 0; i < UB_FIBER_WORDS; i++)
        p->argument[i] = word[i];
    return true;
}

/*
 * Another callback is suspended in a call on a descriptor that this one is told to be ready: without us that one
 * would have had it all to itself, and it may be ready no more. The event is kept from firing until then.
 */
static bool leave_to(struct mine *m, struct ub_task *task)
{
    struct ub_host *h = task->host;
    struct ub_task *user = h->ops->is_told_ready ? h->suspended : NULL;

    while (user && (user->fd < 0 || user->behind || user->over || !h->ops->is_told_ready(task, user->fd)))
        user = user->next;
    if (!user)
        return false;
    task->behind = user;
    task->started = true;
    task->done = false;
    task->fd = task->own_fd = -1;
    task->object = 0; /* the stack was another callback's before */
    task->direction = task->holds_up = 0;
    task->deadline_ns = 0;
    put_in(m, task);
    h->ops->mute(task);
    task->left = true;
    return true;
}

/* A callback of `key` is due. As ub_suspend_dispatch. */
static bool start(struct mine *m, struct ub_host *h, uint64_t key, uint64_t function, const struct ub_shape *shape,
                  const uint64_t word[UB_FIBER_WORDS], uint64_t *ret)
{
    struct ub_task *task, *earlier;

    earlier = h->count ? suspended_task(h, key) : NULL;
    *ret = h->ops->keep;
    if (earlier && shape->kind == UB_CALLBACK_CLOSE) {
        earlier->held_close = function;
        return true;
    }
    if (earlier && ((h->ops->again && h->ops->again(earlier, shape, word)) || put_off(h, key, function, shape, word)))
        return true;
    while (earlier && suspended_task(h, key)) { /* no room to put it off: as without us, one after the other */
        ub_order_wait(h);
        ub_suspend_wake(h);
    }
    if (!ub_decide_shape_moves(shape))
        return false;
    task = (struct ub_task *)ub_fiber_take(&m->fibers);
    if (!task)
        return false;
    task->host = h;
    task->shape = shape;
    task->function = function;
    task->key = key;
    task->nested_sp = task->held_close = 0;
    task->driven = task->over = task->left = task->muted = task->freed = false;
    task->behind = NULL;
    task->born = ++m->born;
    for (uint32_t i = 0; i < UB_FIBER_WORDS; i++)
        task->argument[i] = word[i];
    if (h->ops->begin)
        h->ops->begin(task);
    ub_fiber_start(&task->fiber, (ub_fiber_function *)function, word);
    if (h->count && leave_to(m, task))
        return true;
    if (run(m, task)) {
        *ret = task->fiber.result;
        finish(m, task);
    }
    return true;
}

bool ub_suspend_dispatch(struct ub_thread *t, uintptr_t sp, uint64_t function, const struct ub_shape *shape,
                         const uint64_t word[UB_FIBER_WORDS], uint64_t *ret)
{
    struct mine *m = ub_suspend_mine(true);
    struct ub_task *task;
    struct ub_host *h;
    uint64_t key;

    if (!m || !ub_offload_moves || ub_patch_has_runtime() ||
        ub_process->quiet != UB_QUIET_NOT) /* nobody leaves there: a stack of our own is of no use */
        return false;
    abandon(m, sp);
    if (m->current) { /* a loop inside a callback: nothing moves there */
        uintptr_t outer = m->current->nested_sp;

        task = m->current;
        if (!outer)
            task->nested_sp = sp;
        *ret = call_directly(t, function, shape, word);
        task->nested_sp = outer;
        return true;
    }
    h = ub_uv_host(shape, word, &key);
    if (!h)
        h = ub_event_host(shape, function, word, &key);
    if (!h)
        h = ub_glib_host(shape, word, &key);
    if (!h)
        h = ub_sd_host(shape, word, &key);
    if (!h)
        h = ub_ev_host(shape, word, &key);
    if (h && start(m, h, key, function, shape, word, ret))
        return true;
    count(m, function, shape); /* by the caller, on the thread's own stack */
    return false;
}

static void raise_to(uint64_t *at, uint64_t value)
{
    uint64_t now = ub_load_relaxed(at);

    while (now < value && !__atomic_compare_exchange_n(at, &now, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        ;
}

/* How full the pool is, for the report: at each waking, since programs may end without a word. */
static void measure_pool(void)
{
    struct ub_arena_header *h = &ub_process->arena->h;
    uint64_t threads = 0;

    for (int lane = 0; lane < UB_LANES; lane++) {
        struct ub_pool_totals totals;

        ub_pool_totals((enum ub_lane)lane, &totals);
        threads += totals.threads;
        raise_to(&h->pool_queued, totals.most_queued);
    }
    raise_to(&h->pool_threads, threads);
}

/* How deep the stacks are: asks the kernel about each, so not at each waking. */
static void measure_stacks(const struct mine *m)
{
    raise_to(&ub_process->arena->h.stack_deepest, ub_fiber_deepest(&m->fibers));
}

/* ---- waking ------------------------------------------------------------------------------------ */

/* In the order of their suspension, of those that are done. */
static void resume_done(struct mine *m, struct ub_host *h)
{
    struct ub_task *task = h->suspended;

    while (task) {
        if (!task->done) {
            task = task->next;
            continue;
        }
        take_out(m, task);
        task->driven = false;
        if (task->over || run(m, task))
            finish(m, task);
        task = h->suspended; /* anything may have changed */
    }
}

/* A forked child: the timer and what is suspended are its parent's. */
static void orphan(struct ub_host *h)
{
    for (struct ub_task *task = h->suspended; task && h->ops->orphan; task = task->next)
        h->ops->orphan(task);
    h->suspended = NULL;
    if (h->held)
        h->ops->hold(h, false);
    h->held = false;
}

void ub_suspend_wake(struct ub_host *h)
{
    struct mine *m = ub_suspend_mine(false);

    if (h->generation != ub_process->generation) {
        orphan(h);
        return;
    }
    if (!m)
        return;
    ub_suspend_collect(h);
    resume_done(m, h);
    ub_suspend_arm(h);
    if (h->held && h->count == 0) {
        h->ops->hold(h, false);
        h->held = false;
    }
    if (!ub_process->arena)
        return;
    measure_pool();
    if (m->rounds++ % MEASURE_ROUNDS == 0)
        measure_stacks(m);
}

void ub_suspend_drain(struct ub_host *h)
{
    while (h->count && h->generation == ub_process->generation && ub_suspend_mine(false)) {
        ub_order_wait(h);
        ub_suspend_wake(h);
    }
}

/*
 * The program ends while something is being sent: what it had asked for before is still made, as far as the other
 * side takes it within a moment. Whatever else is suspended ends with the program.
 */
__attribute__((destructor)) static void send_the_rest(void)
{
    struct mine *m = ub_offload_mode > UB_OFFLOAD_DRY_RUN ? ub_suspend_mine(false) : NULL;
    uint64_t until = now_ns() + EXIT_NS;

    if (m) {
        measure_pool();
        measure_stacks(m);
    }
    for (uint32_t i = 0; m && i < UB_HOSTS_MAX; i++) {
        struct ub_host *h = m->host[i];
        struct ub_task *task = h && h->loop ? h->suspended : NULL;

        while (task && now_ns() < until) {
            if (task->done || task->direction != UB_DIRECTION_WRITE) {
                task = task->next;
                continue;
            }
            ub_suspend_arm(h);
            ub_order_wait(h);
            ub_suspend_collect(h);
        }
    }
}
