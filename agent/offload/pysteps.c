/*
 * Longer than most files here: what a step goes through from its coroutine's call to its end changes its state
 * together, and is read together.
 */
#include "pysteps_impl.h"

#include "../calls/timing.h"
#include "../module.h"
#include "../patch.h"
#include "pysqlite.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define SEND_NEXT 1u /* PYGEN_NEXT of PySendResult: the coroutine waits for what it gave */
#define LINGER_NS 50000000ull
#define LOOK_NS   50000000ull /* so often it is seen whether a lock was posted where we have no hook */
#define SOON_NS   200000ull   /* at first; later, after a quarter of the time that it has taken already */

static struct mine *mine_of[UB_SLOT_MAX];
const struct ub_python *ub_pysteps_python;
static unsigned long version; /* 0: none that is known, or it was looked for already */
static unsigned long met;     /* the interpreter's; 0: there is none */
static uint64_t beside;       /* entered: python_objects of struct ub_attach */
static bool supported;        /* there is an object for this interpreter */

#define python ub_pysteps_python

static void begin(struct mine *m, int32_t tid)
{
    m->tid = tid;
    if (ub_runtime_exceptions)
        m->exceptions = ub_runtime_exceptions();
    m->base = (struct ub_holder){.thread = m, .rolls = true};
}

/* Its thread has ended, with nothing left of what it did. */
static bool is_free(const struct mine *m)
{
    for (uint32_t i = 0; i < HOSTS_MAX; i++) {
        if (m->host[i].loop)
            return false;
    }
    return m->generation == ub_process->generation && !m->suspended && !m->current && !m->own && !m->base.away;
}

/* The slot was another thread's: its descriptors and free stacks are this one's now, if they are large enough. */
static struct mine *take_over(struct mine *m, int32_t tid)
{
    size_t size = ub_fiber_stack_size();

    if (size > m->fibers.size) {
        m->fibers.size = size;
        m->fibers.free = NULL; /* new ones are made, the others are lost */
    }
    m->transactions = 0;
    memset(m->transaction, 0, sizeof(m->transaction));
    begin(m, tid);
    return m;
}

struct mine *ub_pysteps_mine(bool make)
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
    if (m && is_free(m))
        return take_over(m, t->slot->tid);
    at = ub_raw6(SYS_mmap, 0, sizeof(*m), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at <= 0 && at > -4096)
        return NULL;
    m = (struct mine *)at; /* an earlier one has something left, or is a forked child's parent's: lost with it */
    m->generation = ub_process->generation;
    m->fibers.size = ub_fiber_stack_size();
    m->fibers.head = sizeof(struct step);
    for (uint32_t i = 0; i < HOSTS_MAX; i++)
        m->host[i].inbox.fd = -1;
    m->place.fd = -1;
    begin(m, t->slot->tid);
    mine_of[index] = m;
    return m;
}

UB_HOT bool ub_pysteps_concerned(void)
{
    const struct mine *m = python ? ub_pysteps_mine(false) : NULL;

    return m && !m->own && (m->current || m->suspended);
}

struct ub_holder *ub_pysteps_holder(void)
{
    struct mine *m = python ? ub_pysteps_mine(false) : NULL;

    return m ? ub_pysteps_holder_of(m) : NULL;
}

/* ---- waiting ------------------------------------------------------------------------------ */

/* When to look at its lock next. 0: it waits for none. */
static uint64_t look_of(const struct step *s)
{
    uint64_t now, wait;

    if (s->done || !s->wait.lock)
        return 0;
    now = ub_clock_monotonic_ns();
    wait = (now - s->left_ns) / 4;
    return now + (wait < SOON_NS ? SOON_NS : wait > LOOK_NS ? LOOK_NS : wait);
}

static uint64_t earlier(uint64_t a, uint64_t b)
{
    return !a || (b && b < a) ? b : a;
}

/* The timer fires at the next deadline; at once, if something is done already. */
void ub_pysteps_arm(struct mine *m, struct host *h)
{
    uint64_t next = h->lingers_ns;

    for (const struct step *s = m->suspended; s; s = s->next) {
        if (s->host != h || (s->done && s->told) || s->yields)
            continue;
        next = s->done ? 1 : earlier(next, earlier(s->deadline_ns, look_of(s)));
    }
    h->armed_ns = next;
    ub_inbox_arm(&h->inbox, next);
}

