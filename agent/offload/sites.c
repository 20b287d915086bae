#include "sites.h"

#include "../python/stack.h"

/* Number of this program image in the run: its addresses mean nothing in another. A fork has its parent's. */
static uint64_t image(void)
{
    static uint64_t own;
    uint64_t none = 0, next;

    if (!ub_load_relaxed(&own)) {
        next = 1 + __atomic_fetch_add(&ub_process->arena->h.policy_images, 1, __ATOMIC_RELAXED);
        __atomic_compare_exchange_n(&own, &none, next, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    }
    return ub_load_relaxed(&own);
}

/* In Python: every such call is made from the same few places of the interpreter, so its own innermost frame counts. */
static struct ub_policy_site *find_python(struct ub_policy *p, uint32_t id, uint64_t function, bool make)
{
    uint64_t place[UB_POLICY_FRAMES];
    struct ub_policy_site *site;
    uint32_t n;

    if (!make && ub_load_relaxed(&p->fresh) == 0)
        return NULL;
    n = ub_python_places(place, 1);
    site = n ? ub_policy_find(p, image(), id, place[0], function, ub_process->pid, NULL, 0, false) : NULL;
    if (site || !make || !n)
        return site;
    n = ub_python_places(place, UB_POLICY_FRAMES);
    return n ? ub_policy_find(p, image(), id, place[0], function, ub_process->pid, place, n, true) : NULL;
}

struct ub_policy_site *ub_sites_find(const struct ub_thread *t, uint32_t id, bool make)
{
    struct ub_policy *p = &ub_process->arena->policy;
    const struct ub_spans *s = &t->cold->spans;
    uint64_t function = s->depth ? s->level[0].callback.function : 0;
    uint32_t fresh = ub_load_relaxed(&p->fresh);
    struct ub_policy_site *site;

    if (s->depth && s->level[0].callback.library == UB_LOOP_ASYNCIO)
        site = find_python(p, id, function, make);
    else
        site = ub_policy_find(p, image(), id, s->call_ra, function, ub_process->pid, NULL, 0, make);
    if (ub_load_relaxed(&p->fresh) != fresh)
        ub_process_ring(); /* its names are had only as long as this process is there */
    return site;
}

void ub_sites_blocked(const struct ub_thread *t, uint32_t id, uint64_t spent)
{
    struct ub_policy_site *site = ub_sites_find(t, id, true);

    if (!site)
        return;
    __atomic_fetch_add(&site->blocked, 1, __ATOMIC_RELAXED);
    __atomic_fetch_add(&site->blocked_ticks, spent, __ATOMIC_RELAXED);
    ub_store_relaxed(&site->learned, 1);
}

void ub_sites_moved(struct ub_policy_site *site, uint64_t ns, uint64_t pool_ns)
{
    __atomic_fetch_add(&site->moved, 1, __ATOMIC_RELAXED);
    __atomic_fetch_add(&site->moved_ns, ns, __ATOMIC_RELAXED);
    __atomic_fetch_add(&site->pool_ns, pool_ns, __ATOMIC_RELAXED);
    if (ns > ub_load_relaxed(&site->longest_ns))
        ub_store_relaxed(&site->longest_ns, ns); /* two threads at once: either is right enough */
}
