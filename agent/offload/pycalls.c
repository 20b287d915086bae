/*
 * Where a step comes to a call or a lock that would block: left, or waited for in place. A little long for one file:
 * calls and locks ask the same questions of the step. What other steps of its thread are in the midst of: pyqueue.c.
 */
#include "pysteps_impl.h"

#include "../../common/units.h"
#include "../module.h"
#include "../patch.h"
#include "identity.h"
#include "pysqlite.h"

#include <dlfcn.h>
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <semaphore.h>
#include <time.h>

#define python ub_pysteps_python

/* An alarm's handler would raise its exception in the loop instead of in this call. */
static bool alarm_is_set(void)
{
    struct itimerval alarm = {0};

    return ub_raw2(SYS_getitimer, ITIMER_REAL, &alarm) != 0 || alarm.it_value.tv_sec || alarm.it_value.tv_usec;
}

/* judge_step; `sqlite`: in a call that no other step's comes between, so that a transaction may be open. */
static enum ub_pin judge_step_of(const struct mine *m, uintptr_t sp, bool gil, bool sqlite)
{
    const struct step *s = m->current;

    if (!s || !ub_fiber_contains(&s->fiber, sp) || m->own)
        return UB_PIN_STACK;
    if (ub_patch_stacks)
        return UB_PIN_RUNTIME;
    if (s->nested)
        return UB_PIN_NESTED;
    if (s->holder.importing)
        return UB_PIN_IMPORT;
    if (s->holder.beyond || s->holder.foreign)
        return UB_PIN_LOCK;
    if (s->units > UB_STEP_UNITS || (!sqlite && ub_pysqlite_in_transaction(m, s)))
        return UB_PIN_TRANSACTION;
    if (!python->alone())
        return UB_PIN_RUNTIME;
    if (alarm_is_set())
        return UB_PIN_EINTR;
    return gil || !python->holds_gil() ? UB_PIN_MOVABLE : UB_PIN_GIL;
}

/* Whether the current step may be left here. `gil`: it has it, and it is the interpreter's own waiting. */
static enum ub_pin judge_step(const struct mine *m, uintptr_t sp, bool gil)
{
    return judge_step_of(m, sp, gil, false);
}

enum ub_pin ub_pysteps_judge_place(const struct mine *m, uintptr_t sp, bool gil, uint64_t *ret_lock)
{
    return ub_locks_held(ret_lock) ? UB_PIN_LOCK : judge_step(m, sp, gil);
}

bool ub_pysteps_may_leave(const struct mine *m, uintptr_t sp, bool gil)
{
    uint64_t lock;

    return ub_offload_moves && ub_pysteps_judge_place(m, sp, gil, &lock) == UB_PIN_MOVABLE;
}

bool ub_pysteps_may_drive(const struct mine *m, bool gil)
{
    uint64_t ra;

    return m->suspended && !m->own && !ub_locks_held(&ra) && (gil || !python->holds_gil()) && python->alone();
}

/* ---- calls --------------------------------------------------------------------------------- */

/* An earlier call on this descriptor has to be over before one that stays: waits as the loop would have without us. */
static void settle(struct mine *m, int fd, uint32_t direction)
{
    int saved = errno;
    struct step *s;

    while ((s = ub_pysteps_busy(m, fd, direction, NULL)) != NULL) {
        struct pollfd p = {.fd = s->host->inbox.fd, .events = POLLIN};
        struct timespec beat = {.tv_nsec = 20000000};

        if (ub_pysteps_may_drive(m, false)) {
            ub_pydrive_once(m, false, -1, 0, 0);
            continue;
        }
        ub_pysteps_arm(m, s->host);
        ub_raw6(SYS_ppoll, (long)&p, 1, (long)&beat, 0, 0, 0);
        ub_pysteps_collect(m, s->host, false);
    }
    for (uint32_t i = 0; i < HOSTS_MAX; i++) {
        if (m->host[i].loop)
            ub_pysteps_arm(m, &m->host[i]);
    }
    errno = saved;
}

/* A child of vfork (subprocess) runs on its parent's memory; what it closes is its own. */
static bool in_vfork_child(void)
{
    return ub_raw0(SYS_getpid) != ub_process->pid;
}