/* Likewise, for one more. */
static void arm_for(struct host *h, const struct step *s)
{
    uint64_t next = s->done ? 1 : earlier(s->deadline_ns, look_of(s));

    if (h->armed_ns && (!next || h->armed_ns <= next) && !ub_pool_has_done(&h->inbox) && !h->inbox.watched)
        return;
    h->armed_ns = next = earlier(h->armed_ns, next);
    ub_inbox_arm(&h->inbox, next);
}

struct step *ub_pysteps_busy(const struct mine *m, int fd, uint32_t direction, const struct step *before)
{
    for (struct step *s = m->suspended; fd != -1 && s && s != before; s = s->next) {
        if (s->fd == fd && !s->done && (s->holds_up & direction || direction == UB_DIRECTION_ALL))
            return s;
    }
    return NULL;
}

/* If it waits for nothing any more. A full pool: the call is made here and now, as without us. */
static void start_call(const struct mine *m, struct step *s)
{
    if (s->started || ub_pysteps_busy(m, s->fd, s->direction, s))
        return;
    s->started = true;
    if (!s->deadline_ns && ub_pool_start(&s->job) < 0) {
        ub_pool_call_here(&s->job);
        s->done = true; /* the timer says so at once */
    }
}

/* The clock, and what is posted behind our back. What another thread has just ended is on its way into the inbox. */
static void look_at(struct step *s, uint64_t now)
{
    if (s->wait.lock && ub_lock_look(&s->wait))
        s->done = true;
    else if (s->deadline_ns && s->deadline_ns <= now)
        s->done = !s->wait.lock || ub_lock_withdraw(&s->wait);
}

void ub_pysteps_collect(struct mine *m, struct host *h, bool tell)
{
    uint64_t now = ub_clock_monotonic_ns();

    for (struct ub_job *job = ub_pool_collect(&h->inbox), *next; job; job = next) {
        struct step *s = (struct step *)((char *)job - offsetof(struct step, job));

        next = job->next;
        s->done = true;
    }
    for (struct step *s = m->suspended; s; s = s->next) {
        if (s->host != h)
            continue;
        if (!s->done)
            look_at(s, now);
        if (!tell || !s->done || s->told || s->yields)
            continue;
        s->told = true;
        python->set_done(s->future);
    }
    for (struct step *s = m->suspended; s; s = s->next)
        start_call(m, s); /* in order */
}

static bool is_host(const struct mine *m, const struct host *h)
{
    return m && h >= m->host && h < m->host + HOSTS_MAX && h->loop;
}

/* ---- hosts -------------------------------------------------------------------------------- */

/* With the GIL, and nothing of it suspended. */
static void let_go(struct host *h)
{
    void *loop = h->loop;

    h->loop = NULL;
    h->lingers_ns = 0;
    if (ub_inbox_owns(h->inbox.fd)) /* else it is the program's, and so may be who watches it */
        python->unwatch(loop, h->inbox.fd);
    python->drop(loop);
}

/*
 * The next step may be left at once: to have the loop watch for each anew costs more than all else of it, and its
 * selector lets go of the GIL meanwhile.
 */
static void linger(struct mine *m, struct host *h)
{
    if (h->count || !h->loop || h->stopping || h->lingers_ns)
        return;
    h->lingers_ns = ub_clock_monotonic_ns() + LINGER_NS;
    h->used = false;
    ub_pysteps_arm(m, h);
}

/* Whether it was let go of. */
static bool is_left_alone(struct mine *m, struct host *h)
{
    bool used = h->used;

    if (!h->lingers_ns || ub_clock_monotonic_ns() < h->lingers_ns)
        return false;
    h->lingers_ns = 0; /* with something suspended: from when that is over */
    if (h->count || h->stopping)
        return false;
    if (used)
        linger(m, h);
    else
        let_go(h);
    return !used;
}

