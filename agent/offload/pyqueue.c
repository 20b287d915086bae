/*
 * What one step at a time may be in the midst of, though all share one thread: the mutex of a client library's
 * connection, SQLite, a file object. Whoever else comes to it queues.
 */
#include "pysteps_impl.h"

#include "../patch.h"

#include <errno.h>

#define python ub_pysteps_python

#define UB_WAITS_MAX 16u        /* so many may wait for one another */
#define QUEUE_NS     2000000u   /* so long is who waits for another's left, */
#define QUEUE_MAX_NS 20000000u  /* and a quarter of the time that it has waited, or so long; */
#define BEHIND_NS    100000000u /* who is not the first is told when it is */

/* ---- the queue ----------------------------------------------------------------------------- */

/* Of those that queue for it. */
static struct step *first_in_queue(const struct mine *m, const void *what)
{
    struct step *first = NULL;

    for (struct step *s = m->suspended; s; s = s->next) {
        if (s->queues == what && (!first || s->ticket < first->ticket))
            first = s;
    }
    return first;
}

void ub_pyqueue_tell_next(struct mine *m, const void *what)
{
    struct step *s = m->queued ? first_in_queue(m, what) : NULL;
    uint64_t now;

    if (s && !s->done && s->deadline_ns > (now = ub_clock_monotonic_ns())) { /* not told already */
        s->deadline_ns = now;
        ub_pysteps_arm(m, s->host);
    }
}

/* Left for a moment, having waited since `begun_ns`. */
static bool leave_to(struct mine *m, struct step *s, uint64_t begun_ns, bool gil)
{
    uint64_t now = ub_clock_monotonic_ns(), ns = (now - begun_ns) / 4;
    const struct step *first = first_in_queue(m, s->queues);
    bool behind = first && first->ticket < s->ticket;

    s->job = (struct ub_job){0};
    s->wait.lock = NULL;
    s->fd = s->own_fd = -1;
    s->direction = s->holds_up = 0;
    s->deadline_ns = now + (behind ? BEHIND_NS : ns < QUEUE_NS ? QUEUE_NS : ns > QUEUE_MAX_NS ? QUEUE_MAX_NS : ns);
    return ub_pysteps_leave(m, s, gil);
}

static void comes_out(struct mine *m, struct step *s)
{
    s->queues = NULL;
    m->queued--;
}

/* Whether another step has it, or has come for it before the ticket; 0: no ticket, this one cannot be left. */
typedef bool is_had(struct mine *m, const void *what, uint64_t ticket);

/*
 * Somebody has it: who comes is left for a moment, again and again, or (where that cannot be) lets the other go on
 * here. Neither: it goes in, as though there were only one.
 */
static void wait_for(struct mine *m, const void *what, uint64_t ticket, is_had *had)
{
    struct step *s = m->current;
    uint64_t begun = ub_clock_monotonic_ns();
    bool leaves = s && ub_pysteps_may_leave(m, (uintptr_t)__builtin_frame_address(0), python->holds_gil());
    int saved = errno;

    if (leaves) {
        s->queues = what;
        s->ticket = ticket;
        m->queued++;
    }
    while (python->alone() && had(m, what, leaves ? s->ticket : 0)) {
        bool gil = python->holds_gil();

        if (leaves && leave_to(m, s, begun, gil))
            continue;
        if (leaves)
            comes_out(m, s);
        leaves = false;
        ub_pydrive_once(m, gil, -1, 0, 0);
    }
    if (leaves)
        comes_out(m, s);
    ub_pyqueue_tell_next(m, what);
    errno = saved;
}

/* ---- connections and their mutexes ------------------------------------------------------------ */

/* Who has the one has the other. */
static bool covers(const void *unit, const void *other)
{
    return unit == other || (unit == UB_UNIT_ANY && (uintptr_t)other & 1);
}

bool ub_pyqueue_has_unit(const struct step *s, const void *connection)
{
    for (uint32_t i = 0; i < s->units && i < UB_STEP_UNITS; i++) {
        if (covers(s->unit[i], connection))
            return true;
    }
    return false;
}

/* Has it, or what may be the same. */
static bool may_have_unit(const struct step *s, const void *connection)
{
    for (uint32_t i = 0; i < s->units && i < UB_STEP_UNITS; i++) {
        if (covers(s->unit[i], connection) || covers(connection, s->unit[i]))
            return true;
    }
    return false;
}