void ub_pysteps_settle_numbers(unsigned first, unsigned last)
{
    struct mine *m = python ? ub_pysteps_mine(false) : NULL;
    struct step *s = m && !in_vfork_child() ? m->suspended : NULL;

    while (s) {
        bool uses = s->fd >= 0 && (unsigned)s->fd >= first && (unsigned)s->fd <= last && !s->done;

        ub_ready_make_way(&s->job, &s->own_fd, first, last);
        if (uses)
            settle(m, s->fd, UB_DIRECTION_ALL);
        s = uses ? m->suspended : s->next;
    }
}

/* Suspended steps go on until this call, which stays here, no longer blocks. True: it was made, or interrupted. */
static bool wait_here(struct mine *m, uint32_t id, const uint64_t *word, struct ub_block *b, int64_t *ret)
{
    uint64_t until = ub_block_until(id, word);
    bool waits = !b->deadline_ns && !b->likely;
    short events;
    int fd = ub_block_ready_on(id, b, &events);

    while (waits && ub_pysteps_may_drive(m, false) && (!until || ub_clock_monotonic_ns() < until)) {
        int saved = errno;
        int r = ub_pydrive_once(m, false, fd, events, until);

        errno = saved;
        if (r == -EINTR) {
            errno = EINTR;
            *ret = -1;
            return true;
        }
        waits = ub_block_proven(id, word, b, ret); /* it no longer does, or nothing proves it */
    }
    if (until)
        *ret = ub_block_rest(id, word, until); /* not by its hook, which would begin anew */
    return b->made || until;
}

/* A wait that is made again and again, if anything: it ends by itself, and soon. */
static bool is_brief(uint32_t id, const uint64_t *word, struct ub_block *b, int64_t *ret)
{
    if (id == UB_CALL_ID_clock_nanosleep)
        return (int)word[1] == TIMER_ABSTIME; /* what goes on meanwhile is a part of it */
    return ub_block_until(id, word) && ub_block_waits(id, word, b, ret);
}

/* In an import, or a transaction, which nobody else is to see by half. */
static bool is_half_done(struct mine *m)
{
    return ub_pysteps_holder_of(m)->importing || (m->current && ub_pysqlite_in_transaction(m, m->current));
}

/*
 * Short sleeps and polls are made again and again until somebody has done something, who may be suspended: one of
 * those goes on first. True: a signal came.
 */
static bool let_another_go_on(struct mine *m, uint32_t id, int64_t *ret)
{
    int saved = errno, r = 0;

    if (is_half_done(m) || !ub_pysteps_may_drive(m, false))
        return false;
    if (ub_pydrive_has_some(m))
        r = ub_pydrive_once(m, false, -1, 0, 0);
    errno = saved;
    if (r != -EINTR)
        return false;
    *ret = id == UB_CALL_ID_clock_nanosleep ? EINTR : -1;
    if (*ret < 0)
        errno = EINTR;
    return true;
}

void ub_pysteps_drive_ready(void)
{
    struct mine *m = ub_pysteps_mine(false);
    int saved = errno;

    if (m && is_half_done(m))
        return;
    while (m && ub_pysteps_may_drive(m, false) && ub_pydrive_has_some(m) && ub_pydrive_once(m, false, -1, 0, 0) == 0)
        continue;
    errno = saved;
}

/*
 * The interpreter's own calls, those of its standard library, and of OpenSSL for it. Other libraries may keep state by
 * thread, which another step would find in the midst of a call.
 */
static bool is_the_interpreters(uintptr_t from)
{
    const char *path = ub_module_name((const void *)from), *name;

    if (!path)
        return false;
    name = strrchr(path, '/');
    name = name ? name + 1 : path;
    return !*name || strncmp(name, "python3", 7) == 0 || strncmp(name, "libpython3", 10) == 0 ||
           strstr(path, "/lib-dynload/") || strncmp(name, "libssl.", 7) == 0 || strncmp(name, "libcrypto.", 10) == 0 ||
           strncmp(name, "uvloop", 6) == 0;
}