/* The loop found the timer expired. */
static void wake(void *of)
{
    struct mine *m = ub_pysteps_mine(false);
    struct host *h = of;

    if (!is_host(m, h))
        return;
    ub_pysteps_collect(m, h, true);
    if (!is_left_alone(m, h))
        ub_pysteps_arm(m, h);
}

static bool lingers(const struct host *h)
{
    return h->loop && !h->count && !h->stopping;
}

/* NULL: no room. */
static struct host *empty_host(struct mine *m)
{
    struct host *last = NULL;

    for (uint32_t i = 0; i < HOSTS_MAX; i++) {
        if (!m->host[i].loop)
            return &m->host[i];
        if (lingers(&m->host[i]))
            last = &m->host[i];
    }
    if (last)
        let_go(last);
    return last;
}

/* NULL: it has none, or one whose descriptors the program has taken. */
static struct host *known_host(struct mine *m, const void *loop)
{
    for (uint32_t i = 0; i < HOSTS_MAX; i++) {
        struct host *h = &m->host[i];

        if (h->loop != loop)
            continue;
        if (!lingers(h) || ub_inbox_is_whole(&h->inbox))
            return h;
        let_go(h);
    }
    return NULL;
}

/* With the GIL. NULL: no room, or the loop would not watch for us. */
static struct host *host_of(struct mine *m, void *loop)
{
    struct host *empty, *h = known_host(m, loop);

    if (h) {
        h->used = true;
        return h->stopping ? NULL : h;
    }
    empty = empty_host(m);
    if (!empty)
        return NULL;
    if (empty->inbox.fd >= 0 && !ub_inbox_is_whole(&empty->inbox))
        ub_inbox_close(&empty->inbox);
    if (empty->inbox.fd < 0)
        ub_inbox_open(&empty->inbox);
    if (empty->inbox.fd < 0 || !python->watch(loop, empty->inbox.fd, empty))
        return NULL;
    python->hold(loop);
    empty->loop = loop;
    empty->stopping = empty->pumping = false;
    empty->yielders = empty->picked = 0;
    empty->armed_ns = empty->lingers_ns = 0;
    return empty;
}

/* The loop is about to stop: steps that it runs are over then, as they would be without us. */
static bool stop(void *of)
{
    struct mine *m = ub_pysteps_mine(false);
    struct host *h = of;

    if (!is_host(m, h))
        return false;
    if (lingers(h)) {
        let_go(h);
        return false;
    }
    h->stopping = true;
    ub_pydrive_drain(m, h, false);
    return true;
}

/* It has stopped, and goes on; or it is gone. */
static void stopped(void *of)
{
    struct mine *m = ub_pysteps_mine(false);
    struct host *h = of;

    if (!is_host(m, h))
        return;
    h->stopping = false;
    if (!h->count)
        let_go(h);
}

/* The child finds taken what suspended steps have taken. */
static void before_fork(void)
{
    struct mine *m = ub_pysteps_mine(false);

    ub_pyyield_before_fork();
    if (m && m->suspended)
        ub_pydrive_drain(m, NULL, true);
    for (uint32_t i = 0; m && i < HOSTS_MAX && python->holds_gil(); i++) {
        if (lingers(&m->host[i]))
            let_go(&m->host[i]);
    }
}

/* ---- steps --------------------------------------------------------------------------------- */

static struct step **place_of(struct mine *m, uintptr_t coroutine)
{
    return &m->by_coroutine[(coroutine >> 4 ^ coroutine >> 12) % UB_COROUTINES];
}

static struct step *suspended_step(struct mine *m, uintptr_t coroutine)
{
    struct step *s = *place_of(m, coroutine);

    while (s && s->coroutine != coroutine)
        s = s->same;
    return s;
}

static void append(struct mine *m, struct step *s)
{
    struct step **place = place_of(m, s->coroutine);

    s->next = NULL;
    s->previous = m->last;
    if (m->last)
        m->last->next = s;
    else
        m->suspended = s;
    m->last = s;
    s->same = *place;
    *place = s;
}

static void take_out(struct mine *m, const struct step *s)
{
    struct step **at = place_of(m, s->coroutine);

    while (*at != s)
        at = &(*at)->same;
    *at = s->same;
    if (s->previous)
        s->previous->next = s->next;
    else
        m->suspended = s->next;
    if (s->next)
        s->next->previous = s->previous;
    else
        m->last = s->previous;
}

