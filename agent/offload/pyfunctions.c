/*
 * Functions that a policy has called elsewhere: where they are called from, and how a task's step waits for
 * them. What is called, and by whom, is Python's (python/functions.c).
 */
#include "pysteps_impl.h"

#include <dlfcn.h>
#include <poll.h>
#include <stddef.h>
#include <time.h>

#define DONE    1ull
#define BEAT_NS 2000000 /* who waits without leaving looks so often */

bool ub_pyfunctions_park(struct ub_ticket *ticket, struct ub_job *job)
{
    uint64_t open = 0;

    return __atomic_compare_exchange_n(&ticket->word, &open, (uintptr_t)job, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}

static void done(struct ub_ticket *ticket)
{
    uint64_t before = __atomic_exchange_n(&ticket->word, DONE, __ATOMIC_ACQ_REL);

    if (before > DONE)
        ub_pool_deliver((struct ub_job *)before);
}

static bool is_done(const struct ub_ticket *ticket)
{
    return __atomic_load_n(&ticket->word, __ATOMIC_ACQUIRE) == DONE;
}

/* ---- where -------------------------------------------------------------------------------------- */

static const char *const reasons[] = {
#define X(name, text) text,
    UB_PIN_LIST(X)
#undef X
};

const char *ub_pyfunctions_reason(enum ub_pin pin)
{
    return reasons[pin];
}

void ub_pyfunctions_note(const char *text)
{
    struct ub_python_row *row =
        ub_process->arena ? ub_python_table_row(&ub_process->arena->python, UB_PYTHON_NOTE, "", "", text) : NULL;

    if (row)
        ub_python_row_add(row, 0);
}

static enum ub_python_where where(const char **ret_why)
{
    const struct mine *m;
    enum ub_pin pin;
    uint64_t lock;

    if (!ub_process->arena || ub_offload_now() != UB_OFFLOAD_POLICY || ub_process->quiet != UB_QUIET_NOT)
        return UB_PYTHON_ANYWHERE;
    m = ub_pysteps_mine(false);
    if (!m || !m->current)
        return ub_raw0(SYS_gettid) == ub_raw0(SYS_getpid) || (m && m->own) ? UB_PYTHON_ANYWHERE : UB_PYTHON_IN_THREAD;
    if (m->own)
        return UB_PYTHON_ANYWHERE;
    pin = ub_pysteps_judge_place(m, (uintptr_t)__builtin_frame_address(0), true, &lock);
    if (pin == UB_PIN_MOVABLE && !m->here)
        return UB_PYTHON_IN_STEP;
    *ret_why = pin == UB_PIN_MOVABLE ? "nested" : reasons[pin];
    return UB_PYTHON_STAYS;
}

/* ---- waiting -------------------------------------------------------------------------------------- */

/* Leaves the step that runs, if one does that can be. */
static bool leave(struct mine *m, struct ub_ticket *ticket, const struct ub_job *job)
{
    struct step *s = m ? m->current : NULL;
    uint64_t lock;
    bool left;

    if (!s || m->here ||
        ub_pysteps_judge_place(m, (uintptr_t)__builtin_frame_address(0), true, &lock) != UB_PIN_MOVABLE)
        return false;
    s->job = *job;
    s->wait.lock = NULL;
    s->fd = s->own_fd = -1;
    s->direction = s->holds_up = 0;
    s->deadline_ns = 0;
    s->awaits = ticket;
    s->calls = true;
    left = ub_pysteps_leave(m, s, true);
    s->awaits = NULL;
    s->calls = false;
    return left;
}

/* In its place: what is suspended goes on meanwhile, if there is something. */
static bool wait(struct ub_ticket *ticket)
{
    const struct timespec beat = {.tv_nsec = BEAT_NS};
    const struct ub_job none = {0};
    struct mine *m = ub_pysteps_mine(false);

    if (is_done(ticket) || leave(m, ticket, &none))
        return true;
    if (m && m->suspended && ub_pysteps_python->alone()) {
        ub_pydrive_once(m, true, -1, 0, ub_clock_monotonic_ns() + BEAT_NS);
    } else {
        ub_pysteps_python->give_gil();
        ub_raw2(SYS_nanosleep, (long)&beat, 0);
        ub_pysteps_python->take_gil();
    }
    return is_done(ticket);
}

static int64_t polls(uint64_t fd, uint64_t events, uint64_t timeout_ns, uint64_t d, uint64_t e, uint64_t f, uint64_t g,
                     uint64_t h)
{
    struct pollfd p = {.fd = (int)fd, .events = (short)events};
    struct timespec t = {.tv_sec = (time_t)(timeout_ns / 1000000000), .tv_nsec = (long)(timeout_ns % 1000000000)};

    return ub_raw6(SYS_ppoll, (long)&p, 1, (long)&t, 0, 0, 0);
}

static bool wait_fd(int fd, short events, int timeout_ms)
{
    const struct ub_job job = {.function = polls,
                               .lane = UB_LANE_WAIT,
                               .word = {(uint64_t)fd, (uint64_t)events, (uint64_t)timeout_ms * 1000000}};
    struct mine *m = ub_pysteps_mine(false);
    int64_t r;

    if (polls((uint64_t)fd, (uint64_t)events, 0, 0, 0, 0, 0, 0) > 0)
        return true;
    if (leave(m, NULL, &job))
        return m->current->job.result > 0;
    if (m && m->suspended && ub_pysteps_python->alone())
        return ub_pydrive_once(m, true, fd, events, ub_clock_monotonic_ns() + job.word[2]) == 0 &&
               polls((uint64_t)fd, (uint64_t)events, 0, 0, 0, 0, 0, 0) > 0;
    ub_pysteps_python->give_gil();
    r = polls((uint64_t)fd, (uint64_t)events, job.word[2], 0, 0, 0, 0, 0);
    ub_pysteps_python->take_gil();
    return r > 0;
}

static struct ub_python_functions_agent agent = {.own = ub_pysteps_own,
                                                 .where = where,
                                                 .wait = wait,
                                                 .wait_fd = wait_fd,
                                                 .done = done,
                                                 .now_ns = ub_clock_monotonic_ns};

void ub_pyfunctions_start(void *object)
{
    bool (*start)(const struct ub_python_functions_agent *) =
        (bool (*)(const struct ub_python_functions_agent *))dlsym(object, "ub_python_functions_start");

    if (!start || !ub_process->arena || ub_offload_mode != UB_OFFLOAD_POLICY)
        return;
    agent.table = &ub_process->arena->python;
    ub_pysteps_own(1);
    start(&agent);
    ub_pysteps_own(-1);
}
