#include "cause.h"

#include <string.h>
#include <sys/syscall.h>

/* The kernel brings the accounts of a running thread up to date once a tick (4 ms at 250 Hz). */
#define UB_ACCOUNT_MIN_NS 12000000u

void ub_cause_shares(const struct ub_accounting *from, const struct ub_accounting *to, uint64_t end_ns,
                     struct ub_shares *ret)
{
    uint64_t until = to->at_ns < end_ns ? to->at_ns : end_ns;

    memset(ret, 0, sizeof(*ret));
    if (!from->at_ns || !to->at_ns || until <= from->at_ns)
        return;
    ret->window_ns = until - from->at_ns;
    ret->cpu_ns = to->sched.run_ns - from->sched.run_ns;
    ret->runqueue_ns = to->sched.wait_ns - from->sched.wait_ns;
    if (ret->cpu_ns > ret->window_ns)
        ret->cpu_ns = ret->window_ns;
    if (ret->runqueue_ns > ret->window_ns - ret->cpu_ns)
        ret->runqueue_ns = ret->window_ns - ret->cpu_ns;
    ret->blocked_ns = ret->window_ns - ret->cpu_ns - ret->runqueue_ns;
    ret->majflt = to->majflt > from->majflt && from->majflt ? to->majflt - from->majflt : 0;
    ret->known = ret->window_ns >= UB_ACCOUNT_MIN_NS;
}

static const char *blocked_name(const struct ub_seen *seen, uint32_t count, uint64_t majflt)
{
    uint32_t lock = 0, call = 0, fault = 0, gil = 0;

    for (uint32_t i = 0; i < count; i++) {
        if (seen[i].state == UB_THREAD_FAULT)
            fault++;
        else if (seen[i].gil == UB_PYTHON_GIL_WAITED)
            gil++;
        else if (seen[i].state == UB_THREAD_BLOCKED)
            (*(seen[i].lock ? &lock : &call))++;
    }
    if (lock + call + fault + gil == 0)
        return majflt ? "pagefault" : "unknown";
    if (gil >= fault && gil >= lock && gil >= call)
        return "gil";
    if (fault >= lock && fault >= call)
        return "pagefault";
    return lock > call ? "lock" : "call";
}

static const char *by_looks(const struct ub_seen *seen, uint32_t count, uint64_t majflt)
{
    uint32_t running = 0;

    for (uint32_t i = 0; i < count; i++)
        running += seen[i].state == UB_THREAD_RUNNING;
    if (count > 0 && 2 * running > count)
        return "cpu";
    return blocked_name(seen, count, majflt);
}

/* Where most looks agree on it, what Python was doing says more than that it used the CPU. */
static const char *python_name(const struct ub_seen *seen, uint32_t count, const char *name)
{
    uint32_t collecting = 0, importing = 0;
    bool cpu = strcmp(name, "cpu") == 0;

    for (uint32_t i = 0; i < count; i++) {
        collecting += seen[i].collecting;
        importing += seen[i].importing;
    }
    if (cpu && 2 * collecting > count)
        return "gc";
    if ((cpu || strcmp(name, "call") == 0) && 2 * importing > count)
        return "import";
    return name;
}

static const char *name_by_time(const struct ub_seen *seen, uint32_t count, const struct ub_shares *shares,
                                uint64_t duration_ns)
{
    if (shares->runqueue_ns > duration_ns / 2) /* exact even where the rest of the turn was not observed */
        return "runqueue";
    if (!shares->known || shares->window_ns < duration_ns / 2)
        return by_looks(seen, count, shares->majflt);
    if (shares->runqueue_ns > shares->cpu_ns && shares->runqueue_ns > shares->blocked_ns)
        return "runqueue";
    if (shares->cpu_ns >= shares->blocked_ns)
        return "cpu";
    return blocked_name(seen, count, shares->majflt);
}

const char *ub_cause_name(const struct ub_seen *seen, uint32_t count, const struct ub_shares *shares,
                          uint64_t duration_ns, uint64_t blind_ns)
{
    for (uint32_t i = 0; i < count; i++) {
        if (seen[i].stopped)
            return "stopped";
    }
    if (blind_ns > duration_ns / 2)
        return "stopped";
    return python_name(seen, count, name_by_time(seen, count, shares, duration_ns));
}

bool ub_cause_is_lock(const struct ub_named_stack *s)
{
    static const char *const locks[] = {
        "pthread_mutex_",  "__pthread_mutex_",  "___pthread_mutex_",
        "pthread_rwlock_", "__pthread_rwlock_", "___pthread_rwlock_",
        "pthread_cond_",   "__pthread_cond_",   "___pthread_cond_",
        "sem_wait",        "sem_timedwait",     "sem_clockwait",
        "__sem_",          "__new_sem_",        "mtx_lock",
        "cnd_wait",        "pthread_spin_",     "pthread_barrier_",
        "__lll_lock_wait",
    };

    for (uint32_t i = 0; i < s->count && s->frame[i].libc; i++) {
        const struct ub_symbol *symbol = &s->frame[i].symbol;

        for (size_t k = 0; symbol->function && !symbol->nearest && k < UB_ARRAY_LEN(locks); k++) {
            if (strncmp(symbol->function, locks[k], strlen(locks[k])) == 0)
                return true;
        }
    }
    return false;
}