static uint64_t on_fiber(uint64_t send, uint64_t of, uint64_t c, uint64_t d, uint64_t e, uint64_t f)
{
    struct step *s = (struct step *)of;

    return ((ub_pysteps_send *)send)(s->coroutine, s->value, (uint64_t)&s->result);
}

/* Until it is suspended or over. True: over. */
static bool resume(struct mine *m, struct step *s, enum ub_python_leave how)
{
    struct step *outer = m->current;
    enum ub_fiber_state state;

    m->current = s;
    ub_beside_returns(&m->beside, &s->beside); /* of no meaning when it begins, and not asked for then */
    ub_beside_ran(&m->beside, m->suspended != NULL, s->code, UB_CALLBACK_TASK, UB_LOOP_ASYNCIO);
    ub_pyyield_begins(m, s);
    state = ub_fiber_resume(&s->fiber, m->exceptions);
    m->current = outer;
    python->leave(&s->state, state == UB_FIBER_SUSPENDED ? UB_PYTHON_SUSPENDED : how);
    if (state != UB_FIBER_SUSPENDED) {
        ub_holder_end(&s->holder);
    } else {
        append(m, s);
        if (!s->yields) {
            start_call(m, s);
            arm_for(s->host, s);
        }
    }
    ub_pyyield_ends(m);
    return state != UB_FIBER_SUSPENDED;
}

static uint64_t finish(struct mine *m, struct step *s, uint64_t result)
{
    uint64_t ret = s->fiber.result;

    *(uint64_t *)result = s->result;
    if (ret != SEND_NEXT)
        ub_pysqlite_forget(m, s->coroutine);
    python->drop((void *)s->coroutine);
    ub_fiber_give(&m->fibers, &s->fiber);
    return ret;
}

/* What the task gets. */
static uint64_t wait_for(const struct step *s, uint64_t result)
{
    python->hold(s->future); /* ours; the task gets one of its own */
    *(void **)result = s->future;
    return SEND_NEXT;
}

static uint64_t run(struct mine *m, struct step *s, uint64_t result)
{
    return resume(m, s, UB_PYTHON_OVER) ? finish(m, s, result) : wait_for(s, result);
}

/* Its task is here again. */
static uint64_t go_on(struct mine *m, struct step *s, uint64_t result)
{
    struct host *h = s->host;
    void *future = s->future;

    h->picked -= s->picked;
    s->picked = false;
    s->future = NULL;
    if (!s->over && !s->done) { /* it went on elsewhere, and waits for something else now */
        ub_pyyield_ends(m);
        s->future = python->wait_again(h->loop);
        python->resumed(future);
        return s->future ? wait_for(s, result) : UB_PYTHON_ERROR;
    }
    take_out(m, s);
    h->count--;
    python->resumed(future);
    linger(m, h);
    if (s->over) {
        ub_pyyield_ends(m); /* it may have been picked: nobody else is going to ask whose turn it is now */
        python->deliver(&s->state);
        return finish(m, s, result);
    }
    python->enter(&s->state);
    return run(m, s, result);
}

void ub_pysteps_run_here(struct mine *m, struct step *s)
{
    struct ub_python_visit visit;
    struct host *h = s->host;

    take_out(m, s);
    m->here++;
    python->visit(s->future, &visit);
    python->enter(&s->state);
    if (resume(m, s, UB_PYTHON_OVER_LATER)) {
        s->over = s->done = true;
        s->units = 0; /* who waits for them may be this place, and the loop does not come until it is left */
        s->started = true;
        append(m, s);
        if (!s->told) {
            s->told = true;
            python->set_done(s->future);
        }
    }
    m->here--;
    python->visited(&visit);
    ub_pysteps_arm(m, h);
}

static const struct ub_python_agent agent = {.wake = wake,
                                             .stop = stop,
                                             .stopped = stopped,
                                             .before_fork = before_fork,
                                             .acquire = ub_pysteps_acquire,
                                             .acquired = ub_pysteps_acquired,
                                             .signalled = ub_pysteps_signalled,
                                             .importing = ub_pysteps_importing,
                                             .own = ub_pysteps_own,
                                             .file_begins = ub_pysteps_file_begins,
                                             .file_ends = ub_pysteps_file_ends};

