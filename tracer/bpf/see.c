/*
 * How much of the system calls is looked at: which programs are attached, and when that changes.
 *
 * A thread of its own does it. To attach a program soon after it was detached the kernel waits for a grace
 * period, on a busy machine for 80 ms and more, and the watching thread has a stack to take meanwhile.
 */
#include "bpf_impl.h"

#include <bpf/libbpf.h>
#include <errno.h>
#include <signal.h>
#include <string.h>

/* When a program is attached: always, while calls are seen, or by who needs it. */
enum when { ALWAYS, ENTER, EXIT, ON_DEMAND };

static enum when when_of(const char *name)
{
    if (strcmp(name, "ub_find_threads") == 0 || strcmp(name, "ub_tick") == 0)
        return ON_DEMAND; /* for ub_bpf_find and ub_bpf_sample */
    if (strcmp(name, "ub_sys_enter") == 0)
        return ENTER;
    return strcmp(name, "ub_sys_exit") == 0 ? EXIT : ALWAYS;
}

static int attach(struct ub_bpf *b, enum when which)
{
    struct bpf_program *program;
    uint32_t i = 0;

    bpf_object__for_each_program(program, b->object)
    {
        struct bpf_link **link = &b->link[i++];

        if (i > UB_BPF_LINKS)
            return -E2BIG;
        if (*link || when_of(bpf_program__name(program)) != which)
            continue;
        *link = bpf_program__attach(program);
        if (!*link)
            return -errno;
    }
    return 0;
}

static void detach(struct ub_bpf *b, enum when which)
{
    struct bpf_program *program;
    uint32_t i = 0;

    bpf_object__for_each_program(program, b->object)
    {
        struct bpf_link **link = &b->link[i++];

        if (i > UB_BPF_LINKS || when_of(bpf_program__name(program)) != which)
            continue;
        bpf_link__destroy(*link);
        *link = NULL;
    }
}

/* ---- more or less ---- */

/* The program's enum doze. */
enum { DOZE_NONE, DOZE_WAKE, DOZE_LIGHT, DOZE_EXITS };

static void set_doze(struct ub_bpf *b, uint32_t doze)
{
    if (b->sees == UB_BPF_SEES_NO_CALLS && (doze == DOZE_EXITS || doze == DOZE_NONE))
        __atomic_store_n(b->calls_seen_ns, ub_clock_monotonic_ns(), __ATOMIC_SEQ_CST);
    __atomic_store_n(b->dozing, doze, __ATOMIC_SEQ_CST);
}

/*
 * What is taken away is told before, what is given back after it is there: in between
 * the programs work as if they saw less than they do, never the other way round.
 */
static int change(struct ub_bpf *b, const struct ub_bpf_order *order)
{
    static const uint32_t doze[] = {
        [UB_BPF_SEES_NO_CALLS] = DOZE_LIGHT, [UB_BPF_SEES_ENTRIES] = DOZE_EXITS, [UB_BPF_SEES_ALL] = DOZE_NONE};
    enum ub_bpf_sees sees = order->sees, before = b->sees;
    int r = 0;

    if (sees > before && ub_bpf_forced_off("calls"))
        return 0;
    if (sees < before)
        set_doze(b, sees == UB_BPF_SEES_NO_CALLS && !b->stretch_ns ? DOZE_WAKE : doze[sees]);
    if (sees == UB_BPF_SEES_NO_CALLS && before != sees) {
        if (!order->quiet(order->self)) {
            ub_store_release(&b->sees, UB_BPF_SEES_NO_CALLS); /* for a moment none were */
            set_doze(b, doze[before]);
            ub_store_release(&b->sees, before);
            return 0;
        }
        detach(b, ENTER);
    }
    if (sees < UB_BPF_SEES_ALL)
        detach(b, EXIT);
    if (sees > UB_BPF_SEES_NO_CALLS)
        r = attach(b, ENTER);
    if (r == 0 && sees == UB_BPF_SEES_ALL)
        r = attach(b, EXIT);
    if (r < 0)
        return r;
    if (sees > before)
        set_doze(b, doze[sees]);
    ub_store_release(&b->sees_from, ub_clock_monotonic_ns());
    ub_store_release(&b->sees, sees);
    return 0;
}

/* ---- by a thread of its own ---- */

static void *follow_orders(void *bpf)
{
    struct ub_bpf *b = bpf;
    int r;

    pthread_mutex_lock(&b->lock);
    while (!b->closing) {
        if (!b->ordered) {
            pthread_cond_wait(&b->news, &b->lock);
            continue;
        }
        pthread_mutex_unlock(&b->lock);
        r = change(b, &b->order);
        pthread_mutex_lock(&b->lock);
        b->ordered = false;
        b->error = r;
        pthread_cond_broadcast(&b->news);
    }
    pthread_mutex_unlock(&b->lock);
    return NULL;
}

static int start_thread(struct ub_bpf *b)
{
    sigset_t all, before;
    int r;

    pthread_mutex_init(&b->lock, NULL);
    pthread_cond_init(&b->news, NULL);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    r = pthread_create(&b->thread, NULL, follow_orders, b);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    b->has_thread = r == 0;
    return -r;
}

int ub_bpf_attach(struct ub_bpf *b)
{
    int r;

    if ((r = attach(b, EXIT)) < 0 || (r = attach(b, ENTER)) < 0 || (r = attach(b, ALWAYS)) < 0)
        return r;
    b->sees = UB_BPF_SEES_ALL;
    b->sees_from = ub_clock_monotonic_ns();
    return start_thread(b);
}

void ub_bpf_detach(struct ub_bpf *b)
{
    if (b->has_thread) {
        pthread_mutex_lock(&b->lock);
        b->closing = true;
        pthread_cond_broadcast(&b->news);
        pthread_mutex_unlock(&b->lock);
        pthread_join(b->thread, NULL);
    }
    for (uint32_t i = 0; i < UB_BPF_LINKS; i++)
        bpf_link__destroy(b->link[i]);
}

int ub_bpf_see(struct ub_bpf *b, enum ub_bpf_sees sees, bool (*quiet)(void *self), void *self)
{
    int r;

    pthread_mutex_lock(&b->lock);
    r = b->ordered ? -EBUSY : b->error;
    if (!b->ordered)
        b->error = 0;
    if (r == 0) {
        b->order = (struct ub_bpf_order){sees, quiet, self};
        b->ordered = true;
        pthread_cond_broadcast(&b->news);
    }
    pthread_mutex_unlock(&b->lock);
    return r;
}

void ub_bpf_see_no_more(struct ub_bpf *b)
{
    pthread_mutex_lock(&b->lock);
    while (b->ordered)
        pthread_cond_wait(&b->news, &b->lock);
    pthread_mutex_unlock(&b->lock);
}

enum ub_bpf_sees ub_bpf_sees(const struct ub_bpf *b)
{
    return ub_load_acquire(&b->sees);
}

uint64_t ub_bpf_calls_seen_ns(const struct ub_bpf *b)
{
    return ub_bpf_sees(b) == UB_BPF_SEES_NO_CALLS ? UINT64_MAX : ub_load_acquire(b->calls_seen_ns);
}

uint64_t ub_bpf_sees_from_ns(const struct ub_bpf *b)
{
    return ub_load_acquire(&b->sees_from);
}
