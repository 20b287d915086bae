/*
 * Longer than most files here: what a step goes through from its coroutine's call to its end changes its state
 * together, and is read together.
 */
#include "pysteps.h"

#include "../module.h"
#include "../raw.h"
#include "block.h"
#include "decide.h"
#include "fiber.h"
#include "locks.h"
#include "python/python.h"
#include "suspend.h"

#include <dlfcn.h>
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define HOSTS_MAX 4u
#define HELD_MAX  16u

#define SEND_NEXT 1u /* PYGEN_NEXT of PySendResult: the coroutine waits for what it gave */

/* One step of a task. */
struct step {
    struct ub_fiber fiber; /* first: the pool of fibers makes room for all of this */
    struct step *next;     /* of those suspended, in the order of their suspension */
    struct host *host;
    uintptr_t coroutine;
    uint64_t value, result; /* for the send, and what it left */
    void *future;
    struct ub_job job;
    uint64_t deadline_ns; /* CLOCK_MONOTONIC, of a sleep; 0: none */
    int fd;               /* of the call, -1 */
    uint32_t direction, nested;
    bool started, done;
    uint32_t held; /* semaphores that were taken and not posted here; HELD_MAX: too many to know */
    const void *lock[HELD_MAX];
    struct ub_python_state state;
};

/* A loop with something suspended. */
struct host {
    void *loop; /* NULL: free */
    struct ub_inbox inbox;
    uint32_t count;
};

/* A thread that runs loops. Reached by the number of its slot. */
struct mine {
    int32_t tid;
    struct step *current;
    struct step *suspended;
    struct ub_fiber_pool fibers;
    struct ub_fiber_exceptions *exceptions;
    struct host host[HOSTS_MAX];
};

static struct mine *mine_of[UB_SLOT_MAX];
static const struct ub_python *python;
static unsigned long version; /* 0: none that is known, or it was looked for already */

static struct mine *my(bool make)
{
    const struct ub_thread *t = &ub_thread;
    struct mine *m;
    uint32_t index;
    long at;

    if (!t->slot || t->generation != ub_process->generation)
        return NULL;
    index = (uint32_t)(t->slot - ub_process->arena->slot);
    m = mine_of[index];
    if (m && m->tid == t->slot->tid)
        return m;
    if (!make)
        return NULL;
    at = ub_raw6(SYS_mmap, 0, sizeof(*m), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at < 0 && at > -4096)
        return NULL;
    m = (struct mine *)at; /* an earlier one is another thread's, or a forked child's parent's: lost with it */
    m->tid = t->slot->tid;
    m->fibers.size = ub_fiber_stack_size();
    m->fibers.head = sizeof(struct step);
    if (ub_runtime_exceptions)
        m->exceptions = ub_runtime_exceptions();
    for (uint32_t i = 0; i < HOSTS_MAX; i++)
        m->host[i].inbox.fd = -1;
    mine_of[index] = m;
    return m;
}

bool ub_pysteps_concerned(void)
{
    const struct mine *m = python ? my(false) : NULL;

    return m && (m->current || m->suspended);
}

/* ---- waiting ------------------------------------------------------------------------------ */

/* The timer fires at the next deadline; at once, if something is done already. */
static void arm(struct mine *m, struct host *h)
{
    uint64_t next = 0;

    for (const struct step *s = m->suspended; s; s = s->next) {
        if (s->host == h && s->deadline_ns && !s->done && (!next || s->deadline_ns < next))
            next = s->deadline_ns;
    }
    ub_inbox_arm(&h->inbox, next);
}

/* An earlier call on the same descriptor that is not over. `before`: only those suspended before it. */
static struct step *busy(const struct mine *m, int fd, uint32_t direction, const struct step *before)
{
    for (struct step *s = m->suspended; fd >= 0 && s && s != before; s = s->next) {
        if (s->fd == fd && s->direction & direction && !s->done)
            return s;
    }
    return NULL;
}

/* Starts what waits for nothing any more, in order. A full pool: the call is made here and now, as without us. */
static void start_calls(struct mine *m)
{
    for (struct step *s = m->suspended; s; s = s->next) {
        if (s->started || busy(m, s->fd, s->direction, s))
            continue;
        s->started = true;
        s->job.inbox = &s->host->inbox;
        if (!s->deadline_ns && ub_pool_submit(&s->job) < 0) {
            ub_pool_call_here(&s->job);
            s->deadline_ns = 1; /* over: the timer says so at once */
        }
    }
}