#define PATH 4096

/* The interpreter's object, beside our own file. */
static bool object_path(unsigned long which, char ret[PATH])
{
    const char *own = ub_module_name((const void *)object_path);
    const char *slash = own ? strrchr(own, '/') : NULL;
    unsigned minor = (unsigned)(which >> 16 & 0xff);
    size_t folder = slash ? (size_t)(slash - own) + 1 : 0;
    static const char name[] = "python3.00.so";

    if (!slash || folder + sizeof(name) > PATH || minor > 99 || which >> 24 != 3)
        return false;
    memcpy(ret, own, folder);
    memcpy(ret + folder, name, sizeof(name));
    ret[folder + 8] = (char)('0' + minor / 10);
    ret[folder + 9] = (char)('0' + minor % 10);
    return true;
}

/* Slow path only: by dlopen, with the GIL held, as an import does. */
static void look_for_python(void)
{
    const struct ub_python *(*start)(const struct ub_python_agent *);
    char path[PATH];
    void *object;
    bool known = object_path(version, path);

    version = 0;
    if (!known)
        return;
    object = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!object || !ub_pyyield_is_of_this_build(object))
        return;
    start = (const struct ub_python *(*)(const struct ub_python_agent *))dlsym(object, "ub_python_start");
    python = start ? start(&agent) : NULL;
    if (python) {
        ub_pyyield_start(object);
        ub_pyfunctions_start(object);
    }
}

/* A file that was brought in lies nowhere: who did that tells what lies beside it. */
static bool has_object(void)
{
    char path[PATH];

    if (ub_module_is_injected((const void *)has_object))
        return beside >> (met >> 16 & 63) & 1;
    return object_path(met, path) && ub_raw4(SYS_faccessat, AT_FDCWD, path, R_OK, 0) == 0;
}

static void judge_interpreter(void)
{
    supported = ub_offload_mode != UB_OFFLOAD_OFF && met && has_object();
    if (supported && ub_process->arena)
        __atomic_fetch_or(&ub_process->arena->h.python_steps, 1ull << (met >> 16 & 63), __ATOMIC_RELAXED);
}

void ub_pysteps_found(unsigned long which)
{
    met = which;
    judge_interpreter();
    if (supported && ub_offload_mode > UB_OFFLOAD_DRY_RUN)
        version = which;
}

void ub_pysteps_attach(uint64_t objects)
{
    beside = objects;
    judge_interpreter();
}

enum ub_pin ub_pysteps_judge_process(void)
{
    if (!supported || (!python && !version && ub_offload_mode > UB_OFFLOAD_DRY_RUN))
        return UB_PIN_LIBRARY;
    return ub_patch_stacks ? UB_PIN_RUNTIME : UB_PIN_MOVABLE;
}

/* Where nothing moves. */
static uint64_t look_on(ub_pysteps_send *send, uintptr_t coroutine, uint64_t value, uint64_t result)
{
    uint64_t ret = send(coroutine, value, result);

    if ((uint32_t)ret != SEND_NEXT && ub_offload_mode == UB_OFFLOAD_DRY_RUN)
        ub_pysqlite_ended(coroutine);
    return ret;
}