/*
 * OpenSSL keeps its errors by thread, and looks at them after each call. Who has one in hand is not left, so that
 * nobody who is suspended in it has one.
 */
static bool has_openssl_error(uintptr_t from)
{
    static unsigned long (*peek)(void);
    static bool looked;
    const char *path = ub_module_name((const void *)from), *name = path ? strrchr(path, '/') : NULL;

    if (!name || (strncmp(name, "/libcrypto.", 11) != 0 && strncmp(name, "/libssl.", 8) != 0))
        return false;
    if (!looked) { /* with libssl's own name it leads to the libcrypto that it was linked to */
        void *library = dlopen(path, RTLD_NOW | RTLD_NOLOAD);

        if (library)
            peek = (unsigned long (*)(void))dlsym(library, "ERR_peek_error");
        looked = true;
    }
    return !peek || peek() != 0;
}

/* In the dry run no step is on a fiber, and what that would say of it is not known. */
enum ub_pin ub_pysteps_judge(const struct ub_thread *t, uint32_t id, const uint64_t *value, uintptr_t sp,
                             uint64_t *ret_lock)
{
    const struct ub_spans *spans = &t->cold->spans;
    const struct ub_callback *step = ub_span_asyncio(spans);
    const struct mine *m = python ? ub_pysteps_mine(false) : NULL;
    enum ub_pin pin = ub_pysteps_judge_process();
    struct ub_block b;

    if (pin != UB_PIN_MOVABLE)
        return pin;
    if (!step || step->kind != UB_CALLBACK_TASK)
        return UB_PIN_KIND;
    if (step != &spans->level[spans->depth - 1].callback)
        return UB_PIN_NESTED;
    if (ub_locks_held(ret_lock))
        pin = UB_PIN_LOCK;
    else if (m && m->current)
        pin = judge_step_of(m, sp, false, id == UB_UNIT_ID_sqlite3_step);
    else if (alarm_is_set())
        pin = UB_PIN_EINTR;
    if (pin != UB_PIN_MOVABLE || id >= UB_BLOCK_CALLS)
        return pin;
    ub_block_look(id, value, &b);
    if (!b.may_move)
        return UB_PIN_CALL;
    return is_the_interpreters(spans->call_ra) && !has_openssl_error(spans->call_ra) ? UB_PIN_MOVABLE : UB_PIN_CALLER;
}

/*
 * As that of suspend.c. `denied`: it does, but is to stay. `ret_site`: its place, if that is known already. Where
 * something is suspended it is asked whatever the mode: a call that stays may wait for that.
 */
static bool will_block(const struct mine *m, uint32_t id, const uint64_t *word, struct ub_block *b, bool *proven,
                       bool *denied, struct ub_policy_site **ret_site, int64_t *ret)
{
    struct ub_sites_say say;
    bool may;

    ub_sites_ask(&ub_thread, id, &say);
    *ret_site = say.site;
    may = ub_sites_may_leave(&say);
    if (!may && !m->suspended)
        return false;
    *proven = ub_block_proven(id, word, b, ret);
    if (*proven) {
        *denied = !may || !ub_sites_leave(&ub_thread, id, &say, true);
        return true;
    }
    return may && !b->made && (b->likely || say.learned) && ub_block_expected(id, word, b) &&
           ub_sites_leave(&ub_thread, id, &say, false);
}

/* The mutex stays taken, by this step. */
static bool leave_with(struct mine *m, struct step *s, const void *mutex)
{
    bool left;

    if (!mutex)
        return ub_pysteps_leave(m, s, false);
    s->mutex = mutex;
    ub_locks_put_away(mutex, s, true);
    left = ub_pysteps_leave(m, s, false);
    ub_locks_put_away(mutex, s, false);
    s->mutex = NULL;
    return left;
}