/* What the pool and the clock have ended. `tell`: their tasks, with the GIL held. */
static void collect(struct mine *m, struct host *h, bool tell)
{
    uint64_t now = ub_clock_monotonic_ns();

    for (struct ub_job *job = ub_pool_collect(&h->inbox), *next; job; job = next) {
        struct step *s = (struct step *)((char *)job - offsetof(struct step, job));

        next = job->next;
        s->done = true;
        s->deadline_ns = 1; /* not told yet */
    }
    for (struct step *s = m->suspended; s; s = s->next) {
        if (s->host != h || !s->deadline_ns || s->deadline_ns > now)
            continue;
        s->done = true;
        if (!tell)
            continue;
        s->deadline_ns = 0;
        python->set_done(s->future);
    }
    start_calls(m);
}

/* The loop found the timer expired. */
static void wake(void *of)
{
    struct mine *m = my(false);
    struct host *h = of;

    if (!m || h < m->host || h >= m->host + HOSTS_MAX)
        return;
    collect(m, h, true);
    arm(m, h);
}

static const struct ub_python_agent agent = {.wake = wake};

/* An earlier call on this descriptor has to be over before one that stays: waits as the loop would have without us. */
static void settle(struct mine *m, int fd, uint32_t direction)
{
    int saved = errno;
    struct step *s;

    while ((s = busy(m, fd, direction, NULL)) != NULL) {
        struct pollfd p = {.fd = s->host->inbox.fd, .events = POLLIN};
        struct timespec beat = {.tv_nsec = 20000000};

        ub_raw6(SYS_ppoll, (long)&p, 1, (long)&beat, 0, 0, 0);
        collect(m, s->host, false);
        arm(m, s->host);
        for (struct step *told = m->suspended; told; told = told->next) {
            if (told->done && told->deadline_ns) { /* the loop is to hear of it */
                struct itimerspec at = {.it_value = {.tv_nsec = 1}};

                ub_raw4(SYS_timerfd_settime, told->host->inbox.fd, TFD_TIMER_ABSTIME, &at, 0);
            }
        }
    }
    errno = saved;
}

/* ---- hosts -------------------------------------------------------------------------------- */

/* With the GIL. NULL: no room, or the loop would not watch for us. */
static struct host *host_of(struct mine *m, void *loop)
{
    struct host *empty = NULL;

    for (uint32_t i = 0; i < HOSTS_MAX; i++) {
        if (m->host[i].loop == loop)
            return &m->host[i];
        if (!m->host[i].loop && !empty)
            empty = &m->host[i];
    }
    if (!empty)
        return NULL;
    if (empty->inbox.fd < 0)
        empty->inbox.fd = ub_inbox_timer();
    if (empty->inbox.fd < 0 || !python->watch(loop, empty->inbox.fd, empty))
        return NULL;
    python->hold(loop);
    empty->loop = loop;
    return empty;
}

static void release(struct host *h)
{
    void *loop = h->loop;

    if (h->count || !loop)
        return;
    h->loop = NULL;
    python->unwatch(loop, h->inbox.fd);
    python->drop(loop);
}

/* ---- steps --------------------------------------------------------------------------------- */

static struct step *suspended_step(const struct mine *m, uintptr_t coroutine)
{
    struct step *s = m->suspended;

    while (s && s->coroutine != coroutine)
        s = s->next;
    return s;
}

static uint64_t on_fiber(uint64_t send, uint64_t of, uint64_t c, uint64_t d, uint64_t e, uint64_t f)
{
    struct step *s = (struct step *)of;

    return ((ub_pysteps_send *)send)(s->coroutine, s->value, (uint64_t)&s->result);
}

/* Until it is suspended or over. Returns what the task gets. */
static uint64_t run(struct mine *m, struct step *s, uint64_t result)
{
    enum ub_fiber_state state;
    struct step **end;
    uint64_t ret;

    m->current = s;
    state = ub_fiber_resume(&s->fiber, m->exceptions);
    m->current = NULL;
    python->leave(&s->state, state != UB_FIBER_SUSPENDED);
    if (state == UB_FIBER_SUSPENDED) {
        for (end = &m->suspended; *end; end = &(*end)->next)
            ;
        s->next = NULL;
        *end = s;
        s->host->count++;
        start_calls(m);
        arm(m, s->host);
        python->hold(s->future); /* ours; the task gets one of its own */
        *(void **)result = s->future;
        return SEND_NEXT;
    }
    ret = s->fiber.result;
    *(uint64_t *)result = s->result;
    python->drop((void *)s->coroutine);
    ub_fiber_give(&m->fibers, &s->fiber);
    return ret;
}