void ub_pyqueue_add_unit(struct step *s, const void *connection)
{
    if (!connection || ub_pyqueue_has_unit(s, connection) || s->units > UB_STEP_UNITS)
        return;
    if (s->units < UB_STEP_UNITS)
        s->unit[s->units] = connection;
    s->units++;
}

static const struct step *suspended_with(const struct mine *m, const void *connection)
{
    const struct step *s = m->suspended;

    while (s && !may_have_unit(s, connection))
        s = s->next;
    return s;
}

/* It queues for what the current step has, or for what one has that does. */
static bool waits_for_current(const struct mine *m, const struct step *s)
{
    for (uint32_t i = 0; i < UB_WAITS_MAX && m->current && s && s->queues; i++) {
        if (may_have_unit(m->current, s->queues))
            return true;
        s = suspended_with(m, s->queues);
    }
    return false;
}

/*
 * Who is in the midst of a call with it, or has come for it before the ticket. Who has a connection, and waits for a
 * lock or for a connection of the current step's, may wait for who comes.
 */
static const struct step *first_with(const struct mine *m, const void *mutex, uint64_t ticket)
{
    const struct step *s = m->suspended;

    while (s && s->mutex != mutex && !(s->computes && (mutex == s->computes || mutex == UB_SQLITE_ANY)) &&
           !(may_have_unit(s, mutex) && !s->wait.lock && !waits_for_current(m, s)) &&
           !(s->queues == mutex && s->ticket < ticket))
        s = s->next;
    return s;
}

#define CROSSES "a step got a connection of one that may wait for it: they mix"

/*
 * Nobody is waited for any more. Who has it nevertheless may wait for who comes: to wait for one another would be for
 * ever, so their queries get in between each other's, as the run's end says.
 */
static void tell_crossing(const struct mine *m, const void *mutex)
{
    if (suspended_with(m, mutex))
        ub_pyfunctions_note(CROSSES);
}

static bool mutex_is_had(struct mine *m, const void *mutex, uint64_t ticket)
{
    return first_with(m, mutex, ticket) != NULL;
}

void ub_pysteps_wait_for_mutex(const void *mutex)
{
    struct mine *m = python ? ub_pysteps_mine(false) : NULL;

    if (!m || m->own) /* also the interpreter's own mutexes come here */
        return;
    if (first_with(m, mutex, UINT64_MAX))
        wait_for(m, mutex, ++m->tickets, mutex_is_had);
    tell_crossing(m, mutex);
}

/* ---- files ------------------------------------------------------------------------------- */

static bool is_suspended(const struct mine *m, const struct step *of)
{
    const struct step *s = m->suspended;

    while (s && s != of)
        s = s->next;
    return s != NULL;
}

/*
 * Somebody else is in the midst of it; or queues for it, whose step began before this one's: without us that would be
 * over by now, so what it writes by several calls (a print) comes first, and stays together. A place below this one
 * goes on only if this one is left.
 */
static bool file_is_had(struct mine *m, const void *file, uint64_t ticket)
{
    const struct step *first, *s = m->current;
    bool had = false;

    for (const struct ub_python_file *u = m->files; u; u = u->next) {
        if (u->file != file)
            continue;
        if (u->by == s)
            return false;
        had |= ticket || (is_suspended(m, u->by) && ub_pysteps_may_drive(m, true));
    }
    if (had)
        return true;
    first = ticket ? first_in_queue(m, file) : NULL;
    return first && first->ticket < ticket;
}

void ub_pysteps_file_begins(struct ub_python_file *use, const void *file)
{
    /* Where stacks are copied to and fro, `use` does not stay where it is: and no step is left. */
    struct mine *m = ub_patch_stacks ? NULL : ub_pysteps_mine(false);
    uint64_t ticket = m && m->current ? m->current->began : 0;

    *use = (struct ub_python_file){.file = m ? file : NULL};
    if (!m)
        return;
    if ((m->suspended || m->files) && !m->own && file_is_had(m, file, ticket))
        wait_for(m, file, ticket, file_is_had);
    use->by = m->current;
    use->next = m->files;
    use->at = &m->files;
    if (use->next)
        use->next->at = &use->next;
    m->files = use;
}

void ub_pysteps_file_ends(struct ub_python_file *use)
{
    struct mine *m = ub_pysteps_mine(false);

    if (!use->file)
        return;
    *use->at = use->next;
    if (use->next)
        use->next->at = use->at;
    if (!m)
        return;
    ub_pyqueue_tell_next(m, use->file);
}