/* Out of the loop, and back with its result. */
static bool leave(struct mine *m, uint32_t id, void *function, const uint64_t *word, const struct ub_block *b,
                  const void *mutex, struct ub_policy_site *site, int64_t *ret)
{
    struct step *s = m->current;
    uint64_t begun;
    bool left;

    if (!s || (!b->deadline_ns && !ub_identity_is_the_pools(ub_decide_makes_sockets(id))))
        return false;
    s->job = (struct ub_job){.function = b->function ? b->function : (ub_job_function *)function,
                             .error = errno,
                             .lane = b->lane,
                             .libc_lock = b->libc_lock};
    memcpy(s->job.word, b->function ? b->word : word, sizeof(s->job.word));
    s->wait.lock = NULL;
    s->fd = b->fd;
    s->direction = b->direction;
    s->holds_up = b->holds_up;
    s->deadline_ns = b->deadline_ns;
    s->own_fd = b->deadline_ns || !b->direction ? -1 : ub_fds_keep(&s->job, b->fd);
    if (!b->deadline_ns && id < UB_BLOCK_CALLS)
        s->own_fd = ub_ready_prepare(id, &s->job, s->own_fd);
    if (!site)
        site = ub_sites_find(&ub_thread, id, true);
    s->job.lane = ub_sites_begin(site, s->job.lane);
    begun = ub_clock_monotonic_ns();
    left = leave_with(m, s, mutex);
    ub_sites_end(site);
    ub_fds_close(s->own_fd);
    if (!left)
        return false;
    if (site)
        ub_sites_moved(site, ub_clock_monotonic_ns() - begun, 0, &m->beside, &s->beside);
    if (s->job.signal)
        ub_raw3(SYS_tgkill, ub_raw0(SYS_getpid), ub_raw0(SYS_gettid), s->job.signal);
    errno = s->job.error;
    *ret = b->deadline_ns ? 0 : s->job.result;
    return true;
}

bool ub_pysteps_call(uint32_t id, void *function, const uint64_t word[UB_POOL_WORDS], int64_t *ret)
{
    uintptr_t sp = (uintptr_t)__builtin_frame_address(0);
    struct mine *m = ub_pysteps_mine(false);
    bool earlier, leaves, blocks, proven = false, denied = false;
    struct ub_policy_site *site = NULL;
    const void *mutex = NULL;
    uintptr_t from;
    struct ub_block b;

    if (!m)
        return false;
    ub_block_look(id, word, &b);
    earlier = ub_pysteps_busy(m, b.fd, b.direction, NULL) != NULL;
    if ((!earlier && (!b.may_move || ub_block_never(id, word))) || in_vfork_child())
        return false;
    from = ub_thread.cold->spans.call_ra;
    if (m->current && ub_pysqlite_may_nap(m->current, id, from, &mutex)) {
        b.any_sleep = true;
        leaves = ub_offload_moves && judge_step(m, sp, false) == UB_PIN_MOVABLE;
    } else {
        leaves = b.may_move && !b.stays && ub_pysteps_may_leave(m, sp, false) && is_the_interpreters(from) &&
                 !has_openssl_error(from);
    }
    blocks = earlier || ((leaves || m->suspended) && will_block(m, id, word, &b, &proven, &denied, &site, ret));
    if (blocks && leaves && !denied && (!earlier || ub_block_may_queue(id, &b)) &&
        leave(m, id, function, word, &b, mutex, site, ret))
        return true;
    if (!blocks || b.deadline_ns)
        return b.made || (m->suspended && is_brief(id, word, &b, ret) && let_another_go_on(m, id, ret));
    if (earlier)
        settle(m, b.fd, b.direction);
    else if (proven && !b.function && wait_here(m, id, word, &b, ret))
        return true;
    if (!b.function)
        return false;
    *ret = b.function(b.word[0], b.word[1], b.word[2], b.word[3], b.word[4], 0, 0, 0);
    return true; /* of which a part was made already */
}

/* ---- locks --------------------------------------------------------------------------------- */

/*
 * What a suspended step has, or the place above which this one goes on, is let go of only if this one is left, also
 * where no calls move (--yield); else mode and policy have the word.
 */
static bool lock_may_leave(const struct mine *m)
{
    uint32_t mode = ub_offload_now();
    struct ub_sites_say say;

    if (m->suspended || m->here)
        return true;
    if (!ub_offload_moves)
        return false;
    if (mode == UB_OFFLOAD_FLAGGED || mode == UB_OFFLOAD_EAGER)
        return true;
    ub_sites_ask(&ub_thread, UB_BLOCK_SEM_WAIT, &say);
    return ub_sites_may_leave(&say) && ub_sites_leave(&ub_thread, UB_BLOCK_SEM_WAIT, &say, true);
}