static uint64_t go_on(struct mine *m, struct step *s, uint64_t result)
{
    struct host *h = s->host;
    void *future = s->future;

    for (struct step **at = &m->suspended; *at; at = &(*at)->next) {
        if (*at == s) {
            *at = s->next;
            break;
        }
    }
    h->count--;
    python->resumed(future);
    release(h);
    python->enter(&s->state);
    return run(m, s, result);
}

/* The interpreter's object, beside our own file. Slow path only: by dlopen, with the GIL held, as an import does. */
static void look_for_python(void)
{
    const struct ub_python *(*start)(const struct ub_python_agent *);
    unsigned minor = (unsigned)(version >> 16 & 0xff);
    const char *own = ub_module_name((const void *)look_for_python);
    const char *slash = own ? strrchr(own, '/') : NULL;
    char path[4096];
    size_t folder = slash ? (size_t)(slash - own) + 1 : 0;
    static const char name[] = "python3.00.so";
    void *object;

    version = 0;
    if (!slash || folder + sizeof(name) > sizeof(path) || minor > 99)
        return;
    memcpy(path, own, folder);
    memcpy(path + folder, name, sizeof(name));
    path[folder + 8] = (char)('0' + minor / 10);
    path[folder + 9] = (char)('0' + minor % 10);
    object = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    start =
        object ? (const struct ub_python *(*)(const struct ub_python_agent *))dlsym(object, "ub_python_start") : NULL;
    python = start ? start(&agent) : NULL;
}

void ub_pysteps_found(unsigned long which)
{
    if (ub_offload_mode > UB_OFFLOAD_DRY_RUN)
        version = which;
}

uint64_t ub_pysteps_run(ub_pysteps_send *send, uintptr_t coroutine, uint64_t value, uint64_t result)
{
    uint64_t words[UB_FIBER_WORDS] = {(uintptr_t)send};
    struct mine *m;
    struct step *s;
    uint64_t ret;

    if (version && ub_thread.slot)
        look_for_python();
    m = python && ub_process->quiet == UB_QUIET_NOT ? my(true) : NULL;
    if (!m)
        return send(coroutine, value, result);
    if (m->current) { /* an eager task, or a loop inside a step: nothing is left there */
        s = m->current;
        s->nested++;
        ret = send(coroutine, value, result);
        s->nested--;
        return ret;
    }
    s = m->suspended ? suspended_step(m, coroutine) : NULL;
    if (s && s->done)
        return go_on(m, s, result);
    s = s ? NULL : (struct step *)ub_fiber_take(&m->fibers);
    if (!s)
        return send(coroutine, value, result);
    s->coroutine = coroutine;
    s->value = value;
    s->result = 0;
    s->nested = s->held = 0;
    s->future = NULL;
    python->hold((void *)coroutine);
    words[1] = (uintptr_t)s;
    ub_fiber_start(&s->fiber, on_fiber, words);
    python->first(&s->state);
    return run(m, s, result);
}

/* ---- a call --------------------------------------------------------------------------------- */

/* An alarm's handler would raise its exception in the loop instead of in this call. */
static bool alarm_is_set(void)
{
    struct itimerval alarm = {0};

    return ub_raw2(SYS_getitimer, ITIMER_REAL, &alarm) != 0 || alarm.it_value.tv_sec || alarm.it_value.tv_usec;
}

static bool may_leave(const struct step *s, uintptr_t sp)
{
    uint64_t ra;

    return s && !s->nested && !s->held && ub_fiber_contains(&s->fiber, sp) && !ub_locks_held(&ra) && !alarm_is_set() &&
           !python->holds_gil();
}

static bool leave_in(struct mine *m, struct step *s, const struct ub_block *b, ub_job_function *function,
                     const uint64_t *word)
{
    void *loop = NULL, *future;
    int saved = errno;
    uint64_t begun;

    future = python->begin_wait(&loop);
    if (!future)
        return false;
    s->host = host_of(m, loop);
    python->drop(loop);
    if (!s->host) {
        python->end_wait(future);
        errno = saved;
        return false;
    }
    s->job = (struct ub_job){.function = function, .error = saved, .lane = UB_LANE_WAIT};
    memcpy(s->job.word, word, sizeof(s->job.word));
    s->future = future;
    s->fd = b->fd;
    s->direction = b->direction;
    s->deadline_ns = b->deadline_ns;
    s->started = s->done = false;
    begun = ub_clock_monotonic_ns();
    ub_fiber_suspend(&s->fiber);
    if (ub_process->arena) {
        __atomic_fetch_add(&ub_process->arena->h.moved, 1, __ATOMIC_RELAXED);
        __atomic_fetch_add(&ub_process->arena->h.moved_ns, ub_clock_monotonic_ns() - begun, __ATOMIC_RELAXED);
    }
    python->end_wait(NULL);
    if (s->job.signal)
        ub_raw3(SYS_tgkill, ub_raw0(SYS_getpid), ub_raw0(SYS_gettid), s->job.signal);
    errno = s->job.error;
    return true;
}