uint64_t ub_pysteps_run(ub_pysteps_send *send, uintptr_t coroutine, uint64_t code, uint64_t value, uint64_t result)
{
    uint64_t words[UB_FIBER_WORDS] = {(uintptr_t)send};
    struct mine *m;
    struct step *s;
    uint64_t ret;

    if (version && ub_thread.slot)
        look_for_python();
    m = python && ub_process->quiet == UB_QUIET_NOT ? ub_pysteps_mine(true) : NULL;
    if (!m)
        return look_on(send, coroutine, value, result);
    s = m->suspended ? suspended_step(m, coroutine) : NULL;
    if (s && !m->current)
        return go_on(m, s, result);
    if (s) { /* a loop inside a step */
        struct ub_holder *own = &m->current->holder;

        ub_holder_leaves(own);
        ret = go_on(m, s, result);
        ub_holder_returns(own);
        return ret;
    }
    if (m->current) { /* an eager task, or a loop inside a step: nothing is left there */
        s = m->current;
        s->nested++;
        ret = send(coroutine, value, result);
        s->nested--;
        return ret;
    }
    s = ub_patch_stacks ? NULL : (struct step *)ub_fiber_take(&m->fibers);
    if (!s)
        return send(coroutine, value, result);
    s->coroutine = coroutine;
    s->code = code;
    s->value = value;
    s->result = 0;
    s->nested = 0;
    s->over = s->yields = s->picked = false;
    s->calls = false;
    s->began = ++m->tickets;
    s->awaits = NULL;
    s->connection = NULL;
    s->mutex = s->queues = s->computes = NULL;
    s->units = 0;
    s->future = NULL;
    s->holder.count = s->holder.importing = s->holder.foreign = 0;
    s->holder.beyond = false;
    s->holder.thread = m;
    s->holder.waits = NULL;
    s->holder.acquiring = UB_ACQUIRING_NOT;
    python->hold((void *)coroutine);
    words[1] = (uintptr_t)s;
    ub_fiber_start(&s->fiber, on_fiber, words);
    python->first(&s->state);
    return run(m, s, result);
}

/* ---- leaving --------------------------------------------------------------------------------- */

/* What is left in another loop of this thread goes on when that does: not before this one, which it runs, has ended. */
static bool another_has_some(const struct mine *m, const void *loop)
{
    for (uint32_t i = 0; i < HOSTS_MAX; i++) {
        if (m->host[i].loop && m->host[i].loop != loop && m->host[i].count)
            return true;
    }
    return false;
}

bool ub_pysteps_leave(struct mine *m, struct step *s, bool gil)
{
    void *loop = NULL, *future = s->future;
    struct host *h;
    int saved = errno;
    bool asked = s->units || s->computes, counted;
    uint64_t begun;

    if (!python->begin_wait(s->coroutine, gil, s->wait.lock != NULL, &loop, &future))
        return false;
    h = s->future ? s->host : another_has_some(m, loop) ? NULL : host_of(m, loop);
    python->drop(loop);
    if (!h || h->stopping) {
        python->end_wait(gil, s->future ? NULL : future);
        errno = saved;
        return false;
    }
    if (!s->future)
        h->count++;
    h->yielders += s->yields;
    s->host = h;
    s->future = future;
    s->job.inbox = &h->inbox;
    s->done = s->yields; /* it may go on at any time, but has its turn */
    s->told = false;
    s->started = s->wait.lock != NULL || s->yields || s->awaits;
    s->left_ns = begun = ub_clock_monotonic_ns();
    s->holder.waits = s->wait.lock;
    ub_holder_leaves(&s->holder);
    if ((s->wait.lock && !ub_lock_park(&s->wait)) || (s->awaits && !ub_pyfunctions_park(s->awaits, &s->job)))
        s->done = true;
    __atomic_fetch_add(&ub_locks_away, asked, __ATOMIC_RELAXED); /* who locks a connection's mutex asks */
    ub_beside_leaves(&m->beside, m->suspended == NULL, &s->beside);
    counted = ub_process->arena && !s->yields && !s->calls && !s->queues; /* who waits for another's has no call */
    if (counted)
        __atomic_fetch_add(&ub_process->arena->h.away, 1, __ATOMIC_RELAXED);
    ub_timing_leave(&ub_thread, 0);
    ub_fiber_suspend(&s->fiber);
    if (counted)
        __atomic_fetch_sub(&ub_process->arena->h.away, 1, __ATOMIC_RELAXED);
    __atomic_fetch_sub(&ub_locks_away, asked, __ATOMIC_RELAXED);
    ub_holder_returns(&s->holder);
    s->holder.waits = NULL;
    if (counted) {
        __atomic_fetch_add(&ub_process->arena->h.moved, 1, __ATOMIC_RELAXED);
        __atomic_fetch_add(&ub_process->arena->h.moved_ns, ub_clock_monotonic_ns() - begun, __ATOMIC_RELAXED);
    }
    python->end_wait(gil, NULL);
    return true;
}