/* As ub_pydrive_wait; -2: this step cannot be left, or was not. */
static int leave_for(struct mine *m, const struct ub_lock_wait *what, uint64_t deadline_ns, bool gil)
{
    struct step *s = m->current;
    struct ub_policy_site *site;
    int saved = errno;
    uint64_t begun, ra;

    if (ub_pysteps_judge_place(m, (uintptr_t)__builtin_frame_address(0), gil, &ra) != UB_PIN_MOVABLE ||
        !lock_may_leave(m))
        return -2;
    s->wait = *what;
    s->wait.holder = &s->holder;
    s->wait.job = &s->job;
    s->fd = -1;
    s->direction = s->holds_up = 0;
    s->deadline_ns = deadline_ns;
    site = ub_sites_find(&ub_thread, UB_BLOCK_SEM_WAIT, true);
    begun = ub_clock_monotonic_ns();
    if (!ub_pysteps_leave(m, s, gil))
        return -2;
    if (site)
        ub_sites_moved(site, ub_clock_monotonic_ns() - begun, 0, &m->beside, &s->beside);
    errno = saved;
    if (s->wait.state == UB_LOCK_HAD)
        return 0;
    if (s->wait.state == UB_LOCK_OVER)
        return 1;
    errno = ETIMEDOUT;
    return -1;
}

bool ub_pysteps_wait(void *lock, uint64_t deadline_ns, bool foreign, int *ret)
{
    const struct ub_lock_wait what = {.lock = lock, .foreign = foreign};
    struct mine *m = ub_pysteps_mine(false);
    int r, saved = errno;

    if (!m || (!m->current && !m->suspended))
        return false;
    if (sem_trywait(lock) == 0) {
        ub_holder_takes(ub_pysteps_holder_of(m), lock, foreign);
        *ret = 0;
        return true;
    }
    errno = saved;
    r = leave_for(m, &what, deadline_ns, false);
    if (r == -2 && ub_pysteps_may_drive(m, false))
        r = ub_pydrive_wait(m, &what, deadline_ns, false);
    *ret = r;
    return r == 0 || r == -1;
}

/* Until who has it among this thread's others has given it back, or is over. */
static int try_again(struct mine *m, void *lock)
{
    const struct ub_lock_wait what = {.lock = lock, .tries = true};
    struct ub_holder *own = ub_pysteps_holder_of(m);

    while (ub_holder_is_away_with(lock, own)) {
        int r = leave_for(m, &what, 0, true);

        if (r == -2 && ub_pysteps_may_drive(m, true))
            r = ub_pydrive_wait(m, &what, 0, true);
        if (r == 0)
            return 0;
        if (r < 0)
            break;
        if (sem_trywait(lock) == 0) {
            ub_holder_takes(own, lock, false);
            return 0;
        }
    }
    errno = EAGAIN;
    return -1;
}

int ub_pysteps_try(void *lock)
{
    struct mine *m = ub_pysteps_mine(false);

    if (m && python->holds_gil())
        return try_again(m, lock);
    errno = EAGAIN;
    return -1;
}

/* The only mutex that is held, if it is that of the module which makes the call at `from`. */
static bool holds_at_most_its_own(uintptr_t from, const void **ret_mutex)
{
    const char *name = ub_module_name((const void *)from), *taker;
    uint64_t ra;

    *ret_mutex = NULL;
    if (!ub_locks_held(&ra))
        return true;
    *ret_mutex = ub_locks_only_one(&ra);
    taker = *ret_mutex ? ub_module_name((const void *)ra) : NULL;
    return name && taker && strcmp(name, taker) == 0;
}