bool ub_pysteps_call(uint32_t id, void *function, const uint64_t word[UB_POOL_WORDS], int64_t *ret)
{
    uintptr_t sp = (uintptr_t)__builtin_frame_address(0);
    struct mine *m = my(false);
    struct ub_block b;
    bool earlier, leave;

    if (!m)
        return false;
    ub_block_look(id, word, &b);
    earlier = busy(m, b.fd, b.direction, NULL) != NULL;
    if (!earlier && !b.may_move)
        return false;
    leave = b.may_move && may_leave(m->current, sp);
    if (!earlier && (!leave || !ub_block_proven(id, word, &b, ret)))
        return b.made;
    if (leave && leave_in(m, m->current, &b, b.function ? b.function : (ub_job_function *)function,
                          b.function ? b.word : word)) {
        *ret = b.deadline_ns ? 0 : m->current->job.result;
        return true;
    }
    if (earlier)
        settle(m, b.fd, b.direction);
    if (!b.function)
        return false;
    *ret = b.function(b.word[0], b.word[1], b.word[2], b.word[3], b.word[4], 0, 0, 0);
    return true; /* of which a part was made already */
}

/* ---- the interpreter's locks ------------------------------------------------------------------ */

/*
 * A step that holds one is not left: an RLock lets this thread in again, a
 * buffered file says it is being entered a second time. Taken and not given back on this
 * thread counts as held, until the step ends: a lock that is used as a signal keeps its step where it is.
 */
static struct step *current_step(void)
{
    const struct mine *m = python ? my(false) : NULL;

    return m ? m->current : NULL;
}

void ub_pysteps_taken(const void *lock)
{
    struct step *s = current_step();

    if (s && s->held < HELD_MAX)
        s->lock[s->held++] = lock;
}

static void given(const void *lock)
{
    struct step *s = current_step();

    if (!s || s->held == HELD_MAX)
        return;
    for (uint32_t i = 0; i < s->held; i++) {
        if (s->lock[i] == lock) {
            s->lock[i] = s->lock[--s->held];
            return;
        }
    }
}

/* clang-format off */
#define TAKES(X) \
    X(sem_trywait, (void *lock), (lock)) \
    X(sem_timedwait, (void *lock, void *until), (lock, until)) \
    X(sem_clockwait, (void *lock, int clock, void *until), (lock, clock, until))
#define GIVES(X) \
    X(sem_post, (void *lock), (lock)) \
    X(sem_destroy, (void *lock), (lock))
#define ID(name, ...) ID_##name,
enum { TAKES(ID) GIVES(ID) IDS };
static void *original[IDS][UB_LOOP_COPIES];

#define TAKE(copy, name, params, args) \
    static int hook##copy##_##name params \
    { \
        int r = ((int (*) params)original[ID_##name][copy])args; \
        if (r == 0) \
            ub_pysteps_taken(lock); \
        return r; \
    }
#define GIVE(copy, name, params, args) \
    static int hook##copy##_##name params \
    { \
        given(lock); \
        return ((int (*) params)original[ID_##name][copy])args; \
    }
#define TAKE_0(...) TAKE(0, __VA_ARGS__)
#define TAKE_1(...) TAKE(1, __VA_ARGS__)
#define GIVE_0(...) GIVE(0, __VA_ARGS__)
#define GIVE_1(...) GIVE(1, __VA_ARGS__)
TAKES(TAKE_0) TAKES(TAKE_1) GIVES(GIVE_0) GIVES(GIVE_1)

#define ROW(name, ...) {#name, {(void *)hook0_##name, (void *)hook1_##name}, UB_HOOK_OTHERS},
static const struct ub_loop_hook hooks[] = {TAKES(ROW) GIVES(ROW)};
/* clang-format on */

static const char *const files[] = {"libc.so.", NULL};
const struct ub_loop_ops ub_pysteps_locks = {
    .files = files, .prefix = "sem_", .hooks = hooks, .count = IDS, .originals = original};