bool ub_pysteps_unit(uint32_t id, ub_job_function *function, uint64_t word, const void *connection, uint32_t how,
                     int64_t *ret)
{
    const uint64_t words[UB_POOL_WORDS] = {word};
    struct mine *m = ub_pysteps_mine(false);
    struct ub_block b = {.fd = -1, .lane = UB_LANE_WAIT, .libc_lock = how & UB_UNIT_CONNECTS};
    struct ub_sites_say say;
    const void *mutex;
    bool alone;

    if (!m || m->own || in_vfork_child())
        return false;
    /* Who has it goes before those that wait. */
    if (connection && !(m->current && ub_pyqueue_has_unit(m->current, connection)))
        ub_pysteps_wait_for_mutex(connection);
    if (!m->current || !ub_offload_moves)
        return false;
    ub_pyqueue_add_unit(m->current, connection);
    alone = holds_at_most_its_own(ub_thread.cold->spans.call_ra, &mutex);
    /* Others wait before they take it: who has it may not wait for who wants it. */
    ub_pyqueue_add_unit(m->current, mutex);
    if (!alone || judge_step(m, (uintptr_t)__builtin_frame_address(0), false) != UB_PIN_MOVABLE)
        return false;
    ub_sites_ask(&ub_thread, id, &say);
    return ub_sites_may_leave(&say) && (how & UB_UNIT_EAGER || say.learned) &&
           ub_sites_leave(&ub_thread, id, &say, false) && leave(m, id, function, words, &b, mutex, say.site, ret);
}

bool ub_pysteps_computes(uint32_t id, ub_job_function *function, const uint64_t word[UB_POOL_WORDS], const void *mutex,
                         enum ub_pin *ret_pin, int64_t *ret)
{
    /* It may wait for another process's transaction, too; and it takes SQLite's own locks, which every connection
     * needs: a fork waits for it, as it would have alone. */
    struct ub_block b = {.fd = -1, .lane = UB_LANE_WAIT, .libc_lock = true};
    struct mine *m = ub_pysteps_mine(false);
    struct ub_sites_say say;
    uint64_t lock;
    bool left;

    *ret_pin = UB_PIN_MOVABLE;
    if (!m || !m->current || !ub_offload_moves || in_vfork_child())
        return false;
    ub_sites_ask(&ub_thread, id, &say);
    if (!ub_sites_may_leave(&say) || !(say.learned || say.verdict == UB_POLICY_WATCH))
        return false;
    *ret_pin =
        ub_locks_held(&lock) ? UB_PIN_LOCK : judge_step_of(m, (uintptr_t)__builtin_frame_address(0), false, true);
    if (*ret_pin != UB_PIN_MOVABLE || !ub_sites_leave(&ub_thread, id, &say, false))
        return false;
    m->current->computes = mutex;
    left = leave(m, id, (void *)function, word, &b, NULL, say.site, ret);
    m->current->computes = NULL;
    ub_pyqueue_tell_next(m, UB_SQLITE_ANY);
    return left;
}

void ub_pysteps_own(int by)
{
    struct mine *m = ub_pysteps_mine(false);

    if (m)
        m->own += (uint32_t)by;
}

void ub_pysteps_importing(int by)
{
    struct ub_holder *own = ub_pysteps_holder();

    if (own)
        own->importing += (uint32_t)by;
}

/* ---- methods of the interpreter's lock objects ----------------------------------------------- */

void ub_pysteps_acquire(void)
{
    struct ub_holder *own = ub_pysteps_holder();

    if (own)
        own->acquiring = UB_ACQUIRING_BEGUN;
}

bool ub_pysteps_acquired(void *lock, uint64_t *owner, bool got)
{
    struct mine *m = ub_pysteps_mine(false);
    struct ub_holder *own = m ? ub_pysteps_holder_of(m) : NULL;
    bool tried = own && own->acquiring == UB_ACQUIRING_TRIED, free = false;

    if (!own)
        return false;
    own->acquiring = UB_ACQUIRING_NOT;
    if (got && (owner || own->foreign))
        ub_holder_owner(own, lock, owner);
    if (!got && tried && ub_holder_is_away_with(lock, own)) {
        /* Not to be had at once, because another step has it who without us would be over: that one goes first. */
        free = try_again(m, lock) == 0;
        if (free)
            ub_holder_gives(own, lock);
    }
    return free;
}

void ub_pysteps_signalled(void *semaphore)
{
    struct ub_holder *own = ub_pysteps_holder();

    if (own)
        ub_holder_forgets(own, semaphore);
}
